"""What happens to a batch between storage and model, on the device, as part of the compiled step.

A transform is a function `(batch, key) -> batch`. The ones here act on the entry "x".
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch

Transform = Callable[[Batch, Array], Batch]


def scale(low: float = 0.0, high: float = 1.0, levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to floats low .. high, e.g. `scale(-1, 1)` for pixels in [-1, 1]."""

    def transform(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": low + batch["x"].astype(jnp.float32) * ((high - low) / (levels - 1))}

    return transform


def dequantise(levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to floats in [0, 1) by adding uniform noise (Theis et al. 2016, section 3.1).

    A density p of the result bounds the log-probability of the integers: log P(x) >= E[log p] - D log(levels).
    """

    def transform(batch: Batch, key: Array) -> Batch:
        noise = jax.random.uniform(key, batch["x"].shape)
        return {**batch, "x": (batch["x"].astype(jnp.float32) + noise) / levels}

    return transform


def binarise(kind: str, levels: int = 256) -> Transform:
    """Integers 0 .. levels - 1 to 0.0 or 1.0. Likelihoods under different kinds cannot be compared.

    "stochastic": a new Bernoulli draw with the intensity as its probability each time (Salakhutdinov & Murray 2008);
    "static": one such draw per example, the same in every epoch; "threshold": intensity above one half.
    """
    if kind not in ("stochastic", "static", "threshold"):
        raise ValueError(f'binarise takes "stochastic", "static" or "threshold", got {kind!r}')

    def transform(batch: Batch, key: Array) -> Batch:
        probability = batch["x"].astype(jnp.float32) / (levels - 1)
        if kind == "threshold":
            return {**batch, "x": (probability > 0.5).astype(jnp.float32)}
        if kind == "stochastic":
            noise = jax.random.uniform(key, probability.shape)
        else:
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch["index"])
            noise = jax.vmap(lambda key: jax.random.uniform(key, probability.shape[1:]))(keys)
        return {**batch, "x": (noise < probability).astype(jnp.float32)}

    return transform
