"""The forward-backward algorithm in log-space, for where products of probabilities lose too much to underflow."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from gen_jax.models.hmm.operators import finite

__all__ = ["Posterior", "log_forward", "log_posterior"]


class Posterior(NamedTuple):
    """The posterior of the states given the observations."""

    log_evidence: Array  # (B,) log p(x) in nats
    marginals: Array  # (B, T, K) p(z_t | x)
    pairs: Array  # (B, K, K) sum over t of p(z_t, z_t+1 | x)


def log_forward(
    log_initial: Array, log_transition: Array, log_likelihood: Array, starts: Array | None = None
) -> tuple[Array, Array]:
    """Forward pass in log-space: log p(z_t | x up to t) (T, K, B), and log p(x_t | x before t) (T, B)."""

    def step(predicted: Array, inputs):
        value, another = inputs
        if another is not None:
            predicted = jnp.where(another, log_initial[:, None], predicted)
        joint = predicted + value
        scale = _logsumexp(joint, axis=0)
        known = joint - finite(scale)
        return _logsumexp(known[:, None] + log_transition[:, :, None], axis=0), (known, scale)

    values = jnp.transpose(log_likelihood, (1, 2, 0))
    inputs = values, None if starts is None else starts.T
    return lax.scan(step, jnp.broadcast_to(log_initial[:, None], values.shape[1:]), inputs)[1]


def log_posterior(
    log_initial: Array, log_transition: Array, log_likelihood: Array, counted: Array, starts: Array | None = None
) -> Posterior:
    known, scale = log_forward(log_initial, log_transition, log_likelihood, starts)
    values = jnp.transpose(log_likelihood, (1, 2, 0))
    before = jnp.concatenate([jnp.full_like(known[:1], -jnp.inf), known[:-1]])

    def step(carry, inputs):
        beta, pairs = carry
        value, scale, before, counted, another = inputs
        ahead = beta + value - finite(scale)
        each = before[:, None] + log_transition[:, :, None] + ahead
        pairs += jnp.exp(each - finite(_logsumexp(each.reshape(-1, each.shape[-1]), axis=0))) * counted
        earlier = _logsumexp(log_transition[:, :, None] + ahead, axis=1)
        return (earlier if another is None else jnp.where(another, 0, earlier), pairs), beta

    k, batch = values.shape[1:]
    start = jnp.zeros((k, batch), values.dtype), jnp.zeros((k, k, batch), values.dtype)
    inputs = values, scale, before, counted.T.astype(values.dtype), None if starts is None else starts.T
    (_, pairs), beta = lax.scan(step, start, inputs, reverse=True)
    joint = known + beta
    marginals = jnp.transpose(jnp.exp(joint - finite(_logsumexp(joint, axis=1))[:, None]), (2, 0, 1))
    return Posterior(scale.sum(axis=0), marginals, jnp.moveaxis(pairs, 2, 0))


def _logsumexp(a: Array, axis: int) -> Array:
    best = finite(a.max(axis=axis, keepdims=True))
    return jnp.log(jnp.exp(a - best).sum(axis=axis)) + best.squeeze(axis)
