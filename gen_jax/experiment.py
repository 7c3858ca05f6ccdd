"""An experiment: what a config file builds, and how one is loaded from the file and the command line.

A config is a Python file with a function `config(**knobs) -> Experiment`. The knobs are its keyword arguments; every
config has `steps` and `smoke` among them, and documents the others in its docstring.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from gen_jax.checkpoint import Best
from gen_jax.core import Algorithm
from gen_jax.data.catalogue import Dataset
from gen_jax.data.source import Resident, Streamed, check_arrays
from gen_jax.data.transforms import Transform
from gen_jax.errors import UserError
from gen_jax.evaluation.likelihood import Metric, Split
from gen_jax.loop import Hook
from gen_jax.plots import Draw
from gen_jax.sharding import Layout


@dataclass(frozen=True)
class Experiment:
    """Everything one run needs, as real objects.

    data: the name of a data set, or a `Dataset`. batch: examples per step; None is the whole training split.
    transforms: what happens to a batch on the device; see `gen_jax.data.transforms`.
    metrics, plots: functions from `gen_jax.evaluation` and `gen_jax.plots`, run every `evaluate_every` and `plot_every`
    steps on the validation split, and at the end on the test split.
    chunk: steps per call of the compiled program. resident: keep the data on the device, or stream it from the host.
    keep, best: how many of the newest checkpoints to keep, and which metric decides the best one.
    hooks: more hooks, e.g. `StopWhen`. missing: NaN in "x" marks missing values, which the model takes.
    """

    model: Any
    algorithm: Algorithm
    data: str | Dataset
    steps: int
    batch: int | None = None
    transforms: Sequence[Transform] = ()
    metrics: Sequence[Metric] = ()
    plots: Sequence[Draw] = ()
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
        check_arrays(arrays, self.batch, f"{data.name} [{self.train}]", self.missing)
        if self.resident:
            return Resident(arrays, self.batch, tuple(self.transforms), seed=seed, missing=self.missing)
        size = len(arrays["x"])
        records = lambda index: {name: a[index] for name, a in arrays.items()}
        return Streamed(records, size, self.batch or size, tuple(self.transforms), self.batch is not None, seed)

    def split(self, data: Dataset, name: str) -> Split:
        """A split for evaluation; "validation", "test" and "train" mean those the experiment names."""
        name = {"train": self.train, "validation": self.validation, "test": self.test}.get(name, name)
        batch = max(self.batch or 1024, 256)
        return Split(name, data[name], tuple(self.transforms), batch, data[self.train], data.name)


Config = Callable[..., Experiment]


@dataclass(frozen=True)
class Loaded:
    """A config file and the knobs it is to be called with."""

    path: Path
    config: Config
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def changed(self) -> dict[str, Any]:
        """The knobs that differ from their defaults."""
        return {name: value for name, value in self.knobs.items() if value != self.defaults[name]}

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: p.default for name, p in inspect.signature(self.config).parameters.items()}

    def with_knobs(self, knobs: Mapping[str, Any]) -> Loaded:
        """The same config with some knobs changed."""
        for name, value in knobs.items():
            if name not in self.defaults:
                raise UserError(unknown_knob(self.path, name, list(self.defaults)))
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name} must be finite, got {value}")
        if knobs.get("steps", 1) < 1:
            raise UserError(f"--steps must be at least 1, got {knobs['steps']}")
        return dataclasses.replace(self, knobs={**self.knobs, **knobs})

    def build(self) -> Experiment:
        """Calls the config."""
        try:
            experiment = self.config(**self.knobs)
        except UserError:
            raise
        except ValueError as error:  # what models and optimizers say of impossible hyper-parameters
            raise UserError(f"{self.path}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise UserError(f"{self.path}: config() returned {type(experiment).__name__}, not an Experiment")
        return experiment


def load(path: str | Path, knobs: Mapping[str, Any] | None = None) -> Loaded:
    """Loads a config file (which runs it) with its default knobs, or some of them changed."""
    path = Path(path)
    if not path.is_file():
        here = sorted(str(p) for p in (path.parent if path.parent.is_dir() else Path("configs")).glob("*.py"))
        near = difflib.get_close_matches(str(path), here, n=1, cutoff=0.5)
        raise UserError(f"there is no config {path}: " + (f"did you mean {near[0]}?" if near else f"there are {here}"))
    config = getattr(_module(path), "config", None)
    if not callable(config):
        raise UserError(f"{path} defines no function config(...)")
    parameters = inspect.signature(config).parameters
    for name, p in parameters.items():
        if p.default is p.empty:
            raise UserError(f"{path}: the knob {name} needs a default")
    if missing := {"steps", "smoke"} - set(parameters):
        raise UserError(f"{path}: config() needs the knobs steps and smoke, {' and '.join(sorted(missing))} missing")
    loaded = Loaded(path, config)
    return dataclasses.replace(loaded, knobs=loaded.defaults).with_knobs(knobs or {})


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gen_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def knob_help(config: Config) -> dict[str, tuple[Any, Any, str]]:
    """{knob: (type, default, help)} from a config's signature and the "Args:" of its docstring."""
    import docstring_parser

    types = typing.get_type_hints(config)
    said = {p.arg_name: p.description or "" for p in docstring_parser.parse(config.__doc__ or "").params}
    common = {"steps": "training steps", "smoke": "a tiny version that only shows that it runs"}
    return {
        name: (types.get(name, type(p.default)), p.default, said.get(name, common.get(name, "")))
        for name, p in inspect.signature(config).parameters.items()
    }


def unknown_knob(path: Path, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean --{near[0]}? " if near else ""
    return f"{path} has no knob --{name}: {hint}It has {', '.join('--' + k for k in known)}"
