"""The metrics that apply to a model of any family, chosen by what it can do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from gen_jax.core import Bound, Conditional, Density, ImportanceWeighted, Latent, State
from gen_jax.errors import UserError
from gen_jax.evaluation.latents import latent_accuracy
from gen_jax.evaluation.likelihood import elbo, importance_weighted, log_likelihood, log_likelihood_per_step
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split
from gen_jax.evaluation.samples.classes import class_coverage, train_on_synthetic
from gen_jax.evaluation.samples.features import Encoder, load_small_cnn, raw, small
from gen_jax.evaluation.samples.quality import DRAWN, sample_quality
from gen_jax.models.common.conditioning import ClassLabels

EncoderChoice = Encoder | Callable[[Split], Encoder]


def suite(
    model: Any, split: Split, own: Sequence[Metric] = (), encoder: EncoderChoice | None = None, samples: int = 10_000
):
    """Likelihood, sample quality and diversity, use for other tasks, speed and size; then the config's own metrics.

    encoder: of sample quality; by default the small one of images with labels, else raw values.
    """
    chosen = _likelihoods(model, own)
    if is_sequences(split) and isinstance(model, Density):
        chosen.append(log_likelihood_per_step)
    if encode := quality_encoder(split, encoder):
        chosen.append(sample_quality(encode, samples))
    if has_classes(split):
        chosen.append(class_coverage(1 + int(np.max(split.reference.arrays["label"])), samples))
        by_label = isinstance(model, Conditional) and isinstance(model.conditioning, ClassLabels)
        if by_label and split.reference.size >= ENOUGH:
            chosen.append(train_on_synthetic)
    if isinstance(model, Latent) and "label" in split.arrays and split.size >= ENOUGH:
        chosen.append(latent_accuracy)
    asked = {metric.__name__ for metric in chosen}  # with the encoder and the number of samples asked for
    return [*chosen, *(metric for metric in own if metric.__name__ not in asked), cost]


def quality_encoder(split: Split, encoder: EncoderChoice | None) -> EncoderChoice | None:
    """What looks at samples of this data; None if they are sequences, which no encoder takes."""
    if is_sequences(split) or split.arrays["x"].ndim not in (2, 4):
        return None
    return encoder or (small if has_classes(split) else raw)


def is_sequences(split: Split) -> bool:
    """Whether it is of ragged sequences, of vectors over time, or of symbols."""
    x = split.arrays["x"]
    return "length" in split.arrays or x.ndim == 3 or (x.ndim == 2 and x.dtype.kind in "iu")


def has_classes(split: Split) -> bool:
    """Whether it is of gray images with labels, which a small encoder can be trained on."""
    x = split.arrays["x"]
    as_seen = jax.eval_shape(lambda: split.head(1)["x"]).shape
    return x.ndim == 4 and x.shape[-1] == 1 == as_seen[-1] and "label" in split.arrays


ENOUGH = 100  # examples for a regression


def _likelihoods(model: Any, own: Sequence[Metric]) -> list[Metric]:
    """The exact likelihood, or bounds: by importance weighting what the config says, which knows what fits memory."""
    found = [log_likelihood] if isinstance(model, Density) else []
    if isinstance(model, Bound):
        found.append(elbo)
        if isinstance(model, ImportanceWeighted) and not any(metric.__name__.startswith("iwae") for metric in own):
            found.append(importance_weighted(50))
    return found or [undefined]


def undefined(model: Any) -> Measure:
    """Says that a model has no likelihood, exact or bounded."""
    found = Estimate(math.nan, math.nan, "nats", "undefined", 0, f"{type(model).__name__} has no density")
    return lambda state, split, key: {"log_likelihood": found}


def cost(model: Any) -> Measure:
    """parameters: of all players. samples_per_second: of blocks of 500 on this machine, once compiled."""
    draw = jax.jit(lambda state, key: model.sample(state, key, DRAWN))

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        seconds = []
        while len(seconds) < 4 or (sum(seconds) < 1 and len(seconds) < 50):
            start = time.perf_counter()
            jax.block_until_ready(draw(state, key))
            seconds.append(time.perf_counter() - start)
        rates = DRAWN / np.array(seconds[1:])
        size = sum(a.size for a in jax.tree.leaves(state.params))
        device = jax.devices()[0].device_kind
        error = float(rates.std(ddof=1))  # between blocks: what else the machine does is no sampling error
        return {
            "parameters": Estimate(float(size), math.nan, "", "exact", 1),
            "samples_per_second": Estimate(float(np.median(rates)), error, "1/s", "estimate", len(rates), device),
        }

    return measure


def open_encoder(name: str) -> EncoderChoice | None:
    """An encoder of the command line: "small", "raw", or a file that `python -m gen_jax encoder` wrote; "" for none."""
    if name in ("", "small", "raw"):
        return {"": None, "small": small, "raw": raw}[name]
    from gen_jax.evaluation.samples import inception
    from gen_jax.evaluation.samples.weights_io import kind_of

    path = Path(name)
    if not path.is_file():
        raise UserError(f"--encoder {name}: it is small, raw, or a file that `python -m gen_jax encoder` wrote")
    return inception.inception(path) if kind_of(path) == inception.KIND else load_small_cnn(path).encoder()
