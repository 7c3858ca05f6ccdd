"""K Gaussian densities, shared by Gaussian mixtures and the Gaussian emissions of hidden Markov models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree
from gen_jax.models.common.blocks import by_blocks, jointly, over_blocks
from gen_jax.models.mixture.covariances import FULL, Evaluation, Full, Standardizer, Stats, occupied

__all__ = ["Gaussians", "Prior", "data_variance"]


class Prior(NamedTuple):
    """Conjugate priors for maximum a posteriori estimates (Gauvain & Lee 1994; Murphy 2012, section 11.4.2.8).

    concentration: of the Dirichlet over the mixture weights; 1 is flat. pseudo_counts: of the inverse-Wishart over each
    covariance, in observations; 0 is flat. mode: its mode, in units of the data's variances.
    """

    concentration: float = 1.0
    pseudo_counts: float = 0.0
    mode: float = 1.0


@dataclass(frozen=True)
class Gaussians:
    """K Gaussian densities with one covariance type; parameters are {"means": (K, D), ...}.

    floor: added to every variance, relative to the data's. regularization: added to every variance, in the data's
    units (scikit-learn's reg_covar). missing: NaN in x marks a missing coordinate, which is marginalized exactly.
    """

    kind: Full = FULL
    floor: float = 1e-6
    regularization: float = 0.0
    missing: bool = False
    prior: Prior = field(default_factory=Prior)

    def __post_init__(self):
        if self.floor < 0 or self.regularization < 0:
            raise ValueError(f"floor and regularization must be 0 or more, got {self.floor} and {self.regularization}")
        if not isinstance(self.kind, Full):
            raise ValueError(f"kind must be one of FULL, TIED, DIAGONAL, SPHERICAL, got {self.kind!r}")
        if self.prior.concentration < 1 or self.prior.pseudo_counts < 0 or self.prior.mode <= 0:
            raise ValueError(f"a prior needs concentration >= 1, pseudo_counts >= 0 and mode > 0, got {self.prior}")

    def evaluate(self, params: PyTree, x: Array, then: Callable[[Evaluation], PyTree]) -> PyTree:
        """Calls `then` with the fastest evaluation accurate to float precision for these parameters and data."""
        if self.missing:
            return then(self.kind.missing(params))
        gemm, sharpness = self.kind.gemm(params, Standardizer.of(x))
        fine = jointly(lax.stop_gradient(sharpness) < 1e-4 / jnp.finfo(x.dtype).eps)
        return lax.cond(fine, lambda: then(gemm), lambda: then(self.kind.direct(params)))

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

    def maximize(self, params: PyTree, stats: Stats, variance: Array) -> PyTree:
        """The M-step; `variance` (D,) is the data's. Components without points are unchanged."""
        weight = jnp.asarray(self.prior.pseudo_counts, variance.dtype)
        shift, covariances = self.kind.maximize(params, stats, weight, self.prior.mode * variance)
        floor = jnp.maximum(self.floor, 4 * jnp.finfo(variance.dtype).eps) * variance + self.regularization
        covariances = self.kind.with_floor(covariances, floor)
        new = {"means": params["means"] + shift, **self.kind.pack(covariances)}
        return self.kind.where_occupied(occupied(stats), new, params)

    def log_prior(self, params: PyTree, variance: Array) -> Array:
        return self.kind.log_prior(params, self.prior.pseudo_counts, self.prior.mode * variance)


def data_variance(x: Array) -> Array:
    """(D,) variances of the data, 1 where it is constant up to rounding."""
    variance = x.var(axis=0)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis=0)
    return jnp.where(variance > rounding**2, variance, 1)
