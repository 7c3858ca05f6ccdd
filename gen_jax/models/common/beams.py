"""Beam search of autoregressive models, in one compiled loop; with several groups, for diverse results."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree
from gen_jax.models.common.autoregressive import Next

__all__ = ["Beams", "beam_search", "length_penalty"]


class Beams(NamedTuple):
    """The best continuations of n sequences, best first; of several groups the best of each, then the second best."""

    tokens: Array  # (n, beams, steps); `end` after the end
    log_probs: Array  # (n, beams) in nats
    scores: Array  # (n, beams) log-probabilities divided by the length penalty; -inf where there are fewer sequences


def length_penalty(kind: str, alpha: float) -> Callable[[Array], Array]:
    """The divisor of log-probabilities of L tokens, which count the end token but not the prompt.

    "wu": ((5 + L) / 6)^alpha (Wu et al. 2016). "mean": L^alpha, as in fairseq and Marian. "none": 1.
    """
    if kind not in ("wu", "mean", "none"):
        raise ValueError(f"the length penalty is wu, mean or none, got {kind!r}")
    formulas = {"wu": lambda n: ((5 + n) / 6) ** alpha, "mean": lambda n: n**alpha, "none": lambda n: n * 0 + 1.0}
    return lambda length: formulas[kind](jnp.asarray(length, jnp.float32))


def beam_search(
    next: Next,
    cache: PyTree,
    first: Array,
    steps: int,
    beams: int,
    end: int | None = None,
    penalty: Callable[[Array], Array] = length_penalty("none", 0.0),
    groups: int = 1,
    diversity: float = 0.0,
) -> Beams:
    """Beam search for the best continuations, of width `beams`.

    end: the token that ends a sequence. Finished sequences are kept apart from those that go on, of which there are
    always `beams`; the search stops when no sequence can still become better than all that are finished. Sequences
    of `steps` tokens without an end count as finished, with their score.

    groups: the beams are divided into groups with a search each. From the second on, `diversity` is subtracted from the
    log-probability of a token for every beam of an earlier group that chose it at the same step (Vijayakumar et al.
    2018); scores do not contain it.
    """
    if beams % groups:
        raise ValueError(f"{beams} beams cannot be divided into {groups} groups")
    n, width = len(first), beams // groups
    rows = n * groups
    cache = jax.tree.map(lambda a: jnp.repeat(a, beams, axis=0), cache)
    start = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)  # duplicates of the start count once
    blank = jnp.full((rows, width, steps), 0 if end is None else end, first.dtype)
    never = jnp.full((rows, width), -jnp.inf)
    live = Beams(blank, jnp.tile(start, (rows, 1)), never)
    tokens = jnp.repeat(first, beams).reshape(rows, width)

    def go_on(carry) -> Array:
        i, _, _, live, finished = carry
        if end is None:
            return i < steps
        longest = jnp.maximum(penalty(jnp.float32(steps)), penalty((i + 1).astype(jnp.float32)))
        possible = live.log_probs.max(axis=1) / longest
        return (i < steps) & jnp.any(possible > finished.scores.min(axis=1))

    def body(carry):
        i, cache, token, live, finished = carry
        cache, logits = next(cache, token.reshape(-1))
        total = live.log_probs[..., None] + jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, width, -1)
        if end is not None:
            finished = _finish(finished, live, total[..., end], i, end, penalty)
            total = total.at[..., end].set(-jnp.inf)
        log_probs, parent, token = _choose(total.reshape(n, groups, width, -1), diversity)
        token = token.astype(first.dtype)
        cache = jax.tree.map(lambda a: a[(jnp.arange(rows)[:, None] * width + parent).reshape(-1)], cache)
        kept = jnp.take_along_axis(live.tokens, parent[..., None], axis=1).at[..., i].set(token)
        return i + 1, cache, token, Beams(kept, log_probs, never), finished

    carry = (jnp.int32(0), cache, tokens, live, Beams(blank, never, never))
    i, _, _, live, finished = lax.while_loop(go_on, body, carry)
    open_ones = live._replace(scores=jnp.where(i < steps, -jnp.inf, live.log_probs / penalty(i)))
    found = _best(_joined(finished, open_ones), width)
    alternate = lambda a: a.reshape(n, groups, *a.shape[1:]).swapaxes(1, 2).reshape(n, beams, *a.shape[2:])
    return Beams(*map(alternate, found))


def _choose(total: Array, diversity: float) -> tuple[Array, Array, Array]:
    """Log-probabilities, parents and tokens (n * groups, width) of the beams after a step.

    total: (n, groups, width, V) log-probabilities of all of them.
    """
    n, groups, width, vocabulary = total.shape
    taken, found = jnp.zeros((n, 1, vocabulary)), []
    for group in range(groups):
        of_group = total[:, group].reshape(n, -1)
        ranked = (total[:, group] - diversity * taken).reshape(n, -1) if group else of_group
        _, best = lax.top_k(ranked, width)
        log_probs, token = jnp.take_along_axis(of_group, best, axis=1), best % vocabulary
        found.append((log_probs, best // vocabulary, token))
        if group + 1 < groups:
            taken = taken.at[jnp.arange(n)[:, None], 0, token].add(jnp.isfinite(log_probs).astype(taken.dtype))
    return tuple(jnp.stack(arrays, axis=1).reshape(n * groups, width) for arrays in zip(*found))


def _finish(finished: Beams, live: Beams, log_probs: Array, i: Array, end: int, penalty) -> Beams:
    """The finished sequences together with the live ones that end at step i."""
    ended = Beams(live.tokens.at[..., i].set(end), log_probs, log_probs / penalty(i + 1))
    return _best(_joined(finished, ended), finished.scores.shape[1])


def _joined(a: Beams, b: Beams) -> Beams:
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), a, b)


def _best(candidates: Beams, n: int) -> Beams:
    _, order = lax.top_k(candidates.scores, n)
    take = lambda a: jnp.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), axis=1)
    return Beams(*map(take, candidates))
