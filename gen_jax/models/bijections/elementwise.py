"""Increasing scalar maps: transformers, with parameters computed by networks, and fixed ones.

A transformer maps values of any shape with `outputs` parameters per value, a list of arrays shaped like the values.
With all parameters 0 it is the identity. `forward` is the fast direction, and `log_slopes` have the values' shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.models.bijections.layer import Layer, solve
from gen_jax.models.common.arrays import sum_except_batch

__all__ = [
    "Affine",
    "Elementwise",
    "RationalQuadraticSpline",
    "Scalar",
    "Sigmoid",
    "Softplus",
    "SumOfSigmoids",
    "Transformer",
]


class Transformer(Protocol):
    """An increasing scalar map."""

    outputs: int

    def forward(self, params: Sequence[Array], x: Array) -> tuple[Array, Array]:
        """Values and log-slopes."""

    def inverse(self, params: Sequence[Array], y: Array) -> tuple[Array, Array]:
        """Values and the log-slopes of the inverse."""


@dataclass(frozen=True)
class Affine:
    """x e^s + t, with |s| bounded by `bound` (Dinh et al. 2017, arXiv:1605.08803, eq. 7)."""

    bound: float = 3.0
    outputs = 2

    def __post_init__(self):
        if not self.bound > 0:
            raise ValueError(f"bound must be above 0, got {self.bound}")

    def forward(self, params, x):
        log_scale, shift = self._of(params)
        return x * jnp.exp(log_scale) + shift, log_scale

    def inverse(self, params, y):
        log_scale, shift = self._of(params)
        return (y - shift) * jnp.exp(-log_scale), -log_scale

    def _of(self, params):
        return self.bound * jnp.tanh(params[0] / self.bound), params[1]


@dataclass(frozen=True)
class RationalQuadraticSpline:
    """A monotone spline on [-interval, interval], the identity outside (Durkan et al. 2019, arXiv:1906.04032).

    bins: number of bins. min_bin: minimum bin width and height, as a fraction of the interval; min_slope: minimum slope
    at a knot. Both keep the spline invertible in float32.
    """

    bins: int = 8
    interval: float = 4.0
    min_bin: float = 1e-2
    min_slope: float = 1e-2

    def __post_init__(self):
        if self.bins < 2 or not 0 <= self.bins * self.min_bin < 1 or not self.interval > 0:
            raise ValueError(
                "a spline needs at least 2 bins, bins * min_bin below 1 and an interval above 0, "
                f"got bins={self.bins}, min_bin={self.min_bin}, interval={self.interval}"
            )
        if not 0 <= self.min_slope < 1:
            raise ValueError(f"min_slope must be in [0, 1), got {self.min_slope}")

    @property
    def outputs(self) -> int:
        return 3 * self.bins - 1

    def forward(self, params, x):
        inside = jnp.abs(x) < self.interval
        safe = jnp.where(inside, x, 0.0)  # the unused branch must have finite gradients too
        (left, width), (bottom, height), (low, high) = self._bin(params, safe, 0)
        y, log_slope = _up(safe, left, width, bottom, height, low, high)
        return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0.0)

    def inverse(self, params, y):
        inside = jnp.abs(y) < self.interval
        safe = jnp.where(inside, y, 0.0)
        (left, width), (bottom, height), (low, high) = self._bin(params, safe, 1)
        x = _down(safe, left, width, bottom, height, low, high)
        log_slope = _up(x, left, width, bottom, height, low, high)[1]
        return jnp.where(inside, x, y), jnp.where(inside, -log_slope, 0.0)

    def _bin(self, params: Sequence[Array], value: Array, side: int):
        """(left edge, width), (bottom, height) and (left slope, right slope) of the bin that contains a value.

        Compares with one knot after the other: a single fused loop over the values, where a search and a gather would
        take many. side: 0 for the edges of x, 1 for those of y.
        """
        k = self.bins
        sizes = self._sizes(params[:k]), self._sizes(params[k : 2 * k])
        slopes = [jnp.zeros_like(value), *params[2 * k :], jnp.zeros_like(value)]
        edges = [jnp.full_like(value, -self.interval)] * 2
        found = [(edges[0], sizes[0][0]), (edges[1], sizes[1][0]), (slopes[0], slopes[1])]
        for i in range(1, k):
            edges = [edge + size[i - 1] for edge, size in zip(edges, sizes)]
            beyond = value >= edges[side]
            new = [(edges[0], sizes[0][i]), (edges[1], sizes[1][i]), (slopes[i], slopes[i + 1])]
            found = [tuple(jnp.where(beyond, n, f) for n, f in zip(*pair)) for pair in zip(new, found)]
        one = math.log(math.expm1(1 - self.min_slope))  # so that a raw slope of 0 is a slope of 1
        return *found[:2], tuple(self.min_slope + jax.nn.softplus(raw + one) for raw in found[2])

    def _sizes(self, raw: Sequence[Array]) -> list[Array]:
        """Bin widths that sum to the length of the interval."""
        top = raw[0]
        for p in raw[1:]:
            top = jnp.maximum(top, p)
        parts = [jnp.exp(p - jax.lax.stop_gradient(top)) for p in raw]
        share = (1 - self.bins * self.min_bin) / sum(parts[1:], parts[0])
        return [2 * self.interval * (self.min_bin + part * share) for part in parts]


def _up(x: Array, left, width, bottom, height, low, high) -> tuple[Array, Array]:
    """Values and log-slopes of a rational quadratic on one bin (eqs. 4 and 5)."""
    slope = height / width
    at = (x - left) / width
    rest = at * (1 - at)
    below = slope + (low + high - 2 * slope) * rest
    y = bottom + height * (slope * at**2 + low * rest) / below
    above = high * at**2 + 2 * slope * rest + low * (1 - at) ** 2
    return y, jnp.log(above) + 2 * (jnp.log(slope) - jnp.log(below))


def _down(y: Array, left, width, bottom, height, low, high) -> Array:
    """Inverse of the rational quadratic at y: the root of a quadratic inside the bin (eqs. 6 to 8)."""
    slope = height / width
    up = y - bottom
    bend = up * (low + high - 2 * slope)
    a, b, c = height * (slope - low) + bend, height * low - bend, -slope * up
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0) + jnp.finfo(y.dtype).tiny)
    return left + width * 2 * c / (-b - root)


@dataclass(frozen=True)
class SumOfSigmoids:
    """The logit of a weighted sum of `terms` sigmoids (Huang et al. 2018, arXiv:1804.00779, eq. 8)."""

    terms: int = 8

    def __post_init__(self):
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1, got {self.terms}")

    @property
    def outputs(self) -> int:
        return 3 * self.terms

    def forward(self, params, x):
        log_weights, log_scales, shifts = self._of(params)
        inner = x * jnp.exp(log_scales) + shifts
        low, high = jax.nn.log_sigmoid(inner), jax.nn.log_sigmoid(-inner)
        log_p, log_q = (jax.nn.logsumexp(log_weights + part, axis=0) for part in (low, high))
        log_slope = jax.nn.logsumexp(log_weights + log_scales + low + high, axis=0) - log_p - log_q
        return log_p - log_q, log_slope

    def inverse(self, params, y):
        _, log_scales, shifts = self._of(params)
        each = (y - shifts) * jnp.exp(-log_scales)  # the inverse of each sigmoid alone: that of the sum lies between
        x = solve(lambda x: self.forward(params, x), y, each.min(axis=0), each.max(axis=0))
        return x, -self.forward(params, x)[1]

    def _of(self, params):
        raw = jnp.stack(list(params)).reshape(3, self.terms, *params[0].shape)
        return jax.nn.log_softmax(raw[0], axis=0), 3 * jnp.tanh(raw[1] / 3), raw[2]


@dataclass(frozen=True)
class Elementwise(Layer):
    """Transforms every value by a transformer with its own learned parameters."""

    transformer: Transformer = SumOfSigmoids()
    scale: float = 0.1
    triangular = True

    def init(self, key, x, context=None):
        return {"raw": self.scale * jax.random.normal(key, (self.transformer.outputs, *x.shape[1:]), x.dtype)}

    def forward(self, params, z, context=None):
        x, log_slopes = self.transformer.inverse(self._of(params, z), z)
        return x, sum_except_batch(log_slopes)

    def inverse(self, params, x, context=None):
        z, log_slopes = self.transformer.forward(self._of(params, x), x)
        return z, sum_except_batch(log_slopes)

    def _of(self, params, x):
        return [jnp.broadcast_to(p, x.shape) for p in params["raw"]]


@dataclass(frozen=True)
class Scalar(Layer):
    """Applies a fixed distrax bijector to every value, e.g. `Scalar(distrax.Tanh())`.

    support: the interval that data must lie in, None for all reals.
    """

    bijector: distrax.Bijector
    support: tuple[float, float] | None = None
    triangular = True

    def forward(self, params, z, context=None):
        x, log_slopes = self.bijector.forward_and_log_det(z)
        return x, sum_except_batch(log_slopes)

    def inverse(self, params, x, context=None):
        z, log_slopes = self.bijector.inverse_and_log_det(x)
        return z, sum_except_batch(log_slopes)


@dataclass(frozen=True)
class Softplus(Layer):
    """Softplus log(1 + e^z), for positive data."""

    support = (float(np.finfo(np.float32).tiny), float("inf"))
    triangular = True

    def forward(self, params, z, context=None):
        return jax.nn.softplus(z), sum_except_batch(jax.nn.log_sigmoid(z))

    def inverse(self, params, x, context=None):
        z = x + jnp.log(-jnp.expm1(-x))
        return z, -sum_except_batch(jax.nn.log_sigmoid(z))


@dataclass(frozen=True)
class Sigmoid(Layer):
    """Sigmoid for data in [0, 1]; its inverse is logit(alpha + (1 - 2 alpha) x) (Dinh et al. 2017, section 4.1).

    Samples extend slightly beyond, to -alpha / (1 - 2 alpha) and equally far above 1.
    """

    alpha: float = 0.05
    triangular = True

    @property
    def support(self) -> tuple[float, float]:
        edge = 0.0 if self.alpha else float(np.finfo(np.float32).eps)
        return edge, 1.0 - edge

    def __post_init__(self):
        if not 0 <= self.alpha < 0.5:
            raise ValueError(f"alpha must be in [0, 0.5), got {self.alpha}")

    def forward(self, params, z, context=None):
        return (jax.nn.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha), -sum_except_batch(self._log_slopes(z))

    def inverse(self, params, x, context=None):
        inner = self.alpha + (1 - 2 * self.alpha) * x
        z = jnp.log(inner) - jnp.log1p(-inner)
        return z, sum_except_batch(self._log_slopes(z))

    def _log_slopes(self, z: Array) -> Array:
        """Log-slopes of the inverse, as a function of its value z."""
        return math.log1p(-2 * self.alpha) - jax.nn.log_sigmoid(z) - jax.nn.log_sigmoid(-z)
