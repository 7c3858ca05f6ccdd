"""Decoding of autoregressive models: sampling with temperature, top-k, top-p and min-p, greedy decoding, beam search.

A decoder is a function `next(cache, token) -> (cache, logits)`, for a `core.Autoregressive` model its `next` with
bound parameters, `partial(model.next, params)`. The cache is a pytree of arrays with leading axis n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree, fold_in

__all__ = ["Beams", "Next", "Sampling", "beam_search", "generate", "log_likelihood"]

Next = Callable[[PyTree, Array], tuple[PyTree, Array]]  # (cache, token (n,)) -> (cache, logits (n, V))


@dataclass(frozen=True)
class Sampling:
    """Sampling of a token from logits.

    temperature: divides the logits; 0 is greedy decoding. top_k: only the k most probable tokens (0: all).
    top_p: only the smallest set of most probable tokens with this total probability (Holtzman et al. 2020). min_p: only
    tokens with at least this fraction of the largest probability (Nguyen et al. 2024).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0:
            raise ValueError(f"temperature and top_k cannot be negative, got {self.temperature} and {self.top_k}")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] and min_p in [0, 1], got {self.top_p} and {self.min_p}")

    def filter(self, logits: Array) -> Array:
        """Logits (n, V) after temperature and truncation; -inf where a token cannot be drawn."""
        if self.temperature == 0:
            best = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)
            return jnp.where(best, 0.0, -jnp.inf)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        if self.top_p < 1:
            order = jnp.argsort(-logits, axis=-1)
            sorted_probabilities = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
            before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
            rank = jnp.argsort(order, axis=-1)
            logits = jnp.where(jnp.take_along_axis(before, rank, axis=-1) < self.top_p, logits, -jnp.inf)
        if self.min_p:
            probabilities = jax.nn.softmax(logits, axis=-1)
            logits = jnp.where(
                probabilities >= self.min_p * probabilities.max(axis=-1, keepdims=True), logits, -jnp.inf
            )
        return logits

    def draw(self, logits: Array, key: Array) -> Array:
        """(n,) tokens."""
        return jax.random.categorical(key, self.filter(logits))


def generate(next: Next, cache: PyTree, first: Array, key: Array, steps: int, sampling: Sampling = Sampling()) -> Array:
    """Continues n sequences by `steps` tokens (n, steps); `first` (n,) are the last known tokens."""

    def step(carry, i: Array):
        cache, token = carry
        cache, logits = next(cache, token)
        token = sampling.draw(logits, fold_in(key, "code", i)).astype(first.dtype)
        return (cache, token), token

    _, tokens = lax.scan(step, (cache, first), jnp.arange(steps))
    return tokens.T


def log_likelihood(next: Next, cache: PyTree, first: Array, tokens: Array) -> Array:
    """(n,) log-probabilities in nats of sequences of tokens (n, T) after `first` (n,)."""

    def step(carry, token: Array):
        cache, before = carry
        cache, logits = next(cache, before)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        return (cache, token), log_prob

    _, log_probs = lax.scan(step, (cache, first), tokens.T)
    return log_probs.sum(axis=0)


class Beams(NamedTuple):
    """The best continuations of n sequences, best first."""

    tokens: Array  # (n, beams, steps)
    log_probs: Array  # (n, beams) in nats


def beam_search(next: Next, cache: PyTree, first: Array, steps: int, beams: int, end: int | None = None) -> Beams:
    """Beam search for the most probable continuations, of width `beams`.

    end: the end-of-sequence token, with which finished sequences are padded at no cost.
    """
    n = len(first)

    def step(carry, i: Array):
        cache, token, log_probs, tokens = carry
        cache, logits = next(cache, token.reshape(-1))
        scores = jax.nn.log_softmax(logits).reshape(n, beams, -1)
        vocabulary = scores.shape[-1]
        if end is not None:
            ended = (token == end) & (i > 0)
            padding = jnp.where(jnp.arange(vocabulary) == end, 0.0, -jnp.inf)
            scores = jnp.where(ended[..., None], padding, scores)
        total = (log_probs[..., None] + scores).reshape(n, -1)
        log_probs, best = lax.top_k(total, beams)
        parent, token = best // vocabulary, (best % vocabulary).astype(first.dtype)
        rows = (jnp.arange(n)[:, None] * beams + parent).reshape(-1)
        cache = jax.tree.map(lambda a: a[rows], cache)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1).at[..., i].set(token)
        return (cache, token, log_probs, tokens), None

    cache = jax.tree.map(lambda a: jnp.repeat(a, beams, axis=0), cache)
    start = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)  # duplicates of the start count once
    carry = (
        cache,
        jnp.repeat(first[:, None], beams, axis=1),
        jnp.tile(start, (n, 1)),
        jnp.zeros((n, beams, steps), first.dtype),
    )
    (_, _, log_probs, tokens), _ = lax.scan(step, carry, jnp.arange(steps))
    return Beams(tokens, log_probs)
