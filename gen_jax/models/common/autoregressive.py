"""Decoding of autoregressive models: sampling, greedy decoding and beam search, in one compiled loop.

A decoder is a function `next(cache, token) -> (cache, logits)`, for a `core.Autoregressive` model its `next` with
bound parameters and condition, `partial(model.next, params, condition)`. The cache is a pytree of arrays with leading
axis n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree

__all__ = [
    "ORDER",
    "Beams",
    "Draft",
    "Next",
    "Sampling",
    "advance",
    "beam_search",
    "begin",
    "feed",
    "generate",
    "length_penalty",
    "log_likelihood",
]

Next = Callable[[PyTree, Array], tuple[PyTree, Array]]  # (cache, token (n,)) -> (cache, logits (n, V))

ORDER = ("repetition", "presence", "temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Sampling:
    """Sampling of a token from logits; each step acts on what the one before left, in `order`.

    temperature: divides the logits; 0 is greedy decoding. top_k: only tokens at least as probable as the k-th (0: all).
    top_p: only the smallest set of most probable tokens with this total probability (Holtzman et al. 2020). min_p: only
    tokens with at least this fraction of the largest probability (Nguyen et al. 2024). repetition: divides positive
    logits of tokens seen before, and multiplies negative ones (Keskar et al. 2019). presence: subtracted from the
    logits of tokens seen before.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    order: tuple[str, ...] = ORDER

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0:
            raise ValueError(f"temperature and top_k cannot be negative, got {self.temperature} and {self.top_k}")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] and min_p in [0, 1], got {self.top_p} and {self.min_p}")
        if self.repetition <= 0:
            raise ValueError(f"repetition must be positive, got {self.repetition}")
        if sorted(self.order) != sorted(ORDER):
            raise ValueError(f"order must hold each of {', '.join(ORDER)} once, got {', '.join(self.order)}")

    @property
    def penalizes(self) -> bool:
        return self.repetition != 1 or self.presence != 0

    @property
    def protocol(self) -> str:
        """The steps that change the distribution, in their order."""
        neutral, values = asdict(Sampling()), asdict(self)
        return " > ".join(f"{name} {values[name]:g}" for name in self.order if values[name] != neutral[name]) or "none"

    def filter(self, logits: Array, seen: Array | None = None) -> Array:
        """Logits (n, V) after all steps; -inf where a token cannot be drawn. seen: (n, V) tokens that came before."""
        for name in self.order:
            logits = self._step(name, logits, seen)
        if self.temperature == 0:
            best = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)
            logits = jnp.where(best, 0.0, -jnp.inf)
        return logits

    def _step(self, name: str, logits: Array, seen: Array | None) -> Array:
        if name == "temperature" and self.temperature > 0:
            return logits / self.temperature
        if name == "top_k" and 0 < self.top_k < logits.shape[-1]:
            least = lax.top_k(logits, self.top_k)[0][..., -1:]
            return jnp.where(logits >= least, logits, -jnp.inf)
        if name == "top_p" and self.top_p < 1:
            order = jnp.argsort(-logits, axis=-1)
            sorted_probabilities = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
            before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
            rank = jnp.argsort(order, axis=-1)
            return jnp.where(jnp.take_along_axis(before, rank, axis=-1) < self.top_p, logits, -jnp.inf)
        if name == "min_p" and self.min_p:
            largest = logits.max(axis=-1, keepdims=True)
            return jnp.where(logits >= largest + jnp.log(self.min_p), logits, -jnp.inf)
        if name == "repetition" and self.repetition != 1 and seen is not None:
            penalized = jnp.where(logits < 0, logits * self.repetition, logits / self.repetition)
            return jnp.where(seen, penalized, logits)
        if name == "presence" and self.presence and seen is not None:
            return jnp.where(seen, logits - self.presence, logits)
        return logits

    def draw(self, logits: Array, key: Array) -> Array:
        """(n,) tokens."""
        return jax.random.categorical(key, self.filter(logits))


class Draft(NamedTuple):
    """Sequences being generated."""

    cache: PyTree
    token: Array  # (n,) the last token of each
    step: Array  # () tokens generated so far
    tokens: Array  # (n, S); `end` after the end
    log_probs: Array  # (n, S) under the model, 0 after the end
    drawn: Array  # (n, S) under the sampling, 0 after the end
    done: Array  # (n,)
    seen: Array  # (n, V) tokens that came before, for penalties; (n, 0) without


def begin(cache: PyTree, first: Array, steps: int, seen: Array | None = None) -> Draft:
    """A draft of n sequences that continue `first` (n,) by at most `steps` tokens."""
    n = len(first)
    zeros = lambda dtype: jnp.zeros((n, steps), dtype)
    seen = jnp.zeros((n, 0), bool) if seen is None else seen
    done = jnp.zeros(n, bool)
    return Draft(cache, first, jnp.int32(0), zeros(first.dtype), zeros(jnp.float32), zeros(jnp.float32), done, seen)


def advance(
    next: Next,
    draft: Draft,
    key: Array,
    until: Array | int,
    sampling: Sampling = Sampling(),
    *,
    end: int | None = None,
    minimum: int = 0,
    rows: Array | None = None,
) -> Draft:
    """Generates until step `until`, or until all sequences are done.

    Random numbers are those of (key, row, step), so that a sequence does not depend on its batch. rows: (n,) numbers of
    the rows, by default 0 .. n - 1. end: the token that ends a sequence; not before `minimum` tokens.
    """
    n = len(draft.token)
    of_row = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(n) if rows is None else rows)

    def go_on(draft: Draft) -> Array:
        return (draft.step < until) & ~jnp.all(draft.done)

    def body(draft: Draft) -> Draft:
        cache, logits = next(draft.cache, draft.token)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        allowed = logits
        if end is not None and minimum:
            early = (jnp.arange(logits.shape[-1]) == end) & (draft.step < minimum)
            allowed = jnp.where(early, -jnp.inf, logits)
        filtered = sampling.filter(allowed, draft.seen if draft.seen.shape[1] else None)
        keys = jax.vmap(lambda one: jax.random.fold_in(one, draft.step))(of_row)
        token = jax.vmap(jax.random.categorical)(keys, filtered).astype(draft.token.dtype)
        pick = lambda logits: jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        going = ~draft.done
        write = lambda a, new, other: a.at[:, draft.step].set(jnp.where(going, new, other).astype(a.dtype))
        seen = draft.seen.at[jnp.arange(n), token].set(True, mode="drop") if draft.seen.shape[1] else draft.seen
        return Draft(
            cache,
            token,
            draft.step + 1,
            write(draft.tokens, token, 0 if end is None else end),
            write(draft.log_probs, pick(logits), 0),
            write(draft.drawn, pick(filtered), 0),
            draft.done if end is None else draft.done | (token == end),
            seen,
        )

    return lax.while_loop(go_on, body, draft)


def generate(
    next: Next, cache: PyTree, first: Array, key: Array, steps: int, sampling: Sampling = Sampling(), **more: Any
) -> Array:
    """Continues `first` (n,), the last known tokens, by `steps` tokens (n, steps). more: see `advance`."""
    return advance(next, begin(cache, first, steps), key, steps, sampling, **more).tokens


def feed(next: Next, cache: PyTree, tokens: Array, lengths: Array) -> PyTree:
    """The cache after the first `lengths` (n,) of tokens (n, P), one at a time."""

    def step(cache: PyTree, item: tuple[Array, Array]):
        token, i = item
        after, _ = next(cache, token)
        here = lambda new, old: jnp.where((i < lengths).reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        return jax.tree.map(here, after, cache), None

    return lax.scan(step, cache, (tokens.T, jnp.arange(tokens.shape[1])))[0]


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
) -> Beams:
    """Beam search for the best continuations, of width `beams`.

    end: the token that ends a sequence. Finished sequences are kept apart from those that go on, of which there are
    always `beams`; the search stops when no sequence can still become better than all that are finished. Sequences
    of `steps` tokens without an end count as finished, with their score.
    """
    n = len(first)
    cache = jax.tree.map(lambda a: jnp.repeat(a, beams, axis=0), cache)
    start = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)  # duplicates of the start count once
    filler = 0 if end is None else end
    blank = jnp.full((n, beams, steps), filler, first.dtype)
    never = jnp.full((n, beams), -jnp.inf)
    live = Beams(blank, jnp.tile(start, (n, 1)), never)
    tokens = jnp.repeat(first[:, None], beams, axis=1)

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
        scores = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(n, beams, -1)
        vocabulary = scores.shape[-1]
        total = live.log_probs[..., None] + scores
        if end is not None:
            finished = _finish(finished, live, total[..., end], i, end, penalty)
            total = total.at[..., end].set(-jnp.inf)
        log_probs, best = lax.top_k(total.reshape(n, -1), beams)
        parent, token = best // vocabulary, (best % vocabulary).astype(first.dtype)
        rows = (jnp.arange(n)[:, None] * beams + parent).reshape(-1)
        cache = jax.tree.map(lambda a: a[rows], cache)
        kept = jnp.take_along_axis(live.tokens, parent[..., None], axis=1).at[..., i].set(token)
        return i + 1, cache, token, Beams(kept, log_probs, never), finished

    carry = (jnp.int32(0), cache, tokens, live, Beams(blank, never, never))
    i, _, _, live, finished = lax.while_loop(go_on, body, carry)
    open_ones = Beams(live.tokens, live.log_probs, jnp.where(i < steps, -jnp.inf, live.log_probs / penalty(i)))
    return _best(jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), finished, open_ones), beams)


def _finish(finished: Beams, live: Beams, log_probs: Array, i: Array, end: int, penalty) -> Beams:
    """The finished sequences together with the live ones that end at step i."""
    tokens = live.tokens.at[..., i].set(end)
    ended = Beams(tokens, log_probs, log_probs / penalty(i + 1))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), finished, ended)
    return _best(joined, finished.scores.shape[1])


def _best(candidates: Beams, n: int) -> Beams:
    _, order = lax.top_k(candidates.scores, n)
    take = lambda a: jnp.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), axis=1)
    return Beams(*map(take, candidates))
