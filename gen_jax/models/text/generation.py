"""Text from autoregressive models: continuations of prompts, in batches or streamed, with stop strings.

Random numbers belong to (seed, row, position), so that a row is the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Autoregressive, LimitedContext, Params, Prefilled, PyTree, State
from gen_jax.errors import UserError
from gen_jax.models.common.autoregressive import Draft, Sampling, advance, begin, feed

__all__ = ["Continuation", "Generator", "Row", "prefilled"]

_AT_ONCE = 16  # tokens between two looks at stop strings
_STREAMED = 4  # tokens between two updates of a stream


class Continuation(NamedTuple):
    """A generated text, without its prompt."""

    text: str
    tokens: list[int]
    log_probs: list[float]  # of the tokens under the model, in nats
    drawn: list[float]  # under the distribution they were drawn from
    reason: str  # why it ended: "end" of the document, "stop" string, "length"


class Row(NamedTuple):
    """A text to be continued: its number, which chooses its random numbers, and the tokens of its prompt."""

    number: int
    prompt: Sequence[int]


@dataclass(frozen=True)
class Generator:
    """Continues texts with one model.

    length: tokens at most; minimum: tokens before a text may end. ends: whether texts end by themselves. stop: strings
    at which a text ends; they are no part of it.
    """

    model: Autoregressive
    tokenizer: Any
    sampling: Sampling = Sampling()
    length: int = 256
    minimum: int = 0
    ends: bool = True
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.model, Autoregressive):
            raise UserError(f"{type(self.model).__name__} does not generate text token by token")
        if self.length < 1:
            raise UserError(f"--length must be at least 1, got {self.length}")
        if not 0 <= self.minimum <= self.length:
            raise UserError(f"--minimum must be between 0 and --length, got {self.minimum}")
        if any(not stop for stop in self.stop):
            raise UserError("a stop string cannot be empty")

    def __call__(
        self,
        state: State,
        rows: Sequence[Row],
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Continuation]:
        """Continuations of the rows, in one batch. on_text(i, text) is called with new text of row i as it comes."""
        if not rows:
            return []
        key, numbers = jax.random.key(self.seed), jnp.array([row.number for row in rows])
        told = [[self.tokenizer.end, *row.prompt] for row in rows]
        draft = self._begin(state, told)
        texts = [_Text(self, i, on_text) for i in range(len(rows))]
        stride = _STREAMED if on_text else _AT_ONCE if self.stop else self.length
        held = np.array([min(len(one), self._limit) for one in told]) - 1  # tokens in the cache
        while (step := int(draft.step)) < self.length and not np.asarray(draft.done).all():
            room = int(np.where(np.asarray(draft.done), self._limit, self._limit - held).min())
            until = min(step + min(stride, room), self.length)
            draft = _advance(self, state.params, draft, key, until, numbers)
            tokens, done = np.asarray(draft.tokens), np.array(draft.done)
            held += int(draft.step) - step
            for i, text in enumerate(texts):
                done[i] |= text.add(tokens[i, : int(draft.step)])
            draft = draft._replace(done=jnp.asarray(done))
            full = ~done & (held >= self._limit)
            if full.any() and int(draft.step) < self.length:
                draft, held = self._shifted(state, draft, told, tokens, full, held)
        log_probs, drawn = np.asarray(draft.log_probs), np.asarray(draft.drawn)
        return [text.finish(log_probs[i], drawn[i]) for i, text in enumerate(texts)]

    @property
    def _limit(self) -> int:
        return self.model.context if isinstance(self.model, LimitedContext) else 2**30

    def _begin(self, state: State, told: Sequence[Sequence[int]]) -> Draft:
        size = min(self._limit, _rounded(max(map(len, told)) + self.length))
        cache, first = self._read(state, told, size)
        seen = np.zeros((len(told), self.tokenizer.size if self.sampling.penalizes else 0), bool)
        for row, tokens in zip(seen, told):
            if row.size:
                row[list(tokens[1:])] = True
        return begin(cache, first, self.length, jnp.asarray(seen))

    def _read(self, state: State, told: Sequence[Sequence[int]], size: int):
        """The cache after all but the last token of each row, and the last tokens."""
        return _read(self.model, state.params, [tokens[-self._limit :] for tokens in told], size)

    def _shifted(self, state, draft: Draft, told, tokens: np.ndarray, full: np.ndarray, held: np.ndarray):
        """The draft with the caches of full rows read anew from the last half of what the model can see."""
        step, half = int(draft.step), max(1, self._limit // 2)
        recent = [[*before, *row[:step].tolist()][-half:] for before, row in zip(told, tokens)]
        cache, first = self._read(state, recent, self._limit)
        pick = lambda new, old: jnp.where(full.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        grown = jax.tree.map(lambda old, new: _grown(old, new.shape), draft.cache, cache)
        draft = draft._replace(cache=jax.tree.map(pick, cache, grown), token=pick(first, draft.token))
        return draft, np.where(full, [len(one) - 1 for one in recent], held)


def prefilled(model: Autoregressive, state: State, told: Sequence[int], more: int) -> tuple[PyTree, Array]:
    """The cache after all but the last of some tokens, with room for `more` after them, and that last one (1,)."""
    size = _rounded(len(told) + more)
    size = min(size, model.context) if isinstance(model, LimitedContext) else size
    return _read(model, state.params, [told], size)


def _read(model: Any, params: Params, told: Sequence[Sequence[int]], size: int) -> tuple[PyTree, Array]:
    lengths = np.array([len(tokens) - 1 for tokens in told], np.int32)
    width = min(size, _rounded(int(lengths.max()))) if lengths.max() else 0
    padded = np.zeros((len(told), width), np.int32)
    for row, tokens in zip(padded, told):
        row[: len(tokens) - 1] = tokens[:-1]
    last = np.array([tokens[-1] for tokens in told], np.int32)
    return _fill(model, size, params, padded, lengths), jnp.asarray(last)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(made: Generator, params: Params, draft: Draft, key: Array, until: Array, rows: Array) -> Draft:
    follow = partial(made.model.next, params, None)
    minimum = made.minimum if made.ends else made.length
    return advance(follow, draft, key, until, made.sampling, end=made.tokenizer.end, minimum=minimum, rows=rows)


@partial(jax.jit, static_argnums=(0, 1))
def _fill(model: Any, size: int, params: Params, tokens: Array, lengths: Array) -> PyTree:
    cache, _ = model.start(params, None, len(tokens), size)
    if not tokens.shape[1]:
        return cache
    if isinstance(model, Prefilled):
        return model.extend(params, None, cache, tokens, lengths)
    return feed(partial(model.next, params, None), cache, tokens, lengths)


def _grown(a: Array, shape: tuple[int, ...]) -> Array:
    """An array padded with zeros to a shape."""
    return jnp.pad(a, [(0, n - m) for n, m in zip(shape, a.shape)])


def _rounded(n: int) -> int:
    """A power of two, at least 16, so that few shapes are compiled."""
    return max(16, 1 << (n - 1).bit_length())


class _Text:
    """The text of a row as it grows: ends it at stop strings, and holds back what may still become one."""

    def __init__(self, generator: Generator, number: int, on_text: Callable[[int, str], None] | None):
        self.tokenizer, self.stop = generator.tokenizer, [stop.encode() for stop in generator.stop]
        self.number, self.on_text = number, on_text
        self.data, self.tokens, self.told, self.reason = b"", [], 0, "length"

    def add(self, tokens: np.ndarray) -> bool:
        """Adds new tokens of the row; whether it ends here."""
        for token in tokens[len(self.tokens) :].tolist():
            if self.reason != "length":
                break
            self.tokens.append(token)
            if token == self.tokenizer.end:
                self.reason = "end"
                break
            self.data += self.tokenizer.pieces[token]
            places = [place for stop in self.stop if (place := self.data.find(stop)) >= 0]
            if places:
                self.data, self.reason = self.data[: min(places)], "stop"
        self._tell(self.reason != "length")
        return self.reason != "length"

    def _tell(self, all_of_it: bool) -> None:
        if self.on_text is None:
            return
        safe = len(self.data) if all_of_it else len(self.data) - self._unsure()
        if safe > self.told:
            self.on_text(self.number, self.data[self.told : safe].decode(errors="replace"))
            self.told = safe

    def _unsure(self) -> int:
        """Bytes at the end that may belong to a stop string, or to a character that is not complete."""
        held = max((n for stop in self.stop for n in range(1, len(stop)) if self.data.endswith(stop[:n])), default=0)
        for back in range(1, min(4, len(self.data) + 1)):
            byte = self.data[-back]
            if byte & 0xC0 != 0x80:
                needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                return max(held, back if needed > back else 0)
        return held

    def finish(self, log_probs: np.ndarray, drawn: np.ndarray) -> Continuation:
        self._tell(True)
        n = len(self.tokens)
        text = self.data.decode(errors="replace")
        return Continuation(text, self.tokens, log_probs[:n].tolist(), drawn[:n].tolist(), self.reason)
