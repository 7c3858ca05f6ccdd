"""Classifier-based sample metrics: class coverage, class balance, and training on synthetic data."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Conditional, State, fold_in
from gen_jax.data.dataset import value_range
from gen_jax.errors import UserError
from gen_jax.evaluation.classifiers import Accuracy
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.features import small
from gen_jax.evaluation.samples.labeled import of_label
from gen_jax.evaluation.samples.quality import sampler
from gen_jax.evaluation.utility import Inputs, Task, Utility, labeled_task, measure_utility

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


def train_on_synthetic(samples: int = 10_000, seeds: int = 3, steps: int = 500) -> Metric:
    """Makes the metric of how well samples train and test classifiers; for models conditioned on labels.

    train_on_synthetic: accuracy on the split of classifiers trained on as many samples as there are training examples
    (Ravuri & Vinyals 2019); train_on_real: on the examples; train_on_both: on both. test_on_synthetic: accuracy on
    samples of those trained on examples. worst_recall: of the class that is recognized least when trained on samples.
    A convolutional network for images, else one with a hidden layer. samples: at most, and examples, for each of the
    seeds. See `gen_jax.evaluation.utility`.
    """

    def train_on_synthetic(model: Any) -> Measure:
        ask(model, Conditional, "train_on_synthetic")
        if model.conditioning is None:
            raise UserError("train_on_synthetic needs a model conditioned on labels: leave it out of `metrics`")

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            training = split.reference.arrays
            top = max(value_range(arrays["x"], split.levels)[1] for arrays in (training, split.arrays))
            levels = int(top) + 1 if training["x"].dtype.kind in "iu" else None
            categories = () if split.info is None else split.info.categories
            classes = 1 + max(int(np.max(arrays["label"])) for arrays in (training, split.arrays))
            inputs = Inputs(max(classes, model.conditioning.classes or 0), levels, categories)
            seed = int(jax.random.bits(fold_in(key, "utility"), dtype=jnp.uint16))
            draw = of_label(model, state, split)
            task = labeled_task(training, split.arrays, draw, inputs, samples, seeds, seed)
            kind = "cnn" if task.x.ndim == 4 else "mlp"
            found = measure_utility(task, kind, steps, seed=seed)
            return _estimates(found, task, f"{kind}, {task.real.shape[1]} examples, {seeds} seeds, {steps} steps")

        return measure

    return train_on_synthetic


def _estimates(found: Utility, task: Task, how: str) -> dict[str, Estimate]:
    of = lambda one, n, said=how: Estimate(one.value, one.error, "share", "estimate", n, said)
    n, recalls = len(task.test["x"]), found.recalls["synthetic"]
    worst = int(np.nanargmin(recalls))
    lowest = Accuracy(float(recalls[worst]), float(found.recall_errors["synthetic"][worst]))
    estimates = {f"train_on_{arm}": of(found.scores[arm], n) for arm in ("synthetic", "real", "both")}
    estimates |= {"test_on_synthetic": of(found.on_samples, len(task.held["x"]))}
    estimates |= {"worst_recall": of(lowest, int((task.test["label"] == worst).sum()), f"{how}, of class {worst}")}
    estimates = with_group(estimates, "use", headline=True, train_on_synthetic="higher")
    return with_group(
        estimates, "use", train_on_real="", train_on_both="higher", test_on_synthetic="", worst_recall="higher"
    )
