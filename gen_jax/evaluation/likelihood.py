"""Likelihood-based metrics: averages of per-example values over a whole split, with standard errors.

A metric is a function of a model that returns `measure(state, split, key) -> {name: Estimate}`, compiled once.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import (
    Batch,
    Bound,
    BoundsIntegers,
    Classifier,
    Conditional,
    Density,
    EstimatedDensity,
    ImportanceWeighted,
    State,
)
from gen_jax.data.source import apply_transforms, epoch
from gen_jax.evaluation.metric import (
    Estimate,
    Measure,
    Metric,
    Split,
    ask,
    mean_over,
    ratio_of_sums,
    with_group,
)

__all__ = ["accuracy", "elbo", "importance_weighted", "log_likelihood", "log_likelihood_per_step"]


def log_likelihood(model: Density) -> Measure:
    """The mean log-likelihood, exact unless the model is an `EstimatedDensity` that only estimates it."""
    ask(model, Density, "log_likelihood")
    log_prob = model.log_prob
    run = mean_over(lambda state, batch, key: log_prob(state, batch))
    kind = "estimate" if isinstance(model, EstimatedDensity) and model.estimated else "exact"
    given = _condition_of(model)
    return lambda state, split, key: _in_units("log_likelihood", kind, *run(state, split, key), split, given)


def log_likelihood_per_step(model: Density) -> Measure:
    """The exact log-likelihood of sequences ("x" (B, T, ...), "length" (B,)) per step, all steps weighted equally.

    For symbols, "x" (B, T) of integers, also the perplexity exp(-value) and the bits per character -value / log 2.
    Standard errors are those of a ratio of sums over sequences.
    """
    ask(model, Density, "log_likelihood_per_step")
    log_prob = jax.jit(model.log_prob)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        values, steps = [], []
        for number, (raw, mask) in enumerate(epoch(split.arrays, min(split.batch, split.size))):
            batch, real = apply_transforms(raw, split.transforms, 0, number), mask > 0
            values.append(np.asarray(log_prob(state, batch), np.float64)[real])
            full = np.full(len(mask), raw["x"].shape[1])
            steps.append(np.asarray(raw.get("length", full), np.float64)[real])
        n = sum(map(len, values))
        ratio, error = ratio_of_sums(np.concatenate(values), np.concatenate(steps))
        found = {"log_likelihood_per_step": Estimate(ratio, error, "nats/step", "exact", n, _condition_of(model))}
        x = split.arrays["x"]
        if x.ndim == 2 and x.dtype.kind in "iu":
            perplexity = math.exp(-ratio)
            found["perplexity"] = Estimate(perplexity, perplexity * error, "symbols", "exact", n)
            found["bits_per_character"] = Estimate(-ratio / math.log(2), error / math.log(2), "bits/char", "exact", n)
        return with_group(found, "likelihood", perplexity="lower", bits_per_character="lower")

    return measure


def accuracy(model: Classifier) -> Measure:
    """Classification accuracy on "label"."""
    ask(model, Classifier, "accuracy")
    run = mean_over(lambda state, batch, key: (model.predict(state, batch) == batch["label"]).astype(jnp.float32))
    filing = ("", "use", "higher", True)  # how, group, better, headline
    return lambda state, split, key: {
        "accuracy": Estimate(*run(state, split, key), "share", "exact", split.size, *filing)
    }


def elbo(model: Bound) -> Measure:
    """The mean evidence lower bound, from one posterior sample per example."""
    ask(model, Bound, "elbo")
    run = mean_over(model.elbo)
    return lambda state, split, key: _of_bound(model, "elbo", *run(state, split, key), split)


def _of_bound(model: Any, name: str, mean: float, error: float, split: Split) -> dict[str, Estimate]:
    """A bound in nats, and in bits/dim if the model's likelihood is on integers."""
    found = _in_units(name, "bound", mean, error, split, _condition_of(model))
    dequantized = any(transform.levels > 1 for transform in split.transforms_of("x"))
    if isinstance(model, BoundsIntegers) and not model.discrete and not dequantized:
        found.pop(f"{name}_bits_per_dim", None)
    return found


def importance_weighted(samples: int, examples: int | None = None, at_once: int = 12_800) -> Metric:
    """Makes the metric `iwae_SAMPLES`: the mean importance-weighted bound (Burda, Grosse & Salakhutdinov 2016, eq. 8).

    With 5,000 samples or more, usually reported as the log-likelihood. examples: how many of the split, by default all.
    at_once: how many samples, over all examples of a batch, are decoded together; decrease it for large models.
    """
    name = f"iwae_{samples}"

    def metric(model: ImportanceWeighted) -> Measure:
        ask(model, ImportanceWeighted, name)
        weigh = model.log_weights

        def bound(state: State, batch: Batch, key: Array) -> Array:
            width = max(1, min(samples, at_once // len(batch["x"])))
            parts, rest = divmod(samples, width)

            def add(total: Array, part: Array, n: int) -> Array:
                log_weights = weigh(state, batch, jax.random.fold_in(key, part), n)
                return jnp.logaddexp(total, jax.nn.logsumexp(log_weights, axis=0))

            total = jnp.full(len(batch["x"]), -jnp.inf)
            total = lax.fori_loop(0, parts, lambda part, total: add(total, part, width), total)
            total = add(total, parts, rest) if rest else total
            return total - math.log(samples)

        run = mean_over(bound)

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            part = split if examples is None else split.part(0, examples)
            found = _of_bound(model, name, *run(state, part, key), part)
            return {k: e._replace(how=", ".join(filter(None, [f"{samples} samples", e.how]))) for k, e in found.items()}

        return measure

    metric.__name__ = name
    return metric


def _condition_of(model: Any) -> str:
    """The condition of a conditional model, as a note: knowing the class of digits is worth log 10 nats."""
    conditional = isinstance(model, Conditional) and model.conditioning is not None
    return f"given {model.conditioning.entry}" if conditional else ""


def _in_units(name: str, kind: str, mean: float, error: float, split: Split, given: str = "") -> dict[str, Estimate]:
    """A log-likelihood in nats, and for integer data in bits/dim (lower is better).

    The density of dequantized data bounds the probability of the integers, per dimension up to the logarithm of their
    number (Theis et al. 2016, section 3.1).
    """
    how = ", ".join(filter(None, [split.protocol, given]))
    found = {name: Estimate(mean, error, "nats", kind, split.size, how)}
    x = split.arrays["x"]
    lossless = all(transform.lossless for transform in split.transforms_of("x"))
    if x.dtype.kind in "iu" and "length" not in split.arrays and lossless:
        dimensions = math.prod(x.shape[1:])
        levels = math.prod(transform.levels for transform in split.transforms_of("x"))
        bits = (dimensions * math.log(levels) - mean) / dimensions / math.log(2)
        kind = "bound" if levels > 1 and kind == "exact" else kind
        error = error / dimensions / math.log(2)
        found[f"{name}_bits_per_dim"] = Estimate(bits, error, "bits/dim", kind, split.size, how)
    return found
