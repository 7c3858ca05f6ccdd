"""Flows fitted to an unnormalized density by the reverse KL (Rezende & Mohamed 2015, arXiv:1505.05770)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.flow.flow import Flow

__all__ = ["Variational"]


@dataclass(frozen=True)
class Variational:
    """A flow fitted to an unnormalized density by the reverse KL on its own samples (Rezende & Mohamed 2015, eq. 15).

    target: x (n, *shape) -> unnormalized log-densities (n,), defined on the whole range of the flow. Data is only
    needed for its shape, and for comparison.
    """

    flow: Flow
    target: Callable[[Array], Array]
    samples: int = 512

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.flow.conditioning:
            raise ValueError("a target density has no conditions: leave the flow's conditioning out")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        noise = jax.random.normal(fold_in(key, "noise"), (self.samples, *self.flow.base.shape))
        return self.flow.init(key, {"x": noise if batch["x"].shape[1:] == noise.shape[1:] else batch["x"]})

    def log_ratios(self, params: PyTree, key: Array) -> Array:
        """(samples,) log target(x) - log q(x) for x ~ q: their mean bounds the log of the target's integral."""
        x, log_q = self.flow(params).sample_and_log_prob(seed=key, sample_shape=(self.samples,))
        return self.target(x) - log_q

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        log_weights = self.log_ratios(params, key)
        log_integral = jax.nn.logsumexp(log_weights) - math.log(self.samples)
        size = jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights)) / self.samples
        return -log_weights.mean(), ({}, {"log_integral": Mean.of(log_integral), "effective": Mean.of(size)})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("flow", self.loss),)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        return self.flow.sample(state, key, n)
