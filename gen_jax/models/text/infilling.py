"""Filling a gap in a text: exactly, by importance resampling, or by a model trained on texts with gaps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Autoregressive, Infilling, LimitedContext, Params, PyTree, State, TokenDensity
from gen_jax.data.spans import MARKS
from gen_jax.errors import UserError
from gen_jax.models.common.autoregressive import Sampling, advance, begin
from gen_jax.models.text.generation import prefilled
from gen_jax.models.text.translation import Translator

__all__ = ["Filling", "Infiller", "fill_marked"]


class Filling(NamedTuple):
    """The content of a gap. Exact draws may hold the end of a document; candidates do not."""

    text: str
    tokens: list[int]
    log_prob: float  # in nats: exact, given both sides; of candidates, given the text before; else of the whole target
    effective: float  # how many different candidates the choice was worth; infinite without candidates
    method: str


@dataclass(frozen=True)
class Infiller:
    """Fills a gap of `length` tokens between two texts, by draws from the posterior given both sides.

    candidates: 0 for exact draws, by a model that is `core.Infilling`. Else the gap is drawn that many times given the
    text before, with `sampling`, and one draw is chosen in proportion to its importance weight: the probability of the
    draw and the text after it, divided by that of drawing it (sampling-importance-resampling, Rubin 1988), which
    is exact in the limit of many candidates.
    """

    model: Any
    tokenizer: Any
    sampling: Sampling = Sampling()
    length: int = 16
    candidates: int = 0
    seed: int = 0

    def __post_init__(self):
        kind = type(self.model).__name__
        if self.length < 1:
            raise UserError(f"--length must be at least 1, got {self.length}")
        if self.candidates < 0:
            raise UserError(f"--candidates cannot be negative, got {self.candidates}")
        if self.candidates:
            if not isinstance(self.model, TokenDensity) or not isinstance(self.model, Autoregressive):
                raise UserError(f"{kind} cannot draw candidates for a gap")
            if isinstance(self.model, LimitedContext) and self.model.context - self.length < 1:
                raise UserError(f"--length must be below {self.model.context}, the tokens that the model sees")
            return
        if not isinstance(self.model, Infilling):
            raise UserError(f"{kind} does not know the exact posterior of a gap: give --candidates, e.g. 256")
        if self.sampling != Sampling():
            raise UserError("exact draws have the model's own distribution: leave out temperature, top-k and others")

    def __call__(
        self, state: State, before: Sequence[int], after: Sequence[int], numbers: Sequence[int]
    ) -> list[Filling]:
        """A filling for each of `numbers`, which choose the random numbers."""
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(self.seed)))(jnp.asarray(numbers))
        before, after = self.seen(before, after)
        if self.candidates:
            return [self._resampled(state, before, after, key) for key in keys]
        x = np.array([*before, *[0] * self.length, *after], np.int32)[None]
        gap = slice(len(before), len(before) + self.length)
        observed = np.ones(x.shape, bool)
        observed[:, gap] = False
        rows, log_probs = map(np.asarray, _exactly(self.model, state, x, observed, keys))
        return [self._filling(row[gap], value, math.inf, "exact") for row, value in zip(rows, log_probs)]

    def seen(self, before: Sequence[int], after: Sequence[int]) -> tuple[list[int], list[int]]:
        """The tokens of both sides that the model sees: if not all, the one after is cut to half of the context."""
        before, after = [self.tokenizer.end, *before], [*after]
        if not isinstance(self.model, LimitedContext):
            return before, after
        room = self.model.context + 1 - self.length
        after = after[: max(room - len(before), room // 2)]
        return before[-(room - len(after)) :], after

    def _resampled(self, state: State, before: list[int], after: list[int], key: Array) -> Filling:
        n = self.candidates
        cache, last = prefilled(self.model, state, before, self.length)
        told = np.zeros(self.tokenizer.size if self.sampling.penalizes else 0, bool)
        if told.size:
            told[before[1:]] = True
        tokens, drawn = map(np.asarray, _candidates(self, state.params, cache, last, jnp.asarray(told), key))
        width = -(-(len(before) + self.length + len(after)) // 32) * 32
        if isinstance(self.model, LimitedContext):
            width = min(width, self.model.context + 1)
        rows = np.zeros((n, width), np.int32)
        start, stop = len(before), len(before) + self.length
        rows[:, :start], rows[:, start:stop], rows[:, stop : stop + len(after)] = before, tokens, after
        log_probs = np.asarray(_log_probs(self.model, state, rows), np.float64)[:, start : stop + len(after)]
        log_weights = log_probs.sum(axis=1) - drawn.sum(axis=1)
        chosen = int(jax.random.categorical(jax.random.fold_in(key, n), jnp.asarray(log_weights - log_weights.max())))
        weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        _, kind = np.unique(tokens, axis=0, return_inverse=True)
        effective = 1 / np.sum(np.bincount(kind.ravel(), weights) ** 2)
        method = f"{n} candidates, {self.sampling.protocol}"
        return self._filling(tokens[chosen], log_probs[chosen, : self.length].sum(), effective, method)

    def _filling(self, tokens: np.ndarray, log_prob: float, effective: float, method: str) -> Filling:
        return Filling(self.tokenizer.text(tokens), tokens.tolist(), float(log_prob), float(effective), method)


def fill_marked(translate: Translator, state: State, sides: Sequence[tuple[str, str]]) -> list[Filling]:
    """Fills gaps between pairs of texts by a text-to-text model trained on `data.spans`, which chooses the length."""
    found = []
    for target, *_ in translate(state, [f"{before}{MARKS[0]}{after}" for before, after in sides]):
        text = re.split(f"[{MARKS}]", target.text.removeprefix(MARKS[0]))[0]
        tokens = translate.tokenizer.encode(text).tolist()
        method = f"trained to fill gaps, {translate.sampling.protocol}"
        found.append(Filling(text, tokens, target.log_prob, math.inf, method))
    return found


@partial(jax.jit, static_argnums=0)
def _exactly(model: Any, state: State, x: Array, observed: Array, keys: Array) -> tuple[Array, Array]:
    """Rows (n, T) with filled gaps, and the log-probabilities of the gaps given the rest."""
    rows = jax.vmap(lambda key: model.fill(state, {"x": x, "observed": observed}, key)[0])(keys)
    rest = model.log_prob(state, {"x": x, "observed": observed})
    return rows, model.log_prob(state, {"x": rows}) - rest


@partial(jax.jit, static_argnums=0)
def _candidates(
    made: Infiller, params: Params, cache: PyTree, last: Array, told: Array, key: Array
) -> tuple[Array, Array]:
    """Tokens (n, length) that continue one text, and their log-probabilities as they were drawn."""
    n, end = made.candidates, made.tokenizer.end
    cache = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), cache)
    draft = begin(cache, jnp.repeat(last, n), made.length, jnp.broadcast_to(told, (n, len(told))))
    follow = partial(made.model.next, params, None)
    draft = advance(follow, draft, key, made.length, made.sampling, end=end, minimum=made.length)
    return draft.tokens, draft.drawn


@partial(jax.jit, static_argnums=0)
def _log_probs(model: TokenDensity, state: State, x: Array) -> Array:
    return model.log_probs(state, {"x": x})
