"""Emissions with posteriors over their parameters, for `BayesianHMM`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln

from gen_jax.core import PyTree
from gen_jax.models.common.linalg import einsum
from gen_jax.models.hmm.emissions.discrete import Categorical, Poisson
from gen_jax.models.hmm.emissions.emission import Emission, rows
from gen_jax.models.hmm.emissions.gaussian import Gaussian
from gen_jax.models.mixture.bayesian_gaussians import BayesianGaussians
from gen_jax.models.mixture.covariances import FULL, Full
from gen_jax.models.mixture.gaussians import data_moments
from gen_jax.models.mixture.kmeans import Start, kmeans_plus_plus

__all__ = [
    "BayesianCategorical",
    "BayesianEmission",
    "BayesianGaussian",
    "BayesianPoisson",
    "dirichlet_divergence",
    "expected_log",
]


class BayesianEmission(Emission):
    """An emission whose parameters are those of posteriors.

    `log_prob` is the expected log-density under them, `maximize` updates them, and `log_prior` is minus their
    divergence from the priors. `extra` of `maximize` and `log_prior` holds the "prior".
    """

    def at_means(self, params: PyTree) -> tuple[Emission, PyTree]:
        """The emission without posteriors, and its parameters: the posterior means."""
        raise NotImplementedError

    def distribution(self, params):
        emission, means = self.at_means(params)
        return emission.distribution(means)

    def draw(self, params, extra, key, states, past=None):
        emission, means = self.at_means(params)
        return emission.draw(means, {}, key, states, past)

    def mean(self, params):
        emission, means = self.at_means(params)
        return emission.mean(means)

    def free_parameters(self, params):
        raise TypeError("posteriors have no free parameters: compare models by their evidence lower bound")


@dataclass(frozen=True)
class BayesianGaussian(BayesianEmission):
    """Gaussian emissions with normal-Wishart posteriors; see `BayesianGaussians` for the fields.

    A step with any NaN counts as unobserved.
    """

    kind: Full = FULL
    floor: float = 0.0
    regularization: float = 0.0
    mean_precision: float = 1.0
    degrees: float | None = None
    mean_prior: tuple[float, ...] | None = None
    covariance: Any = None
    start: Start = kmeans_plus_plus

    def __post_init__(self):
        _ = self.posteriors

    @property
    def posteriors(self) -> BayesianGaussians:
        shapes = self.kind, self.floor, self.regularization
        return BayesianGaussians(*shapes, self.mean_precision, self.degrees, self.mean_prior, self.covariance)

    def init(self, key, batch, seen, k):
        x, weight = rows(batch["x"]), seen.reshape(-1).astype(batch["x"].dtype)
        params, extra = Gaussian(self.kind, start=self.start).init(key, batch, seen, k)
        mean, _ = data_moments(x, weight)
        extra = {"variance": extra["variance"], "prior": self.posteriors.prior(x, weight, mean, k)}
        # Once more through the M-step, from the densities of the first: counts come with it.
        log_prob = Gaussian(self.kind).log_prob(params, {}, batch)
        r = jax.nn.softmax(log_prob, axis=2) * seen[..., None]
        return self.maximize(params, extra, self.stats(params, extra, batch, r)), extra

    def log_prob(self, params, extra, batch):
        return Gaussian(self.kind).log_prob(params, {}, batch) + self.posteriors.spread(params, extra["prior"])

    def stats(self, params, extra, batch, r):
        return Gaussian(self.kind).stats(params, {}, batch, r)

    def maximize(self, params, extra, stats):
        return self.posteriors.maximize(params, stats, extra["variance"], extra["prior"])

    def log_prior(self, params, extra):
        return self.posteriors.log_prior(params, extra["prior"])

    def recenter(self, stats, old, new):
        return self.kind.recenter(stats, new["means"] - old["means"])

    def at_means(self, params):
        return Gaussian(self.kind), {name: a for name, a in params.items() if name != "count"}

    def pack(self, given, params):
        """Given "covariances" are dense (K, D, D), "count" (K,) the expected number of points of each state."""
        shapes = Gaussian(self.kind).pack({k: a for k, a in given.items() if k != "count"}, params)
        return shapes | ({"count": given["count"]} if "count" in given else {})

    def unpack(self, params):
        return {**Gaussian(self.kind).unpack(params), "count": params["count"]}


@dataclass(frozen=True)
class BayesianCategorical(BayesianEmission):
    """Symbols, as `Categorical`, with Dirichlet posteriors; prior: its concentration, 1 / symbols by default."""

    symbols: int
    prior: float | None = None

    def __post_init__(self):
        if self.symbols < 1:
            raise ValueError(f"symbols must be at least 1, got {self.symbols}")
        if self.prior is not None and self.prior <= 0:
            raise ValueError(f"prior must be positive, got {self.prior}")

    @property
    def _plain(self) -> Categorical:
        return Categorical(self.symbols)

    def read(self, x):
        return self._plain.read(x)

    def unseen(self, x):
        return self._plain.unseen(x)

    def init(self, key, batch, seen, k):
        params, _ = self._plain.init(key, batch, seen, k)
        prior = jnp.full(params["logits"].shape, 1 / self.symbols if self.prior is None else self.prior)
        return {"concentration": prior + jax.nn.softmax(params["logits"]) * seen.sum() / k}, {"prior": prior}

    def log_prob(self, params, extra, batch):
        # exp of the expected log-probabilities sums to less than 1: what is missing is added after the softmax.
        logits = expected_log(params["concentration"])
        lost = jax.nn.logsumexp(logits, axis=-1)
        each = self._plain.log_prob({"logits": logits}, {}, batch)
        if batch["x"].ndim == 2:
            return each + lost
        there = (batch["x"] >= 0).astype(lost.dtype)
        return each + einsum("btd,kd->btk", there, lost)

    def stats(self, params, extra, batch, r):
        return self._plain.stats({}, {}, batch, r)

    def maximize(self, params, extra, stats):
        return {"concentration": extra["prior"] + jnp.maximum(stats, 0)}

    def log_prior(self, params, extra):
        return -dirichlet_divergence(params["concentration"], extra["prior"])

    def at_means(self, params):
        return self._plain, {"logits": jnp.log(params["concentration"])}


@dataclass(frozen=True)
class BayesianPoisson(BayesianEmission):
    """Counts, as `Poisson`, with Gamma posteriors; prior: the pseudo-observations of the data's mean rate."""

    prior: float = 1.0

    def __post_init__(self):
        if self.prior <= 0:
            raise ValueError(f"prior must be positive, got {self.prior}")

    def unseen(self, x):
        return Poisson().unseen(x)

    def init(self, key, batch, seen, k):
        params, extra = Poisson(self.prior).init(key, batch, seen, k)
        prior = {"total": extra["prior"]["total"], "count": jnp.full_like(params["log_rate"], self.prior)}
        count = prior["count"] + seen.sum().astype(prior["count"].dtype) / k
        return {"total": jnp.exp(params["log_rate"]) * count, "count": count}, {"prior": prior}

    def log_prob(self, params, extra, batch):
        # E log rate in place of log rate, and E rate in place of rate, where something was observed.
        plain, means = self.at_means(params)
        there = ~jnp.isnan(batch["x"]) if batch["x"].dtype.kind == "f" else jnp.ones(batch["x"].shape, bool)
        x = jnp.where(there, batch["x"], 0).astype(means["log_rate"].dtype)
        spread = digamma(params["total"]) - jnp.log(params["total"])
        return plain.log_prob(means, {}, batch) + einsum("btd,kd->btk", x, spread)

    def stats(self, params, extra, batch, r):
        return Poisson().stats({}, {}, batch, r)

    def maximize(self, params, extra, stats):
        count, total = stats
        prior = extra["prior"]
        return {"total": prior["total"] + total, "count": prior["count"] + count}

    def log_prior(self, params, extra):
        a, b, prior = params["total"], params["count"], extra["prior"]
        before = prior["total"]
        each = (a - before) * digamma(a) - gammaln(a) + gammaln(before)
        each += before * (jnp.log(b) - jnp.log(prior["count"])) + a * (prior["count"] - b) / b
        return -jnp.sum(each)

    def at_means(self, params):
        return Poisson(), {"log_rate": jnp.log(params["total"] / params["count"])}


def expected_log(concentration: Array, allowed: Array | bool = True) -> Array:
    """E log p for p ~ Dirichlet(concentration), over the last axis; -inf where not allowed."""
    concentration = jnp.where(allowed, concentration, 0)
    total = concentration.sum(axis=-1, keepdims=True)
    return jnp.where(allowed, digamma(jnp.where(allowed, concentration, 1)) - digamma(total), -jnp.inf)


def dirichlet_divergence(after: Array, before: Array, allowed: Array | bool = True) -> Array:
    """KL(Dirichlet(after) || Dirichlet(before)) over the last axis, summed over the others, in nats."""
    total = lambda a: jnp.sum(jnp.where(allowed, a, 0), axis=-1)
    log_norm = lambda a: gammaln(total(a)) - total(gammaln(a))
    moved = jnp.where(allowed, (after - before) * expected_log(after, allowed), 0).sum(axis=-1)
    return jnp.sum(log_norm(after) - log_norm(before) + moved)
