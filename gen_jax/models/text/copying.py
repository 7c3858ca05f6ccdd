"""Copying tokens from a source: pointer-generators (See et al. 2017, eq. 9), their gate by the decoder alone."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, fold_in

__all__ = ["Copier"]


@dataclass(frozen=True)
class Copier:
    """Attention over the vectors of a source, and the probability of a copy, both from the vector of the decoder.

    width: of the vectors. With a probability of its own, the next token is the source token that attention chooses.
    """

    width: int

    def init(self, key: Array) -> PyTree:
        normal = lambda name: self.width**-0.5 * jax.random.normal(fold_in(key, name), (self.width, self.width))
        return {"query": normal("query"), "key": normal("key"), "gate": jnp.zeros(self.width), "bias": jnp.zeros(())}

    def keys(self, params: PyTree, memory: Array) -> Array:
        """(B, S, D) of the vectors of sources."""
        return memory @ params["key"].astype(memory.dtype)

    def _attend(self, params: PyTree, h: Array, keys: Array, seen: Array) -> tuple[Array, Array]:
        """Weights (..., S) of source tokens for vectors (..., D), and logits (...) of copying."""
        h, keys = h.astype(jnp.float32), keys.astype(jnp.float32)
        query = h @ params["query"] / self.width**0.5
        scores = jnp.einsum("...d,...sd->...s" if h.ndim == 2 else "btd,bsd->bts", query, keys)
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
        return jnp.where(seen, weights, 0), h @ params["gate"] + params["bias"]

    def log_probs(self, params, h: Array, keys: Array, x: Array, seen: Array, y: Array, log_probs: Array) -> Array:
        """(B, T) log-probabilities of targets y, from those of the vocabulary. seen: (B, T, S)."""
        weights, gate = self._attend(params, h, keys, seen)
        copied = jnp.sum(jnp.where(x[:, None] == y[:, :, None], weights, 0), axis=-1)
        return jnp.logaddexp(jax.nn.log_sigmoid(-gate) + log_probs, jax.nn.log_sigmoid(gate) + _log(copied))

    def all_log_probs(self, params, h: Array, keys: Array, x: Array, seen: Array, logits: Array) -> Array:
        """(n, V) log-probabilities of the next token, from the logits of the vocabulary. seen: (n, S)."""
        weights, gate = self._attend(params, h, keys, seen)
        copied = jnp.zeros(logits.shape, weights.dtype).at[jnp.arange(len(x))[:, None], x].add(weights)
        log_probs, gate = jax.nn.log_softmax(logits), gate[:, None]
        return jnp.logaddexp(jax.nn.log_sigmoid(-gate) + log_probs, jax.nn.log_sigmoid(gate) + _log(copied))


def _log(p: Array) -> Array:
    """log(p), finite at 0, with a finite gradient."""
    return jnp.log(jnp.maximum(p, 1e-30))
