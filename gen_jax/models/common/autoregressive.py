"""Decoding of autoregressive models: sampling and greedy decoding, in one compiled loop.

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
    "Draft",
    "Next",
    "Sampling",
    "advance",
    "begin",
    "feed",
    "generate",
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
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p:g}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p:g}")
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
