"""Coupling layers: unchanged values condition the transform of the others (Dinh et al. 2017, arXiv:1605.08803)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from gen_jax.core import PyTree
from gen_jax.models.bijections.conditioners import Dense
from gen_jax.models.bijections.elementwise import Affine, Transformer
from gen_jax.models.bijections.layer import Layer, Mapped
from gen_jax.models.common.arrays import sum_except_batch

__all__ = ["VECTOR", "Checkerboard", "Coupling", "Network", "halves", "move"]

Network = Callable[[int], nn.Module]  # number of outputs -> module, called with x and the context, if any
VECTOR = 16  # SIMD width of a CPU in float32 numbers: loops over shorter rows, of many arrays, are not vectorized


class _Moving(Layer):
    """Base of couplings: `network` maps the unchanged values to the parameters of `transformer`, which transforms the
    others. The fast direction of the transformer maps data to noise."""

    network: Network
    transformer: Transformer

    def forward(self, params, z, context=None):
        return self._map(self.transformer.inverse, params, z, context)

    def inverse(self, params, x, context=None):
        return self._map(self.transformer.forward, params, x, context)

    def _map(self, f: Callable[..., Mapped], params: PyTree, x: Array, context: Array | None) -> Mapped:
        raise NotImplementedError

    def _module(self, moved: Array) -> nn.Module:
        return self.network(self.transformer.outputs * moved.shape[-1])


@dataclass(frozen=True)
class Coupling(_Moving):
    """The first half of the last axis is unchanged and conditions the second; for odd sizes the first is smaller."""

    transformer: Transformer = Affine()
    network: Network = Dense

    def init(self, key, x, context=None):
        if x.shape[-1] < 2:
            raise ValueError("a coupling needs at least 2 dimensions: use an autoregressive or an elementwise layer")
        kept, moved = halves(x)
        return self._module(moved).init(key, kept, *_given(context))["params"]

    def _map(self, f, params, x, context):
        kept, moved = halves(x)
        raw = self._module(moved).apply({"params": params}, kept, *_given(context))
        moved, log_slopes = move(f, self.transformer.outputs, raw, moved)
        return jnp.concatenate([kept, moved], axis=-1), sum_except_batch(log_slopes)


@dataclass(frozen=True)
class Checkerboard(_Moving):
    """Couples images (B, H, W, C): pixels of one color condition those of the other; `odd` swaps the colors."""

    network: Network
    transformer: Transformer = Affine()
    odd: bool = False

    def init(self, key, x, context=None):
        if x.ndim != 4:
            raise ValueError(f"a checkerboard needs images (B, H, W, C), got {x.shape}")
        return self._module(x).init(key, x, *_given(context))["params"]

    def _map(self, f, params, x, context):
        moves = ((np.indices(x.shape[1:3]).sum(axis=0) + self.odd) % 2 == 1)[None, :, :, None]
        raw = self._module(x).apply({"params": params}, jnp.where(moves, 0, x), *_given(context))
        y, log_slopes = move(f, self.transformer.outputs, raw, x)
        return jnp.where(moves, y, x), sum_except_batch(jnp.where(moves, log_slopes, 0))


def move(f: Callable[[Sequence[Array], Array], Mapped], n: int, raw: Array, x: Array) -> Mapped:
    """Values (..., D) and log-slopes by a direction of a transformer with n parameters (..., n * D), group by group."""
    size = x.shape[-1]
    narrow = size < VECTOR <= x.size // size
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1  # else rows would be gathered from all devices
    if n <= 2 or not narrow or not alone:
        return f(lax.split(raw, [size] * n, axis=raw.ndim - 1), x)
    raw, rows = (_by_rows(a.reshape(-1, a.shape[-1]).T) for a in (raw, x))
    return tuple(_by_rows(a).T.reshape(x.shape) for a in f(lax.split(raw, [size] * n), rows))


def _by_rows(a: Array) -> Array:
    """Forces row-major layout: XLA would leave a transposed array in place and read it with strides."""
    return with_layout_constraint(jnp.asarray(a), Layout((0, 1)))


def halves(x: Array) -> list[Array]:
    """The two halves of the last axis; for odd sizes the first is the smaller."""
    size = x.shape[-1]
    return lax.split(x, [size // 2, size - size // 2], axis=x.ndim - 1)


def _given(context: Array | None) -> tuple[Array, ...]:
    return () if context is None else (context,)
