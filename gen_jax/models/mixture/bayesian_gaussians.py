"""Posteriors of K Gaussian densities, shared by Bayesian mixtures and Bayesian hidden Markov models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, multigammaln

from gen_jax.core import PyTree
from gen_jax.models.common.linalg import matmul
from gen_jax.models.mixture.covariances import DIAGONAL, FULL, SPHERICAL, TIED, ConjugatePrior, Full, Stats

__all__ = ["BayesianGaussians"]


class Wishart(NamedTuple):
    """Posteriors of precisions: Wishart distributions of `size` x `size` matrices."""

    size: int
    degrees: Array  # of freedom, (K,), or () if all components share one
    prior_degrees: Array
    copies: int  # independent ones with these degrees, for each component
    repeats: int  # how often the log-determinant of one counts in that of all coordinates

    def digamma(self) -> Array:
        """The multivariate digamma function of half the degrees."""
        return digamma(0.5 * self.degrees[..., None] - 0.5 * jnp.arange(self.size, dtype=self.degrees.dtype)).sum(
            axis=-1
        )

    def log_determinant(self) -> Array:
        """E log det of a precision, beyond that of its mean."""
        return self.digamma() + self.size * jnp.log(2 / self.degrees)


@dataclass(frozen=True)
class BayesianGaussians:
    """Normal-Wishart posteriors of means and precisions (Bishop 2006, section 10.2), of one covariance type.

    mean_precision: the points that the prior of each mean is worth, about `mean`, the data's by default. degrees: of
    freedom of the prior of each precision, the number of dimensions by default. covariance: the inverse scale matrix of
    that prior, in the shape of one component, the data's covariance by default. floor, regularization: as those of
    `Gaussians`.

    Parameters are {"count": (K,), "means": (K, D), ...}: the expected number of points of each component, the posterior
    means, and the inverses of the mean precisions as the covariance type stores covariances.
    """

    kind: Full = FULL
    floor: float = 0.0
    regularization: float = 0.0
    mean_precision: float = 1.0
    degrees: float | None = None
    mean: tuple[float, ...] | None = None
    covariance: Any = None

    def __post_init__(self):
        for name in ("mean_precision", "degrees"):
            if (value := vars(self)[name]) is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def prior(self, x: Array, weight: Array, mean: Array, k: int) -> ConjugatePrior:
        """The prior for data x (N, D) with weights (N,) and this mean (D,)."""
        d = x.shape[1]
        counted = (weight > 0).sum()
        share = jnp.where(weight > 0, weight, 0) / jnp.sum(jnp.where(weight > 0, weight, 0))
        centered = jnp.where(weight[:, None] > 0, x - mean, 0)
        if self.kind is DIAGONAL or self.kind is SPHERICAL:
            scale = jnp.sum(share[:, None] * centered**2, axis=0)
            scale = scale if self.kind is DIAGONAL else jnp.full(d, scale.mean())
        else:
            scale = matmul((share[:, None] * centered).T, centered)
        scale = scale * counted / jnp.maximum(counted - 1, 1)
        if self.covariance is not None:
            scale = jnp.broadcast_to(jnp.asarray(self.covariance, x.dtype), scale.shape)
        degrees = d if self.degrees is None else self.degrees
        if (self.kind is FULL or self.kind is TIED) and degrees <= d - 1:
            raise ValueError(f"degrees must be above {d - 1} for {d} dimensions, got {degrees}")
        center = mean if self.mean is None else jnp.asarray(self.mean, x.dtype)
        precision = jnp.full(k, self.mean_precision, x.dtype)
        return ConjugatePrior(scale, jnp.asarray(degrees, x.dtype), jnp.broadcast_to(center, (k, d)), precision)

    def maximize(self, params: PyTree, stats: Stats, variance: Array, prior: ConjugatePrior) -> PyTree:
        """The posteriors given statistics about the means in `params`; `variance` (D,) is the data's."""
        precision = prior.mean_count + stats.count
        shift = (stats.first + prior.mean_count[:, None] * (prior.mean - params["means"])) / precision[:, None]
        means = params["means"] + shift
        covariances = self.kind.maximize(stats, shift, prior, means - prior.mean)
        floor = jnp.broadcast_to(self.regularization + self.floor * variance, means.shape)
        return {"count": stats.count, "means": means, **self.kind.pack(self.kind.with_floor(covariances, floor))}

    def spread(self, params: PyTree, prior: ConjugatePrior) -> Array:
        """(K,) E log N(x; mean, precision) under the posteriors, minus the log-density at their means."""
        wishart, d = self._wishart(params["count"], prior), params["means"].shape[1]
        return 0.5 * (wishart.repeats * wishart.log_determinant() - d / (prior.mean_count + params["count"]))

    def log_prior(self, params: PyTree, prior: ConjugatePrior) -> Array:
        """Minus the divergences of the posteriors from the priors, in nats."""
        count, d = params["count"], params["means"].shape[1]
        ratio = prior.mean_count / (prior.mean_count + count)
        means = 0.5 * d * jnp.sum(ratio - jnp.log(ratio) - 1)
        wishart = self._wishart(count, prior)
        size, degrees, before = wishart.size, wishart.degrees, wishart.prior_degrees
        each = multigammaln(0.5 * before, size) - multigammaln(0.5 * degrees, size)
        each += 0.5 * (degrees - before) * wishart.digamma() + 0.5 * size * (before * jnp.log(degrees) - degrees)
        scale = jnp.broadcast_to(before * self._log_determinant(prior.scale), each.shape)
        precisions = wishart.copies * each.sum() - 0.5 * scale.sum()
        return self.kind.log_prior(params, prior) - means - precisions

    def _log_determinant(self, scale: Array) -> Array:
        """() or (K,) log-determinants of the priors' scale matrices."""
        if self.kind is DIAGONAL:
            return jnp.log(scale).sum(axis=-1)
        if self.kind is SPHERICAL:
            return jnp.log(scale).mean(axis=-1) + jnp.log(scale.shape[-1])
        return jnp.linalg.slogdet(scale)[1]

    def _wishart(self, count: Array, prior: ConjugatePrior) -> Wishart:
        d = prior.mean.shape[1]
        before = prior.count.reshape(-1) if prior.count.ndim else prior.count
        if self.kind is FULL:
            return Wishart(d, before + count, before, 1, 1)
        if self.kind is DIAGONAL:
            return Wishart(1, before + count, before, d, d)
        if self.kind is SPHERICAL:
            return Wishart(1, d * (before + count), d * before, 1, d)
        return Wishart(d, before + count.sum(), before, 1, 1)
