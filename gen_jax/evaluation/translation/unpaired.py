"""Translations between unpaired domains, both ways, beside untranslated images and real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from gen_jax.core import ImageTranslator, State
from gen_jax.data.source import Arrays
from gen_jax.data.transforms import shift
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.features import Encoder, TrainedClassifier, fit_classifier, raw
from gen_jax.evaluation.samples.quality import resolve_encoder
from gen_jax.evaluation.translation.images import (
    absolute_error,
    compare_images,
    diagnose,
    is_test,
    like,
    mean_of,
    partners_found,
    transformed,
    translator_of,
)
from gen_jax.evaluation.translation.paired import feature_distances
from gen_jax.models.translation.direction import BACK

__all__ = ["unpaired_quality"]

_NOISE = 0.02  # deviation of the noise that reveals what a cycle hides, of values in [-1, 1]


def unpaired_quality(
    encoder: Encoder | Callable[[Split], Encoder] = raw, often: int = 200, adapted: int = 10_000
) -> Metric:
    """Makes the metric of translations between unpaired domains, each name after its direction, such as a2b_changed.

    kernel_distance, frechet_distance (the latter on "test" only): to real images of the other domain, beside _of_copy
    (untranslated) and _of_training (real ones). changed, correlation, spread: see `diagnose`. cycle: the mean absolute
    difference of the image after the way back, rounded to 8 bits between; cycle_noisy: with slight noise too, which
    reveals what is hidden in the translation. identity: of an image of the target domain and its translation.
    Where the domains are aligned: l1, psnr, ssim to the true partner, and retrieval, how often that is the nearest.
    Where both have labels: label_consistency, the accuracy on translations of a classifier of the target domain, beside
    _of_copy and _of_real images of that domain; adaptation, the accuracy on real target images of a classifier trained
    on translated training images with the labels of their sources, beside _of_copy (source only).
    often: how many images of splits other than "test". adapted: how many training images are translated for
    `adaptation`; 0: no classifier is trained. Labels are used on "test" only.
    """

    def metric(model: Any) -> Measure:
        ask(model, ImageTranslator, "unpaired_quality")
        translate, judges, known = translator_of(model), {}, {}

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            if split.partner is None:
                raise UserError("unpaired_quality needs two domains: use paired_quality for pairs")
            found: dict[str, Estimate] = {}
            for side in model.directions:
                source, target = (split, split.partner) if side == "a2b" else (split.partner, split)
                n = 5000 if is_test(split) else often
                encode = resolve_encoder(encoder, target)
                if (side, split.name) not in known:
                    known[side, split.name] = _without_model(encode, source, target, n)
                values = known[side, split.name] | _direction(
                    translate, state, side, source, target, n, encode, "b2a" in model.directions
                )
                if adapted and is_test(split) and "label" in source.arrays and "label" in target.arrays:
                    if (side, split.name) not in judges:
                        judges[side, split.name] = _Judge.of(source, target, adapted)
                    values |= judges[side, split.name].estimates(
                        partial(translate, state, direction=side), source, target
                    )
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
    encode: Encoder,
    both_ways: bool,
) -> dict[str, Estimate]:
    """The estimates of one direction that need no labels."""
    x, y = transformed(source, n=n), transformed(target, n=n)
    outputs = translate(state, x, side)
    seen, made, real = source.pixels(x), target.pixels(outputs), target.pixels(y)
    copied, channels = like(seen, real.shape[-1]), real.shape[-1]
    found = feature_distances(encode, real, {"": made}, is_test(source)) | diagnose(made, copied, real)
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
    return with_group(found, "translation", retrieval="higher", cycle="lower")


def _without_model(encode: Encoder, source: Split, target: Split, n: int) -> dict[str, Estimate]:
    """The estimates of untranslated images and of real training images."""
    seen, real = (one.pixels(transformed(one, n=n)) for one in (source, target))
    images = {"_of_training": target.pixels(transformed(target.reference, n=1000))}
    copied = like(seen, real.shape[-1])
    if copied is None or copied.shape[1:] != real.shape[1:]:
        return feature_distances(encode, real, images, is_test(source))
    found = feature_distances(encode, real, {**images, "_of_copy": copied}, is_test(source))
    if source.info is not None and source.info.aligned:
        found |= compare_images(copied, real, "_of_copy")
        found |= {"retrieval_of_copy": _share(partners_found(copied, real), f"of {len(real)}")}
    return found


class _Judge(NamedTuple):
    """Classifiers of the target domain, and what they say of untranslated images."""

    classifier: TrainedClassifier
    test: Arrays  # labeled real images of the target domain
    training: Split  # of the source domain, to be translated
    known: Mapping[str, Estimate]

    @classmethod
    def of(cls, source: Split, target: Split, adapted: int) -> _Judge:
        """The classifier sees training images moved by a pixel too: it judges the shape, not the place."""
        test, some = _labeled(target, 5000), _labeled(source.reference, adapted)
        made = fit_classifier(_labeled(target.reference, 20_000), test, "target", transforms=[shift(1)])
        training = source.reference.part(0, adapted)
        judge = cls(made, test, training, {})
        real = judge._recognized(test["x"], test["label"])._replace(how="real images of the target domain")
        known = {"label_consistency_of_real": real}
        if some["x"].shape[1:] == test["x"].shape[1:]:
            seen = _labeled(source, 5000)
            known["label_consistency_of_copy"] = judge._recognized(seen["x"], seen["label"])
            known["adaptation_of_copy"] = judge._adapted(some["x"], "untranslated")
        return judge._replace(known=known)

    def estimates(
        self, translate: Callable[[np.ndarray], np.ndarray], source: Split, target: Split
    ) -> dict[str, Estimate]:
        """Whether translations keep the label, and serve to train a classifier of the target domain."""
        made = lambda split, n: target.pixels(translate(transformed(split, n=n)))
        labels = np.asarray(source.arrays["label"][:5000])
        found = {
            **self.known,
            "label_consistency": self._recognized(made(source, 5000), labels),
            "adaptation": self._adapted(made(self.training, self.training.size), "translated"),
        }
        return with_group(found, "translation", label_consistency="higher", adaptation="higher")

    def _recognized(self, images: np.ndarray, labels: np.ndarray) -> Estimate:
        """The accuracy of the classifier."""
        how = f"classifier of {self.classifier.accuracy:.3f} on real images"
        return _share(self.classifier.encoder()(images).probabilities.argmax(axis=1) == labels, how)

    def _adapted(self, images: np.ndarray, kind: str) -> Estimate:
        """The accuracy on real images of a classifier trained on these, with the labels of the source domain."""
        labels = np.asarray(self.training.arrays["label"])
        made = fit_classifier({"x": images, "label": labels}, self.test, "").encoder()
        right = made(self.test["x"]).probabilities.argmax(axis=1) == self.test["label"]
        return _share(right, f"{len(images)} {kind} training images")


def _labeled(split: Split, n: int) -> dict[str, np.ndarray]:
    n = min(n, split.size)
    return {"x": split.pixels(transformed(split, n=n)), "label": np.asarray(split.arrays["label"][:n])}


def _share(right: np.ndarray, how: str) -> Estimate:
    """The share of true values."""
    share, n = float(np.mean(right)), len(right)
    return Estimate(share, math.sqrt(share * (1 - share) / n), "share", "estimate", n, how)
