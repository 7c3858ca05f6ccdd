"""Transforms of batches between storage and model, on the device, as part of the compiled step.

A `Transform` wraps a function `(batch, key) -> batch` with the metadata that evaluation needs. A plain function is
accepted too, and treated as lossy: the stored values cannot be recovered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, fold_in
from gen_jax.data.dataset import blocks

__all__ = [
    "Apply",
    "Transform",
    "as_transforms",
    "binarize",
    "binarize_once",
    "dequantize",
    "dequantize_once",
    "downsample",
    "flip",
    "jitter",
    "on",
    "scale",
    "shift",
    "stack_images",
    "standardize",
    "threshold",
    "together",
]

Apply = Callable[[Batch, Array], Batch]


@dataclass(frozen=True)
class Transform:
    """A function of a batch and a key, and its effect on likelihoods and figures.

    apply: the function. entries: the entries of the batch it changes.
    inverse: maps values of the transformed entry (N, ...) back to the stored units, as NumPy arrays.
    levels: the volume of one stored integer in the result is 1 / levels per dimension, which converts nats to bits/dim.
    lossless: whether the stored integers can be recovered exactly. If not, there are no bits per dimension.
    protocol: the setting under which likelihoods are comparable, e.g. "dequantized".
    support: the lowest and highest stored value it accepts; None for any.
    augments: whether it is a random change for training, which evaluation leaves out.
    """

    apply: Apply
    inverse: Callable[[np.ndarray], np.ndarray] | None = None
    levels: int = 1
    lossless: bool = False
    protocol: str = ""
    support: tuple[float, float] | None = None
    entries: tuple[str, ...] = ("x",)
    augments: bool = False

    def __call__(self, batch: Batch, key: Array) -> Batch:
        return self.apply(batch, key)


def as_transforms(transforms: Sequence[Transform | Apply]) -> tuple[Transform, ...]:
    """The transforms, with plain functions wrapped."""
    return tuple(t if isinstance(t, Transform) else Transform(t) for t in transforms)


def on(entry: str, transform: Transform) -> Transform:
    """The transform applied to an entry other than "x"; no other entry changes."""

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, entry: transform({**batch, "x": batch[entry]}, key)["x"]}

    return replace(transform, apply=apply, entries=(entry,))


def together(entries: Sequence[str], transform: Transform) -> Transform:
    """The transform applied to several entries with the same key, e.g. to flip or crop pairs of images jointly."""

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, **{entry: transform({**batch, "x": batch[entry]}, key)["x"] for entry in entries}}

    return replace(transform, apply=apply, entries=tuple(entries))


def flip() -> Transform:
    """Flips each image (B, H, W, C) horizontally with probability 1/2."""

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"]
        mirrored = jax.random.bernoulli(key, 0.5, (len(x), *(1,) * (x.ndim - 1)))
        return {**batch, "x": jnp.where(mirrored, x[:, :, ::-1], x)}

    return Transform(apply, inverse=lambda x: x, augments=True)


def downsample(n: int) -> Transform:
    """Averages the pixels of images (B, H, W, C) over blocks of n x n."""

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"].astype(jnp.float32)
        batches, height, width, channels = x.shape
        if height % n or width % n:
            raise ValueError(f"images of {height}x{width} cannot be averaged over blocks of {n}x{n}")
        return {**batch, "x": x.reshape(batches, height // n, n, width // n, n, channels).mean(axis=(2, 4))}

    return Transform(apply, inverse=lambda x: x)


def jitter(enlarged: float = 286 / 256) -> Transform:
    """Enlarges each image (B, H, W, C) bilinearly, and crops it back at a random place (Isola et al. 2017, 6.2)."""
    if enlarged < 1:
        raise ValueError(f"jitter enlarges by a factor of at least 1, got {enlarged}")

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"].astype(jnp.float32)
        for axis in (1, 2):
            size = x.shape[axis]
            large = round(size * enlarged)
            first = jax.random.randint(fold_in(key, axis), (len(x), 1), 0, large - size + 1)
            at = (jnp.arange(size) + first + 0.5) * (size / large) - 0.5
            near = jnp.abs(jnp.clip(at, 0, size - 1)[..., None] - jnp.arange(size))
            weights = jnp.maximum(1 - near, 0)  # matrix products, not gathers
            x = jnp.einsum("bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic", weights, x)
        return {**batch, "x": x}

    return Transform(apply, inverse=lambda x: x, augments=True)


def shift(most: int) -> Transform:
    """Moves each image (B, H, W, C) by at most so many whole pixels along each axis, repeating its edges."""
    if most < 0:
        raise ValueError(f"images are shifted by at least 0 pixels, got {most}")

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"]
        for axis in (1, 2):
            by = jax.random.randint(fold_in(key, axis), (len(x), 1), -most, most + 1)
            at = jnp.clip(jnp.arange(x.shape[axis]) + by, 0, x.shape[axis] - 1)
            x = jnp.take_along_axis(x, at[:, :, None, None] if axis == 1 else at[:, None, :, None], axis)
        return {**batch, "x": x}

    return Transform(apply, inverse=lambda x: x, augments=True)


def scale(low: float = 0.0, high: float = 1.0, levels: int = 256) -> Transform:
    """Maps integers 0 .. levels - 1 to floats low .. high, e.g. `scale(-1, 1)` for pixels in [-1, 1]."""

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": low + batch["x"].astype(jnp.float32) * ((high - low) / (levels - 1))}

    inverse = lambda x: np.clip(np.rint((x - low) / (high - low) * (levels - 1)), 0, levels - 1)
    return Transform(apply, inverse, protocol=f"gray levels in [{low:g}, {high:g}]", support=(0, levels - 1))


def standardize(x: Any, skip: Sequence[int] = ()) -> Transform:
    """Maps each value to zero mean and unit variance over the training examples `x` (N, ...); NaN stays NaN.

    skip: columns of a table (N, D) that stay as they are, such as codes of categories. The inverse maps samples back to
    the units of the data. Log-likelihoods are of the standardized values.
    """
    mean, variance, count = 0.0, 0.0, 0.0
    for block in blocks(x):  # merged block by block (Chan, Golub & LeVeque 1983)
        known = np.isfinite(block)
        n = known.sum(axis=0)
        m = np.where(known, block, 0).sum(axis=0, dtype=np.float64) / np.maximum(n, 1)
        squares = np.where(known, (block - m) ** 2, 0).sum(axis=0, dtype=np.float64)
        total = np.maximum(count + n, 1)
        variance, mean = variance + squares + (m - mean) ** 2 * count * n / total, mean + (m - mean) * n / total
        count = count + n
    scale = np.sqrt(variance / np.maximum(count, 1))
    offset, scale = np.asarray(mean, np.float32), np.where(scale > 0, scale, 1).astype(np.float32)
    if len(skip):
        offset[list(skip)], scale[list(skip)] = 0, 1

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (batch["x"].astype(jnp.float32) - offset) / scale}

    return Transform(apply, inverse=lambda x: x * scale + offset, protocol="standardized")


def stack_images(n: int = 3, classes: int = 10) -> Transform:
    """Stacks n images of the batch as channels of one, labeled by the number they form (Srivastava et al. 2017).

    n = 3 digits give 1,000 classes; the combinations change at every step.
    """

    def apply(batch: Batch, key: Array) -> Batch:
        orders = [jax.random.permutation(fold_in(key, i), len(batch["x"])) for i in range(n)]
        x = jnp.concatenate([batch["x"][order] for order in orders], axis=-1)
        label = sum(batch["label"][order].astype(jnp.int32) * classes ** (n - 1 - i) for i, order in enumerate(orders))
        return {**batch, "x": x, "label": label}

    return Transform(apply)


def dequantize(levels: int = 256) -> Transform:
    """Maps integers 0 .. levels - 1 to floats in [0, 1) by adding uniform noise (Theis et al. 2016, section 3.1).

    A density p of the result bounds the log-probability of the integers: log P(x) >= E[log p] - D log(levels).
    """

    def apply(batch: Batch, key: Array) -> Batch:
        noise = jax.random.uniform(key, batch["x"].shape, jnp.float32)
        return {**batch, "x": (batch["x"].astype(jnp.float32) + noise) / levels}

    return _dequantization(apply, levels)


def dequantize_once(levels: int = 256) -> Transform:
    """As `dequantize`, but drawn once: each example is the same at every step."""

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (batch["x"].astype(jnp.float32) + _noise_of_each(batch)) / levels}

    return _dequantization(apply, levels)


def binarize(levels: int = 256) -> Transform:
    """Maps integers 0 .. levels - 1 to 0.0 or 1.0, drawn anew at every step with the intensity as the probability of 1.

    Salakhutdinov & Murray 2008. Likelihoods under different binarizations are not comparable.
    """

    def apply(batch: Batch, key: Array) -> Batch:
        noise = jax.random.uniform(key, batch["x"].shape, jnp.float32)
        return {**batch, "x": (noise < _intensity(batch, levels)).astype(jnp.float32)}

    return _binarization(apply, levels, "stochastically binarized")


def binarize_once(levels: int = 256) -> Transform:
    """As `binarize`, but drawn once: each example is the same at every step."""

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (_noise_of_each(batch) < _intensity(batch, levels)).astype(jnp.float32)}

    return _binarization(apply, levels, "statically binarized")


def threshold(levels: int = 256) -> Transform:
    """Maps integers 0 .. levels - 1 to 1.0 if the intensity is above one half, else 0.0."""

    def apply(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (_intensity(batch, levels) > 0.5).astype(jnp.float32)}

    return _binarization(apply, levels, "thresholded")


def _dequantization(apply: Apply, levels: int) -> Transform:
    inverse = lambda x: np.clip(np.floor(x * levels), 0, levels - 1)
    return Transform(apply, inverse, levels, lossless=True, protocol="dequantized", support=(0, levels - 1))


def _binarization(apply: Apply, levels: int, protocol: str) -> Transform:
    inverse = lambda x: np.clip(x, 0, 1) * (levels - 1)
    return Transform(apply, inverse, protocol=protocol, support=(0, levels - 1))


def _noise_of_each(batch: Batch) -> Array:
    """Uniform noise shaped like x that depends only on the index of each example."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch["index"])
    return jax.vmap(lambda key: jax.random.uniform(key, batch["x"].shape[1:], jnp.float32))(keys)


def _intensity(batch: Batch, levels: int) -> Array:
    """Pixel intensities in [0, 1]."""
    return batch["x"].astype(jnp.float32) / (levels - 1)
