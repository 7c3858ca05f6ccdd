"""Blockwise computation over rows, so that temporaries stay small and, on a CPU, in the cache."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from gen_jax.core import PyTree

__all__ = ["block_size", "by_blocks", "jointly", "over_blocks"]


def by_blocks(f: Callable[[Array], PyTree], x: Array, rows: int | None = None) -> PyTree:
    """Computes a row-wise `f` of x (N, ...) block by block."""
    n, block = len(x), _even(len(x), rows or block_size())
    if n <= block:
        return f(x)
    whole = n // block
    starts = jnp.minimum(jnp.arange(-(-n // block)) * block, n - block)  # the last block overlaps the one before it
    found = lax.map(lambda start: f(lax.dynamic_slice_in_dim(x, start, block)), starts)

    def joined(a: Array) -> Array:
        rest = a[-1, block - n % block :] if n % block else a[-1, :0]
        return jnp.concatenate([a[:whole].reshape(whole * block, *a.shape[2:]), rest])

    return jax.tree.map(joined, found)


def over_blocks(f: Callable[..., PyTree], *arrays: Array, rows: int | None = None) -> PyTree:
    """The sum of `f` over blocks of rows of arrays (N, ...), the last of which are weights.

    Only one block's temporaries exist at a time, and the arrays are not copied: the last block overlaps the one before
    it, with weight 0 in the overlap.
    """
    *arrays, weights = arrays
    n, block = len(weights), _even(len(weights), rows or block_size())
    if n == block:
        return f(*arrays, weights)

    def at(i: Array) -> PyTree:
        start = jnp.minimum(i * block, n - block)
        fresh = start + jnp.arange(block) >= i * block
        cut = [lax.dynamic_slice_in_dim(a, start, block) for a in (*arrays, weights)]
        cut[-1] = jnp.where(fresh.reshape(-1, *[1] * (cut[-1].ndim - 1)), cut[-1], 0)
        return f(*cut)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(at, jnp.int32(0)))
    return lax.fori_loop(0, -(-n // block), lambda i, total: jax.tree.map(jnp.add, total, at(i)), zeros)


def block_size(numbers: int = 384) -> int:
    """Number of rows of `numbers` values that fit in a CPU's cache, or saturate an accelerator but not its memory."""
    if jax.default_backend() == "cpu":
        return _aligned(min(max((3 << 17) // numbers, 512), 1 << 16))
    return _aligned((1 << 25) // numbers)


def _even(n: int, rows: int) -> int:
    """A block size of at most `rows` with little overlap of blocks."""
    return min(_aligned(-(-n // max(-(-n // rows), 1))), rows, n)


def _aligned(rows: int) -> int:
    """The next multiple of 64: matrix products with other numbers of rows are slower on CPUs."""
    return max(-(-rows // 64), 1) * 64


@custom_vmap
def jointly(fine: Array) -> Array:
    """A condition that under `vmap` is true only if it is for every member, so that `cond` stays a branch."""
    return fine


@jointly.def_vmap
def _(size: int, batched: list[bool], fine: Array) -> tuple[Array, bool]:
    return jointly(jnp.all(fine)), False
