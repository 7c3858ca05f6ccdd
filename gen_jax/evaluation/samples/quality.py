"""Sample quality and diversity metrics, from encoder features.

Every metric is named METRIC@ENCODER: values from different encoders, or for different numbers of examples, are not
comparable. `sample_quality` computes all of them in one pass over the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from gen_jax.core import State, fold_in
from gen_jax.data.records import Column
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, with_group
from gen_jax.evaluation.samples.distances import (
    ENOUGH,
    Moments,
    jackknifed_frechet,
    kernel_distance,
    manifold,
    nearest,
)
from gen_jax.evaluation.samples.features import Encoder, EncoderOutput, small

__all__ = [
    "DRAWN",
    "Reference",
    "encode_blocks",
    "examples_of",
    "features_of",
    "frechet_estimates",
    "inception_score",
    "kernel_estimate",
    "memorization",
    "quality",
    "resolve_encoder",
    "sample_quality",
    "sampler",
]

DRAWN = 500  # samples drawn at once


def sample_quality(
    encoder: Encoder | Callable[[Split], Encoder] = small, samples: int = 10_000, k: int = 5, splits: int = 10
) -> Metric:
    """Makes the metric of `samples` samples against the training split; see `quality` for the estimates.

    encoder: an Encoder, or a function split -> Encoder. k: the radius of an example's ball is the distance to its k-th
    nearest neighbor. splits: number of parts for standard errors and for the Inception Score.
    """

    def sample_quality(model: Any) -> Measure:
        draw, known = sampler(model), {}

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            encode = resolve_encoder(encoder, split)
            if split.name not in known:
                known[split.name] = Reference.of(encode, split)
            fake = encode_blocks(encode, (split.pixels(x) for x in draw(state, key, samples)))
            return quality(encode, fake, split, known[split.name], k, splits)

        return measure

    return sample_quality


def resolve_encoder(encoder: Encoder | Callable[[Split], Encoder], split: Split) -> Encoder:
    """Resolves an encoder, or a function split -> Encoder."""
    return encoder if isinstance(encoder, Encoder) else encoder(split)


def sampler(model: Any) -> Callable[[State, Array, int], Any]:
    """Makes (state, key, n) -> blocks of "x" of n samples, compiled once."""
    draw = jax.jit(lambda state, key: model.sample(state, key, DRAWN)["x"])

    def blocks(state: State, key: Array, n: int):
        for number, start in enumerate(range(0, n, DRAWN)):
            yield np.asarray(draw(state, fold_in(key, number)))[: n - start]

    return blocks


def encode_blocks(encoder: Encoder, blocks: Any) -> EncoderOutput:
    """Encodes blocks of images, one block in memory at a time."""
    parts = [encoder(x) for x in blocks]
    probabilities = None if parts[0].probabilities is None else np.concatenate([p.probabilities for p in parts])
    return EncoderOutput(np.concatenate([part.features for part in parts]), probabilities)


def examples_of(split: Split, n: int) -> np.ndarray:
    """The first n images of a split, as intensities for encoders."""
    return split.pixels(split.head(n)["x"])


class Reference(NamedTuple):
    """Features of the data that samples are compared with."""

    real: np.ndarray  # features of up to 50,000 training examples
    moments: Moments
    held: np.ndarray | None  # of up to 10,000 examples of the split; None if it is the training split

    @classmethod
    def of(cls, encoder: Encoder, split: Split) -> Reference:
        real, x = features_of(encoder, split.reference, 50_000), (split.arrays["x"], split.training["x"])
        lazy = any(isinstance(a, Column) for a in x)
        same = split.name in ("train", "training") if lazy else np.may_share_memory(*x)
        return cls(real, Moments.of(real), None if same else features_of(encoder, split, 10_000))


def features_of(encoder: Encoder, split: Split, n: int) -> np.ndarray:
    """Features of the first n examples, about 64 MB of which are in memory at once."""
    n = min(n, split.size)
    at_once = max(encoder.block, 2**26 // (4 * max(1, int(np.prod(split.arrays["x"].shape[1:])))))
    parts = (split.part(start, min(n, start + at_once)) for start in range(0, n, at_once))
    return np.concatenate([encoder(examples_of(part, part.size)).features for part in parts])


def quality(
    encoder: Encoder,
    fake: EncoderOutput,
    split: Split,
    reference: Reference | None = None,
    k: int = 5,
    splits: int = 10,
) -> dict[str, Estimate]:
    """Sample-quality metrics from encoder features, relative to the training set.

    frechet_distance: between normals with the same moments (FID, Heusel et al. 2017); frechet_infinity: extrapolated to
    infinitely many samples. kernel_distance: the unbiased squared MMD (KID, Binkowski et al. 2018).
    inception_score: exp E KL(p(class | x) || p(class)) (Salimans et al. 2016), if the encoder is a classifier.
    precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020): with equally many samples and
    examples, at most 10,000. memorized: the fraction of samples closer to a training example than 99 % of the examples
    of `split` are; 0.01 if samples are as novel as those. nearest_ratio: the median distance to the nearest training
    example, divided by that of `split`; below 1 samples are closer. Both are omitted if `split` is the training split.
    """
    n = len(fake.features)
    if n < 2:
        raise UserError("sample quality needs at least two samples")
    reference = reference or Reference.of(encoder, split)
    real, held = reference.real, reference.held
    found = {
        **frechet_estimates(fake.features, reference.moments, splits),
        "kernel_distance": kernel_estimate(fake.features, real),
        **_score(fake.probabilities, splits),
        **_neighbors(fake.features, real, k),
        **({} if held is None else memorization(fake.features, real, held)),
    }
    protocol = split.protocol if "binarized" in split.protocol or "thresholded" in split.protocol else ""
    notes = lambda e: ", ".join(filter(None, [encoder.detail, protocol, e.how]))
    estimates = {f"{name}@{encoder.name}": e._replace(how=notes(e)) for name, e in found.items()}
    estimates = with_group(estimates, "sample quality", headline=True, frechet_distance="lower")
    estimates = with_group(
        estimates,
        "sample quality",
        frechet_infinity="",
        kernel_distance="lower",
        inception_score="higher",
        precision="higher",
        density="",
    )
    return with_group(estimates, "diversity", recall="higher", coverage="higher", memorized="", nearest_ratio="")


def frechet_estimates(fake: np.ndarray, reference: Moments, splits: int = 10) -> dict[str, Estimate]:
    """frechet_distance of features (N, D), and frechet_infinity, see `quality`. splits: parts for standard errors."""
    parts = [Moments.of(part) for part in np.array_split(fake, min(splits, len(fake)))]
    n, dimensions = len(fake), fake.shape[1]
    found = jackknifed_frechet(parts, reference)
    notes = [f"{n} against {reference.n} examples"]
    if min(n, reference.n) <= dimensions:
        notes.append(f"too few for {dimensions} features: singular covariance")
    known = math.isfinite(found.unbiased)
    limit = notes if known else [*notes, f"needs {ENOUGH * dimensions} samples"]
    biased = [*notes, f"bias about {found.value - found.unbiased:.2g}" if known else "biased upward"]
    return {
        "frechet_distance": Estimate(found.value, found.error, "features^2", "estimate", n, ", ".join(biased)),
        "frechet_infinity": Estimate(
            found.unbiased, found.error if known else math.nan, "features^2", "estimate", n, ", ".join(limit)
        ),
    }


def kernel_estimate(fake: np.ndarray, real: np.ndarray) -> Estimate:
    """The kernel distance of features (N, D) and (M, D), of at most 10,000 of each."""
    fake, real = fake[:10_000], real[:10_000]
    value, error = kernel_distance(fake, real)
    how = f"{len(fake)} against {len(real)} examples"
    return Estimate(value, error, "MMD^2", "estimate", len(fake), how)


def _score(probabilities: np.ndarray | None, splits: int) -> dict[str, Estimate]:
    if probabilities is None:
        return {}
    count, n = max(1, min(splits, len(probabilities) // 1000)), len(probabilities)  # small parts are biased downward
    scores = np.array([inception_score(part) for part in np.array_split(probabilities, count)])
    error = float(scores.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    how = f"{count} parts of {n // count}"
    unit = f"of {probabilities.shape[1]}"
    return {"inception_score": Estimate(float(scores.mean()), error, unit, "estimate", n, how)}


def inception_score(probabilities: np.ndarray) -> float:
    """exp E KL(p(class | x) || p(class)) of (N, classes), between 1 and the number of classes."""
    p = np.asarray(probabilities, np.float64)
    mean = p.mean(axis=0)
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(mean, 1e-300))), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))


def _neighbors(fake: np.ndarray, real: np.ndarray, k: int) -> dict[str, Estimate]:
    n = min(len(fake), len(real), 10_000)
    if n <= k:
        return {}
    found = manifold(real[:n], fake[:n], k)
    how = f"k = {k}, {n} of each"
    measured = {
        "precision": (found.covered, "share"),
        "recall": (found.reached, "share"),
        "density": (found.balls / k, ""),
        "coverage": (found.occupied, "share"),
    }
    error = lambda values: float(np.std(values, ddof=1) / math.sqrt(n))
    return {
        name: Estimate(float(np.mean(values)), error(values), unit, "estimate", n, how)
        for name, (values, unit) in measured.items()
    }


def memorization(fake: np.ndarray, real: np.ndarray, held: np.ndarray) -> dict[str, Estimate]:
    """memorized and nearest_ratio of features of samples, training examples and others; see `quality`."""
    fake = fake[:10_000]
    of_fake, of_held = (nearest(x, real)[:, 0] for x in (fake, held))
    n, close = len(fake), of_fake < np.quantile(of_held, 0.01)
    median = float(np.median(of_held))
    how = f"against {len(real)} training and {len(held)} other examples"
    ratio = float(np.median(of_fake)) / median if median > 0 else math.nan
    share = float(close.mean())
    error = math.hypot(math.sqrt(share * (1 - share) / n), share / 0.01 * math.sqrt(0.01 * 0.99 / len(held)))
    return {
        "memorized": Estimate(share, error, "share", "estimate", n, how),
        "nearest_ratio": Estimate(ratio, math.nan, "", "estimate", n, how),
    }
