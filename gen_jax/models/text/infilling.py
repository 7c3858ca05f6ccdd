"""Filling a gap in a text: exactly, by importance resampling, or by a model trained on texts with gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Autoregressive, Infilling, LimitedContext, State, TokenDensity
from gen_jax.data.spans import MARKS
from gen_jax.errors import UserError
from gen_jax.models.common.autoregressive import Sampling, advance, begin, feed
from gen_jax.models.text.translation import Translator

__all__ = ["Filling", "Infiller", "fill_marked"]


class Filling(NamedTuple):
    """The content of a gap."""

    text: str
    tokens: list[int]
    log_prob: float  # in nats, given both sides where `method` is exact, else given the text before
    effective: float  # how many independent candidates the choice was worth; infinite if exact
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
        if self.length < 1 or self.candidates < 0:
            raise UserError(f"--length must be at least 1 and --candidates 0 or more, got {self.length}")
        wanted = TokenDensity if self.candidates else Infilling
        if not isinstance(self.model, wanted) or (self.candidates and not isinstance(self.model, Autoregressive)):
            kind = type(self.model).__name__
            raise UserError(
                f"{kind} cannot draw candidates for a gap"
                if self.candidates
                else f"{kind} does not know the exact posterior of a gap: give --candidates, e.g. 256"
            )

    def __call__(
        self, state: State, before: Sequence[int], after: Sequence[int], numbers: Sequence[int]
    ) -> list[Filling]:
        """A filling for each of `numbers`, which choose the random numbers."""
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(self.seed)))(jnp.asarray(numbers))
        before, after = self._fitting([self.tokenizer.end, *before], [*after])
        if self.candidates:
            filled = [_resample(self, state, np.array(before), np.array(after, np.int32), key) for key in keys]
            found = [tuple(np.asarray(a) for a in one) for one in filled]
            method = f"{self.candidates} candidates, {self.sampling.protocol}"
            return [self._filling(tokens, log_prob, size, method) for tokens, log_prob, size in found]
        x = np.array([*before, *[0] * self.length, *after], np.int32)[None]
        gap = slice(len(before), len(before) + self.length)
        observed = np.ones(x.shape, bool)
        observed[:, gap] = False
        rows, log_probs = map(np.asarray, _exactly(self.model, state, x, observed, keys))
        return [self._filling(row[gap], log_prob, np.inf, "exact") for row, log_prob in zip(rows, log_probs)]

    def _filling(self, tokens: np.ndarray, log_prob: Any, effective: Any, method: str) -> Filling:
        return Filling(self.tokenizer.text(tokens), tokens.tolist(), float(log_prob), float(effective), method)

    def _fitting(self, before: list[int], after: list[int]) -> tuple[list[int], list[int]]:
        """Both sides, cut where they do not fit into the context: first the one after, to half of the room."""
        if not isinstance(self.model, LimitedContext):
            return before, after
        room = self.model.context + 1 - self.length
        if room < 2:
            raise UserError(f"--length must be below {self.model.context}, the tokens that the model sees")
        after = after[: max(room - len(before), room // 2)]
        return before[-(room - len(after)) :], after


def fill_marked(
    model: Any,
    tokenizer: Any,
    state: State,
    sides: Sequence[tuple[str, str]],
    sampling: Sampling,
    length: int,
    seed: int = 0,
) -> list[Filling]:
    """Fills gaps between pairs of texts by a text-to-text model trained on `data.spans`, which chooses the length."""
    try:
        tokenizer.encode(MARKS[0])
    except UserError:
        raise UserError("this text-to-text model was not trained to fill gaps: train it on --text spans") from None
    translate = Translator(model, tokenizer, beams=0, sampling=sampling, length=length + 2, seed=seed)
    found = []
    for target, *_ in translate(state, [f"{before}{MARKS[0]}{after}" for before, after in sides]):
        text = re.split(f"[{MARKS}]", target.text.removeprefix(MARKS[0]))[0]
        tokens = tokenizer.encode(text).tolist()
        found.append(Filling(text, tokens, target.log_prob, 1.0, f"trained to fill gaps, {sampling.protocol}"))
    return found


@partial(jax.jit, static_argnums=0)
def _exactly(model: Any, state: State, x: Array, observed: Array, keys: Array) -> tuple[Array, Array]:
    """Rows (n, T) with filled gaps, and the log-probabilities of the gaps given the rest."""
    rows = jax.vmap(lambda key: model.fill(state, {"x": x, "observed": observed}, key)[0])(keys)
    rest = model.log_prob(state, {"x": x, "observed": observed})
    return rows, model.log_prob(state, {"x": rows}) - rest


@partial(jax.jit, static_argnums=0)
def _resample(made: Infiller, state: State, before: Array, after: Array, key: Array) -> tuple[Array, Array, Array]:
    """The chosen tokens (length,), their log-probability given the text before, and the effective sample size."""
    n, params, model = made.candidates, state.params, made.model
    cache, _ = model.start(params, None, 1, len(before) + made.length)
    cache = feed(partial(model.next, params, None), cache, before[None, :-1], jnp.full(1, len(before) - 1))
    cache = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), cache)
    draft = begin(cache, jnp.full(n, before[-1]), made.length, _seen(made, before, n))
    end = made.tokenizer.end
    draft = advance(
        partial(model.next, params, None), draft, key, made.length, made.sampling, end=end, minimum=made.length
    )
    wide = lambda side: jnp.broadcast_to(side, (n, len(side)))
    rows = jnp.concatenate([wide(before), draft.tokens, wide(after)], axis=1)
    log_probs = model.log_probs(state, {"x": rows})
    log_prob = log_probs[:, len(before) : len(before) + made.length].sum(axis=1)
    log_weights = log_probs[:, len(before) :].sum(axis=1) - draft.drawn.sum(axis=1)
    chosen = jax.random.categorical(jax.random.fold_in(key, n), log_weights)
    effective = 1 / jnp.sum(jax.nn.softmax(log_weights) ** 2)
    return draft.tokens[chosen], log_prob[chosen], effective


def _seen(made: Infiller, before: Array, n: int) -> Array | None:
    """(n, V) tokens of the text before, for penalties."""
    if not made.sampling.penalizes:
        return None
    return jnp.zeros((n, made.tokenizer.size), bool).at[:, before[1:]].set(True)
