"""Exact posteriors of gaps in sequences under a Markov chain of order m, by backward messages.

table: (V, ..., V) log-probabilities of a token (last axis) given the m tokens before it (the axes before), m >= 1.
Rows "x" (B, T) begin with the token `end`, or with another one before which there is nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["fill", "log_evidence"]


def log_evidence(table: Array, x: Array, observed: Array, end: int) -> Array:
    """(B,) log-probabilities in nats of the observed tokens, given the first."""
    one = lambda x, observed: _messages(table, x, observed)[0][_first(table, x, end)]
    return jax.vmap(one)(jnp.asarray(x), jnp.asarray(observed) > 0)


def fill(table: Array, x: Array, observed: Array, end: int, key: Array) -> Array:
    """(B, T) rows whose unobserved tokens are drawn from their posterior."""
    vocabulary = table.shape[-1]
    of_context = table.reshape(-1, vocabulary)

    def of_row(x: Array, observed: Array, key: Array) -> Array:
        def step(context: Array, item: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            token, there, message, i = item
            rest = context % (len(of_context) // vocabulary)
            after = message.reshape(-1, vocabulary)[rest]
            drawn = jax.random.categorical(jax.random.fold_in(key, i), of_context[context] + after)
            token = jnp.where(there, token, drawn.astype(x.dtype))
            return rest * vocabulary + token, token

        items = (x[1:], observed[1:], _messages(table, x, observed)[1:], jnp.arange(1, len(x)))
        return jnp.concatenate([x[:1], lax.scan(step, _first(table, x, end), items)[1]])

    x = jnp.asarray(x, jnp.int32)
    return jax.vmap(of_row)(x, jnp.asarray(observed) > 0, jax.random.split(key, len(x)))


def _first(table: Array, x: Array, end: int) -> Array:
    """The number of the context after the first token: its tokens are digits, the oldest one the highest."""
    vocabulary, contexts = table.shape[-1], table.size // table.shape[-1]
    only_ends = end * ((contexts - 1) // (vocabulary - 1))
    return (only_ends * vocabulary + x[0]) % contexts


def _messages(table: Array, x: Array, observed: Array) -> Array:
    """(T, contexts) log-probabilities of the observed tokens after each position, given the context there."""
    vocabulary = table.shape[-1]
    by_oldest = table.reshape(vocabulary, -1, vocabulary)  # (oldest token, the others, next token)

    def step(message: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        token, there = item
        allowed = ~there | (jnp.arange(vocabulary) == token)
        scores = by_oldest + message.reshape(-1, vocabulary)
        before = jax.nn.logsumexp(jnp.where(allowed, scores, -jnp.inf), axis=-1).reshape(-1)
        return before, before

    last = jnp.zeros(table.size // vocabulary, table.dtype)
    _, messages = lax.scan(step, last, (x[1:], observed[1:]), reverse=True)
    return jnp.concatenate([messages, last[None]])
