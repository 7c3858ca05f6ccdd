"""What happens to a batch between storage and model, on the device, as part of the compiled step.

A transform is a function `(batch, key) -> batch`. The ones here act on the entry "x". What evaluation must know of one
are attributes: `levels`, by which densities of dequantized data become bits; `lossless = False` where the integers
cannot be had back; `protocol`, what likelihoods can only be compared under; `pixels`, which takes "x" back to
intensities in [0, 1] at the levels of the data.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch

Transform = Callable[[Batch, Array], Batch]


def scale(low: float = 0.0, high: float = 1.0, levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to floats low .. high, e.g. `scale(-1, 1)` for pixels in [-1, 1]."""

    def transform(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": low + batch["x"].astype(jnp.float32) * ((high - low) / (levels - 1))}

    # no probability of the stored integers
    transform.lossless, transform.protocol = False, f"gray levels in [{low:g}, {high:g}]"
    transform.pixels = lambda x: np.clip(np.rint((x - low) / (high - low) * (levels - 1)) / (levels - 1), 0, 1)
    return transform


def stack_images(n: int = 3, classes: int = 10) -> Transform:
    """n images of the batch, in the channels of one, labeled by the number they write (Srivastava et al. 2017).

    Of n = 3 digits there are 1,000 classes; which images come together changes at every step.
    """

    def transform(batch: Batch, key: Array) -> Batch:
        orders = [jax.random.permutation(jax.random.fold_in(key, i), len(batch["x"])) for i in range(n)]
        x = jnp.concatenate([batch["x"][order] for order in orders], axis=-1)
        label = sum(batch["label"][order].astype(jnp.int32) * classes ** (n - 1 - i) for i, order in enumerate(orders))
        return {**batch, "x": x, "label": label}

    transform.lossless = False
    return transform


def dequantize(levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to floats in [0, 1) by adding uniform noise (Theis et al. 2016, section 3.1).

    A density p of the result bounds the log-probability of the integers: log P(x) >= E[log p] - D log(levels).
    """

    def transform(batch: Batch, key: Array) -> Batch:
        noise = jax.random.uniform(key, batch["x"].shape, jnp.float32)
        return {**batch, "x": (batch["x"].astype(jnp.float32) + noise) / levels}

    transform.levels, transform.protocol = levels, "dequantized"  # for who turns densities of the result into bits
    transform.pixels = lambda x: _level(x, levels)
    return transform


def dequantize_once(levels: int = 256) -> Transform:
    """As `dequantize`, but drawn once: each example is the same at every step."""

    def transform(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (batch["x"].astype(jnp.float32) + _noise_of_each(batch)) / levels}

    transform.levels, transform.protocol = levels, "dequantized"
    transform.pixels = lambda x: _level(x, levels)
    return transform


def binarize(levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to 0.0 or 1.0, drawn anew at every step with the intensity as the probability of 1.

    Salakhutdinov & Murray 2008. Likelihoods under different binarizations cannot be compared.
    """

    def transform(batch: Batch, key: Array) -> Batch:
        noise = jax.random.uniform(key, batch["x"].shape, jnp.float32)
        return {**batch, "x": (noise < _intensity(batch, levels)).astype(jnp.float32)}

    transform.lossless, transform.protocol = False, "stochastically binarized"
    transform.pixels = _inside
    return transform


def binarize_once(levels: int = 256) -> Transform:
    """As `binarize`, but drawn once: each example is the same at every step."""

    def transform(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (_noise_of_each(batch) < _intensity(batch, levels)).astype(jnp.float32)}

    transform.lossless, transform.protocol = False, "statically binarized"
    transform.pixels = _inside
    return transform


def threshold(levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to 1.0 where the intensity is above one half, else 0.0."""

    def transform(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": (_intensity(batch, levels) > 0.5).astype(jnp.float32)}

    transform.lossless, transform.protocol = False, "thresholded"
    transform.pixels = _inside
    return transform


def _level(x: np.ndarray, levels: int) -> np.ndarray:
    """The integer that a dequantized value stands for, as an intensity."""
    return np.clip(np.floor(x * levels), 0, levels - 1) / (levels - 1)


def _inside(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 1)


def _noise_of_each(batch: Batch) -> Array:
    """Uniform noise like x that depends on the number of each example alone."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch["index"])
    return jax.vmap(lambda key: jax.random.uniform(key, batch["x"].shape[1:], jnp.float32))(keys)


def _intensity(batch: Batch, levels: int) -> Array:
    """Pixels in [0, 1]."""
    return batch["x"].astype(jnp.float32) / (levels - 1)
