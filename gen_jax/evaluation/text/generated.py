"""Diversity and memorization of generated text, beside as much held-out text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Autoregressive, LimitedContext, Model, State
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, standard_error, with_group
from gen_jax.models.common.autoregressive import Sampling, feed, generate

__all__ = [
    "distinct",
    "grams",
    "held_out_quality",
    "longest_copies",
    "self_bleu",
    "text_quality",
]

MEASURES = ("distinct_2", "self_bleu", "copied_20", "longest_copy")
_EXTRACTED = 50  # tokens that are to be given back


def text_quality(samples: int = 64, length: int = 256, sampling: Sampling = Sampling()) -> Metric:
    """Makes the metric of generated texts of `length` tokens, each beside the same number of held-out text.

    distinct_2: distinct pairs of words, divided by all of them. self_bleu: of each text against the others. copied_20:
    share of runs of 20 bytes that occur in the training text. longest_copy: mean length, in bytes, of the
    longest run of a text that occurs in the training text. extracted: share of runs of tokens of the training text
    whose second half, 50 tokens at most, greedy decoding gives exactly after their first half (Carlini et al. 2023).
    """

    def metric(model: Model) -> Measure:
        steps = min(length, model.context) if isinstance(model, LimitedContext) else length
        alone = isinstance(model, Autoregressive)  # others draw whole sequences, as they are
        draw = partial(_texts, model, samples, steps, sampling) if alone else partial(_whole, model, samples, steps)
        draw, extract = jax.jit(draw), jax.jit(partial(_continued, model))

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            tokenizer, drawn = read_tokenizer(split.info.tokenizer), np.asarray(draw(state, key))
            human = _runs(counted_tokens(split), drawn.shape[1], samples)
            how = f"{human.shape[1]} tokens, {sampling.protocol if alone else 'none'}"
            made = [tokenizer.decode(row[: human.shape[1]]) for row in drawn]
            texts = {"": made, "_of_data": [tokenizer.decode(run) for run in human]}
            found = _described(texts, tokenizer.decode(counted_tokens(split.reference)), how)
            for name, part in (("", split.reference), ("_of_data", split)) if alone else ():
                stream = counted_tokens(part)
                if half := min(_EXTRACTED, steps // 2, len(stream) // 2):
                    exact = np.asarray(extract(state, _runs(stream, 2 * half, samples)), float)
                    found[f"extracted{name}"] = _mean(exact, "share", f"{half} tokens after {half}, greedy")
            return with_group(found, "sample quality", **dict.fromkeys((*MEASURES, "extracted"), ""))

        return measure

    metric.__name__ = "text_quality"
    return metric


def held_out_quality(split: Split, samples: int = 64, length: int = 256) -> dict[str, Estimate]:
    """The measures of `text_quality` of the text of a split itself."""
    tokenizer, runs = read_tokenizer(split.info.tokenizer), _runs(counted_tokens(split), length, samples)
    texts = {"": [tokenizer.decode(run) for run in runs]}
    found = _described(texts, tokenizer.decode(counted_tokens(split.reference)), f"{runs.shape[1]} tokens, of the data")
    return with_group(found, "sample quality", **dict.fromkeys(MEASURES, ""))


def _described(texts: Mapping[str, Sequence[bytes]], training: bytes, how: str) -> dict[str, Estimate]:
    """How diverse several sets of texts are, and how much of them is copied; names end with those of the sets."""
    known, found = np.unique(grams(training, 20)), {}
    copies = iter(longest_copies([text for some in texts.values() for text in some], training))
    for name, some in texts.items():
        shares = [float(_among(grams(text, 20), known).mean()) for text in some if len(text) >= 20] or [0.0]
        one = lambda value, unit, n=len(some): Estimate(value, math.nan, unit, "estimate", n, how)
        values = (
            one(distinct(some, 2), "share"),
            one(self_bleu(some), "BLEU"),
            _mean(shares, "share", how),
            _mean([next(copies) for _ in some], "bytes", how),
        )
        found |= {f"{measure}{name}": value for measure, value in zip(MEASURES, values)}
    return found


def _mean(values: Sequence[float] | np.ndarray, unit: str, how: str) -> Estimate:
    return Estimate(float(np.mean(values)), standard_error(values), unit, "estimate", len(values), how)


def counted_tokens(split: Split) -> np.ndarray:
    """The counted tokens of a split, in the order of the text."""
    return np.concatenate([row[m > 0] for row, m in zip(split.arrays["x"], split.arrays["mask"])])


def _runs(tokens: np.ndarray, length: int, most: int) -> np.ndarray:
    """Runs (n, length) of a stream of tokens, evenly spread; disjoint if there are enough tokens.

    They are shorter if the stream is.
    """
    length = min(length, len(tokens))
    count = min(most, max(1, len(tokens) // length))
    starts = np.linspace(0, max(0, len(tokens) - length), count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def _continued(model: Any, state: State, runs: Array) -> Array:
    """(n,) whether greedy decoding after the first half of runs (n, T) of tokens, T even, gives the second."""
    half = runs.shape[1] // 2
    runs, follow = runs.astype(jnp.int32), partial(model.next, state.params, None)
    cache, first = model.start(state.params, None, len(runs), 2 * half)
    told = jnp.concatenate([first[:, None], runs[:, : half - 1]], axis=1)
    cache = feed(follow, cache, told, jnp.full(len(runs), half))
    made = generate(follow, cache, runs[:, half - 1], state.key, half, Sampling(temperature=0))
    return jnp.all(made == runs[:, half:], axis=1)


def _texts(model: Any, samples: int, length: int, sampling: Sampling, state: State, key: Array) -> Array:
    """(samples, length) tokens from the start of a document."""
    cache, first = model.start(state.params, None, samples, length)
    return generate(partial(model.next, state.params, None), cache, first, key, length, sampling)


def _whole(model: Model, samples: int, length: int, state: State, key: Array) -> Array:
    """(samples, length at most) tokens."""
    return model.sample(state, key, samples)["x"][:, :length]


def distinct(texts: Sequence[bytes], n: int) -> float:
    """Distinct n-grams of words divided by all of them (Li et al. 2016); falls with the amount of text."""
    words = [text.split() for text in texts]
    all_grams = [tuple(one[i : i + n]) for one in words for i in range(len(one) - n + 1)]
    return len(set(all_grams)) / max(1, len(all_grams))


def self_bleu(texts: Sequence[bytes], most: int = 64) -> float:
    """The mean BLEU of each text with the others as references (Zhu et al. 2018); higher is less diverse."""
    import sacrebleu

    some = [text.decode(errors="replace") for text in texts[:most]]
    if len(some) < 2:
        return math.nan
    score = lambda i: sacrebleu.sentence_bleu(some[i], some[:i] + some[i + 1 :]).score
    return float(np.mean([score(i) for i in range(len(some))]))


def grams(text: bytes, n: int) -> np.ndarray:
    """Hashes (N - n + 1,) of all runs of n bytes."""
    values = np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)
    found = np.zeros(max(0, len(values) - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):
            found = found * np.uint64(0x9E3779B97F4A7C15) + values[i : i + len(found)]
            found ^= found >> np.uint64(29)
    return found


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) which values are among those known, which are sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values


def longest_copies(texts: Sequence[bytes], training: bytes) -> list[int]:
    """For each text the length of its longest run that occurs in the training text, in bytes."""
    low, high = np.zeros(len(texts), int), np.array([len(text) for text in texts])
    known: dict[int, np.ndarray] = {}

    def occurs(i: int, n: int) -> bool:
        if n not in known:
            known[n] = np.unique(grams(training, n))
        return bool(_among(grams(texts[i], n), known[n]).any())

    while np.any(low < high):
        for i in np.flatnonzero(low < high):
            middle = int(low[i] + high[i] + 1) // 2
            if occurs(i, middle):
                low[i] = middle
            else:
                high[i] = middle - 1
    return low.tolist()
