"""Reshaping and reducing batches of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["depth_to_space", "pack", "sum_except_batch"]


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


def depth_to_space(x_BHWC: Array) -> Array:
    """(B, H, W, 4 C) -> (B, 2 H, 2 W, C)."""
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)
