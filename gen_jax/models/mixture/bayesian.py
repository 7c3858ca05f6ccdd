"""Bayesian Gaussian mixtures by variational EM (Attias 2000; Bishop 2006, section 10.2; Blei & Jordan 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import distrax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betaln, digamma, gammaln, multigammaln

from gen_jax.core import Batch, Extra, Params, PyTree, State
from gen_jax.models.common.linalg import matmul
from gen_jax.models.mixture.covariances import DIAGONAL, FULL, SPHERICAL, ConjugatePrior, Stats
from gen_jax.models.mixture.gmm import GMM, shapes_of

__all__ = ["BayesianGMM"]


class Wishart(NamedTuple):
    """Posteriors of precisions: Wishart distributions of `size` x `size` matrices."""

    size: int
    degrees: Array  # of freedom, (K,), or () if all components share one
    prior_degrees: Array
    copies: int  # independent ones with these degrees, for each component
    repeats: int  # how often the log-determinant of one counts in that of all coordinates

    def digamma(self) -> Array:
        """The multivariate digamma function of half the degrees."""
        return digamma(0.5 * self.degrees[..., None] - 0.5 * jnp.arange(self.size)).sum(axis=-1)

    def log_determinant(self) -> Array:
        """E log det of a precision, beyond that of its mean."""
        return self.digamma() + self.size * jnp.log(2 / self.degrees)


@dataclass(frozen=True)
class BayesianGMM(GMM):
    """A Gaussian mixture with posteriors over weights, means and precisions, which EM improves in turns.

    concentration: of the Dirichlet prior of the weights, or of the Dirichlet process if `process`, whose sticks are
    broken in the order of the components; 1 / K by default. mean_precision: the points that the prior of each mean is
    worth, about `mean`, the data's by default. degrees: of freedom of the prior of each precision, the number of
    dimensions by default. covariance: the inverse scale matrix of that prior, in the shape of one component, the
    data's covariance by default.

    The log-posterior that `em` reports is the evidence lower bound, divided by the number of examples. Components that
    the data does not need lose their weight; `components` is the most there may be. Parameters are those of the
    posteriors; `log_prob` is the density at their means.
    """

    concentration: float | None = None
    process: bool = False
    mean_precision: float = 1.0
    degrees: float | None = None
    mean: tuple[float, ...] | None = None
    covariance: Any = None

    def __post_init__(self):
        super().__post_init__()
        if self.fixed or self.active is not None or self.missing:
            raise ValueError("a Bayesian mixture has no fixed parameters, no `active` and no missing values")
        for name in ("concentration", "mean_precision", "degrees"):
            if (value := vars(self)[name]) is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """As that of `GMM`; sticks are broken from the heaviest component on (Kurihara, Welling & Teh 2007)."""
        params, extra = super().init(key, batch)
        if not self.process:
            return params, extra
        order = jnp.argsort(-params["gmm"]["count"])
        count, shapes = params["gmm"]["count"][order], self.kind.gather(shapes_of(params["gmm"]), order)
        return {"gmm": {"logits": self._expected_log_weights(count), "count": count, **shapes}}, extra

    def _prior(self, x: Array, weight: Array, mean: Array, variance: Array) -> PyTree:
        d, k = x.shape[1], self.components
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
        if self.kind is FULL and degrees <= d - 1:
            raise ValueError(f"degrees must be above {d - 1} for {d} dimensions, got {degrees}")
        center = mean if self.mean is None else jnp.asarray(self.mean, x.dtype)
        precision = jnp.full(k, self.mean_precision, x.dtype)
        return ConjugatePrior(scale, jnp.asarray(degrees, x.dtype), jnp.broadcast_to(center, (k, d)), precision)

    @property
    def weight_concentration(self) -> float:
        """The concentration of the Dirichlet prior, or of the Dirichlet process."""
        return 1 / self.components if self.concentration is None else self.concentration

    def _wishart(self, count: Array, prior: ConjugatePrior) -> Wishart:
        d = prior.mean.shape[1]
        if self.kind is FULL:
            return Wishart(d, prior.count + count, prior.count, 1, 1)
        if self.kind is DIAGONAL:
            return Wishart(1, prior.count + count, prior.count, d, d)
        if self.kind is SPHERICAL:
            return Wishart(1, d * (prior.count + count), d * prior.count, 1, d)
        return Wishart(d, prior.count + count.sum(), prior.count, 1, 1)

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        old, prior = state.params["gmm"], state.extra["prior"]
        precision = prior.mean_count + stats.count
        shift = (stats.first + prior.mean_count[:, None] * (prior.mean - old["means"])) / precision[:, None]
        means = old["means"] + shift
        covariances = self.kind.maximize(stats, shift, prior, means - prior.mean)
        floor = jnp.broadcast_to(self.regularization + self.floor * state.extra["variance"], means.shape)
        shapes = {"means": means, **self.kind.pack(self.kind.with_floor(covariances, floor))}
        return {"gmm": {"logits": self._expected_log_weights(stats.count), "count": stats.count, **shapes}}, {}

    def _sticks(self, count: Array) -> tuple[Array, Array]:
        """Posterior Beta parameters of the broken sticks."""
        later = count.sum() - jnp.cumsum(count)
        return 1 + count, self.weight_concentration + later

    def _expected_log_weights(self, count: Array) -> Array:
        if self.process:
            a, b = self._sticks(count)
            kept = digamma(b) - digamma(a + b)
            return digamma(a) - digamma(a + b) + jnp.cumsum(kept) - kept
        alpha = self.weight_concentration + count
        return digamma(alpha) - digamma(alpha.sum())

    def weights(self, params: PyTree) -> Array:
        """(K,) posterior means of the weights."""
        if self.process:
            a, b = self._sticks(params["count"])
            left = jnp.cumprod(b / (a + b))
            mean = a / (a + b) * jnp.concatenate([jnp.ones(1, left.dtype), left[:-1]])
        else:
            mean = self.weight_concentration + params["count"]
        return mean / mean.sum()

    def log_weights(self, params: PyTree, extra: Extra) -> Array:
        """(K,) what the posteriors add to the log-densities at their means: E log w, and more spread."""
        wishart, d = self._wishart(params["count"], extra["prior"]), params["means"].shape[1]
        spread = d / (extra["prior"].mean_count + params["count"])
        return params["logits"] + 0.5 * (wishart.repeats * wishart.log_determinant() - spread)

    def log_prior(self, state: State) -> Array:
        """Minus the divergences of the posteriors from the priors, in nats."""
        params, prior = state.params["gmm"], state.extra["prior"]
        count, d = params["count"], params["means"].shape[1]
        ratio = prior.mean_count / (prior.mean_count + count)
        means = 0.5 * d * jnp.sum(ratio - jnp.log(ratio) - 1)
        wishart = self._wishart(count, prior)
        size, degrees, before = wishart.size, wishart.degrees, wishart.prior_degrees
        scale = jnp.linalg.slogdet(prior.scale)[1] if prior.scale.ndim == 2 else jnp.log(prior.scale).sum()
        if self.kind is SPHERICAL:
            scale = scale / d + jnp.log(d)
        each = multigammaln(0.5 * before, size) - multigammaln(0.5 * degrees, size)
        each += 0.5 * (degrees - before) * wishart.digamma() + 0.5 * size * (before * jnp.log(degrees) - degrees)
        precisions = wishart.copies * each.sum() - 0.5 * before * scale * each.size
        weights = self._weights_divergence(count)
        return self.kind.log_prior(shapes_of(params), prior) - means - precisions - weights

    def _weights_divergence(self, count: Array) -> Array:
        alpha = jnp.asarray(self.weight_concentration, count.dtype)
        if self.process:
            a, b = self._sticks(count)
            each = betaln(1.0, alpha) - betaln(a, b) + (a - 1) * digamma(a) + (b - alpha) * digamma(b)
            return jnp.sum(each - (a - 1 + b - alpha) * digamma(a + b))
        after, k = alpha + count, len(count)
        log_norm = gammaln(after.sum()) - gammaln(after).sum() - gammaln(k * alpha) + k * gammaln(alpha)
        return log_norm + jnp.sum(count * (digamma(after) - digamma(after.sum())))

    @property
    def objectives(self):
        raise AttributeError("a Bayesian mixture is trained by em: its parameters are those of posteriors")

    def log_prob(self, state: State, batch: Batch) -> Array:
        plain, at_means = self.at_means(state)
        return plain.log_prob(at_means, batch)

    def distribution(self, state: State) -> distrax.MixtureSameFamily:
        plain, at_means = self.at_means(state)
        return plain.distribution(at_means)

    def marginal(self, state: State, columns: Sequence[int]) -> State:
        """The State of a `GMM`, of the marginal at the posterior means."""
        plain, at_means = self.at_means(state)
        return plain.marginal(at_means, columns)

    def conditional(self, state: State, columns: Sequence[int], values: Array) -> distrax.MixtureSameFamily:
        plain, at_means = self.at_means(state)
        return plain.conditional(at_means, columns, values)

    def parameters(self, state: State) -> tuple[Array, Array, Array]:
        plain, at_means = self.at_means(state)
        return plain.parameters(at_means)

    def criteria(self, state: State, batch: Batch) -> dict[str, Array]:
        raise TypeError("Bayesian mixtures are compared by their evidence lower bound, the log-posterior of `em`")

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        plain, at_means = self.at_means(state)
        return plain.sample(at_means, key, n, condition)

    def at_means(self, state: State) -> tuple[GMM, State]:
        """The mixture at the posterior means."""
        params = state.params["gmm"]
        plain = GMM(self.components, kind=self.kind, shape=self.shape)
        shapes = {"logits": jnp.log(self.weights(params)), **shapes_of(params)}
        return plain, state._replace(params={"gmm": shapes})

    def pack(self, given: PyTree, params: PyTree) -> PyTree:
        """Parameters from "count" (K,), the expected number of points of each component, "means" and "covariances"."""
        means, covariances = given["means"], given["covariances"]
        shapes = {"means": means, **self.kind.pack(self.kind.from_dense(covariances, given["count"]))}
        return {"logits": self._expected_log_weights(given["count"]), "count": given["count"], **shapes}

    def unpack(self, params: PyTree) -> PyTree:
        covariances = self.kind.covariances(shapes_of(params))
        found = {"weights": self.weights(params), "means": params["means"], "covariances": covariances}
        count = params["count"]
        concentration = self._sticks(count) if self.process else self.weight_concentration + count
        return {**found, "count": count, "weight_concentration": concentration}
