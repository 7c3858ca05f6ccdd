"""An experiment: the object that a config file builds; see `gen_jax.configs` for loading.

A config is a Python file with a function `config(**knobs) -> Experiment`. The knobs are its keyword arguments; every
config has `steps` and `smoke` among them, and documents the others in its docstring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gen_jax.checkpoint import Best
from gen_jax.core import Algorithm
from gen_jax.data.catalogue import Dataset
from gen_jax.data.source import Resident, Streamed, check_arrays
from gen_jax.data.transforms import Transform
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Metric, Split, counted
from gen_jax.loop import Hook
from gen_jax.plots import PlotFn
from gen_jax.sharding import Layout

__all__ = ["Experiment"]


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, as Python objects.

    data: the name of a data set, or a `Dataset`. batch: examples per step; None is the whole training split.
    transforms: applied to batches on the device; see `gen_jax.data.transforms`.
    metrics, plots: functions from `gen_jax.evaluation` and `gen_jax.plots`, run every `evaluate_every` and `plot_every`
    steps on the validation split, and at the end on the test split.
    chunk: steps per call of the compiled program. resident: keep the data on the device, or stream it from the host.
    keep, best: how many of the newest checkpoints to keep, and the metric that selects the best one.
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
    resident: bool = True
    missing: bool = False
    train: str = "train"
    validation: str = "validation"
    test: str = "test"

    def __post_init__(self):
        for name in ("steps", "chunk", "report_every", "evaluate_every", "plot_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.best and self.checkpoint_every % self.evaluate_every:
            raise UserError("to keep the best checkpoint, checkpoint_every must be a multiple of evaluate_every")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch must be at least 1, got {self.batch}")

    def source(self, data: Dataset, seed: int = 0) -> Resident | Streamed:
        """The training split as a function of the step."""
        arrays = data[self.train]
        name = f"{data.name} [{self.train}]"
        if self.resident:
            return Resident(arrays, self.batch, tuple(self.transforms), seed=seed, missing=self.missing, name=name)
        check_arrays(arrays, self.batch, name, self.missing)
        size = len(arrays["x"])
        records = lambda index: {name: a[index] for name, a in arrays.items()}
        return Streamed(records, size, self.batch or size, tuple(self.transforms), self.batch is not None, seed)

    def split(self, data: Dataset, name: str) -> Split:
        """A split for evaluation; "validation", "test" and "train" refer to the splits that the experiment names."""
        name = {"train": self.train, "validation": self.validation, "test": self.test}.get(name, name)
        batch = max(self.batch or 1024, 256)
        train = counted(data[self.train])
        return Split(name, counted(data[name]), tuple(self.transforms), batch, train, data.name)
