"""Flows for integers by variational dequantization (Ho et al. 2019, Flow++, arXiv:1902.00275)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, Extra, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.arrays import sum_except_batch
from gen_jax.models.flow.flow import Flow

__all__ = ["Dequantized"]


@dataclass(frozen=True)
class Dequantized:
    """A flow for integers 0 .. levels - 1 with learned dequantization noise (Ho et al. 2019, Flow++, arXiv:1902.00275).

    flow: density of (x + u) / levels with u in [0, 1). u is the sigmoid of a normal, whose means and log-scales
    `network` computes from x scaled to [-1, 1]: (B, *x) -> (B, ..., 2 C).
    """

    flow: Flow
    network: nn.Module
    levels: int = 256

    def __post_init__(self):
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        middle = {**batch, "x": (batch["x"].astype(jnp.float32) + 0.5) / self.levels}
        params, extra = self.flow.init(fold_in(key, "flow"), middle)
        made, noise = self.network.init_with_output(fold_in(key, "noise"), self._scaled(batch["x"]))
        expected = (*batch["x"].shape[:-1], 2 * batch["x"].shape[-1])
        if made.shape != expected:
            raise ValueError(
                f"the network of the noise must give {expected[1:]} per example, and gives {made.shape[1:]}"
            )
        return {"flow": {**params["flow"], "noise": noise["params"]}}, extra

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""."""
        x = np.asarray(batch["x"])
        if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= self.levels:
            return (
                f"x must hold integers from 0 to {self.levels - 1}, got {x.dtype} from {x.min():.4g} to {x.max():.4g}"
            )
        return self.flow.conditioning.unsupported(batch) if self.flow.conditioning else ""

    def _scaled(self, x: Array) -> Array:
        return 2 * x.astype(jnp.float32) / (self.levels - 1) - 1

    def _bounds(self, params: PyTree, batch: Batch, key: Array, training: bool = False) -> Array:
        mean, log_std = jnp.split(self.network.apply({"params": params["noise"]}, self._scaled(batch["x"])), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        raw = mean + jnp.exp(log_std) * noise
        log_slope = jax.nn.log_sigmoid(raw) + jax.nn.log_sigmoid(-raw)
        log_q = sum_except_batch(-0.5 * (noise**2 + math.log(2 * math.pi)) - log_std - log_slope)
        x = (batch["x"] + jax.nn.sigmoid(raw)) / self.levels
        log_p = self.flow.of(params, batch, fold_in(key, "condition") if training else None).log_prob(x)
        return log_p - log_q - math.prod(x.shape[1:]) * math.log(self.levels)

    def elbo(self, state: State, batch: Batch, key: Array) -> Array:
        """(B,) lower bounds on log-probabilities in nats, from one noise sample."""
        return self._bounds(state.params["flow"], batch, key)

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        return -self._bounds(params, batch, key, training=True).mean(), ({}, {})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("flow", self.loss),)

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, temperature: float | Array = 1.0
    ) -> Batch:
        """Like `Flow.sample`, in integers."""
        drawn = self.flow.sample(state, key, n, condition, temperature)
        x = jnp.clip(jnp.floor(drawn["x"] * self.levels), 0, self.levels - 1)
        return {**drawn, "x": x.astype(jnp.int32)}
