"""Text-to-text: targets of source texts by beam search or sampling, in batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Params, PyTree, Seq2Seq, State
from gen_jax.errors import UserError
from gen_jax.models.common.autoregressive import Sampling, advance, begin
from gen_jax.models.common.beams import Beams, beam_search, length_penalty

__all__ = ["Translation", "Translator"]


class Translation(NamedTuple):
    """A target text with its log-probability in nats, and what beams are ranked by; both -inf where there is none."""

    text: str
    log_prob: float
    score: float


@dataclass(frozen=True)
class Translator:
    """Finds targets of source texts.

    beams: width of the beam search; 1 is greedy; 0 draws with `sampling`. penalty, alpha: see `length_penalty`; lengths
    count the end. length: tokens of a target at most; by default 1.5 times those of its source and 20 more, rounded up.
    best: how many targets of each source. groups, diversity: of diverse beams, see `beam_search`.
    """

    model: Seq2Seq
    tokenizer: Any
    beams: int = 5
    penalty: str = "mean"
    alpha: float = 1.0
    sampling: Sampling = Sampling()
    length: int = 0
    best: int = 1
    batch: int = 32
    seed: int = 0
    groups: int = 1
    diversity: float = 0.5

    def __post_init__(self):
        if not isinstance(self.model, Seq2Seq):
            raise UserError(f"{type(self.model).__name__} is no text-to-text model")
        vocabulary = self.tokenizer.size
        if not 0 <= self.beams <= vocabulary:
            raise UserError(f"--beams must be between 0 and the {vocabulary} tokens, got {self.beams}")
        if not 1 <= self.best <= max(1, self.beams):
            raise UserError(f"--best must be between 1 and --beams {self.beams}, got {self.best}")
        if self.length < 0:
            raise UserError(f"--length cannot be negative, got {self.length}")
        if self.sampling.penalizes:
            raise UserError("penalties of tokens seen before are for language models: leave them out")
        if self.groups < 1 or max(self.beams, 1) % self.groups:
            raise UserError(f"--groups must divide --beams {self.beams}, got {self.groups}")
        if self.diversity < 0:
            raise UserError(f"--diversity cannot be negative, got {self.diversity:g}")
        length_penalty(self.penalty, self.alpha)

    def __call__(self, state: State, texts: Sequence[str], start: int = 0) -> Iterator[list[Translation]]:
        """The best targets of each text, in the order of the texts. An empty text gives empty targets.

        start: the number of the first text, which chooses its random numbers.
        """
        sources = [self.tokenizer.encode(text) for text in texts]
        waiting: dict[int, list[Translation]] = {}
        shown = 0
        for rows in self._batches([len(source) for source in sources]):
            found = self._batch(state.params, [sources[i] for i in rows], [start + i for i in rows])
            waiting |= dict(zip(rows, found))
            while shown in waiting:
                yield waiting.pop(shown)
                shown += 1

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of the same rounded length, so that none depends on its batch, out of many that follow each other."""
        many = 32 * self.batch
        for start in range(0, len(lengths), many):
            by_width: dict[int, list[int]] = {}
            for i in range(start, min(start + many, len(lengths))):
                by_width.setdefault(_rounded(lengths[i] + 1), []).append(i)
            for _, rows in sorted(by_width.items()):
                yield from (rows[i : i + self.batch] for i in range(0, len(rows), self.batch))

    def _batch(self, params: Params, sources: Sequence[np.ndarray], rows: Sequence[int]):
        width = _rounded(max(map(len, sources)) + 1)
        steps = self.length or _rounded(width * 3 // 2 + 20)
        x = np.zeros((self.batch, width), np.int32)
        length = np.ones(self.batch, np.int32)
        numbers = np.zeros(self.batch, np.int32)
        for i, (source, row) in enumerate(zip(sources, rows)):
            x[i, : len(source) + 1] = [*source.tolist(), self.tokenizer.end]
            length[i], numbers[i] = len(source) + 1, row
        found = Beams(*map(np.asarray, _search(self, params, x, length, numbers, steps)))
        return [self._targets(found, i) if len(source) else self._nothing() for i, source in enumerate(sources)]

    def _targets(self, found: Beams, i: int) -> list[Translation]:
        targets, known = [], set()
        for tokens, log_prob, score in zip(found.tokens[i], found.log_probs[i], found.scores[i]):
            if len(targets) < self.best and np.isfinite(score) and tokens.tobytes() not in known:
                known.add(tokens.tobytes())  # two groups may find the same
                tokens = tokens.tolist()
                tokens = tokens[: tokens.index(self.tokenizer.end)] if self.tokenizer.end in tokens else tokens
                targets.append(Translation(self.tokenizer.text(tokens), float(log_prob), float(score)))
        return targets + [Translation("", -math.inf, -math.inf)] * (self.best - len(targets))

    def _nothing(self) -> list[Translation]:
        return [Translation("", 0.0, 0.0)] * self.best


def _rounded(n: int) -> int:
    """The next multiple of 16, so that few shapes are compiled."""
    return -(-n // 16) * 16


_GREEDY = Sampling(temperature=0)


@partial(jax.jit, static_argnums=(0, 5))
def _search(made: Translator, params: Params, x: Array, length: Array, numbers: Array, steps: int) -> Beams:
    """The best targets of sources (n, S) of at most `steps` tokens."""
    model, end = made.model, made.tokenizer.end
    condition = model.encode_source(params, {"x": x, "length": length})
    cache, first = model.start(params, condition, len(x), steps)
    if made.beams > 1:
        repeated: PyTree = jax.tree.map(lambda a: jnp.repeat(a, made.beams, axis=0), condition)
        follow, penalty = partial(model.next, params, repeated), length_penalty(made.penalty, made.alpha)
        return beam_search(follow, cache, first, steps, made.beams, end, penalty, made.groups, made.diversity)
    follow, sampling = partial(model.next, params, condition), made.sampling if made.beams == 0 else _GREEDY
    key, draft = jax.random.key(made.seed), begin(cache, first, steps)
    draft = advance(follow, draft, key, steps, sampling, end=end, rows=numbers)
    log_probs = draft.log_probs.sum(axis=1, keepdims=True)
    return Beams(draft.tokens[:, None], log_probs, log_probs)
