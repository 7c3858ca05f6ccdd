"""Utility of samples for a task: train on synthetic and test on real examples, the reverse, and train on both.

Training on samples alone gives the classification accuracy score (Ravuri & Vinyals 2019, arXiv:1905.10887), GAN-train
of Shmelkov, Schmid & Alahari 2018 (arXiv:1807.09499) and TSTR of Esteban, Hyland & Ratsch 2017 (arXiv:1706.02633);
testing on samples is their GAN-test and TRTS. The first falls where samples lack diversity or quality, the second where
they lack quality only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.data.dataset import DataInfo
from gen_jax.data.source import Arrays, apply_transforms
from gen_jax.data.subsets import stratified_rows
from gen_jax.data.transforms import Transform, scale
from gen_jax.errors import UserError
from gen_jax.evaluation.classifiers import Accuracy, fit_classifiers, mean_score
from gen_jax.evaluation.samples.labeled import Draw
from gen_jax.models.common.classification import ConvNet, Perceptron

__all__ = [
    "ARMS",
    "PREDICTORS",
    "Inputs",
    "Task",
    "Utility",
    "check_predictors",
    "column_task",
    "default_predictors",
    "labeled_task",
    "measure_utility",
    "table_features",
    "with_gaps",
]

ARMS = ("real", "synthetic", "both")
PREDICTORS = ("mlp", "cnn", "linear", "boosting")
HELD = 2000  # samples at most that predictors of real examples are tested on


class Task(NamedTuple):
    """Prediction of a class or a number from real examples, from samples, and from both."""

    x: np.ndarray  # real examples, then samples
    y: np.ndarray  # class indices, or numbers
    real: np.ndarray  # (S, n) rows of the real examples of each seed
    synthetic: np.ndarray  # (S, n) rows of its samples
    test: Arrays  # real examples "x" with "label"
    held: Arrays  # further samples "x" with "label"
    classes: int | None = None  # None for numbers
    transforms: Sequence[Transform] = ()  # of "x"

    def rows(self) -> list[np.ndarray]:
        """Rows of the training examples, by arm and seed."""
        return [*self.real, *self.synthetic, *np.concatenate([self.real, self.synthetic], axis=1)]

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """Examples as predictors see them: transformed."""
        return np.asarray(apply_transforms({"x": jnp.asarray(x)}, tuple(self.transforms), 0, 0)["x"])

    def check(self, predictors: Sequence[str]) -> None:
        """Raises UserError for what cannot be predicted or cannot predict."""
        check_predictors(predictors, self.x.ndim - 1, self.classes)
        if self.classes is not None:
            for arm, rows in zip(ARMS, (self.real, self.synthetic)):
                if len(only := np.unique(self.y[rows])) == 1:
                    raise UserError(f"all {arm} examples are of class {only[0]}: there is nothing to learn")


def check_predictors(predictors: Sequence[str], dimensions: int, classes: int | None) -> None:
    """Raises UserError for predictors that do not fit. dimensions: axes of an example. classes: None for numbers."""
    for name in predictors:
        if name not in PREDICTORS:
            raise UserError(f"{name!r} is no predictor: there are {', '.join(PREDICTORS)}")
        if name == "cnn" and dimensions != 3:
            raise UserError("cnn predicts from images: for tables there are mlp, linear and boosting")
        if name in ("mlp", "cnn") and classes is None:
            raise UserError(f"{name} predicts classes: for numbers there are linear and boosting")


class Utility(NamedTuple):
    """The scores of one kind of predictor: accuracies, or coefficients of determination of numbers."""

    predictor: str
    scores: Mapping[str, Accuracy]  # by arm, on real test examples
    on_samples: Accuracy  # of those trained on real examples, on samples
    gains: Mapping[str, Accuracy]  # over training on real examples, paired
    recalls: Mapping[str, np.ndarray]  # (classes,) by arm, the mean over seeds; NaN for classes without test examples
    recall_errors: Mapping[str, np.ndarray]  # standard errors over seeds and test examples

    def lost(self, drop: float = 0.2) -> list[int]:
        """Classes that are recognized less often by `drop` and by three standard errors when trained on samples."""
        if not self.recalls:
            return []
        change = self.recalls["real"] - self.recalls["synthetic"]
        error = np.hypot(self.recall_errors["real"], self.recall_errors["synthetic"])
        return [int(c) for c in np.flatnonzero(change > np.maximum(drop, 3 * error))]


def labeled_task(
    training: Arrays,
    test: Arrays,
    draw: Draw,
    info: Inputs,
    n: int = 10_000,
    seeds: int = 3,
    seed: int = 0,
) -> Task:
    """The task of predicting "label", with samples that have the labels of the real examples.

    draw: samples in the units of the data. n: real examples, at most, and samples, for each seed.
    """
    labels, size = np.asarray(training["label"]), len(training["label"])
    chosen = stratified_rows(labels, min(n, size), seeds, seed)
    used, rows = np.unique(chosen, return_inverse=True)
    rows, known = rows.reshape(chosen.shape), np.asarray(test["label"])
    held = known[stratified_rows(known, min(HELD, len(known)), 1, seed)[0]]
    asked = np.concatenate([labels[chosen.ravel()], held])
    made = draw(asked, jax.random.key(seed))
    real = np.asarray(training["x"][used])
    if made.shape[1:] != real.shape[1:]:
        raise UserError(f"samples have the shape {made.shape[1:]}, the examples {real.shape[1:]}")
    inputs, made = info.inputs(real), with_gaps(made, real, seed)
    x, m = np.concatenate([inputs(real), inputs(made[: chosen.size])]), chosen.size
    return Task(
        x,
        np.concatenate([labels[used], asked[:m]]),
        rows,
        len(used) + np.arange(m).reshape(chosen.shape),
        {"x": inputs(np.asarray(test["x"][:])), "label": known},
        {"x": inputs(made[m:]), "label": held},
        info.classes,
        info.transforms if real.ndim > 2 else (),
    )


def column_task(
    training: Arrays,
    test: Arrays,
    draw: Draw,
    info: DataInfo,
    column: str,
    n: int = 10_000,
    seeds: int = 3,
    seed: int = 0,
) -> Task:
    """The task of predicting a column of a table from the others, with rows that a model of all columns draws."""
    if column not in info.columns:
        raise UserError(f"there is no column {column!r}; there are {', '.join(info.columns)}")
    i = info.columns.index(column)
    names = info.categories[i] if info.categories else ()
    known = lambda x: x[~np.isnan(x[:, i])]
    real, tested = known(np.asarray(training["x"], np.float32)), known(np.asarray(test["x"], np.float32))
    if not len(real) or not len(tested) or np.ptp(tested[:, i]) == 0:
        raise UserError(f"{column!r} has a single value or none among the test rows: there is nothing to predict")
    n, held = min(n, len(real)), min(HELD, len(tested))
    made = np.asarray(draw(np.zeros(n * seeds + held, np.int32), jax.random.key(seed)), np.float32)
    rng = np.random.default_rng(seed)
    target, made = made[:, i].copy(), with_gaps(made, real, seed)
    made[:, i] = target
    inputs = lambda x: table_features(x, real, info.categories, (i,))
    code = lambda x: np.clip(np.rint(x[:, i]), 0, len(names) - 1).astype(int) if names else x[:, i]
    return Task(
        np.concatenate([inputs(real), inputs(made[: n * seeds])]),
        np.concatenate([code(real), code(made[: n * seeds])]),
        np.stack([rng.choice(len(real), n, replace=False) for _ in range(seeds)]),
        len(real) + np.arange(n * seeds).reshape(seeds, n),
        {"x": inputs(tested), "label": code(tested)},
        {"x": inputs(made[n * seeds :]), "label": code(made[n * seeds :])},
        len(names) or None,
    )


def with_gaps(x: np.ndarray, real: np.ndarray, seed: int) -> np.ndarray:
    """Rows (N, D) with the missing cells of real rows drawn at random, so that gaps do not tell samples from them."""
    if real.ndim != 2 or real.dtype.kind != "f" or not np.isnan(real).any():
        return x
    rows = np.random.default_rng(seed).integers(0, len(real), len(x))
    return np.where(np.isnan(real[rows]), np.nan, x)


class Inputs(NamedTuple):
    """Labeled examples as inputs of predictors: images scaled to [0, 1], the columns of tables standardized."""

    classes: int
    levels: int | None = None
    categories: Sequence[Sequence[str]] = ()

    @property
    def transforms(self) -> tuple[Transform, ...]:
        return (scale(0, 1, self.levels),) if self.levels else ()

    def inputs(self, reference: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function from examples (N, ...) to inputs, which depend on the reference only."""
        if reference.ndim != 2:
            return lambda x: x
        return lambda x: table_features(np.asarray(x, np.float32), np.asarray(reference, np.float32), self.categories)


def default_predictors(x: np.ndarray, classes: int | None) -> tuple[str, ...]:
    """The predictors for images, for other examples with classes, and for numbers."""
    if x.ndim == 4:
        return ("mlp", "cnn")
    return ("linear", "boosting") if classes is None else ("mlp", "boosting")


def measure_utility(
    task: Task, predictor: str, steps: int = 1000, batch: int = 128, seed: int = 0, hidden: int = 128
) -> Utility:
    """Trains one predictor for each seed on real examples, on samples and on both, and tests them.

    Networks of all seeds and arms are one program, and all take as many steps. batch: examples per step.
    """
    task.check([predictor])
    tested = np.concatenate([task.test["x"], task.held["x"]])
    predict = {
        "mlp": partial(_networks, lambda classes: Perceptron(classes, hidden), steps, batch),
        "cnn": partial(_networks, ConvNet, steps, batch),
        "linear": partial(_estimators, _linear),
        "boosting": partial(_estimators, _boosting),
    }[predictor]
    found = predict(task, tested, seed)
    truth, held = np.asarray(task.test["label"]), np.asarray(task.held["label"])
    by_arm = dict(zip(ARMS, np.split(found[:, : len(truth)], len(ARMS))))
    scores = {arm: _scores(predicted, truth, task.classes) for arm, predicted in by_arm.items()}
    of_real = found[: len(task.real), len(truth) :]
    recalls = {} if task.classes is None else {arm: _recalls(p, truth, task.classes) for arm, p in by_arm.items()}
    return Utility(
        predictor,
        {arm: mean_score(values) for arm, values in scores.items()},
        mean_score(_scores(of_real, held, task.classes)),
        {arm: mean_score(scores[arm] - scores["real"]) for arm in ARMS[1:]},
        {arm: values for arm, (values, _) in recalls.items()},
        {arm: errors for arm, (_, errors) in recalls.items()},
    )


def _scores(predicted: np.ndarray, truth: np.ndarray, classes: int | None) -> np.ndarray:
    """(S, N) whose mean is the accuracy, or the coefficient of determination of numbers."""
    if classes is not None:
        return (predicted == truth).astype(float)
    return 1 - (predicted - truth) ** 2 / truth.var()


def _recalls(predicted: np.ndarray, truth: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(classes,) the recall of each class, and its standard error."""
    each = [
        mean_score((predicted[:, truth == c] == c).astype(float)) if (truth == c).any() else None
        for c in range(classes)
    ]
    of = lambda pick: np.array([np.nan if one is None else pick(one) for one in each])
    return of(lambda one: one.value), of(lambda one: one.error)


def _networks(
    make: Callable[[int], Any], steps: int, batch: int, task: Task, tested: np.ndarray, seed: int
) -> np.ndarray:
    rows = task.rows()
    longest = max(map(len, rows))
    rows = np.stack([np.resize(one, longest) for one in rows])  # an epoch of fewer examples passes over them twice
    label = np.zeros(len(tested), int)  # what is tested on does not matter here
    training, test = {"x": task.x, "label": task.y}, {"x": tested, "label": label}
    network = make(task.classes)
    return fit_classifiers(network, training, rows, test, steps, batch, task.transforms, tests=1, seed=seed).predicted


def _estimators(make: Callable[[int | None, int], Any], task: Task, tested: np.ndarray, seed: int) -> np.ndarray:
    """Predictions of scikit-learn's estimators, which need examples as they are: transformed ones."""
    flat = lambda x: task.inputs(x).reshape(len(x), -1)
    x, seen, found = flat(task.x), flat(tested), []
    for i, rows in enumerate(task.rows()):
        found.append(make(task.classes, (seed + i % len(task.real)) % 2**32).fit(x[rows], task.y[rows]).predict(seen))
    return np.stack(found)


def _linear(classes: int | None, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    return Ridge() if classes is None else LogisticRegression(max_iter=1000)


def _boosting(classes: int | None, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if classes is None else HistGradientBoostingClassifier
    return kind(random_state=seed, early_stopping=False)  # else by the number of rows, which differs between arms


def table_features(
    x: np.ndarray, reference: np.ndarray, categories: Sequence[Sequence[str]] = (), leave_out: Sequence[int] = ()
) -> np.ndarray:
    """Columns (N, D) as inputs of predictors: categories one-hot, numbers standardized by the reference rows.

    A missing number is 0, its column's mean, and each column with missing cells in the reference has another one that
    tells where they are. leave_out: columns that are not used.
    """
    parts = []
    for i in range(x.shape[1]):
        if i in leave_out:
            continue
        column, known = x[:, i], reference[:, i]
        if categories and categories[i]:
            codes = np.clip(np.rint(np.nan_to_num(column, nan=-1)), -1, len(categories[i]) - 1).astype(int)
            parts.append(np.eye(len(categories[i]), dtype=np.float32)[codes] * (codes >= 0)[:, None])
            continue
        spread = np.nanstd(known)
        parts.append(np.nan_to_num((column - np.nanmean(known)) / (spread if spread > 0 else 1.0))[:, None])
        if np.isnan(known).any():
            parts.append(np.isnan(column)[:, None])
    if not parts:
        raise UserError("there is no column to predict from")
    return np.concatenate(parts, axis=1).astype(np.float32)
