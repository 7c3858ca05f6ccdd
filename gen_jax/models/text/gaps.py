"""Exact posteriors of gaps in sequences under a Markov chain of order m, by backward messages.

table: (W, ..., W, V) log-probabilities of a token (last axis) given the m tokens before it (the axes before), m >= 1.
W is V + 1: the last number of a context axis, V, stands for no token, before the first of a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["fill", "log_evidence"]


def log_evidence(table: Array, x: Array, observed: Array) -> Array:
    """(B,) log-probabilities in nats of the observed tokens of rows "x" (B, T), given the first."""
    one = lambda x, observed: _messages(table, x, observed)[0][_first(table, x)]
    return jax.vmap(one)(jnp.asarray(x, jnp.int32), jnp.asarray(observed) > 0)


def fill(table: Array, x: Array, observed: Array, key: Array) -> Array:
    """(B, T) rows whose unobserved tokens are drawn from their posterior."""
    vocabulary = table.shape[-1]
    of_context = table.reshape(-1, vocabulary)

    def of_row(x: Array, observed: Array, key: Array) -> Array:
        def step(context: Array, item: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            token, there, message, i = item
            rest = context % (len(of_context) // table.shape[0])
            after = message.reshape(-1, table.shape[0])[rest, :vocabulary]
            drawn = jax.random.categorical(jax.random.fold_in(key, i), of_context[context] + after)
            token = jnp.where(there, token, drawn.astype(x.dtype))
            return rest * table.shape[0] + token, token

        items = (x[1:], observed[1:], _messages(table, x, observed)[1:], jnp.arange(1, len(x)))
        return jnp.concatenate([x[:1], lax.scan(step, _first(table, x), items)[1]])

    x = jnp.asarray(x, jnp.int32)
    return jax.vmap(of_row)(x, jnp.asarray(observed) > 0, jax.random.split(key, len(x)))


def _first(table: Array, x: Array) -> Array:
    """The number of the context after the first token: its tokens are digits, the oldest one the highest."""
    contexts, base = table.size // table.shape[-1], table.shape[0]
    return contexts - base + x[0]  # no tokens are the highest digits


def _messages(table: Array, x: Array, observed: Array) -> Array:
    """(T, contexts) log-probabilities of the observed tokens after each position, given the context there."""
    base, vocabulary = table.shape[0], table.shape[-1]
    by_oldest = table.reshape(base, -1, vocabulary)  # (oldest token, the others, next token)

    def step(message: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        token, there = item
        allowed = ~there | (jnp.arange(vocabulary) == token)
        scores = by_oldest + message.reshape(-1, base)[:, :vocabulary]
        before = jax.nn.logsumexp(jnp.where(allowed, scores, -jnp.inf), axis=-1).reshape(-1)
        return before, before

    last = jnp.zeros(table.size // vocabulary, table.dtype)
    _, messages = lax.scan(step, last, (x[1:], observed[1:]), reverse=True)
    return jnp.concatenate([messages, last[None]])
