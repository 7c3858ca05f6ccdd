"""N-gram models with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999), exact, counted in one step.

The k-grams of a text are numbered by sorting pairs (number of the first k - 1 tokens, last token), one level after the
other; the children of a (k - 1)-gram are then neighbors, found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Metrics, Params, PyTree, State
from gen_jax.errors import UserError
from gen_jax.models.common.autoregressive import Sampling, generate
from gen_jax.models.common.tokens import counted_tokens
from gen_jax.models.text import gaps

__all__ = ["NGram"]

_LARGEST_TABLE = 2**25  # entries


class Level(NamedTuple):
    """The k-grams of one level, sorted, in arrays of the most there can be; unused ones at the end."""

    tokens: Array  # (M,) the last token of each
    starts: Array  # (P + 1,) the first k-gram that begins with each (k - 1)-gram
    alpha: Array  # (M,) discounted relative frequency given the first k - 1 tokens
    gamma: Array  # (P,) weight of the level below, for each (k - 1)-gram


@dataclass(frozen=True)
class NGram:
    """p(x_t | the `order` - 1 tokens before it): discounted counts, interpolated with the model of one token less.

    Levels below the highest count in how many contexts a k-gram occurs instead of how often; k-grams that begin with
    `end` keep their counts. Each level has three discounts, for counts of 1, 2 and more. Contexts end at `end`. The
    lowest level is interpolated with the uniform distribution. length: tokens of a sample.
    """

    vocabulary: int
    end: int
    order: int = 7
    length: int = 256

    def __post_init__(self):
        if not 1 <= self.order <= 32:
            raise ValueError(f"the order of an n-gram model is between 1 and 32, got {self.order}")

    def _sizes(self, tokens: int) -> list[int]:
        """The most k-grams there can be, for k = 0 .. order."""
        return [min(self.vocabulary**k, tokens) if k > 1 else self.vocabulary**k for k in range(self.order + 1)]

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """The uniform distribution, with room for the k-grams of a stream "x" (N,)."""
        x = batch["x"]
        if x.ndim != 1 or x.dtype.kind not in "iu":
            raise ValueError(f"an n-gram model is counted on one stream of tokens (N,), got {x.dtype} {list(x.shape)}")
        sizes = self._sizes(len(x))
        levels = [
            Level(
                jnp.zeros(size, jnp.int32),
                jnp.zeros(before + 1, jnp.int32),
                jnp.zeros(size, jnp.float32),
                jnp.ones(before, jnp.float32),
            )
            for before, size in zip(sizes, sizes[1:])
        ]
        return {"ngram": [level._asdict() for level in levels]}, {}

    def solve(self, state: State, batch: Batch) -> tuple[Params, Extra, Metrics]:
        """Parameters from the counts of a stream "x" (N,)."""
        x = batch["x"].astype(jnp.int32)
        sizes, here = self._sizes(len(x)), jnp.arange(len(x), dtype=jnp.int32)
        since_end = here - lax.cummax(jnp.where(x == self.end, here, -len(x)))  # tokens since the last end
        found = [_Counted(x, x, jnp.zeros(len(x), jnp.int32), jnp.ones(len(x), bool), jnp.int32(self.vocabulary))]
        for k in range(2, self.order + 1):
            context = jnp.roll(since_end, 1) >= k - 2  # an end may only be its first token
            found.append(_number(found[-1], x, k, context, sizes[k]))
        levels, total = [], jnp.int32(0)
        for k, one in enumerate(found, 1):
            counts = _counts(one, sizes[k])
            if k < self.order:
                left = jnp.roll(since_end, k - 1) > 0  # whether it does not begin with an end
                counts = _contexts(one, found[k], counts, sizes[k], left)
            levels.append(_smoothed(one, counts, sizes[k - 1], sizes[k], self.vocabulary))
            total = total + jnp.sum(counts > 0, dtype=jnp.int32)
        return {"ngram": [level._asdict() for level in levels]}, {}, {"n_grams": Mean.of(total)}

    def _follow(self, params: PyTree, token: Array, contexts: Callable[[int, Array], Array]) -> tuple[Array, Array]:
        """Numbers (..., order - 1) of the k-grams that end with tokens, -1 where not counted, and their probability.

        contexts: the numbers of the k-grams that end one token before, for k = 1, 2, ..., from those that end here.
        """
        levels = [Level(**level) for level in params]
        p = levels[0].alpha[token] + levels[0].gamma[0] / self.vocabulary
        numbers = [token]
        for k, level in enumerate(levels[1:]):
            context = contexts(k, numbers[-1])
            known = jnp.maximum(context, 0)
            number = jnp.where(context >= 0, _find(level, known, token, self.vocabulary), -1)
            alpha = jnp.where(number >= 0, level.alpha[jnp.maximum(number, 0)], 0.0)
            p = jnp.where(context >= 0, alpha + level.gamma[known] * p, p)
            numbers.append(number)
        return jnp.stack(numbers[: max(self.order - 1, 1)], axis=-1), p

    def log_probs(self, state: State, batch: Batch) -> Array:
        """(B, T) log-probabilities in nats of tokens "x" (B, T), given those before; 0 for the first."""
        x = batch["x"].astype(jnp.int32)
        shifted = lambda k, numbers: jnp.pad(numbers[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return jnp.log(self._follow(state.params["ngram"], x, shifted)[1]).at[:, 0].set(0.0)

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-probabilities of the tokens that count, given the first, in nats; with gaps, of those "observed"."""
        if "observed" in batch:
            return gaps.log_evidence(self._table(state), batch["x"], _observed(batch))
        weights = counted_tokens(batch, weighted=False).at[:, 0].set(0.0)
        return jnp.sum(self.log_probs(state, batch) * weights, axis=1)

    def fill(self, state: State, batch: Batch, key: Array) -> Array:
        """(B, T) "x" whose unobserved tokens are drawn from their posterior given the others."""
        return gaps.fill(self._table(state), batch["x"], _observed(batch), key)

    def _table(self, state: State) -> Array:
        """Log-probabilities of tokens given the `order` - 1 before, at least one; see `gaps`."""
        contexts, base = max(self.order - 1, 1), self.vocabulary + 1
        if base**contexts * self.vocabulary > _LARGEST_TABLE:
            raise UserError(
                f"the exact posterior of a gap needs a table of {base}^{contexts} x {self.vocabulary} probabilities: "
                "train one of a smaller order (train.py ngram --order 3), or give --candidates, e.g. 256"
            )
        every = jnp.stack(jnp.unravel_index(jnp.arange(base**contexts, dtype=jnp.int32), (base,) * contexts))
        cache, _ = self.start(state.params, None, every.shape[1], contexts)
        for token in every:
            there = (token < self.vocabulary)[:, None]
            after, log_probs = self.next(state.params, None, cache, jnp.minimum(token, self.vocabulary - 1))
            cache = jnp.where(there, after, cache)
        return log_probs.reshape(*(base,) * contexts, self.vocabulary)

    def start(self, params: Params, condition: PyTree, n: int, size: int) -> tuple[Array, Array]:
        """No context (n, order - 1), and the token before the first."""
        return jnp.full((n, max(self.order - 1, 1)), -1, jnp.int32), jnp.full(n, self.end, jnp.int32)

    def next(self, params: Params, condition: PyTree, cache: Array, token: Array) -> tuple[Array, Array]:
        """The numbers of the k-grams that end with tokens (n,), and the log-probabilities (n, V) of the next."""
        cache, _ = self._follow(params["ngram"], token, lambda k, numbers: cache[:, k])
        every = jnp.broadcast_to(jnp.arange(self.vocabulary, dtype=jnp.int32), (len(token), self.vocabulary))
        return cache, jnp.log(self._follow(params["ngram"], every, lambda k, numbers: cache[:, k, None])[1])

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, sampling: Sampling = Sampling()
    ) -> Batch:
        """n texts "x" (n, length + 1) from the start of a document."""
        cache, first = self.start(state.params, None, n, self.length)
        tokens = generate(partial(self.next, state.params, None), cache, first, key, self.length, sampling)
        return {"x": jnp.concatenate([first[:, None], tokens], axis=1)}


def _observed(batch: Batch) -> Array:
    """(B, T) the observed tokens of a batch: what lies beyond its length is not."""
    if "mask" in batch:
        raise ValueError('tokens are either observed or not: give "observed" or "mask", not both')
    there = jnp.asarray(batch["observed"]) > 0
    return there & (jnp.arange(there.shape[1]) < batch["length"][:, None]) if "length" in batch else there


class _Counted(NamedTuple):
    """The k-grams of a text: for each position the one that ends there."""

    numbers: Array  # (N,)
    tokens: Array  # (N,) the last token of k-gram number i, for i below `distinct`
    parents: Array  # (N,) the number of its first k - 1 tokens
    there: Array  # (N,) whether the position has a k-gram
    distinct: Array  # ()


def _number(below: _Counted, x: Array, k: int, context: Array, size: int) -> _Counted:
    """Numbers the k-grams by sorting (number of the first k - 1 tokens, last token)."""
    here = jnp.arange(len(x), dtype=jnp.int32)
    there = context & (here >= k - 1) & jnp.roll(below.there, 1)
    parent = jnp.where(there, jnp.roll(below.numbers, 1), jnp.iinfo(jnp.int32).max)
    parents, tokens, place = lax.sort((parent, x, here), num_keys=2)
    valid = parents < jnp.iinfo(jnp.int32).max
    new = valid & ((parents != jnp.roll(parents, 1)) | (tokens != jnp.roll(tokens, 1)) | (here == 0))
    rank = jnp.cumsum(new, dtype=jnp.int32) - 1
    numbers = jnp.zeros(len(x), jnp.int32).at[place].set(jnp.where(valid, rank, 0))
    at = jnp.where(new, rank, len(x))
    pick = lambda a: jnp.zeros(len(x), jnp.int32).at[at].set(a, mode="drop")
    return _Counted(numbers, pick(tokens), pick(parents), there, new.sum(dtype=jnp.int32))


def _counts(one: _Counted, size: int) -> Array:
    """(size,) how often each k-gram occurs."""
    return jnp.zeros(size, jnp.int32).at[jnp.where(one.there, one.numbers, size)].add(1, mode="drop")


def _contexts(one: _Counted, above: _Counted, counts: Array, size: int, left: Array) -> Array:
    """(size,) how many tokens occur before each k-gram; of k-grams that begin with an end, how often they occur."""
    here = jnp.arange(len(one.numbers), dtype=jnp.int32)
    first = jnp.full(len(here), len(here)).at[jnp.where(above.there, above.numbers, len(here))].min(here, mode="drop")
    distinct = above.there & (first[above.numbers] == here)  # one position of each (k + 1)-gram
    found = jnp.zeros(size, jnp.int32).at[jnp.where(distinct, one.numbers, size)].add(1, mode="drop")
    inside = jnp.zeros(size, bool).at[jnp.where(one.there & left, one.numbers, size)].set(True, mode="drop")
    return jnp.where(inside, found, counts)


def _smoothed(one: _Counted, counts: Array, contexts: int, size: int, vocabulary: int) -> Level:
    """Discounted frequencies and the weights of the level below."""
    lowest = contexts == 1  # unigrams, numbered by their token
    real = jnp.arange(size) < (vocabulary if lowest else one.distinct)
    parents = jnp.zeros(size, jnp.int32) if lowest else one.parents[:size]
    parents = jnp.where(real, parents, contexts)
    tokens = jnp.arange(size, dtype=jnp.int32) if lowest else one.tokens[:size]
    discount = jnp.where(real, _discounts(counts)[jnp.minimum(counts, 3)], 0.0)
    total = jnp.zeros(contexts, jnp.float32).at[parents].add(counts.astype(jnp.float32), mode="drop")
    left = jnp.zeros(contexts, jnp.float32).at[parents].add(discount, mode="drop")
    alpha = (counts.astype(jnp.float32) - discount) / jnp.maximum(total, 1)[jnp.minimum(parents, contexts - 1)]
    starts = jnp.searchsorted(parents, jnp.arange(contexts + 1)).astype(jnp.int32)
    return Level(tokens, starts, jnp.where(real, alpha, 0.0), jnp.where(total > 0, left / jnp.maximum(total, 1), 1.0))


def _discounts(counts: Array) -> Array:
    """(4,) discounts of counts 0, 1, 2 and more, from how many k-grams have counts 1 to 4 (eq. 26); without enough
    of these, 0.5 for all."""
    n = [jnp.sum(counts == c).astype(jnp.float32) for c in (1, 2, 3, 4)]
    safe = [jnp.maximum(a, 1) for a in n]
    y = n[0] / jnp.maximum(n[0] + 2 * n[1], 1)
    found = jnp.stack([c - (c + 1) * y * n[c] / safe[c - 1] for c in (1, 2, 3)])
    enough = jnp.all(jnp.stack(n) > 0) & jnp.all(found > 0) & jnp.all(found < jnp.arange(1, 4))
    return jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.where(enough, found, 0.5)])


def _find(level: Level, parent: Array, token: Array, vocabulary: int) -> Array:
    """The number of the child of a (k - 1)-gram with a last token; -1 if there is none."""
    low, high = level.starts[parent], level.starts[parent + 1]
    end = high
    for _ in range(max(1, math.ceil(math.log2(vocabulary + 1)))):
        middle = (low + high) // 2
        smaller = (level.tokens[jnp.minimum(middle, len(level.tokens) - 1)] < token) & (low < high)
        low, high = jnp.where(smaller, middle + 1, low), jnp.where(smaller, high, jnp.maximum(middle, low))
    found = jnp.minimum(low, len(level.tokens) - 1)
    return jnp.where((low < end) & (level.tokens[found] == token), found, -1)
