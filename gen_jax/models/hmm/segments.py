"""Exact inference in a hidden semi-Markov model, in log-space, over the states and how long they have lasted."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.models.hmm.by_gradient import IMPOSSIBLE
from gen_jax.models.hmm.inference import Path

__all__ = ["SegmentChain", "forward", "hazards", "most_probable_segments"]


class SegmentChain(NamedTuple):
    """Log-probabilities, at least IMPOSSIBLE."""

    initial: Array  # (K,)
    transition: Array  # (K, K) from one segment to the next
    durations: Array  # (K, D) of 1, 2, ... steps


def hazards(log_durations: Array) -> tuple[Array, Array]:
    """(K, D) log-probabilities of leaving a state after having been there for 1, 2, ... steps, and of staying."""
    at_least = jnp.maximum(lax.cumlogsumexp(log_durations, axis=1, reverse=True), IMPOSSIBLE)
    after = jnp.concatenate([at_least[:, 1:], jnp.full_like(at_least[:, :1], IMPOSSIBLE)], axis=1)
    return log_durations - at_least, jnp.maximum(after - at_least, IMPOSSIBLE)


def forward(
    chain: SegmentChain, log_likelihood: Array, there: Array, before: Array | None = None
) -> tuple[Array, Array]:
    """log p(x_t | x before t) (B, T), and log p(z_t, steps in it so far | x up to t) (B, T, K, D).

    before: what is known at the step before the first, instead of the initial probabilities.
    """
    leave, stay = hazards(chain.durations)

    @jax.checkpoint
    def step(known: Array, inputs: tuple[Array, Array, Array]):
        value, there, first = inputs
        left = jax.nn.logsumexp(known + leave, axis=2)
        arrived = jax.nn.logsumexp(left[:, :, None] + chain.transition, axis=1)
        arrived = jnp.where(first, chain.initial, arrived)
        stayed = jnp.where(first, IMPOSSIBLE, (known + stay)[:, :, :-1])
        joint = jnp.concatenate([arrived[:, :, None], stayed], axis=2) + value[:, :, None]
        scale = jax.nn.logsumexp(joint, axis=(1, 2))
        new = jnp.where(there[:, None, None], jnp.maximum(joint - scale[:, None, None], IMPOSSIBLE), known)
        return new, (jnp.where(there, scale, 0), new)

    batch, time, k = log_likelihood.shape
    first = (jnp.arange(time) == 0) & (before is None)
    start = jnp.zeros((batch, k, chain.durations.shape[1]), log_likelihood.dtype) if before is None else before
    scale, known = lax.scan(step, start, (jnp.swapaxes(log_likelihood, 0, 1), there.T, first))[1]
    return scale.T, jnp.swapaxes(known, 0, 1)


def most_probable_segments(chain: SegmentChain, log_likelihood: Array, there: Array) -> Path:
    batch, time, k = log_likelihood.shape
    leave, stay = hazards(chain.durations)

    def step(best: Array, inputs: tuple[Array, Array, Array]):
        value, there, first = inputs
        leaving = best + leave
        moved = leaving.max(axis=2)[:, :, None] + chain.transition
        arrived = jnp.where(first, chain.initial, moved.max(axis=1))
        stayed = jnp.where(first, IMPOSSIBLE, (best + stay)[:, :, :-1])
        new = jnp.concatenate([arrived[:, :, None], stayed], axis=2) + value[:, :, None]
        new = jnp.where(there[:, None, None], jnp.maximum(new, IMPOSSIBLE), best)
        return new, (jnp.argmax(moved, axis=1), jnp.argmax(leaving, axis=2))

    inputs = jnp.swapaxes(log_likelihood, 0, 1), there.T, jnp.arange(time) == 0
    start = jnp.zeros((batch, k, chain.durations.shape[1]), log_likelihood.dtype)
    best, (before, lasted) = lax.scan(step, start, inputs)
    rows = jnp.arange(batch)

    def back(at: tuple[Array, Array], inputs: tuple[Array, Array, Array]):
        (state, age), (before, lasted, there) = at, inputs
        earlier = before[rows, state]
        moved = jnp.where(age > 0, state, earlier), jnp.where(age > 0, age - 1, lasted[rows, earlier])
        return jax.tree.map(partial(jnp.where, there), moved, at), state

    end = divmod(jnp.argmax(best.reshape(batch, -1), axis=1), best.shape[2])
    states = lax.scan(back, end, (before, lasted, there.T), reverse=True)[1]
    return Path(states.T.astype(jnp.int32), best.max(axis=(1, 2)))
