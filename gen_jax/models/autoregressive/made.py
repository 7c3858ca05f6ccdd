"""Masked autoencoder for distribution estimation (MADE, Germain et al. 2015, arXiv:1502.03509)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.bijections.conditioners import Masked
from gen_jax.models.common.conditioning import Conditioning, embed, resolve_condition

__all__ = ["MADE"]


@dataclass(frozen=True)
class MADE:
    """p(x) = prod_i p(x_i | x_1 .. x_(i-1)) over integers 0 .. levels - 1 of any shape, by one masked network.

    Probabilities take one pass, samples one for each value. levels: 2 for binary data, in which case x may be 0.0 and
    1.0. hidden: units of each layer. conditioning: see `gen_jax.models.common.conditioning`.
    """

    levels: int = 2
    hidden: Sequence[int] = (500, 500)
    activation: Callable[[Array], Array] = nn.relu
    conditioning: Conditioning | None = None

    def __post_init__(self):
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    @property
    def _network(self) -> Masked:
        return Masked(self.levels, tuple(self.hidden), self.activation)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = batch["x"]
        own = self.conditioning.init(fold_in(key, "context"), batch) if self.conditioning else {}
        context = self.conditioning(batch, own)[:1] if self.conditioning else None
        network = self._network.init(fold_in(key, "network"), self._inputs(x[:1]), context)["params"]
        frequencies = self._frequencies(x)  # else values that never vary are learned slowly
        network["outputs"] = {**network["outputs"], "bias": jnp.log(frequencies).reshape(-1)}
        shape = {"like": jnp.zeros(x.shape[1:], x.dtype)}  # samples have the shape and the type of the data
        return {"made": {"network": network, **({"conditioning": own} if own else {})}}, shape

    def _frequencies(self, x: Array) -> Array:
        """(levels, D) shares of each level among the values of a batch, with one more example of each."""
        counts = jax.nn.one_hot(x.reshape(len(x), -1).astype(jnp.int32), self.levels, axis=1, dtype=jnp.float32).sum(
            axis=0
        )
        return (counts + 1 / self.levels) / (len(x) + 1)

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""."""
        x = np.asarray(batch["x"])
        if not np.array_equal(x, np.rint(x)) or x.min() < 0 or x.max() >= self.levels:
            return f"x goes from {x.min():.4g} to {x.max():.4g}, where whole numbers 0 .. {self.levels - 1} are needed"
        return self.conditioning.unsupported(batch) if self.conditioning else ""

    def _inputs(self, x: Array) -> Array:
        """(B, D) in [-1, 1]."""
        return 2 * x.reshape(len(x), -1).astype(jnp.float32) / (self.levels - 1) - 1

    def _logits(self, params: PyTree, inputs: Array, context: Array | None) -> Array:
        """(B, levels, D) logits of each value, given those before it."""
        logits = self._network.apply({"params": params["network"]}, inputs, context)
        return logits.reshape(len(inputs), self.levels, -1)

    def _log_probs(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """(B,) log-probabilities in nats."""
        x = batch["x"]
        context = embed(self.conditioning, batch, params.get("conditioning"), key) if self.conditioning else None
        log_probs = jax.nn.log_softmax(self._logits(params, self._inputs(x), context), axis=1)
        chosen = x.reshape(len(x), 1, -1).astype(jnp.int32)
        return jnp.take_along_axis(log_probs, chosen, axis=1).sum(axis=(1, 2))

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        log_probs = self._log_probs(params, batch, fold_in(key, "condition"))
        return Mean.of(-log_probs, batch.get("weight")), ({}, {})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("made", self.loss),)

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-probabilities in nats."""
        return self._log_probs(state.params["made"], batch)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        """n samples, value by value. condition: the conditioning inputs of each."""
        condition, params = resolve_condition(self.conditioning, n, condition), state.params["made"]
        context = embed(self.conditioning, condition, params.get("conditioning")) if self.conditioning else None
        like = state.extra["like"]
        keys = fold_in(key, "values")

        def draw(i: Array, x: Array) -> Array:
            logits = lax.dynamic_index_in_dim(self._logits(params, self._inputs(x), context), i, axis=2, keepdims=False)
            return x.at[:, i].set(jax.random.categorical(jax.random.fold_in(keys, i), logits).astype(x.dtype))

        x = lax.fori_loop(0, math.prod(like.shape), draw, jnp.zeros((n, math.prod(like.shape)), jnp.int32))
        return {**condition, "x": x.reshape(n, *like.shape).astype(like.dtype)}
