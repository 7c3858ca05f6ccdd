"""K Gaussian densities, shared by Gaussian mixtures and the Gaussian emissions of hidden Markov models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree
from gen_jax.models.common.blocks import by_blocks, jointly, over_blocks
from gen_jax.models.mixture.covariances import (
    FULL,
    ConjugatePrior,
    Evaluation,
    Full,
    Standardizer,
    Stats,
    occupied,
    ratio,
)

__all__ = ["Gaussians", "Prior", "check_fixed", "condition", "data_moments"]


class Prior(NamedTuple):
    """Conjugate priors for maximum a posteriori estimates (Gauvain & Lee 1994; Murphy 2012, section 11.4.2.8).

    concentration: of the Dirichlet over the mixture weights; 1 is flat. pseudo_counts: of the inverse-Wishart over each
    covariance, in observations; 0 is flat. mode: its mode, in units of the data's variances. mean_counts: of the normal
    over each mean, in observations, about the mean of the data; 0 is flat.
    """

    concentration: float = 1.0
    pseudo_counts: float = 0.0
    mode: float = 1.0
    mean_counts: float = 0.0


# Multiplications below which a CPU evaluates by differences from each mean alone: a step takes up to a tenth of a
# millisecond longer than by products, and there is one evaluation to compile instead of two.
SMALL = 1 << 16


@dataclass(frozen=True)
class Gaussians:
    """K Gaussian densities with one covariance type; parameters are {"means": (K, D), ...}.

    floor: added to every variance, relative to the data's. regularization: added to every variance, in the data's
    units (scikit-learn's reg_covar). missing: NaN in x marks a missing coordinate, which is marginalized exactly.
    fixed: parameters that `maximize` leaves as they are, "means" or "covariances".
    """

    kind: Full = FULL
    floor: float = 1e-6
    regularization: float = 0.0
    missing: bool = False
    prior: Prior = field(default_factory=Prior)
    fixed: tuple[str, ...] = ()

    def __post_init__(self):
        check_fixed(self.fixed, ("means", "covariances"))
        if self.floor < 0 or self.regularization < 0:
            raise ValueError(f"floor and regularization must be 0 or more, got {self.floor} and {self.regularization}")
        if not isinstance(self.kind, Full):
            raise ValueError(f"kind must be one of FULL, TIED, DIAGONAL, SPHERICAL, got {self.kind!r}")
        if min(self.prior.concentration - 1, self.prior.pseudo_counts, self.prior.mean_counts) < 0:
            raise ValueError(f"a prior needs concentration >= 1 and counts >= 0, got {self.prior}")
        if self.prior.mode <= 0:
            raise ValueError(f"a prior needs a mode > 0, got {self.prior}")

    def evaluate(
        self, params: PyTree, x: Array, then: Callable[[Evaluation], PyTree], weight: Array | None = None
    ) -> PyTree:
        """Calls `then` with the fastest evaluation accurate to float precision for these parameters and data.

        weight: (N,) of the examples, if some may be 0.
        """
        if self.missing:
            return then(self.kind.missing(params))
        if len(params["means"]) * x.shape[1] * x.size < SMALL and jax.default_backend() == "cpu":
            return then(self.kind.direct(params))
        standardizer, eps = Standardizer.of(x, weight), jnp.finfo(x.dtype).eps
        gemm, sharpness = self.kind.gemm(params, standardizer)
        fine = jointly(lax.stop_gradient(sharpness) < 1e-4 / eps)
        by_differences = lambda: then(self.kind.direct(params))
        if self.kind.whitens:  # which magnifies rounding errors of the data by the root of the sharpness
            white = lambda: then(self.kind.whitened(params, standardizer))
            precise = jointly(lax.stop_gradient(sharpness) < (5e-4 / eps) ** 2)
            choice = jnp.where(fine, 0, jnp.where(precise, 1, 2))
            return lax.switch(choice, [lambda: then(gemm), white, by_differences])
        return lax.cond(fine, lambda: then(gemm), by_differences)

    def held(self, params: PyTree) -> PyTree:
        """The parameters, without gradients of those that are fixed."""
        fixed = lambda name: ("means" if name == "means" else "covariances") in self.fixed
        return {name: lax.stop_gradient(a) if fixed(name) else a for name, a in params.items()}

    def log_prob(self, params: PyTree, x: Array) -> Array:
        """(N, K) log N(x; mean_k, covariance_k)."""
        return self.evaluate(
            params,
            x,
            lambda evaluation: by_blocks(
                lambda x: evaluation.log_prob(evaluation.prepare(x)).T, x, rows=evaluation.rows
            ),
        )

    def moments(self, params: PyTree, x: Array, r: Array) -> Stats:
        """Sufficient statistics of x (N, D) with responsibilities r (N, K)."""

        def gather(evaluation: Evaluation) -> Stats:
            return evaluation.stats(
                over_blocks(lambda x, r: evaluation.sums(evaluation.prepare(x), r.T), x, r, rows=evaluation.rows)
            )

        return self.evaluate(params, x, gather)

    def start(self, x: Array, k: int, variance: Array) -> PyTree:
        """Initial parameters for `maximize`: every component with the data's mean and variances."""
        means = jnp.broadcast_to(jnp.nanmean(x, axis=0), (k, x.shape[1]))
        return self.pack(means, jnp.broadcast_to(jnp.diag(variance), (k, len(variance), len(variance))))

    def pack(self, means: Array, covariances: Array, weights: Array | None = None) -> PyTree:
        """Parameters from means (K, D) and covariances (K, D, D)."""
        weights = jnp.ones(len(means), means.dtype) if weights is None else weights
        return {"means": means, **self.kind.pack(self.kind.from_dense(covariances, weights))}

    def conjugate(self, mean: Array, variance: Array, k: int) -> ConjugatePrior | None:
        """The prior for data with this mean and variances (D,); None if it is flat."""
        if not (self.prior.pseudo_counts or self.prior.mean_counts):
            return None
        count = jnp.asarray(self.prior.pseudo_counts, variance.dtype)
        scale = self.kind.diagonal(count * self.prior.mode * variance)
        return ConjugatePrior(
            scale,
            count,
            jnp.broadcast_to(mean, (k, len(mean))),
            jnp.full(k, self.prior.mean_counts, variance.dtype),
        )

    def maximize(self, params: PyTree, stats: Stats, variance: Array, prior: ConjugatePrior | None = None) -> PyTree:
        """The M-step; `variance` (D,) is the data's. Components without points are unchanged."""
        total, count = stats.first, stats.count
        if prior is not None:
            total = total + prior.mean_count[:, None] * (prior.mean - params["means"])
            count = count + prior.mean_count
        shift = jnp.zeros_like(total) if "means" in self.fixed else ratio(total, count[:, None])
        means = params["means"] + shift
        new = {**params, "means": means}
        if "covariances" not in self.fixed:
            distance = None if prior is None else means - prior.mean
            covariances = self.kind.maximize(stats, shift, prior, distance)
            # Variances below the rounding of the data have no meaning.
            rounding = (4 * jnp.finfo(variance.dtype).eps) ** 2 * (variance + means**2)
            floor = jnp.maximum(self.floor * variance, rounding) + self.regularization
            new |= self.kind.pack(self.kind.with_floor(covariances, floor))
        return self.kind.where_occupied(occupied(stats.count), new, params)


def check_fixed(fixed: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Raises ValueError if `fixed` names a parameter that there is not."""
    if isinstance(fixed, str) or not set(fixed) <= set(names):
        raise ValueError(f"fixed may hold {', '.join(map(repr, names))}, got {fixed!r}")


def condition(x: Array, mask: Array, y: Array, covariance: Array) -> Array:
    """y + S O' (O S O')^-1 (x - y), O choosing the coordinates in `mask` (D,), where it equals x (D,).

    Of a draw y of a normal it makes one given these coordinates (Matheron's rule), of its mean the conditional mean.
    """
    among = jnp.where(mask[:, None] & mask, covariance, jnp.eye(len(x), dtype=x.dtype))
    gain = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(among), True), jnp.where(mask, x - y, 0))
    return jnp.where(mask, x, y + covariance @ gain)


def data_moments(x: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """(D,) means and variances of the data, without NaN and rows of weight 0; variances are 1 where it is constant up
    to rounding."""
    there = ~jnp.isnan(x) if weight is None else ~jnp.isnan(x) & (weight[:, None] > 0)
    each = there.astype(x.dtype) if weight is None else there * weight[:, None].astype(x.dtype)
    total = each.sum(axis=0)
    mean = ratio(jnp.sum(jnp.where(there, x, 0) * each, axis=0), total)
    variance = ratio(jnp.sum(jnp.where(there, x - mean, 0) ** 2 * each, axis=0), total)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.where(there, jnp.abs(x), 0).max(axis=0)
    return mean, jnp.where(variance > rounding**2, variance, 1)
