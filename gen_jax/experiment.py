"""An experiment: the object that a config file builds; see `gen_jax.configs` for loading.

A config is a Python file with a function `config(**knobs) -> Experiment`. The knobs are its keyword arguments; every
config has `steps` and `smoke` among them, and documents the others in its docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gen_jax.checkpoint import Best
from gen_jax.core import Algorithm, Source
from gen_jax.data.catalogue import held_out_rows
from gen_jax.data.checks import check_arrays
from gen_jax.data.dataset import Dataset
from gen_jax.data.host import HostTransform, fixed
from gen_jax.data.mixing import TokenWindows, Unpaired
from gen_jax.data.order import Balanced, Order, Repeated
from gen_jax.data.pairs import pack_pairs
from gen_jax.data.records import Arrays, is_lazy
from gen_jax.data.source import Resident, Streamed, too_large_for_device
from gen_jax.data.text import Windows, evaluation_windows
from gen_jax.data.transforms import Transform, as_transforms
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Metric, Split, counted
from gen_jax.loop import Hook
from gen_jax.plots import PlotFn
from gen_jax.restarts import population
from gen_jax.sharding import Layout

__all__ = ["Experiment"]

EVENTS = ("report", "evaluate", "plot", "checkpoint")


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, as Python objects.

    data: the name or path of a data set, or a `Dataset`. batch: examples per step; None is the whole training split.
    transforms: applied to batches on the device; see `gen_jax.data.transforms`. host_transforms: applied to single
    images as they are read, which are then streamed; see `gen_jax.data.host`.
    balanced: draw all classes equally often. repeats: copies of each example in a batch, each transformed anew.
    metrics, plots: functions from `gen_jax.evaluation` and `gen_jax.plots`, run every `evaluate_every` and `plot_every`
    steps on the validation split, and at the end on the test split.
    chunk: steps per call of the compiled program. resident: keep the data on the device, or stream it from the host; by
    default what fits into a quarter of the memory is kept.
    seeds: how many seeds are trained as one program, on the same batches; see `population`. The results are means over
    them, as they are over the members of a population given as the algorithm.
    keep, best: how many of the newest checkpoints to keep, and the metric that selects the best one.
    windows: how a stream of tokens is cut into the sequences of a batch; see `gen_jax.data.text.Windows`.
    packed: of pairs of token sequences: the lengths of the rows into which several pairs are packed for training.
    hooks: additional hooks, e.g. `StopWhen`. missing: NaN in "x" marks missing values, which the model accepts.
    """

    model: Any
    algorithm: Algorithm
    data: str | Dataset
    steps: int
    batch: int | None = None
    transforms: Sequence[Transform] = ()
    metrics: Sequence[Metric] = ()
    plots: Sequence[PlotFn] = ()
    chunk: int = 1
    report_every: int = 100
    evaluate_every: int = 1000
    plot_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 3
    best: Best | None = None
    hooks: Sequence[Hook] = ()
    layout: Layout = Layout()
    resident: bool | None = None
    host_transforms: Sequence[HostTransform] = ()
    balanced: bool = False
    repeats: int = 1
    seeds: int = 1
    missing: bool = False
    windows: Windows | None = None
    packed: tuple[int, int] | None = None
    train: str = "train"
    validation: str = "validation"
    test: str = "test"

    def __post_init__(self):
        self._check_types()
        if self.best and self.checkpoint_every % self.evaluate_every:
            raise UserError("to keep the best checkpoint, checkpoint_every must be a multiple of evaluate_every")
        if self.algorithm.members == 1:
            raise UserError("the algorithm is a population of one member: give at least two, or the algorithm itself")
        if self.algorithm.members:
            if self.seeds not in (1, self.algorithm.members):
                raise UserError(f"the algorithm trains {self.algorithm.members} members already: leave out seeds")
            object.__setattr__(self, "seeds", self.algorithm.members)
        if self.windows and (self.balanced or self.repeats > 1 or self.transforms or self.host_transforms):
            raise UserError("windows of tokens take no transforms, and are not balanced or repeated")
        if self.balanced and self.repeats > 1:
            raise UserError("balanced and repeats exclude each other")
        if self.batch is None and (self.balanced or self.repeats > 1):
            raise UserError("balanced and repeats need a batch")

    def _check_types(self) -> None:
        """Raises a UserError for fields of another type than they must be."""
        for name in ("metrics", "plots", "transforms", "host_transforms", "hooks"):
            given = vars(self)[name]
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise UserError(f"{name} must be a list, got {given!r}")
        for name, one in {"metrics": "evaluation.log_likelihood", "plots": "plots.samples"}.items():
            if odd := [function for function in vars(self)[name] if not inspect.isroutine(function)]:
                said = f"such as gen_jax.{one}; got {odd[0]!r}" + ", which needs a def" * callable(odd[0])
                raise UserError(f"{name} must be a list of functions, {said}")
        if not isinstance(self.algorithm, Algorithm):
            raise UserError(f"algorithm must be one, such as descent(model, tx), got a {type(self.algorithm).__name__}")
        for name in ("steps", "chunk", "seeds", "repeats", "batch", *(f"{what}_every" for what in EVENTS)):
            number = vars(self)[name]
            if name == "batch" and number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
                raise UserError(f"{name} must be a whole number, got {number!r}")
            if number < 1:
                raise UserError(f"{name} must be at least 1, got {number}")

    @property
    def algorithm_of_seeds(self) -> Algorithm:
        """The algorithm that is run: of several seeds, their population."""
        return self.algorithm if self.seeds in (1, self.algorithm.members) else population(self.algorithm, self.seeds)

    def with_validation(self, data: Dataset) -> Experiment:
        """The experiment that holds out a part of the training split where the data has no validation split."""
        if self.validation != "validation" or self.train != "train" or "validation" in data.splits:
            return self
        if "train" not in data.splits:
            return self
        start = held_out_rows(data.name) or "90%"
        return replace(self, train=f"train[:{start}]", validation=f"train[{start}:]")

    def streaming_reason(self, data: Dataset) -> str:
        """The reason to stream the training split from the host; "" to keep it on the device."""
        if self.windows:
            return ""  # tokens are few bytes
        if self.host_transforms:
            return "images are transformed on the host"
        if self.resident is not None:
            return "" if self.resident else "resident = False"
        arrays = [one[self.train] for one in (data, data.partner) if one is not None]
        large = too_large_for_device({f"{i}/{name}": a for i, one in enumerate(arrays) for name, a in one.items()})
        if not large and any(map(is_lazy, arrays)):
            return "it is read from files"
        return large

    def source(self, data: Dataset, seed: int = 0, resident: bool | None = None) -> Source:
        """The training split as a function of the step. resident: overrides the choice by its size."""
        resident = not self.streaming_reason(data) if resident is None else resident
        if data.partner is None:
            return self._source(data, seed, resident)
        other = (seed + 1) % 2**32  # else domains of equal size would be visited in the same order
        return Unpaired.of(x=self._source(data, seed, resident), y=self._source(data.partner, other, resident))

    def _source(self, data: Dataset, seed: int, resident: bool) -> Source:
        arrays, name, transforms = data[self.train], f"{data.name} [{self.train}]", tuple(self.transforms)
        if self.windows and not self.windows.whole:
            length, skip = self.windows.length + 1, data.uncounted_token
            batch = self.batch or TokenWindows(arrays["x"], length, 1, overlap=1).windows
            return TokenWindows(arrays["x"], length, batch, self.batch is not None, seed, 1, skip)
        arrays = pack_pairs(arrays, *self.packed) if self.packed else arrays
        order = self._order(arrays, name)
        if resident and not self.host_transforms:
            return Resident(arrays, self.batch, transforms, seed=seed, missing=self.missing, name=name, order=order)
        check_arrays(arrays, self.batch, name, self.missing, self.transforms)
        return Streamed.of(arrays, self.batch, transforms, seed=seed, order=order, host=tuple(self.host_transforms))

    def _order(self, arrays: Arrays, name: str) -> Order | None:
        if self.balanced and "label" not in arrays:
            raise UserError(f"{name} has no labels to balance")
        return Balanced.of(arrays["label"]) if self.balanced else Repeated(self.repeats) if self.repeats > 1 else None

    def split(self, data: Dataset, name: str) -> Split:
        """A split for evaluation; "validation", "test" and "train" refer to the splits that the experiment names."""
        name = {"train": self.train, "validation": self.validation, "test": self.test}.get(name, name)
        batch = max(self.batch or 1024, 256)
        train, part = (fixed(counted(self.examples(data, one)), self.host_transforms) for one in (self.train, name))
        transforms = tuple(t for t in as_transforms(self.transforms) if not t.augments)
        partner = None if data.partner is None else self.split(data.partner, name)
        info = replace(data.info, aligned=data.info.aligned and not name.startswith(_base(self.train)))
        return Split(name, part, transforms, batch, train, data.name, info.levels, info, self.windows, partner)

    def examples(self, data: Dataset, name: str) -> Arrays:
        """The examples of a split; of a stream of tokens its windows."""
        arrays = data[name]
        return evaluation_windows(arrays["x"], self.windows, data.uncounted_token) if self.windows else arrays


def _base(name: str) -> str:
    """The split that a part such as "train[:90%]" is of."""
    return name.partition("[")[0]
