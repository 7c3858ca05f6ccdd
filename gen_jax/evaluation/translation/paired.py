"""Translations against the true images of their pairs, beside what needs no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from gen_jax.core import ImageTranslator, State, fold_in
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.distances import Moments
from gen_jax.evaluation.samples.features import Encoder, raw
from gen_jax.evaluation.samples.quality import frechet_estimates, kernel_estimate, resolve_encoder
from gen_jax.evaluation.translation.images import (
    absolute_error,
    class_maps,
    closest,
    compare_images,
    diagnose,
    is_test,
    like,
    mean_of,
    transformed,
    translator_of,
)

__all__ = ["floors", "paired_quality"]


def paired_quality(encoder: Encoder | Callable[[Split], Encoder] = raw, often: int = 100) -> Metric:
    """Makes the metric of translations of pairs: l1, psnr, ssim against the truth, of images rounded to 8 bits.

    kernel_distance, frechet_distance (the latter on "test" only): of the translations to the true images of the split
    (KID, Binkowski et al. 2018; FID, Heusel et al. 2017).
    NAME_of_copy, _of_mean_image, _of_colors, _of_nearest: the same of what needs no network, see `floors`;
    kernel_distance_of_training, frechet_distance_of_training: of real training images. changed, correlation, spread:
    see `diagnose`. diversity: the mean absolute difference of two translations with other noise and dropout, 0 without.
    encoder: of these distances. often: how many pairs of splits other than "test".
    """

    def metric(model: Any) -> Measure:
        ask(model, ImageTranslator, "paired_quality")
        translate, known = translator_of(model), {}

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            if "y" not in split.arrays:
                raise UserError('paired_quality needs pairs with the entry "y": use unpaired_quality')
            n = split.size if is_test(split) else min(often, split.size)
            x, part = transformed(split, "x", n), split.part(0, n)
            truth = split.pixels(transformed(part, "y"), "y")
            made = split.pixels(translate(state, x), "y")
            encode = resolve_encoder(encoder, part)
            if split.name not in known:
                known[split.name] = _without_model(encode, part, truth)
            found = compare_images(made, truth) | known[split.name]
            found |= feature_distances(encode, truth, {"": made}, is_test(split))
            found |= diagnose(made, like(part.pixels(x), truth.shape[-1]), truth)
            drawn = [split.pixels(translate(state, x, key=fold_in(key, i)), "y") for i in range(2)]
            return found | mean_of("diversity", absolute_error(*drawn))

        return measure

    metric.__name__ = "paired_quality"
    return metric


def _without_model(encode: Encoder, split: Split, truth: np.ndarray) -> dict[str, Estimate]:
    """The estimates of the floors and of real training images, against the true images."""
    rivals, found = floors(split, truth.shape[-1]), {}
    for name, image in rivals.items():
        found |= compare_images(image, truth, f"_of_{name}")
    training = split.pixels(transformed(split.reference, "y", 1000), "y")
    images = {"_of_training": training, **{f"_of_{name}": image for name, image in rivals.items()}}
    return found | feature_distances(encode, truth, images, is_test(split))


def floors(split: Split, channels: int) -> dict[str, np.ndarray]:
    """Targets (N, H, W, C) that need no network, for all examples of a split.

    copy: the source; mean_image: of all training targets; colors: of sources with few colors, the mean target where the
    source has that color; nearest: the target of the training source that is nearest by squared differences.
    """
    training = split.reference
    sources, targets = (training.pixels(transformed(training, e, 5000), e) for e in ("x", "y"))
    x = split.pixels(transformed(split, "x"))
    copied = like(x, channels)
    found = {} if copied is None else {"copy": copied}
    found["mean_image"] = np.broadcast_to(targets.mean(axis=0), (len(x), *targets.shape[1:]))
    if sources.shape[:3] == targets.shape[:3] and (painted := _by_color(split, sources, targets, x)) is not None:
        found["colors"] = painted
    return {**found, "nearest": targets[closest(x, sources)]}


def _by_color(split: Split, sources: np.ndarray, targets: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The mean target of each class of the sources, where x has it; None if the sources are no maps of classes."""
    try:
        maps, colors = class_maps(split, sources)
    except UserError:
        return None
    counts = np.maximum(np.bincount(maps.reshape(-1), minlength=len(colors)), 1)
    flat = targets.reshape(-1, targets.shape[-1])
    sums = [np.bincount(maps.reshape(-1), values, minlength=len(colors)) for values in flat.T]
    means = np.stack(sums, axis=1) / counts[:, None]
    return means[class_maps(split, x)[0]].astype(np.float32)


def feature_distances(
    encode: Encoder, real: np.ndarray, images: dict[str, np.ndarray], frechet: bool
) -> dict[str, Estimate]:
    """kernel_distance and, if asked for, frechet_distance with each suffix, of images to real ones.

    Nothing of fewer than two images, which have no distribution.
    """
    if len(real) < 2:
        return {}
    features, found = encode(real).features, {}
    moments = Moments.of(features) if frechet else None
    for suffix, some in images.items():
        if len(some) < 2:
            continue
        made = encode(np.ascontiguousarray(some, np.float32)).features
        found[f"kernel_distance{suffix}@{encode.name}"] = kernel_estimate(made, features)
        if moments is not None:
            found[f"frechet_distance{suffix}@{encode.name}"] = frechet_estimates(made, moments)["frechet_distance"]
    return with_group(found, "translation", kernel_distance="lower", frechet_distance="lower")
