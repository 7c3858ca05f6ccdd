"""Experiment trackers that show a run elsewhere, beside metrics.jsonl and TensorBoard: Weights & Biases and MLflow.

They are extras, `pip install gen_jax[wandb]` or `gen_jax[mlflow]`, and read their own environment variables, such as
WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. A tracker that fails is reported once
and left out; it never ends a run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gen_jax.errors import UserError
from gen_jax.files import write_text
from gen_jax.sharding import is_writer

__all__ = ["NAMES", "Guarded", "MLflow", "Tracker", "WeightsAndBiases", "check_trackers", "open_trackers", "scalars"]


class Tracker(Protocol):
    """A place that metrics are sent to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends finite metrics of a step."""

    def close(self) -> None:
        """Ends the run there, with what is still on its way."""


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite values of metrics by name, those of several seeds as NAME/NUMBER."""
    each = {
        k: {f"{k}/{i}": one for i, one in enumerate(v)} if isinstance(v, list) else {k: v} for k, v in values.items()
    }
    return {name: float(v) for many in each.values() for name, v in many.items() if math.isfinite(v)}


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The identifier in a file, made and written if there is none, by which a resumed run goes on."""
    if not path.is_file():
        write_text(path, make())
    return path.read_text().strip()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project WANDB_PROJECT, or gen_jax."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gen_jax"),
            name=name,
            id=_kept(folder / "wandb.id", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow, in the experiment MLFLOW_EXPERIMENT_NAME, or gen_jax; by default in mlflow.db beside the run."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]):
        from mlflow import MlflowClient

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gen_jax")
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self.client.create_experiment(experiment)
        self.id = _kept(folder / "mlflow.id", lambda: self.client.create_run(number, run_name=name).info.run_id)
        there = self.client.get_run(self.id).data.params
        for key, value in settings.items():
            if key not in there:  # what is there cannot be changed
                self.client.log_param(self.id, key, str(value)[:6000])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, [Metric(k.replace("@", "."), v, now, step) for k, v in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


NAMES = {"wandb": ("wandb", WeightsAndBiases), "mlflow": ("mlflow", MLflow)}  # package, class


class Guarded:
    """A tracker whose first failure is reported, and the last that is heard of it."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self.name, self.tracker = name, None
        self.tracker = self._try(make)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # of the network, of accounts, of another program
            self.tracker = None
            said = str(error).partition("\n")[0]
            print(f"warning: {self.name} is left out: {type(error).__name__}: {said}", file=sys.stderr)
            return None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends the finite values, of several seeds each by its number."""
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.write(step, scalars(values)))

    def close(self) -> None:
        if (tracker := self.tracker) is not None:
            self._try(tracker.close)


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for trackers that are unknown or whose package is not installed."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"--track {name}: there are {', '.join(NAMES)}")
        if importlib.util.find_spec(NAMES[name][0]) is None:
            raise UserError(f"--track {name}: it is not installed: pip install {NAMES[name][0]}")


def open_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Guarded]:
    """Begins the run of a working directory in each tracker, or goes on with it; in the first process."""
    if not is_writer():
        return []
    return [Guarded(name, lambda make=NAMES[name][1]: make(folder, folder.name, settings)) for name in names]
