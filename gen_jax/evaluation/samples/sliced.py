"""Sliced Wasserstein distances of image patches at several sizes (Karras et al. 2018, arXiv:1710.10196, section 5)."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax import Array

from gen_jax.core import State
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, with_group
from gen_jax.evaluation.samples.quality import sampler

__all__ = ["laplacian_pyramid", "patches_of", "sliced_distance", "sliced_wasserstein"]

BINOMIAL = np.array([1, 4, 6, 4, 1]) / 16
SIDE = 7  # of a patch
PATCHES = 128  # per image
DIRECTIONS = 512


def sliced_wasserstein(samples: int = 4096) -> Metric:
    """Makes the metric of sliced Wasserstein distances between samples and training examples.

    sliced_wasserstein_S: of patches of 7 x 7 pixels at the size S of a Laplacian pyramid, times 1,000: small ones
    compare the shapes of whole images, large ones details. Sizes are halved down to a side of 8. No encoder is needed.
    The errors are those of the random directions.
    """

    def sliced_wasserstein(model: object) -> Measure:
        draw = sampler(model)

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            n = min(samples, split.reference.size)
            real = split.pixels(split.reference.head(n)["x"])
            if real.ndim != 4 or min(real.shape[1:3]) < SIDE:
                raise UserError(f"sliced Wasserstein distances need images of at least {SIDE}x{SIDE} pixels")
            fake = np.concatenate([split.pixels(x) for x in draw(state, key, n)])
            rng, found = np.random.default_rng(int(jax.random.bits(key) >> 1)), {}
            for ours, theirs in zip(laplacian_pyramid(fake), laplacian_pyramid(real)):
                apart = sliced_distance(patches_of(ours, rng), patches_of(theirs, rng), rng)
                name = f"sliced_wasserstein_{max(ours.shape[1:3])}"
                error = float(apart.std(ddof=1) / math.sqrt(len(apart)))
                how = f"{n} of each, {PATCHES} patches, {DIRECTIONS} directions"
                found[name] = Estimate(1000 * float(apart.mean()), 1000 * error, "x 1000", "estimate", n, how)
            return with_group(found, "sample quality", **dict.fromkeys(found, "lower"))

        return measure

    return sliced_wasserstein


def laplacian_pyramid(x: np.ndarray) -> list[np.ndarray]:
    """Images (N, H, W, C) less their doubled halves, at sizes down to 8; the last is no difference."""
    x, found = np.asarray(x, np.float32), []
    while min(x.shape[1:3]) >= 16 and not any(side % 2 for side in x.shape[1:3]):
        small = _filtered(x)[:, ::2, ::2]
        between = np.zeros_like(x)
        between[:, ::2, ::2] = small
        found.append(x - 4 * _filtered(between))
        x = small
    return [*found, x]


def _filtered(x: np.ndarray) -> np.ndarray:
    """The binomial filter of five taps along both axes, mirrored at the edges."""
    for axis in (1, 2):
        widths = [(0, 0)] * 4
        widths[axis] = (2, 2)
        padded, size = np.pad(x, widths, mode="reflect"), x.shape[axis]
        x = sum(tap * np.take(padded, range(i, i + size), axis) for i, tap in enumerate(BINOMIAL.astype(np.float32)))
    return x


def patches_of(x: np.ndarray, rng: np.random.Generator, each: int = PATCHES) -> np.ndarray:
    """(N * each, 7 * 7 * C) random patches, each channel with mean 0 and deviation 1 over all of them."""
    n, height, width, channels = x.shape
    image = np.repeat(np.arange(n), each)[:, None, None]
    rows = rng.integers(0, height - SIDE + 1, n * each)[:, None, None] + np.arange(SIDE)[:, None]
    columns = rng.integers(0, width - SIDE + 1, n * each)[:, None, None] + np.arange(SIDE)
    found = x[image, rows, columns]
    found = found - found.mean(axis=(0, 1, 2))
    return (found / np.maximum(found.std(axis=(0, 1, 2)), 1e-8)).reshape(n * each, -1)


def sliced_distance(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, blocks: int = 4) -> np.ndarray:
    """(DIRECTIONS,) distances of points (M, D) along random directions: mean differences of sorted projections."""
    found = []
    for _ in range(blocks):
        directions = rng.normal(size=(a.shape[1], DIRECTIONS // blocks)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        found.append(np.abs(np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)).mean(axis=0))
    return np.concatenate(found)
