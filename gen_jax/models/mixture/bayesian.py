"""Bayesian Gaussian mixtures by variational EM (Attias 2000; Bishop 2006, section 10.2; Blei & Jordan 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import distrax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betaln, digamma, gammaln

from gen_jax.core import Batch, Extra, Params, PyTree, State
from gen_jax.models.mixture.bayesian_gaussians import BayesianGaussians
from gen_jax.models.mixture.covariances import Stats
from gen_jax.models.mixture.gmm import GMM, shapes_of

__all__ = ["BayesianGMM"]


@dataclass(frozen=True)
class BayesianGMM(GMM):
    """A Gaussian mixture with posteriors over weights, means and precisions, which EM improves in turns.

    concentration: of the Dirichlet prior of the weights, or of the Dirichlet process if `process`, whose sticks are
    broken in the order of the components; 1 / K by default. mean_precision, degrees, mean, covariance: of the priors of
    the components, see `BayesianGaussians`.

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
        if self.concentration is not None and self.concentration <= 0:
            raise ValueError(f"concentration must be positive, got {self.concentration}")
        _ = self.posteriors

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """As that of `GMM`; sticks are broken from the heaviest component on (Kurihara, Welling & Teh 2007)."""
        params, extra = super().init(key, batch)
        if not self.process:
            return params, extra
        order = jnp.argsort(-params["gmm"]["count"])
        count, shapes = params["gmm"]["count"][order], self.kind.gather(shapes_of(params["gmm"]), order)
        return {"gmm": {"logits": self._expected_log_weights(count), "count": count, **shapes}}, extra

    @property
    def posteriors(self) -> BayesianGaussians:
        """The posteriors of the components."""
        shapes = self.kind, self.floor, self.regularization
        return BayesianGaussians(*shapes, self.mean_precision, self.degrees, self.mean, self.covariance)

    def _prior(self, x: Array, weight: Array, mean: Array, variance: Array) -> PyTree:
        return self.posteriors.prior(x, weight, mean, self.components)

    @property
    def weight_concentration(self) -> float:
        """The concentration of the Dirichlet prior, or of the Dirichlet process."""
        return 1 / self.components if self.concentration is None else self.concentration

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        new = self.posteriors.maximize(state.params["gmm"], stats, state.extra["variance"], state.extra["prior"])
        return {"gmm": {"logits": self._expected_log_weights(stats.count), **new}}, {}

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
        return params["logits"] + self.posteriors.spread(params, extra["prior"])

    def log_prior(self, state: State) -> Array:
        """Minus the divergences of the posteriors from the priors, in nats."""
        params = state.params["gmm"]
        return self.posteriors.log_prior(params, state.extra["prior"]) - self._weights_divergence(params["count"])

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
