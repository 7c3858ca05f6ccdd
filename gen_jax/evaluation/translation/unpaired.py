"""Translations between unpaired domains, both ways, beside untranslated images and real ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from gen_jax.core import ImageTranslator, State
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.features import Encoder, TrainedClassifier, fit_classifier, raw
from gen_jax.evaluation.samples.quality import resolve_encoder
from gen_jax.evaluation.translation.images import (
    absolute_error,
    compare_images,
    diagnose,
    like,
    mean_of,
    partners_found,
    transformed,
    translator_of,
)
from gen_jax.evaluation.translation.paired import kernel_distances
from gen_jax.models.translation.direction import BACK

__all__ = ["unpaired_quality"]

_NOISE = 0.02  # deviation of the noise that reveals what a cycle hides, of values in [-1, 1]


def unpaired_quality(
    encoder: Encoder | Callable[[Split], Encoder] = raw, often: int = 200, adapted: int = 10_000
) -> Metric:
    """Makes the metric of translations between unpaired domains, each name after its direction, such as a2b_changed.

    kernel_distance: to real images of the other domain, beside _of_copy (untranslated) and _of_training (real ones).
    changed, correlation, spread: see `diagnose`. cycle: that of the image after the way back,
    rounded to 8 bits between; cycle_noisy: with slight noise too, which reveals what is hidden in the translation.
    identity: of an image of the target domain and its translation.
    Where the domains are aligned: l1, psnr, ssim to the true partner, and retrieval, how often that is the nearest.
    Where both have labels: label_consistency, the accuracy on translations of a classifier of the target domain, beside
    _of_copy and _of_real images of that domain; adaptation, the accuracy on real target images of a classifier trained
    on translated training images with the labels of their sources, beside _of_copy (source only).
    often: how many images of splits other than "test". adapted: how many training images are translated for
    `adaptation`; 0: no classifier is trained. Labels are used on "test" only.
    """

    def metric(model: Any) -> Measure:
        ask(model, ImageTranslator, "unpaired_quality")
        translate, classifiers = translator_of(model), {}

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            if split.partner is None:
                raise UserError("unpaired_quality needs two domains: use paired_quality for pairs")
            found: dict[str, Estimate] = {}
            for side in model.directions:
                source, target = (split, split.partner) if side == "a2b" else (split.partner, split)
                n = 5000 if split.name == "test" else often
                values = _direction(translate, state, side, source, target, n, encoder, "b2a" in model.directions)
                if adapted and split.name == "test" and "label" in source.arrays and "label" in target.arrays:
                    if side not in classifiers:
                        classifiers[side] = _classifier(target)
                    values |= _labels(translate, state, side, source, target, classifiers[side], adapted)
                found |= {f"{side}_{name}": e for name, e in values.items()}
            return found

        return measure

    metric.__name__ = "unpaired_quality"
    return metric


def _direction(
    translate: Any,
    state: State,
    side: str,
    source: Split,
    target: Split,
    n: int,
    encoder: Encoder | Callable[[Split], Encoder],
    both_ways: bool,
) -> dict[str, Estimate]:
    """The estimates of one direction that need no labels."""
    x, y = transformed(source, n=n), transformed(target, n=n)
    outputs = translate(state, x, side)
    seen, made, real = source.pixels(x), target.pixels(outputs), target.pixels(y)
    copied, channels = like(seen, real.shape[-1]), real.shape[-1]
    images = {"": made, "_of_training": target.pixels(transformed(target.reference, n=1000))}
    images |= {} if copied is None or copied.shape[1:] != real.shape[1:] else {"_of_copy": copied}
    found = kernel_distances(resolve_encoder(encoder, target), real, images)
    found |= diagnose(made, copied, real)
    if both_ways:
        rounded = np.rint((outputs + 1) * 127.5).clip(0, 255) / 127.5 - 1
        noise = np.random.default_rng(0).normal(scale=_NOISE, size=outputs.shape)
        back = lambda sent: source.pixels(translate(state, sent.astype(outputs.dtype), BACK[side]))
        plain, noisy = (np.asarray(absolute_error(back(sent), seen)) for sent in (rounded, rounded + noise))
        note = "the source is hidden in the translation, invisibly" if noisy.mean() > 2 * plain.mean() + 0.02 else ""
        found |= mean_of("cycle", plain) | mean_of("cycle_noisy", noisy, note)
    if x.shape[-1] == channels:
        found |= mean_of("identity", absolute_error(target.pixels(translate(state, y, side)), real))
    if source.info is not None and source.info.aligned:
        found |= compare_images(made, real)
        found |= {"retrieval": _share(partners_found(made, real), f"of {len(real)}")}
        if copied is not None:
            found |= compare_images(copied, real, "_of_copy")
            found |= {"retrieval_of_copy": _share(partners_found(copied, real), f"of {len(real)}")}
    return with_group(found, "translation", retrieval="higher", cycle="lower")


def _classifier(target: Split) -> TrainedClassifier:
    """A classifier of the target domain, with its accuracy on the split."""
    return fit_classifier(_labeled(target.reference, 20_000), _labeled(target, 5000), "target")


def _labeled(split: Split, n: int) -> dict[str, np.ndarray]:
    n = min(n, split.size)
    return {"x": split.pixels(transformed(split, n=n)), "label": np.asarray(split.arrays["label"][:n])}


def _labels(
    translate: Any, state: State, side: str, source: Split, target: Split, known: TrainedClassifier, adapted: int
) -> dict[str, Estimate]:
    """Whether translations keep the label, and serve to train a classifier of the target domain."""
    n = min(5000, source.size)
    labels, x = np.asarray(source.arrays["label"][:n]), transformed(source, n=n)
    right = lambda images, labels=labels: known.encoder()(images).probabilities.argmax(axis=1) == labels
    shapes = source.arrays["x"].shape[1:] == target.arrays["x"].shape[1:]
    how = f"classifier of {known.accuracy:.3f} on real images"
    found = {"label_consistency": _share(right(target.pixels(translate(state, x, side))), how)}
    found |= {"label_consistency_of_copy": _share(right(source.pixels(x)), how)} if shapes else {}
    some, test = _labeled(source.reference, adapted), _labeled(target, 5000)
    found |= {"label_consistency_of_real": _share(right(test["x"], test["label"]), "real images of the target domain")}
    ways = {"adaptation": target.pixels(translate(state, transformed(source.reference, n=adapted), side))}
    ways |= {"adaptation_of_copy": some["x"]} if shapes else {}
    for name, images in ways.items():
        made = fit_classifier({"x": images, "label": some["label"]}, test, "").encoder()
        how = f"{len(images)} {'translated' if name == 'adaptation' else 'untranslated'} training images"
        found[name] = _share(made(test["x"]).probabilities.argmax(axis=1) == test["label"], how)
    return with_group(found, "translation", label_consistency="higher", adaptation="higher")


def _share(right: np.ndarray, how: str) -> Estimate:
    """The share of true values."""
    share, n = float(np.mean(right)), len(right)
    return Estimate(share, math.sqrt(share * (1 - share) / n), "share", "estimate", n, how)
