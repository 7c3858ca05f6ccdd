"""Distributions of how many steps a semi-Markov chain stays in a state."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from gen_jax.core import PyTree, fold_in
from gen_jax.models.common.linalg import matmul
from gen_jax.models.hmm.batches import maximized_logits
from gen_jax.models.mixture.covariances import ratio

__all__ = [
    "CategoricalDurations",
    "Durations",
    "GeometricDurations",
    "NegativeBinomialDurations",
    "PoissonDurations",
]


@dataclass(frozen=True)
class Durations:
    """Durations from 1 to `longest` steps, one distribution per state."""

    longest: int

    def __post_init__(self):
        if self.longest < 1:
            raise ValueError(f"longest must be at least 1, got {self.longest}")

    def init(self, key: Array, k: int) -> PyTree:
        raise NotImplementedError

    def log_prob(self, params: PyTree) -> Array:
        """(K, longest) log-probabilities of 1, 2, ... steps."""
        raise NotImplementedError

    def maximize(self, params: PyTree, count: Array) -> PyTree:
        """Maximum-likelihood parameters for expected counts (K, longest); unchanged for states without counts."""
        raise NotImplementedError

    def free_parameters(self, k: int) -> int:
        raise NotImplementedError

    def mean(self, params: PyTree) -> Array:
        """(K,) mean durations."""
        p = jnp.exp(self.log_prob(params))
        return matmul(p, jnp.arange(1, self.longest + 1, dtype=p.dtype))


@dataclass(frozen=True)
class CategoricalDurations(Durations):
    """A probability for each duration (Ferguson 1980)."""

    def init(self, key, k):
        # Longer ones are less likely, so that the first segments are not all as long as allowed.
        decay = -jnp.arange(self.longest) * 2.0 / self.longest
        return {"logits": decay + 0.1 * jax.random.normal(fold_in(key, "durations"), (k, self.longest))}

    def log_prob(self, params):
        return jax.nn.log_softmax(params["logits"])

    def maximize(self, params, count):
        return {"logits": maximized_logits(count, params["logits"], jnp.ones(count.shape, bool))}

    def free_parameters(self, k):
        return k * (self.longest - 1)


@dataclass(frozen=True)
class Tilted(Durations):
    """p(d) proportional to h(d) exp(rate d): an exponential family in the one parameter of each state."""

    def log_base(self, d: Array) -> Array:
        """log h(d) of durations d (longest,)."""
        raise NotImplementedError

    def init(self, key, k):
        target = 1 + jax.random.uniform(fold_in(key, "durations"), (k,), minval=0.2, maxval=0.6) * (self.longest - 1)
        return {"rate": self._rate(target / 2)}

    def log_prob(self, params):
        d = jnp.arange(1, self.longest + 1, dtype=params["rate"].dtype)
        return jax.nn.log_softmax(self.log_base(d) + params["rate"][:, None] * d)

    def maximize(self, params, count):
        total = count.sum(axis=1)
        mean = ratio(matmul(count, jnp.arange(1, self.longest + 1, dtype=count.dtype)), total)
        return {"rate": jnp.where(total > 0, self._rate(mean), params["rate"])}

    def _rate(self, mean: Array) -> Array:
        """Rates (K,) at which the means are these, by bisection: the mean rises with the rate."""
        below, above = jnp.full_like(mean, -30.0), jnp.full_like(mean, 30.0)

        def halve(i: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            below, above = bounds
            middle = (below + above) / 2
            low = self.mean({"rate": middle}) < mean
            return jnp.where(low, middle, below), jnp.where(low, above, middle)

        below, above = jax.lax.fori_loop(0, 60, halve, (below, above))
        return (below + above) / 2

    def free_parameters(self, k):
        return k


@dataclass(frozen=True)
class GeometricDurations(Tilted):
    """Geometric durations, those of an ordinary HMM if `longest` is the length of the sequences."""

    def log_base(self, d):
        return jnp.zeros_like(d)


@dataclass(frozen=True)
class PoissonDurations(Tilted):
    """One step more than a Poisson count, cut off at `longest`."""

    def log_base(self, d):
        return -gammaln(d)


@dataclass(frozen=True)
class NegativeBinomialDurations(Tilted):
    """One step more than a negative binomial count, cut off at `longest`: the sum of `stages` geometric durations, less
    their excess over one step.

    stages: 1 is geometric, many nearly Poisson.
    """

    stages: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if self.stages <= 0:
            raise ValueError(f"stages must be positive, got {self.stages}")

    def log_base(self, d):
        return gammaln(d - 1 + self.stages) - gammaln(d)
