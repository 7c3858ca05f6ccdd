"""Reshaping and reducing batches of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["pack", "sum_except_batch"]


def sum_except_batch(values: jax.Array) -> jax.Array:
    """(B, ...) -> (B,): sums over the values of each example."""
    return values.reshape(len(values), -1).sum(axis=-1)


def pack(x: Array, n: int) -> Array:
    """(B, ..., C) -> (B / n, ..., n * C): concatenates n examples along the channels."""
    if n == 1:
        return x
    if len(x) % n:
        raise ValueError(f"a batch of {len(x)} cannot be packed by {n}: choose a multiple of it")
    packs = jnp.moveaxis(x.reshape(n, len(x) // n, *x.shape[1:]), 0, -2)
    return packs.reshape(*packs.shape[:-2], n * x.shape[-1])
