"""Operators of chunks of time on the states, and their composition, by which inference is parallel over time.

A chunk acts on the states before it as a matrix, and consecutive chunks compose by matrix products, in sequence or as a
parallel prefix (Sarkka & Garcia-Fernandez 2021). For the most probable path the products are max-plus.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from gen_jax.models.common.linalg import einsum

__all__ = ["chunk_operators", "composed", "composed_backward", "composed_maxima", "finite"]


def chunk_operators(
    initial: Array, transition: Array, likelihood: Array, pieces: int, starts: Array | None = None
) -> tuple[Array, Array]:
    """The operator of each chunk on the states.

    p(z at its end | z before it, x in it) (K after, K before, B, pieces), and log p(x in it | z before it) relative to
    the best states' (K before, B, pieces). The first chunk starts from the initial probabilities, whatever z is, and so
    does every sequence that begins where `starts` (S, R) is True.
    """
    _, k, r = likelihood.shape
    first = jnp.arange(r) % pieces == 0
    start = jnp.where(first, initial[:, None, None], transition.T[:, :, None])

    def predict(predicted: Array, another: Array | None) -> Array:
        return predicted if another is None else jnp.where(another, initial[:, None, None], predicted)

    def step(carry, inputs):
        (predicted, log_scale), (likelihood, another) = carry, inputs
        joint = predict(predicted, another) * likelihood[:, None]
        scale = joint.sum(axis=0)
        states = joint / jnp.where(scale > 0, scale, 1)
        return (
            einsum("ij,ihr->jhr", transition, states),
            log_scale + jnp.log(scale),
        ), None

    zeros = jnp.zeros((k, r), likelihood.dtype)
    before, last = (likelihood[:-1], None if starts is None else starts[:-1]), None if starts is None else starts[-1]
    (predicted, log_scale), _ = lax.scan(step, (start, zeros), before)
    joint = predict(predicted, last) * likelihood[-1][:, None]  # the last step without the transition after it
    scale = joint.sum(axis=0)
    states, log_scale = joint / jnp.where(scale > 0, scale, 1), log_scale + jnp.log(scale)
    return states.reshape(k, k, -1, pieces), log_scale.reshape(k, -1, pieces)


def compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
    """Composes consecutive chunks, along the first axis: (P, K after, K before, B), (P, K before, B)."""
    (a, log_a), (b, log_b) = first, then
    weight = log_b[:, :, None] + jnp.log(a)
    shift = finite(weight.max(axis=1, keepdims=True))
    states = einsum("pkjb,pjib->pkib", b, jnp.exp(weight - shift))
    scale = states.sum(axis=1)
    return states / jnp.where(scale > 0, scale, 1)[:, None], log_a + shift[:, 0] + jnp.log(scale)


def composed(operators: tuple[Array, Array], associative: bool) -> Array:
    """(K, B, pieces - 1) p(z at the end of a chunk | x up to there), for all but the last chunk."""
    states, log_scale = jnp.moveaxis(operators[0], 3, 0)[:-1], jnp.moveaxis(operators[1], 2, 0)[:-1]
    if associative:
        return jnp.moveaxis(lax.associative_scan(compose, (states, log_scale))[0][:, :, 0], 0, 2)

    def step(known: Array, operator):
        weight = operator[1] + jnp.log(known)
        new = einsum("jib,ib->jb", operator[0], jnp.exp(weight - finite(weight.max(axis=0))))
        total = new.sum(axis=0)
        new = new / jnp.where(total > 0, total, 1)
        return new, new

    return jnp.moveaxis(lax.scan(step, jnp.ones_like(log_scale[0]), (states, log_scale))[1], 0, 2)


def composed_backward(operators: tuple[Array, Array], associative: bool) -> Array:
    """(K, B, pieces - 1) p(x after a chunk | z at its end), up to a factor, for all but the last chunk."""
    states, log_scale = jnp.moveaxis(operators[0], 3, 0)[1:], jnp.moveaxis(operators[1], 2, 0)[1:]
    if associative:
        later = lax.associative_scan(lambda b, a: compose(a, b), (states, log_scale), reverse=True)[1]
        return jnp.moveaxis(jnp.exp(later - finite(later.max(axis=1, keepdims=True))), 0, 2)

    def step(after: Array, operator):
        weight = operator[1] + jnp.log(einsum("jib,jb->ib", operator[0], after))
        new = jnp.exp(weight - finite(weight.max(axis=0)))
        return new, new

    return jnp.moveaxis(lax.scan(step, jnp.ones_like(log_scale[0]), (states, log_scale), reverse=True)[1], 0, 2)


def composed_maxima(operators: Array, associative: bool) -> Array:
    """(K, B, pieces) best score of each state before each chunk."""
    moved = jnp.moveaxis(operators, 3, 0)[:-1]  # (P, K after, K before, B)
    if associative:
        then = lambda a, b: _shifted((b[:, :, :, None] + a[:, None]).max(axis=2))
        scores = lax.associative_scan(then, moved)[:, :, 0]
    else:

        def step(scores: Array, operator: Array):
            scores = (operator + scores).max(axis=1)
            scores = scores - finite(scores.max(axis=0))
            return scores, scores

        scores = lax.scan(step, jnp.zeros_like(moved[0, 0]), moved)[1]
    return jnp.moveaxis(jnp.concatenate([jnp.zeros_like(scores[:1]), scores]), 0, 2)


def _shifted(operators: Array) -> Array:
    """Scores (P, K, K, B) relative to the best, as only differences matter."""
    return operators - finite(operators.max(axis=(1, 2), keepdims=True))


def finite(a: Array) -> Array:
    """Replaces -inf by 0, so that it can be subtracted from -inf."""
    return jnp.where(a == -jnp.inf, 0, a)
