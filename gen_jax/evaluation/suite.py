"""The metrics applicable to a model of any family, chosen by its protocols."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from gen_jax.core import (
    Bound,
    Conditional,
    Density,
    ImageTranslator,
    ImportanceWeighted,
    Latent,
    Seq2Seq,
    State,
    is_sequential,
)
from gen_jax.data.dataset import DataInfo, has_missing
from gen_jax.errors import UserError
from gen_jax.evaluation.latents import latent_accuracy
from gen_jax.evaluation.likelihood import elbo, importance_weighted, log_likelihood, log_likelihood_per_step
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, with_group
from gen_jax.evaluation.samples.classes import class_coverage, train_on_synthetic
from gen_jax.evaluation.samples.features import RAW, Encoder, load_small_cnn, projected, raw, small
from gen_jax.evaluation.samples.quality import DRAWN, sample_quality
from gen_jax.evaluation.text import text_likelihood, text_quality
from gen_jax.evaluation.translation import paired_quality, unpaired_quality

__all__ = [
    "ENOUGH",
    "EncoderChoice",
    "cost",
    "has_classes",
    "is_sequences",
    "is_text",
    "open_encoder",
    "quality_encoder",
    "sample_metrics",
    "suite",
    "undefined",
]

EncoderChoice = Encoder | Callable[[Split], Encoder]


def suite(
    model: Any, split: Split, own: Sequence[Metric] = (), encoder: EncoderChoice | None = None, samples: int = 10_000
):
    """Metrics of likelihood, sample quality, diversity, downstream use, speed and size; then the config's own metrics.

    encoder: for sample quality; by default the small one for images with labels, else raw values.
    """
    if isinstance(model, ImageTranslator):  # nothing is drawn from noise alone
        make = paired_quality if split.partner is None else unpaired_quality
        usual = make() if encoder is None else make(encoder)
        rest = [metric for metric in own if metric.__name__ != usual.__name__]
        theirs = [metric for metric in own if metric.__name__ == usual.__name__]
        return [*(theirs if theirs and encoder is None else [usual]), *rest, cost]
    chosen = _likelihoods(model, own)
    if is_text(split) and isinstance(model, Density):
        chosen = [text_likelihood, *([] if "text_quality" in {metric.__name__ for metric in own} else [text_quality()])]
    elif is_sequences(split) and isinstance(model, Density) and not isinstance(model, Seq2Seq):
        chosen.append(log_likelihood_per_step)
    if encode := quality_encoder(split, encoder):
        chosen.append(sample_quality(encode, samples))
    if has_classes(split):
        chosen.append(class_coverage(1 + int(np.max(split.reference.arrays["label"])), samples))
    by_label = isinstance(model, Conditional) and model.conditioning is not None and model.conditioning.classes
    examples = split.training is not None and not is_sequences(split) and split.arrays["x"].ndim in (2, 4)
    if by_label and examples and "label" in split.arrays and split.reference.size >= ENOUGH:
        chosen.append(train_on_synthetic(samples))
    if isinstance(model, Latent) and "label" in split.arrays and split.size >= ENOUGH:
        chosen.append(latent_accuracy)
    asked = {metric.__name__ for metric in chosen}  # with the requested encoder and number of samples
    return [*chosen, *(metric for metric in own if metric.__name__ not in asked), cost]


def sample_metrics(info: DataInfo, samples: int) -> list[Metric]:
    """The metrics of samples for a config: their quality and, of gray images with labels, the classes they cover."""
    if info.classes and info.shape[-1] == 1:
        return [class_coverage(info.classes, samples), sample_quality(small, samples)]
    return [sample_quality(_values(info.shape), samples)]


def quality_encoder(split: Split, encoder: EncoderChoice | None) -> EncoderChoice | None:
    """The encoder for samples of this data; None for sequences and missing values, which no encoder accepts."""
    x = split.arrays["x"]
    if is_sequences(split) or x.ndim not in (2, 4) or has_missing(x) or has_missing(split.reference.arrays["x"]):
        return None
    return encoder or (small if has_classes(split) else _values(x.shape[1:]))


def _values(shape: Sequence[int]) -> Encoder:
    """The encoder of examples by their values: of long vectors, by projections."""
    return projected if len(shape) == 1 and shape[0] > RAW else raw


def is_sequences(split: Split) -> bool:
    """Whether the examples are sequences."""
    return is_sequential(split.arrays)


def is_text(split: Split) -> bool:
    """Whether the examples are windows of a text."""
    return split.windows is not None and split.info is not None and bool(split.info.tokenizer)


def has_classes(split: Split) -> bool:
    """Whether the split holds grayscale images with labels, on which a small encoder can be trained."""
    x = split.arrays["x"]
    as_seen = jax.eval_shape(lambda: split.head(1)["x"]).shape
    return x.ndim == 4 and x.shape[-1] == 1 == as_seen[-1] and "label" in split.arrays


ENOUGH = 100  # examples for a regression


def _likelihoods(model: Any, own: Sequence[Metric]) -> list[Metric]:
    """The exact likelihood, or bounds; importance-weighted ones as the config sets them, to fit in memory."""
    found: list[Metric] = [log_likelihood] if isinstance(model, Density) else []
    if isinstance(model, Bound):
        found.append(elbo)
        if isinstance(model, ImportanceWeighted) and not any(metric.__name__.startswith("iwae") for metric in own):
            found.append(importance_weighted(50))
    return found or [undefined]


def undefined(model: Any) -> Measure:
    """The estimate of kind "undefined" for a model without an exact or bounded likelihood."""
    found = Estimate(math.nan, math.nan, "nats", "undefined", 0, f"{type(model).__name__} has no density")
    return lambda state, split, key: {"log_likelihood": found}


def cost(model: Any) -> Measure:
    """Cost metrics. parameters: of all players. samples_per_second: in blocks of 500, of targets of texts and
    translations of images 32, on this machine, once compiled."""
    n = 32 if isinstance(model, (Seq2Seq, ImageTranslator)) else DRAWN
    draw = jax.jit(lambda state, key, condition: model.sample(state, key, n, condition))

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        seconds, condition = [], None
        if isinstance(model, Seq2Seq):
            rows = np.arange(n) % split.size
            condition = {name: np.asarray(split.arrays[name][rows]) for name in ("x", "length")}
        if isinstance(model, ImageTranslator):
            x = np.asarray(split.head(n)["x"])
            condition = {"x": np.resize(x, (n, *x.shape[1:]))}
        while len(seconds) < 4 or (sum(seconds) < 1 and len(seconds) < 50):
            start = time.perf_counter()
            jax.block_until_ready(draw(state, key, condition))
            seconds.append(time.perf_counter() - start)
        rates = n / np.array(seconds[1:])
        size = sum(a.size for a in jax.tree.leaves(state.params))
        device = jax.devices()[0].device_kind
        error = float(rates.std(ddof=1))  # between blocks; load of the machine is not a sampling error
        found = {
            "parameters": Estimate(float(size), math.nan, "", "exact", 1),
            "samples_per_second": Estimate(float(np.median(rates)), error, "1/s", "estimate", len(rates), device),
        }
        return with_group(found, "speed and cost", samples_per_second="higher", parameters="lower")

    return measure


def open_encoder(name: str) -> EncoderChoice | None:
    """Opens an encoder: "small", "raw", "projected", a file written by `python -m gen_jax encoder`; "" for none."""
    if name in ("", "small", "raw", "projected"):
        return {"": None, "small": small, "raw": raw, "projected": projected}[name]
    from gen_jax.evaluation.samples import inception
    from gen_jax.evaluation.samples.weights_io import kind_of

    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--encoder {name}: it is small, raw, projected, or a file that `python -m gen_jax encoder` wrote"
        )
    return inception.inception(path) if kind_of(path) == inception.KIND else load_small_cnn(path).encoder()
