"""Planar and radial flows (Rezende & Mohamed 2015, arXiv:1505.05770), inverted by root finding and in closed form.

Forward, noise to data, they are closed-form, as needed for variational inference; fit their `Inverse` to data.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, fold_in
from gen_jax.models.bijections.layer import Layer, check_vectors, solve

__all__ = ["Planar", "Radial"]


class _Amortized(Layer):
    """A vector layer with few parameters, to which a linear map of the context is added."""

    def outputs(self, size: int) -> int:
        raise NotImplementedError

    def init(self, key, x, context=None):
        check_vectors(self, x)
        n = self.outputs(x.shape[1])
        params = {"raw": self.scale * jax.random.normal(fold_in(key, "raw"), (n,), x.dtype)}
        if context is not None:
            shape = (context.shape[-1], n)
            params["context"] = 0.1 * self.scale * jax.random.normal(fold_in(key, "context"), shape, x.dtype)
        return params

    def _raw(self, params: PyTree, context: Array | None) -> Array:
        """Raw parameters (1, outputs), or (B, outputs) with a context."""
        return params["raw"][None] + (0 if context is None else context @ params["context"])


@dataclass(frozen=True)
class Planar(_Amortized):
    """z + u tanh(w.z + b), with u constrained to w.u > -0.99 (eq. 10 and appendix A.1)."""

    scale: float = 0.5

    def outputs(self, size):
        return 2 * size + 1

    def forward(self, params, z, context=None):
        u, w, b, reach = self._of(params, z, context)
        t = jnp.tanh(jnp.sum(w * z, axis=-1) + b)
        return z + u * t[:, None], jnp.log1p((1 - t**2) * reach)

    def inverse(self, params, x, context=None):
        u, w, b, reach = self._of(params, x, context)
        along = jnp.sum(w * x, axis=-1)

        def moved(a: Array) -> tuple[Array, Array]:  # w.x as a function of w.z
            t = jnp.tanh(a + b)
            return a + reach * t, jnp.log1p((1 - t**2) * reach)

        a = solve(moved, along, along - jnp.abs(reach) - 1e-3, along + jnp.abs(reach) + 1e-3)
        return x - u * jnp.tanh(a + b)[:, None], -moved(a)[1]

    def _of(self, params, z, context):
        raw, size = self._raw(params, context), z.shape[-1]
        u, w, b = raw[:, :size], raw[:, size : 2 * size], raw[:, -1]
        along = jnp.sum(w * u, axis=-1)
        reach = _above_minus_one(along)
        length = jnp.maximum(jnp.sum(w**2, axis=-1), 1e-12)
        return u + ((reach - along) / length)[:, None] * w, w, b, reach


@dataclass(frozen=True)
class Radial(_Amortized):
    """z + b (z - c) / (a + |z - c|), with a > 0.1 and b > -0.99 a (eq. 14 and appendix A.2)."""

    scale: float = 0.5

    def outputs(self, size):
        return size + 2

    def forward(self, params, z, context=None):
        center, a, b = self._of(params, context)
        away = z - center
        r = _norm(away)
        return z + (b / (a + r))[:, None] * away, self._log_det(r, a, b, z.shape[-1])

    def inverse(self, params, x, context=None):
        center, a, b = self._of(params, context)
        away = x - center
        far = _norm(away)
        half = 0.5 * (a + b - far)  # r^2 + 2 half r - a far = 0
        root = jnp.sqrt(half**2 + a * far)
        r = jnp.where(half > 0, a * far / (root + jnp.abs(half)), root - half)
        return center + away / (1 + b / (a + r))[:, None], -self._log_det(r, a, b, x.shape[-1])

    def _log_det(self, r, a, b, size):
        return (size - 1) * jnp.log1p(b / (a + r)) + jnp.log1p(a * b / (a + r) ** 2)

    def _of(self, params, context):
        raw = self._raw(params, context)
        a = 0.1 + jax.nn.softplus(raw[:, -2])
        return raw[:, :-2], a, a * _above_minus_one(raw[:, -1])


def _above_minus_one(raw: Array) -> Array:
    """Increasing map to values above -0.99 that is 0 at 0: as close to -1 as is invertible in float32."""
    return jax.nn.softplus(raw + jnp.log(jnp.expm1(0.99))) - 0.99


def _norm(x: Array) -> Array:
    """|x| (B,), with a gradient at 0."""
    return jnp.sqrt(jnp.sum(x**2, axis=-1) + jnp.finfo(x.dtype).tiny)
