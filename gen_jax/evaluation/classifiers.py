"""Classifiers of several seeds trained as one program, and what can be said of their accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

from gen_jax.algorithms import descent
from gen_jax.core import Algorithm, State
from gen_jax.data.source import Arrays, apply_transforms
from gen_jax.data.subsets import Subsets
from gen_jax.data.transforms import Transform, as_transforms
from gen_jax.evaluation.metric import standard_error
from gen_jax.loop import Hook, fit
from gen_jax.models.common.classification import Classification
from gen_jax.restarts import population

__all__ = ["Accuracy", "Fitted", "accuracy_of", "difference", "fit_classifiers", "mcnemar", "mean_score"]

BLOCK = 1000  # test examples at once


class Fitted(NamedTuple):
    """Classifiers of S seeds."""

    steps: np.ndarray  # (E,) at which they were tested
    accuracies: np.ndarray  # (E, S) on the test examples
    predicted: np.ndarray  # (S, N) classes of the test examples, at the end


def fit_classifiers(
    network: nn.Module,
    training: Arrays,
    rows: np.ndarray,
    test: Arrays,
    steps: int,
    batch: int = 128,
    transforms: Sequence[Transform] = (),
    lr: float = 1e-3,
    tests: int = 10,
    seed: int = 0,
) -> Fitted:
    """Trains one classifier for each member of `rows` (S, n), indices of its training examples, by Adam.

    All are one program; each has its own initial parameters, order of examples and random changes. tests: at how many
    evenly spaced steps they are tested.
    """
    model, members = Classification(network), len(rows)
    inner = descent(model, {"classifier": optax.adam(lr)})

    def of(i: Any) -> Algorithm:
        mine = lambda batch: jax.tree.map(lambda a: a[i], batch)
        return Algorithm(
            lambda key, batch: inner.init(key, mine(batch)), lambda state, batch: inner.step(state, mine(batch))
        )

    transforms = as_transforms(transforms)
    seeds = np.arange(members, dtype=np.uint32) + np.uint32(seed * members % 2**32)
    source = Subsets(
        {name: np.asarray(training[name]) for name in ("x", "label")},
        rows,
        min(batch, rows.shape[1]),
        transforms,
        seeds,
    )
    tested = _Test(model, test, tuple(t for t in transforms if not t.augments), steps, tests)
    fit(population(of, jnp.arange(members)), source, steps, seed=seed, chunk=min(20, steps), hooks=[tested])
    return Fitted(np.array(tested.steps), np.array(tested.accuracies), tested.predicted)


class _Test(Hook):
    """Tests a population of classifiers."""

    def __init__(self, model: Classification, test: Arrays, transforms: tuple[Transform, ...], steps: int, n: int):
        self.at = sorted({round(steps * (i + 1) / n) for i in range(n)} - {0})
        self.steps: list[int] = []
        self.accuracies: list[np.ndarray] = []
        self.predicted = np.zeros((0, 0), int)
        self.test = {name: np.asarray(test[name]) for name in ("x", "label")}
        axes = State(step=None, key=None, params=0, opt=None, extra=0)

        @jax.jit
        def predict(state: State, x: Any):
            seen = apply_transforms({"x": x}, transforms, 0, 0)
            return jax.vmap(lambda one: model.predict(one, seen), in_axes=(axes,))(state)

        self.predict = predict

    def visit(self, step, state, measured):
        x = self.test["x"]
        size = min(BLOCK, len(x))
        starts = [min(start, len(x) - size) for start in range(0, len(x), size)]  # the last block overlaps
        found = np.zeros((len(jax.tree.leaves(state.params)[0]), len(x)), int)
        light = state._replace(opt=())
        for start in starts:
            found[:, start : start + size] = np.asarray(self.predict(light, jnp.asarray(x[start : start + size])))
        self.predicted = found
        self.steps.append(step)
        self.accuracies.append((found == self.test["label"]).mean(axis=1))


class Accuracy(NamedTuple):
    """An accuracy, or a difference of two, and its standard error over seeds and test examples."""

    value: float
    error: float


def accuracy_of(predicted: np.ndarray, labels: np.ndarray) -> Accuracy:
    """The mean accuracy of classes (S, N) over seeds."""
    return mean_score(predicted == labels)


def difference(predicted: np.ndarray, base: np.ndarray, labels: np.ndarray) -> Accuracy:
    """The mean difference of the accuracies of two arms (S, N), paired by seed and test example."""
    return mean_score((predicted == labels).astype(float) - (base == labels))


def mean_score(values: np.ndarray) -> Accuracy:
    """The mean of values (S, N), with the error over seeds, which N examples share, and that over the examples."""
    over_seeds, over_examples = standard_error(values.mean(axis=1)), standard_error(values.mean(axis=0))
    return Accuracy(float(values.mean()), math.hypot(0.0 if math.isnan(over_seeds) else over_seeds, over_examples))


def mcnemar(predicted: np.ndarray, base: np.ndarray, labels: np.ndarray) -> float:
    """The p-value of McNemar's exact test of equal accuracy on the same examples, the median over seeds (S, N).

    McNemar 1947: of the examples that only one of two classifiers gets right, half should be either's.
    """
    right, before = predicted == labels, base == labels
    gained, lost = (right & ~before).sum(axis=1), (before & ~right).sum(axis=1)
    test = partial(scipy.stats.binomtest, p=0.5)
    return float(np.median([test(int(g), int(g + k)).pvalue if g + k else 1.0 for g, k in zip(gained, lost)]))
