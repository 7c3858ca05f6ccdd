"""Exact inference in a hidden Markov model with K states, given the log-likelihoods of its observations (Rabiner 1989).

All functions take `log_initial` (K,), `log_transition` (K, K) with rows that sum to one, and `log_likelihood` (B, T, K)
of any emission. A step without an observation has log-likelihood 0 for all states; so does padding after the end of a
sequence, which then has no effect. A row may hold several sequences, one after the other: `starts` (B, T) is True where
another than the first begins, and results per row (B,) are of all its sequences. Internally, time is the first axis and
the batch the last: a step of a recursion is one small matrix product for all sequences.

Probabilities are multiplied and normalized at each step, which is many times faster than log-space. Underflow loses
information, but the backward pass bounds its effect (`_sound`), and if that is not negligible, the same quantities are
computed in log-space. So results are exact for observations of any dimension and for transitions with any zeros.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import fold_in
from gen_jax.models.common.blocks import jointly
from gen_jax.models.common.linalg import einsum, matmul
from gen_jax.models.hmm.logspace import Posterior, log_forward, log_posterior
from gen_jax.models.hmm.operators import chunk_operators, composed, composed_backward, composed_maxima, finite

__all__ = [
    "Path",
    "Posterior",
    "Scan",
    "automatic",
    "forward_filter",
    "in_chunks",
    "initial_counts",
    "log_evidence",
    "log_joint",
    "most_probable",
    "posterior",
    "posterior_sample",
]


class Scan(NamedTuple):
    """The scan over time.

    Sequences are cut into chunks of `steps`, all chunks are scanned in parallel, and their operators on the states are
    composed, sequentially or as a parallel prefix (Sarkka & Garcia-Fernandez 2021). The work grows by a factor K; the
    sequential steps fall from T to 2 `steps` + T / `steps` (or log T).
    """

    steps: int | None = None  # None: a single chunk
    associative: bool = False


SERIAL, ASSOCIATIVE = Scan(), Scan(1, associative=True)


def in_chunks(steps: int) -> Scan:
    """Chunks of `steps` steps, composed sequentially."""
    if steps < 1:
        raise ValueError(f"pieces need at least one step, got {steps}")
    return Scan(steps)


def automatic(batch: int, time: int, states: int) -> Scan:
    """Chooses a scan: on a CPU chunks, with K-fold work, never pay off; elsewhere they do for few sequences."""
    idle = batch * states**2 <= 1 << 14 and time >= 64
    return Scan(32, associative=True) if idle and jax.default_backend() != "cpu" else SERIAL


class Path(NamedTuple):
    """The most probable state sequence."""

    states: Array  # (B, T) int32; after the end of a sequence, its last state
    log_joint: Array  # (B,) log p(x, states) in nats


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def log_evidence(
    log_initial: Array, log_transition: Array, log_likelihood: Array, scan: Scan = SERIAL, starts: Array | None = None
) -> Array:
    """(B,) log p(x) in nats, -inf if impossible.

    Its gradient is the posterior, so it is finite and costs one smoothing pass. Assumes normalized rows of transitions,
    as from a softmax.
    """
    chain = _walk(log_initial, log_transition, log_likelihood, scan, starts)
    fits = (jnp.exp(log_transition).min() > 1e-12) & (chain.scale[0].min() > 1e-12)  # underflow is negligible

    def check() -> Array:
        return _sound(chain, _backward(chain, scan)[0])

    ok = jointly(lax.cond(jointly(fits), lambda: jnp.array(True), check))
    slow = lambda: log_forward(log_initial, log_transition, log_likelihood, starts)[1].sum(axis=0)
    return lax.cond(ok, lambda: chain.log_evidence(), slow)


def _log_evidence_forward(log_initial, log_transition, log_likelihood, scan, starts):
    found = posterior(log_initial, log_transition, log_likelihood, scan, starts=starts)
    return found.log_evidence, (found.marginals, found.pairs, starts)


def _log_evidence_backward(scan, residuals, g):
    marginals, pairs, starts = residuals
    first = initial_counts(marginals, g, starts)
    return first, einsum("b,bij->ij", g, pairs), g[:, None, None] * marginals, None


log_evidence.defvjp(_log_evidence_forward, _log_evidence_backward)


def initial_counts(marginals: Array, weight: Array, starts: Array | None) -> Array:
    """(K,) expected numbers of sequences that begin in each state, from marginals (B, T, K) and row weights (B,)."""
    counts = einsum("b,bk->k", weight, marginals[:, 0])
    return counts if starts is None else counts + einsum("bt,btk->k", starts * weight[:, None], marginals)


def forward_filter(
    log_initial: Array, log_transition: Array, log_likelihood: Array, scan: Scan = SERIAL, starts: Array | None = None
) -> Array:
    """(B, T, K) log p(z_t | x up to t)."""
    chain = _walk(log_initial, log_transition, log_likelihood, scan, starts)
    ok = jointly(_sound(chain, _backward(chain, scan)[0]))
    slow = lambda: jnp.transpose(log_forward(log_initial, log_transition, log_likelihood, starts)[0], (2, 0, 1))
    return lax.cond(ok, lambda: jnp.log(chain.unpacked(chain.forward_filter)), slow)


def posterior(
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    scan: Scan = SERIAL,
    mask: Array | None = None,
    starts: Array | None = None,
) -> Posterior:
    """The forward-backward algorithm. With `mask` (B, T), pairs are counted where their second step is in it."""
    chain = _walk(log_initial, log_transition, log_likelihood, scan, starts)
    beta, ahead = _backward(chain, scan)
    counted = jnp.ones(log_likelihood.shape[:2], log_likelihood.dtype) if mask is None else mask
    if starts is not None:
        counted = jnp.where(starts, 0, counted)

    def fast() -> Posterior:
        before, ahead_BTK = chain.unpacked(chain.forward_filter), chain.unpacked(ahead)
        seen = counted[:, 1:, None].astype(before.dtype)
        pairs = einsum("bti,btj->bij", before[:, :-1], ahead_BTK[:, 1:] * seen)
        return Posterior(chain.log_evidence(), chain.unpacked(chain.forward_filter * beta), pairs * chain.transition)

    slow = lambda: log_posterior(log_initial, log_transition, log_likelihood, counted, starts)
    return lax.cond(jointly(_sound(chain, beta)), fast, slow)


def most_probable(
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    scan: Scan = SERIAL,
    mask: Array | None = None,
    starts: Array | None = None,
) -> Path:
    """The Viterbi algorithm; `mask` (B, T) is False after the end of a sequence.

    The forward pass computes maxima only; the backward pass recomputes the argmax, for the visited states.
    """
    batch, time, k = log_likelihood.shape
    mask = jnp.ones((batch, time), bool) if mask is None else mask.astype(bool)
    first = jnp.zeros((batch, time), bool).at[:, 0].set(True)
    start = log_likelihood.at[:, 0].add(log_initial)
    if starts is not None:
        starts = starts.at[:, 0].set(False)
        start += jnp.where(starts[..., None], log_initial, 0)
    cut = partial(_cut, steps=scan.steps or time)
    values, moves, first = cut(start), cut((mask & ~first)[..., None]), cut(first[..., None])
    another = None if starts is None else cut(starts[..., None])
    pieces = values.shape[2] // batch
    maxima = _max_plus(log_transition)

    def step(scores: Array, inputs) -> tuple[Array, Array]:
        aligned = lambda a: a.reshape(a.shape[0], *[1] * (scores.ndim - a.ndim), -1)
        value, move, first, another = jax.tree.map(aligned, inputs)
        moved = maxima(scores)
        if another is not None:  # whatever the state in which the sequence before it ended
            moved = jnp.where(another, scores.max(axis=0, keepdims=True), moved)
        scores = jnp.where(first, value, jnp.where(move, moved + value, scores))
        return scores, scores

    ends = None
    begin = jnp.zeros((k, values.shape[2]), values.dtype)
    if pieces > 1:
        apart = jnp.where(jnp.eye(k, dtype=bool), 0.0, -jnp.inf).astype(values.dtype)
        from_each = jnp.broadcast_to(apart[:, :, None], (k, k, values.shape[2]))
        (operators, _) = lax.scan(lambda s, x: (step(s, x)[0], None), from_each, (values, moves, first, another))
        operators = operators.reshape(k, k, batch, pieces)
        begin = composed_maxima(operators, scan.associative).reshape(k, -1)
        ends = operators
    shifted = lambda scores, x: (lambda s: (s - finite(s.max(axis=0)), s))(step(scores, x)[0])
    scores = lax.scan(shifted, begin, (values, moves, first, another))[1]
    last = scores[-1].reshape(k, batch, pieces)
    final = jnp.argmax(last[..., -1], axis=0)
    if pieces > 1:

        def back(state: Array, inputs) -> tuple[Array, Array]:
            score, operator = inputs  # (K, B) at the end of a chunk, (K, K, B) of the next
            found = jnp.argmax(score + jnp.take_along_axis(operator, state[None, None], axis=0)[0], axis=0)
            return found, found

        inputs = jnp.moveaxis(last[..., :-1], -1, 0), jnp.moveaxis(ends[..., 1:], -1, 0)
        found = lax.scan(back, final, inputs, reverse=True)[1]
        final = jnp.concatenate([found, final[None]]).T.reshape(-1)

    def back(state: Array, inputs) -> tuple[Array, Array]:
        score, move, another = inputs
        moved = log_transition[:, state]
        found = jnp.argmax(score + (moved if another is None else jnp.where(another[0], 0, moved)), axis=0)
        state_before = jnp.where(move[0], found, state)
        return state_before, state

    inputs = scores[:-1], moves[1:], None if another is None else another[1:]
    begin_state, states = lax.scan(back, final, inputs, reverse=True)
    states = jnp.concatenate([begin_state[None], states]).reshape(-1, batch, pieces)
    states = jnp.transpose(states, (1, 2, 0)).reshape(batch, -1)[:, :time].astype(jnp.int32)
    return Path(states, log_joint(log_initial, log_transition, log_likelihood, states, mask, starts))


def log_joint(
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    states: Array,
    mask: Array | None = None,
    starts: Array | None = None,
) -> Array:
    """(B,) log p(x, states) in nats."""
    emitted = jnp.take_along_axis(log_likelihood, states[..., None], axis=2)[..., 0]
    moved = jnp.concatenate([log_initial[states[:, :1]], log_transition[states[:, :-1], states[:, 1:]]], axis=1)
    if starts is not None:
        moved = jnp.where(starts, log_initial[states], moved)
    mask = True if mask is None else mask.astype(bool)
    return jnp.where(mask, emitted + moved, 0).sum(axis=1)


def posterior_sample(
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    key: Array,
    n: int,
    scan: Scan = SERIAL,
    starts: Array | None = None,
) -> Array:
    """(n, B, T) samples from p(z | x) by forward filtering, backward sampling (Fruhwirth-Schnatter 1994)."""
    known = forward_filter(log_initial, log_transition, log_likelihood, scan, starts)
    logits = jnp.transpose(known, (1, 0, 2))  # (T, B, K)
    time, batch, _ = logits.shape
    last = jax.random.categorical(fold_in(key, time - 1), logits[-1], shape=(n, batch))

    def step(state: Array, inputs) -> tuple[Array, Array]:
        logit, t, another = inputs
        moved = log_transition.T[state]
        moved = moved if another is None else jnp.where(another[:, None], 0, moved)
        drawn = jax.random.categorical(fold_in(key, t), logit + moved)
        return drawn, drawn

    inputs = logits[:-1], jnp.arange(time - 1), None if starts is None else starts.T[1:]
    states = lax.scan(step, last, inputs, reverse=True)[1]
    return jnp.moveaxis(jnp.concatenate([states, last[None]]), 0, 2).astype(jnp.int32)


class _Chain(NamedTuple):
    """A forward pass through R chunks of S steps."""

    transition: Array  # (K, K)
    likelihood: Array  # (S, K, R), relative to the best state's
    best: Array  # (B, T), the best state's log-likelihood
    operators: tuple[Array, Array] | None  # the operator of each chunk on the states, see `chunk_operators`
    forward_filter: Array  # (S, K, R) p(z_t | x up to t)
    scale: Array  # (S, R) p(x_t | x before t), relative to the best state's
    starts: Array | None  # (S, R) where another sequence begins

    def unpacked(self, a: Array) -> Array:
        """(S, K, R) as (B, T, K)."""
        batch, time = self.best.shape
        steps, k, _ = a.shape
        return jnp.transpose(a.reshape(steps, k, batch, -1), (2, 3, 0, 1)).reshape(batch, -1, k)[:, :time]

    def log_evidence(self) -> Array:
        return jnp.log(self.unpacked(self.scale[:, None])[..., 0]).sum(axis=1) + self.best.sum(axis=1)


def _walk(
    log_initial: Array, log_transition: Array, log_likelihood: Array, scan: Scan, starts: Array | None = None
) -> _Chain:
    batch, time, k = log_likelihood.shape
    best = finite(log_likelihood.max(axis=2))
    likelihood = _cut(jnp.exp(log_likelihood - best[..., None]), scan.steps or time, value=1)
    initial, transition = jnp.exp(log_initial), jnp.exp(log_transition)
    pieces = likelihood.shape[2] // batch
    start, operators = jnp.broadcast_to(initial[:, None], (k, batch)), None
    if starts is not None:
        starts = _cut(starts[..., None], scan.steps or time)[:, 0]
    if pieces > 1:
        operators = chunk_operators(initial, transition, likelihood, pieces, starts)
        before = composed(operators, scan.associative)  # (K, B, pieces - 1) p(z at the end of a chunk | x so far)
        rest = einsum("ij,ibp->jbp", transition, before)
        start = jnp.concatenate([start[..., None], rest], axis=2).reshape(k, -1)

    def step(predicted: Array, inputs: tuple[Array, Array | None]):
        likelihood, another = inputs
        if another is not None:
            predicted = jnp.where(another, initial[:, None], predicted)
        joint = predicted * likelihood
        scale = joint.sum(axis=0)
        forward_filter = joint / jnp.where(scale > 0, scale, 1)
        return _product(transition.T, forward_filter), (forward_filter, scale)

    forward_filter, scale = lax.scan(step, start, (likelihood, starts))[1]
    return _Chain(transition, likelihood, best, operators, forward_filter, scale, starts)


def _backward(chain: _Chain, scan: Scan) -> tuple[Array, Array]:
    """p(x after t | z_t) / p(x after t | x up to t), and p(x from t | z_t) / p(x from t | x before t): (S, K, R)."""
    k, batch = len(chain.transition), len(chain.best)
    end = jnp.ones((k, batch), chain.likelihood.dtype)
    if chain.operators is not None:
        after = composed_backward(chain.operators, scan.associative)  # (K, B, pieces - 1), up to a factor
        known = chain.forward_filter[-1].reshape(k, batch, -1)[..., :-1]
        total = (after * known).sum(axis=0)
        end = jnp.concatenate([after / jnp.where(total > 0, total, 1), end[..., None]], axis=2).reshape(k, -1)

    def step(beta: Array, inputs):
        likelihood, scale, another = inputs
        ahead = likelihood * beta / jnp.where(scale > 0, scale, 1)
        before = _product(chain.transition, ahead)
        return before if another is None else jnp.where(another, 1, before), (beta, ahead)

    return lax.scan(step, end, (chain.likelihood, chain.scale, chain.starts), reverse=True)[1]


def _sound(chain: _Chain, beta: Array) -> Array:
    """Whether the possible loss from underflow is negligible.

    A value below the smallest float at (t, i) contributes at most that float times beta_t(i) / scale_t to the evidence,
    relative to its total.
    """
    limit = 1e-14 / jnp.finfo(beta.dtype).tiny
    return jnp.all(lax.stop_gradient(chain.scale) > 0) & jnp.all(beta.max(axis=1) < limit * chain.scale)


def _max_plus(log_transition: Array):
    """Max-plus product: max over i of scores_i + log_transition_ij, for scores (K, ...)."""

    def maxima(scores: Array) -> Array:
        moves = log_transition.reshape(*log_transition.shape, *[1] * (scores.ndim - 1))
        if len(moves) > 32:
            return (scores[:, None] + moves).max(axis=0)
        best = scores[0] + moves[0]
        for i in range(1, len(moves)):  # one fused loop instead of a reduction
            best = jnp.maximum(best, scores[i] + moves[i])
        return best

    return maxima


def _cut(a: Array, steps: int, value: float = 0) -> Array:
    """Cuts (B, T, K) into chunks (steps, K, B * pieces), padded with `value`."""
    batch, time, k = a.shape
    pieces = -(-time // steps)
    a = jnp.pad(a, ((0, 0), (0, pieces * steps - time), (0, 0)), constant_values=value)
    return jnp.transpose(a.reshape(batch, pieces, steps, k), (2, 3, 0, 1)).reshape(steps, k, batch * pieces)


def _product(a: Array, b: Array) -> Array:
    """The matrix product; small ones as sums, which XLA fuses with their surroundings."""
    return (a[:, :, None] * b).sum(axis=1) if a.size * b.shape[1] <= 1 << 13 else matmul(a, b)
