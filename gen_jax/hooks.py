"""Hooks for `loop.fit`: logging, evaluation, plots, checkpoints, stopping."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from gen_jax.checkpoint import Checkpoints
from gen_jax.core import State
from gen_jax.errors import Attempts, NonFiniteError, UserError
from gen_jax.logs import TRAIN, Writer
from gen_jax.loop import Hook, Values
from gen_jax.sharding import is_writer

__all__ = [
    "Checkpoint",
    "Diagnose",
    "Evaluate",
    "HaltOnNaN",
    "Log",
    "Plot",
    "Preempt",
    "Profile",
    "StopWhen",
    "save_figures",
]


class Log(Hook):
    """Writes the metrics with steps/s, examples/s and the compile time, and shows a progress bar."""

    def __init__(self, writer: Writer, steps: int, batch: int, prefix: str = TRAIN, bar: bool = True):
        self.writer, self.steps, self.batch, self.prefix = writer, steps, batch, prefix
        self.bar = tqdm(
            total=steps, unit="step", disable=not (bar and is_writer()), dynamic_ncols=True, mininterval=0.5
        )
        self.compile_seconds: float | None = None
        self.first_step_at: float | None = None  # wall-clock time

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def begin(self, step: int, names: Sequence[str]) -> None:
        self.bar.update(step - self.bar.n)
        self._mark, self._new = (step, time.perf_counter()), {}

    def poll(self, step: int) -> None:
        now = self._polled = time.perf_counter()
        if self.compile_seconds is None:  # the first call returns once its program is compiled
            self.compile_seconds, self.first_step_at = now - self._mark[1], time.time()
            self._mark, self._new = (step, now), {"compile_seconds": self.compile_seconds}
        self.bar.update(step - self.bar.n)

    def resume(self, step: int) -> None:
        (before, then), now = self._mark, time.perf_counter()
        self._mark = (before, then + now - self._polled)  # exclude the time of other hooks

    def report(self, step: int, values: Values) -> None:
        (before, then), now = self._mark, time.perf_counter()
        self._mark, self._polled = (step, now), now
        speed, self._new = self._new, {}
        if step > before:
            rate = (step - before) / (now - then)
            speed |= {"steps_per_second": rate, "examples_per_second": rate * self.batch}
        self.writer.write(step, {f"{self.prefix}{k}": v for k, v in values.items()} | speed)
        shown = next(((k, v) for k, v in values.items() if "loss" in k or "likelihood" in k), None)
        if shown:
            self.bar.set_postfix_str(f"{shown[0]} {np.mean(shown[1]):.4g}", refresh=False)


class Evaluate(Hook):
    """Evaluates `evaluation(state)`, a mapping of floats or of one float for each seed, periodically and logs it."""

    rank = 0

    def __init__(self, evaluation: Callable[[State], Values], writer: Writer, every: int):
        self.evaluation, self.writer, self.every = evaluation, writer, every

    def visit(self, step: int, state: State, measured: Values) -> Values:
        values = self.evaluation(state)
        self.writer.write(step, values)
        return values


class Plot(Hook):
    """Saves the figures of `draw(state)`, {name: matplotlib figure}, as `folder/name_step.png`."""

    def __init__(
        self,
        draw: Callable[[State], Mapping[str, Any]],
        folder: str | os.PathLike,
        every: int,
        attempt: Attempts | None = None,
    ):
        self.draw, self.folder, self.every, self.attempt = draw, Path(folder), every, attempt or Attempts(strict=True)

    def visit(self, step: int, state: State, measured: Values) -> None:
        save_figures(self.draw(state), self.folder, f"_{step:07d}.png", self.attempt)


def save_figures(figures: Mapping[str, Any], folder: Path, ending: str, attempt: Attempts) -> None:
    """Saves figures as files of a folder, in the first process; labels that cannot be typeset fail here."""
    if is_writer() and figures:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            attempt(f"plot {name}", partial(figure.savefig, folder / f"{name}{ending}"), None)


class Checkpoint(Hook):
    """Saves the State before anything else; where metrics decide the best checkpoint, after they are measured."""

    urgent = True

    def __init__(self, checkpoints: Checkpoints, every: int, attempt: Attempts | None = None):
        self.checkpoints, self.every, self.attempt = checkpoints, every, attempt or Attempts(strict=True)
        self.rank = 1 if checkpoints.best else -1
        self.seconds = 0.0  # time the loop waited for saves to start

    def visit(self, step: int, state: State, measured: Values) -> None:
        start = time.perf_counter()
        if not self.checkpoints.save(step, state, measured):
            raise NonFiniteError(f"a parameter is not finite at step {step}{_advice(self.checkpoints)}")
        if self.checkpoints.best and not self.attempt.failed:
            self.checkpoints.best.check(measured)
        self.seconds += time.perf_counter() - start


class StopWhen(Hook):
    """Stops when a metric changes by less than `tolerance` between reports, `patience` times in a row.

    With `relative` the change is relative to the metric's magnitude. For EM, `report_every=1` compares successive
    iterations.
    """

    def __init__(self, metric: str, tolerance: float, patience: int = 1, relative: bool = False):
        self.metric, self.tolerance, self.patience, self.relative = metric, tolerance, patience, relative
        self.last, self.calm = math.inf, 0

    def begin(self, step: int, names: Sequence[str]) -> None:
        if self.metric not in names:
            raise UserError(f"StopWhen watches {self.metric!r}, but the metrics are {', '.join(names)}")
        if step == 0:
            self.last, self.calm = math.inf, 0

    def replay(self, step: int, values: Values) -> None:
        self.report(step, values)

    def report(self, step: int, values: Values) -> bool:
        if self.metric not in values:  # its player was not updated
            return False
        value = float(np.mean(values[self.metric]))
        scale = abs(value) if self.relative else 1.0
        self.calm = self.calm + 1 if abs(value - self.last) < self.tolerance * scale else 0
        self.last = value
        if self.calm >= self.patience:
            times = f", {self.patience} times in a row" if self.patience > 1 else ""
            part = " of itself" if self.relative else ""
            self.reason = f"{self.metric} changed by less than {self.tolerance:g}{part}{times}"
        return self.calm >= self.patience


class HaltOnNaN(Hook):
    """Raises NonFiniteError as soon as a metric is NaN or infinite; earlier checkpoints stay valid."""

    def __init__(self, checkpoints: Checkpoints | None = None):
        self.checkpoints = checkpoints

    def report(self, step: int, values: Values) -> None:
        bad = []
        for name, value in values.items():
            lost = np.flatnonzero(~np.isfinite(np.atleast_1d(value)))
            if len(lost):
                bad.append(f"{name} of seed {lost[0]}" if isinstance(value, list) else name)
        if bad:
            raise NonFiniteError(f"{' and '.join(bad)} not finite at step {step}{_advice(self.checkpoints)}")


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


class Diagnose(Hook):
    """Prints the message of `diagnose(metrics)` once, after `patience` consecutive reports with the same message."""

    def __init__(self, diagnose: Callable[[Values], str], patience: int = 3, say: Callable[[str], None] = _say):
        self.diagnose, self.patience, self.say = diagnose, patience, say
        self.last, self.times = "", 0

    def report(self, step: int, values: Values) -> None:
        members = _of_each_seed(values)
        said = [(i, text) for i, one in enumerate(members) if (text := self.diagnose(one))]
        found = "" if not said else said[0][1] if len(members) == 1 else f"seed {said[0][0]}: {said[0][1]}"
        self.times = self.times + 1 if found == self.last else 1
        self.last = found
        if found and self.times == self.patience and is_writer():
            self.say(f"step {step}: {found}")


def _of_each_seed(values: Values) -> list[Values]:
    """The metrics of each seed."""
    seeds = max((len(value) for value in values.values() if isinstance(value, list)), default=0)
    one = lambda i: {name: value[i] if isinstance(value, list) else value for name, value in values.items()}
    return [one(i) for i in range(seeds)] if seeds else [values]


def _advice(checkpoints: Checkpoints | None) -> str:
    kept = f"; the checkpoint of step {checkpoints.steps[-1]} is good" if checkpoints and checkpoints.steps else ""
    return f"{kept}; try a lower learning rate, or clip the gradient with optax.clip_by_global_norm"


class Profile(Hook):
    """Traces the steps first .. last with the JAX profiler, to be opened in TensorBoard or Perfetto."""

    def __init__(self, folder: str | os.PathLike, first: int = 10, last: int = 20):
        if not 1 <= first < last:
            raise UserError(f"profile the steps FIRST to LAST with 1 <= FIRST < LAST, got {first} and {last}")
        self.folder, self.at, self.running = str(folder), (first, last), False

    def begin(self, step: int, names: Sequence[str]) -> None:
        if step >= self.at[0]:
            raise UserError(f"step {self.at[0]} cannot be profiled: the run resumes at step {step}")

    def visit(self, step: int, state: State, measured: Values) -> None:
        state.step.block_until_ready()
        if step == self.at[0]:
            jax.profiler.start_trace(self.folder)
            self.running = True
        else:
            self.__exit__()

    def __exit__(self, *error: Any) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


class Preempt(Hook):
    """On SIGTERM or SIGINT, finishes the step and stops the run, so that it is saved. A second SIGINT exits at once.

    Multiple processes all stop at the same step, whichever receives the signal: JAX catches SIGTERM in each and
    agrees on the step, and SIGINT is forwarded to it.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._calls = 0

    def __enter__(self):
        alone = jax.process_count() == 1
        numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        said = f"\n{self.received.name}: finishing the step and saving; again to quit at once\n"
        os.write(2, said.encode())  # the signal may have interrupted a print
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def poll(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.received is not None
        from jax.experimental import multihost_utils

        self._calls += 1  # JAX requires the same count in all processes, without gaps
        if not multihost_utils.reached_preemption_sync_point(self._calls):
            return False
        self.received = self.received or signal.SIGTERM
        return True
