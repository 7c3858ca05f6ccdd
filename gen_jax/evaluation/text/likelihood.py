"""The likelihood of texts per token, character and byte, and mixtures of two models of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Density, State, TokenDensity
from gen_jax.data.source import epoch
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Split, ask, ratio_of_sums, with_group

__all__ = [
    "mixture_likelihood",
    "mixture_weight",
    "stream_log_probs",
    "text_likelihood",
]


def text_likelihood(model: Density) -> Measure:
    """The likelihood of a text, each token counted once: nats/token, perplexity, bits/character and bits/byte.

    `how` says the context of the tokens and the tokenizer. Bits are those of the original text, with the ends of
    documents counted where there are several. With subwords they are bounds, as other cuts are possible.
    Standard errors are those of a ratio of sums over windows.
    """
    ask(model, Density, "text_likelihood")
    per_token = isinstance(model, TokenDensity)
    run = jax.jit(model.log_probs if isinstance(model, TokenDensity) else partial(_of_counted, model))

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        tokenizer, how = _protocol(split)
        total, count = [], []  # (windows,) nats; (windows, 3) tokens, bytes, characters
        for raw, real in epoch(split.arrays, min(split.batch, split.size, 128)):
            counted = raw["mask"] * real[:, None]
            if not per_token:  # ends within a run are scored too: they count here
                inside = np.cumsum(counted, axis=1) * np.cumsum(counted[:, ::-1], axis=1)[:, ::-1]
                counted = (inside > 0).astype(np.float32)
            values = np.asarray(run(state, {**raw, "x": raw["x"].astype(np.int32)}), np.float64)
            total.append(np.where(counted > 0, values, 0).sum(axis=1) if per_token else values * real)
            count.append((tokenizer.counts[raw["x"]] * counted[..., None]).sum(axis=1))
        return _per_unit(np.concatenate(total), np.concatenate(count), tokenizer, how)

    return measure


def _protocol(split: Split) -> tuple[Any, str]:
    """The tokenizer of a split of text, and how it is predicted."""
    if split.info is None or not split.info.tokenizer or split.windows is None:
        raise UserError("text_likelihood needs windows of a text: an Experiment with `windows`")
    tokenizer, windows = read_tokenizer(split.info.tokenizer), split.windows
    stride = f", stride {windows.step}" if windows.step < windows.length else ", disjoint windows"
    ends = "ends counted" if split.info.documents else "no ends"
    return tokenizer, f"context {windows.length}{stride}, {ends}, {tokenizer.kind} {tokenizer.digest[:6]}"


def _of_counted(model: Density, state: State, batch: Any) -> Array:
    """(B,) log-probabilities of the counted tokens, given all before; within a window they lie together."""
    places = jnp.arange(batch["x"].shape[1])
    first = jnp.min(jnp.where(batch["mask"] > 0, places, len(places)), axis=1)
    last = jnp.max(jnp.where(batch["mask"] > 0, places + 1, 0), axis=1)
    of = lambda length: model.log_prob(state, {"x": batch["x"], "length": length})
    return jnp.where(last > first, of(jnp.maximum(last, 1)) - of(jnp.minimum(first, len(places))), 0.0)


def _per_unit(total: np.ndarray, count: np.ndarray, tokenizer: Any, how: str) -> dict[str, Estimate]:
    exact = "exact" if tokenizer.kind in ("characters", "bytes") else "bound"
    tokens = int(count[:, 0].sum())
    (nats, error), *others = (ratio_of_sums(-total, count[:, unit]) for unit in range(3))
    bits = {unit: [v / math.log(2) for v in found] for unit, found in zip(("byte", "character"), others)}
    perplexity = math.exp(min(nats, 700))
    found = {
        "nats_per_token": Estimate(nats, error, "nats/token", "exact", tokens, how),
        "perplexity": Estimate(perplexity, perplexity * error, "tokens", "exact", tokens, how),
        "bits_per_character": Estimate(bits["character"][0], bits["character"][1], "bits/char", exact, tokens, how),
        "bits_per_byte": Estimate(bits["byte"][0], bits["byte"][1], "bits/byte", exact, tokens, how),
    }
    found = with_group(found, "likelihood", nats_per_token="lower", perplexity="lower")
    return with_group(found, "likelihood", True, bits_per_character="lower", bits_per_byte="lower")


def stream_log_probs(model: TokenDensity, state: State, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (N,) of the counted tokens of a split, in the order of the text, and those tokens (N,)."""
    ask(model, TokenDensity, "stream_log_probs")
    run, values, tokens = jax.jit(model.log_probs), [], []
    for raw, real in epoch(split.arrays, min(split.batch, split.size, 128)):
        counted = raw["mask"] * real[:, None] > 0
        found = np.asarray(run(state, {**raw, "x": raw["x"].astype(np.int32)}), np.float64)
        values.append(found[counted])
        tokens.append(np.asarray(raw["x"])[counted])
    return np.concatenate(values), np.concatenate(tokens)


def mixture_weight(a: np.ndarray, b: np.ndarray) -> float:
    """The weight w of the most probable mixture w exp(a) + (1 - w) exp(b) of log-probabilities (N,), by EM."""
    w = 0.5
    for _ in range(100):
        responsibility = 1 / (1 + (1 - w) / w * np.exp(np.clip(b - a, -700, 700)))
        w = float(np.clip(responsibility.mean(), 1e-6, 1 - 1e-6))
    return w


def mixture_likelihood(
    first: tuple[Any, State, Mapping[str, Split]], second: tuple[Any, State, Mapping[str, Split]], name: str
) -> tuple[dict[str, Estimate], float]:
    """The likelihood of a mixture of two models on the split `name`, and the weight of the first.

    first, second: (model, state, splits) with "validation", on which the weight is chosen, and `name`. Raises UserError
    if both are not of the same tokens.
    """

    def both(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (a, tokens), (b, again) = (stream_log_probs(model, s, splits[split]) for model, s, splits in (first, second))
        if not np.array_equal(tokens, again):
            raise UserError(f"a mixture needs models of the same tokens; their {split} splits differ")
        return a, b, tokens

    a, b, _ = both("validation")
    weight = mixture_weight(a, b)
    a, b, tokens = both(name)
    tokenizer, how = _protocol(first[2][name])
    values = np.logaddexp(a + np.log(weight), b + np.log1p(-weight))
    edges = np.arange(0, len(values), first[2][name].windows.length)
    sums = np.add.reduceat(values, edges), np.add.reduceat(tokenizer.counts[tokens], edges, axis=0)
    found = _per_unit(*sums, tokenizer, how)
    return {f"mixture_{unit}": estimate for unit, estimate in found.items()}, weight
