"""The vocabulary of evaluation: Estimate, Split, and averages over a whole split.

A metric is a function of a model that returns `measure(state, split, key) -> {name: Estimate}`, compiled once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, State
from gen_jax.data.dataset import DataInfo, value_range
from gen_jax.data.records import take
from gen_jax.data.source import Arrays, apply_transforms, epoch
from gen_jax.data.text import Windows
from gen_jax.data.transforms import Transform, as_transforms
from gen_jax.errors import UserError

__all__ = [
    "Estimate",
    "Measure",
    "Metric",
    "PerExample",
    "Split",
    "ask",
    "counted",
    "mean_over",
    "ratio_of_sums",
    "rounded",
    "standard_error",
    "with_group",
]


class Estimate(NamedTuple):
    """A measured number and what is needed to compare it."""

    value: float
    error: float  # standard error; NaN if unknown
    unit: str  # "nats", "bits/dim", "modes", ...
    kind: str  # "exact", "bound", "estimate"
    n: int  # number of examples or samples
    how: str = ""  # protocol that must match for comparisons: numbers of samples, binarization
    group: str = ""  # of columns in comparisons: "likelihood", "sample quality", ...; "" for none
    better: str = ""  # "higher", "lower", or "" where neither is better
    headline: bool = False  # among the main results of a run
    seeds: int = 1  # of whose values this is the mean; the error is that of the mean and of the examples
    spread: float = math.nan  # the standard deviation over the seeds


def rounded(value: float, error: float = math.nan) -> tuple[str, str]:
    """A number and its standard error as texts, both to the last digit that the error leaves certain.

    An error keeps one digit, or two if it begins with 1; it is "" if unknown, and then a number has four digits.
    """
    if not math.isfinite(value):
        return ("" if math.isnan(value) else f"{value:g}"), ""
    if not math.isfinite(error) or error <= 0:
        whole = 1000 <= abs(value) < 1e12
        return f"{value:,.0f}" if whole else f"{value:.4g}", "0" if error == 0 else ""
    first = math.floor(math.log10(error))
    leading = error / 10**first
    decimals = -first + (leading < 1.95) - (leading >= 9.5)
    if decimals > 6 or abs(value) >= 1e12:
        digits = max(0, decimals + math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:.{digits}e}" if value else "0", f"{error:.{int(leading < 1.95)}e}"
    shown = lambda number: f"{round(number, decimals) + 0.0:,.{max(decimals, 0)}f}"  # without the sign of -0
    return shown(value), shown(error)


def with_group(
    estimates: Mapping[str, Estimate], group: str, headline: bool = False, **better: str
) -> dict[str, Estimate]:
    """Adds the group to estimates; `better` maps names to whether "higher" or "lower" is better.

    Names match up to an "@": `frechet_distance=...` applies to "frechet_distance@digits_cnn" too. Other estimates are
    unchanged.
    """
    kept = dict(estimates)
    for name, estimate in estimates.items():
        if (base := name.partition("@")[0]) in better:
            kept[name] = estimate._replace(group=group, better=better[base], headline=headline)
    return kept


def counted(arrays: Arrays) -> Arrays:
    """The examples that count: those of positive weight and, of sequences, of at least one step."""
    keep = np.ones(len(arrays["x"]), bool)
    for entry in ("weight", "length"):
        if entry in arrays:
            keep &= np.asarray(arrays[entry]) > 0
    if not keep.any():
        raise UserError("no example counts: all have weight 0 or length 0")
    return arrays if keep.all() else {name: a[keep] for name, a in arrays.items()}


class Split(NamedTuple):
    """One split for evaluation: raw arrays, and the transforms the model was trained with."""

    name: str
    arrays: Arrays
    transforms: tuple[Transform, ...] = ()
    batch: int = 256
    training: Arrays | None = None  # training data of the model
    data: str = ""  # name of the data set
    levels: int | None = None  # of stored integers 0 .. levels - 1, where known
    info: DataInfo | None = None
    windows: Windows | None = None  # of a stream of tokens, of which the examples are windows
    partner: Any = None  # of unpaired domains, the same split of the other one

    @property
    def size(self) -> int:
        return len(self.arrays["x"])

    @property
    def protocol(self) -> str:
        """The preprocessing that affects likelihoods."""
        return ", ".join(filter(None, (transform.protocol for transform in self.transforms_of("x"))))

    def transforms_of(self, entry: str) -> list[Transform]:
        """The transforms that change an entry of the batch."""
        return [transform for transform in as_transforms(self.transforms) if entry in transform.entries]

    def part(self, start: int, stop: int) -> Split:
        """The examples start .. stop - 1, as a split."""
        return self._replace(arrays={name: a[start:stop] for name, a in self.arrays.items()})

    def head(self, n: int) -> Batch:
        """The first n examples, transformed."""
        index = np.arange(min(n, self.size), dtype=np.int32)
        raw = {name: jnp.asarray(a) for name, a in take(self.arrays, index).items()} | {"index": jnp.asarray(index)}
        return apply_transforms(raw, self.transforms, 0, 0)

    @property
    def reference(self) -> Split:
        """The training examples, as a split."""
        if self.training is None:
            raise UserError(f"{self.name} comes without the training examples to compare with")
        return self._replace(arrays=self.training)

    def untransformed(self, x: Any, entry: str = "x") -> np.ndarray:
        """Maps transformed values back to the stored units, by the inverses that the transforms have."""
        x = np.asarray(x)
        for transform in reversed(self.transforms_of(entry)):
            x = x if transform.inverse is None else transform.inverse(x)
        return x

    def pixels(self, x: Any, entry: str = "x") -> np.ndarray:
        """Maps transformed images (N, H, W, C) to intensities: stored integers to [0, 1], floats clipped to the range
        of the data. Anything else is not rescaled."""
        x, raw, transforms = self.untransformed(x, entry), self.arrays[entry], self.transforms_of(entry)
        if stored := [transform.support for transform in transforms if transform.support]:
            low, high = stored[0]
            x = (x - low) / (high - low)
        elif raw.ndim == 4:
            ranges = [value_range(a[entry], self.levels) for a in (self.arrays, self.training or self.arrays)]
            low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
            x = np.clip(x / high, 0, 1) if raw.dtype.kind in "iu" else np.clip(x, low, high)
        return x.astype(np.float32)


Measure = Callable[[State, Split, Array], Mapping[str, Estimate]]


Metric = Callable[[Any], Measure]


PerExample = Callable[[State, Batch, Array], Array]


def ask(model: Any, ability: type, metric: str) -> None:
    """Raises UserError unless the model has the ability, a protocol of `gen_jax.core`, that a metric needs."""
    if not isinstance(model, ability):
        raise UserError(
            f"{metric} needs a model that is {ability.__name__} (see gen_jax.core), and {type(model).__name__} is not: "
            "leave it out of `metrics`"
        )


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """The standard error of the mean of values, NaN for a single one."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def ratio_of_sums(totals: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """sum(totals) / sum(sizes) over N examples (N,), and its standard error by the delta method."""
    n, size = len(totals), sizes.sum()
    ratio = totals.sum() / size
    spread = np.sum((totals - ratio * sizes) ** 2) * n / (n - 1) if n > 1 else math.nan
    return float(ratio), math.sqrt(spread) / float(size)


def mean_over(per_example: PerExample) -> Callable[[State, Split, Array], tuple[float, float]]:
    """Makes (state, split, key) -> (mean, standard error) of a per-example function (B,), each example exactly once."""

    @partial(jax.jit, static_argnums=1)
    def moments(state: State, transforms: tuple[Transform, ...], raw: Batch, mask: Array, number: Array, key: Array):
        batch = apply_transforms(raw, transforms, 0, number)
        values = per_example(state, batch, jax.random.fold_in(key, number))
        safe = jnp.where(mask > 0, values, 0.0)
        mean = safe.sum() / mask.sum()
        return mean, jnp.sum(mask * (values - mean) ** 2, where=mask > 0), mask.sum()

    def run(state: State, split: Split, key: Array) -> tuple[float, float]:
        mean, squares, count = 0.0, 0.0, 0.0  # float64, merged batch by batch (Chan, Golub & LeVeque 1983)
        for number, (raw, mask) in enumerate(epoch(split.arrays, min(split.batch, split.size))):
            m, s, c = (float(v) for v in moments(state, split.transforms, raw, mask, np.int32(number), key))
            delta, total = m - mean, count + c
            squares += s + delta**2 * count * c / total
            mean, count = mean + delta * c / total, total
        error = math.sqrt(squares / (count - 1) / count) if count > 1 else math.nan
        return mean, error

    return run
