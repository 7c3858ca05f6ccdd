"""Autoregressive layers: every value is transformed with parameters computed from the values before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree
from gen_jax.models.bijections.conditioners import Masked
from gen_jax.models.bijections.coupling import move
from gen_jax.models.bijections.elementwise import Affine, Transformer
from gen_jax.models.bijections.layer import Layer, Mapped, check_vectors
from gen_jax.models.common.arrays import sum_except_batch

__all__ = ["MaskedAutoregressive"]


@dataclass(frozen=True)
class MaskedAutoregressive(Layer):
    """MAF (Papamakarios et al. 2017, arXiv:1705.07057): densities of vectors (B, D) in one pass, samples in D.

    `Inverse(MaskedAutoregressive())` is IAF (Kingma et al. 2016, arXiv:1606.04934): samples in one pass.
    """

    transformer: Transformer = Affine()
    hidden: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = nn.relu
    triangular = True

    def init(self, key, x, context=None):
        check_vectors(self, x)
        return self._module.init(key, x, context)["params"]

    def inverse(self, params, x, context=None):
        z, log_slopes = self._move(self.transformer.forward, params, x, context, x)
        return z, sum_except_batch(log_slopes)

    def forward(self, params, z, context=None):
        def next_value(i: int, x: Array) -> Array:  # update one value only: later ones, not yet valid, could diverge
            new = self._move(self.transformer.inverse, params, x, context, z)[0]
            return jnp.where(jnp.arange(z.shape[-1]) == i, new, x)

        x = lax.fori_loop(0, z.shape[-1], next_value, jnp.zeros_like(z))
        _, log_slopes = self._move(self.transformer.forward, params, x, context, x)
        return x, -sum_except_batch(log_slopes)

    @property
    def _module(self) -> nn.Module:
        return Masked(self.transformer.outputs, self.hidden, self.activation)

    def _move(self, f: Callable[..., Mapped], params: PyTree, x: Array, context: Array | None, values: Array) -> Mapped:
        """Transforms `values` by one direction of the transformer, with parameters computed from x."""
        raw = self._module.apply({"params": params}, x, context)
        return move(f, self.transformer.outputs, raw, values)
