"""Classifier-based sample metrics: class coverage, class balance, and training on synthetic data."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Conditional, State, fold_in
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.features import fit_classifier, small
from gen_jax.evaluation.samples.quality import DRAWN, examples_of, sampler

__all__ = ["class_coverage", "train_on_synthetic"]


def class_coverage(classes: int = 10, samples: int = 10_000) -> Metric:
    """Makes the metric for images of one digit, or of several stacked in channels (stacked digits, Metz et al. 2017).

    classes: number of classes with a sample (of 1,000 for three stacked digits). class_kl: KL(samples || data) over
    classes in nats, the data being the training split or, for stacked digits, uniform; about (classes - 1) / 2 n for n
    samples from the data distribution. confidence: the mean of the largest probability. Uses the small encoder of the
    data set, whose accuracy is noted in the estimate.
    """

    def class_coverage(model: Any) -> Measure:
        draw = sampler(model)

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            encode = small(split)
            x = np.concatenate([split.pixels(x) for x in draw(state, key, samples)])
            stack, n = x.shape[-1], len(x)
            seen = encode(x.transpose(3, 0, 1, 2).reshape(-1, *x.shape[1:3], 1)).probabilities
            parts = seen.argmax(axis=-1).reshape(stack, n)
            share = np.bincount(np.ravel_multi_index(tuple(parts), (classes,) * stack), minlength=classes**stack) / n
            counts = (
                np.bincount(split.reference.arrays["label"], minlength=classes)
                if stack == 1
                else np.ones(classes**stack)
            )
            there = share > 0
            ratios = np.log(share[there] * counts.sum() / counts[there])
            kl = float(np.sum(share[there] * ratios))
            error = math.sqrt(max(np.sum(share[there] * ratios**2) - kl**2, 0) / n)
            sure = seen.max(axis=-1)
            of = lambda value, error, unit: Estimate(float(value), float(error), unit, "estimate", n, encode.detail)
            found = {
                "classes": of(there.sum(), math.nan, f"of {classes**stack}"),
                "class_kl": of(kl, error, "nats"),
                "confidence": of(sure.mean(), sure.std() / math.sqrt(n), "share"),
            }
            found = with_group(found, "sample quality", headline=True, confidence="higher")
            return with_group(found, "diversity", headline=True, classes="higher", class_kl="lower")

        return measure

    return class_coverage


def train_on_synthetic(model: Any) -> Measure:
    """Accuracy on real examples of a classifier trained on samples only (Ravuri & Vinyals 2019).

    For models conditioned on labels. Uses as many samples as there are training examples, at most 10,000, with their
    labels; also reports the accuracy of the same classifier trained on the examples themselves.
    """
    ask(model, Conditional, "train_on_synthetic")
    if model.conditioning is None:
        raise UserError("train_on_synthetic needs a model conditioned on labels: leave it out of `metrics`")
    entry = model.conditioning.entry
    draw = jax.jit(lambda state, key, given: model.sample(state, key, DRAWN, given)["x"])

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        labels = np.asarray(split.reference.arrays["label"][:10_000])
        asked = np.resize(labels, (-(-len(labels) // DRAWN), DRAWN))
        blocks = [split.pixels(draw(state, fold_in(key, i), {entry: jnp.asarray(a)})) for i, a in enumerate(asked)]
        test = {"x": examples_of(split, 10_000), "label": np.asarray(split.arrays["label"][:10_000])}
        made = {"x": np.concatenate(blocks)[: len(labels)], "label": labels}
        real = {"x": examples_of(split.reference, len(labels)), "label": labels}
        synthetic, actual = (fit_classifier(one, test, "").accuracy for one in (made, real))
        error = math.sqrt(synthetic * (1 - synthetic) / len(test["x"]))
        how = f"{len(labels)} samples; {actual:.3f} by as many real ones"
        found = {"train_on_synthetic": Estimate(synthetic, error, "share", "estimate", len(test["x"]), how)}
        return with_group(found, "use", headline=True, train_on_synthetic="higher")

    return measure
