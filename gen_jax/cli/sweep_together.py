"""A sweep as one program: runs that differ in numbers which only training uses, side by side on the same batches."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.configs import ConfigFile
from gen_jax.core import Algorithm, State
from gen_jax.errors import Attempts, Preempted, UserError
from gen_jax.evaluation.metric import Estimate, Split
from gen_jax.evaluation.report import evaluator
from gen_jax.experiment import Experiment
from gen_jax.hooks import Preempt
from gen_jax.logs import TRAIN, VALIDATION, Writer
from gen_jax.loop import Hook, Values, program
from gen_jax.restarts import member, population
from gen_jax.run import Run
from gen_jax.sharding import Layout

__all__ = ["train_together"]

SHARED = ("steps", "batch", "chunk", "keep", "best", "report_every", "evaluate_every", "checkpoint_every")


def train_together(configs: Sequence[ConfigFile], folders: Sequence[Path], data_dir: Path | None) -> list[int]:
    """Trains the configs as one program, each in its working directory; returns the places of those that failed.

    Every folder holds what a run of its own would have left but for rounding: checkpoints and metrics from the same
    random numbers, not its speed and pictures of steps before the last. So each can be resumed alone, also after a
    kill. Raises UserError if the configs differ in more than numbers that can be traced.
    """
    runs = [
        Run.prepare(config, folder, data_dir=data_dir, layout=Layout(data=1), training=i == 0)
        for i, (config, folder) in enumerate(zip(configs, folders))
    ]
    first = runs[0].experiment
    _check_alike(runs)
    try:
        ready = program(_side_by_side(configs, data_dir), runs[0].source(), first.chunk, Layout(data=1))
    except UserError:
        raise
    except Exception as error:  # of a number that is traced where Python needs its value
        said = str(error).partition("\n")[0]
        raise UserError(f"--together: a knob decides what is computed: leave --together out ({said})") from error
    preempt = Preempt()
    with ExitStack() as stack:
        members = [stack.enter_context(_Member(run, evaluate)) for run, evaluate in zip(runs, _evaluators(runs))]
        apart = _Apart(members, preempt, first.evaluate_every, first.checkpoint_every)
        ready.run(first.steps, report_every=first.report_every, hooks=[apart, preempt])
    if preempt.received:
        raise Preempted("stopped and saved; the same command goes on, with each run by itself")
    failed = [i for i, one in enumerate(members) if one.lost]
    for i, run in enumerate(runs):
        if i not in failed:
            run.train(bar=False)  # evaluates and draws the trained State
    return failed


def _check_alike(runs: Sequence[Run]) -> None:
    """Raises a UserError unless the runs see the same batches and do the same things at the same steps."""
    first = runs[0].experiment
    if first.seeds > 1 or first.hooks:
        raise UserError("--together: this config stops by itself or trains several seeds: leave --together out")
    sources = [run.source() for run in runs]
    batches = [jax.tree.leaves(jax.tree.map(np.asarray, source.batch_at(0))) for source in sources]
    for run, batch in zip(runs[1:], batches[1:]):
        same = run.data.digest == runs[0].data.digest and len(batch) == len(batches[0])
        if not same or not all(np.array_equal(a, b) for a, b in zip(batch, batches[0])):
            raise UserError("--together: a knob changes the data or its transforms: leave --together out")
        if any(vars(run.experiment)[name] != vars(first)[name] for name in SHARED):
            raise UserError(f"--together: a knob changes {', '.join(SHARED)}: leave --together out")
    for source in sources:
        source.close()


def _evaluators(runs: Sequence[Run]) -> list[Callable[[State, Split], Mapping[str, Estimate]]]:
    """The evaluator of each run, compiled once where model and metrics are the same; what fails is left out."""
    first, attempt = runs[0].experiment, Attempts()
    shared = evaluator(first.model, first.metrics, attempt=attempt)

    def of(experiment: Experiment) -> Callable[[State, Split], Mapping[str, Estimate]]:
        try:
            same = bool(experiment.model == first.model) and list(experiment.metrics) == list(first.metrics)
        except ValueError:  # of arrays among the fields
            same = False
        return shared if same else evaluator(experiment.model, experiment.metrics, attempt=attempt)

    return [of(run.experiment) for run in runs]


def _side_by_side(configs: Sequence[ConfigFile], data_dir: Path | None) -> Algorithm:
    """One algorithm for all configs, whose knobs that differ are traced numbers."""
    first = configs[0]
    different = [name for name in first.knobs if any(one.knobs[name] != first.knobs[name] for one in configs)]
    for name in different:
        if not all(isinstance(one.knobs[name], float) for one in configs):
            raise UserError(f"--together: --{name} is no float, and must be the same in all runs: leave --together out")
    values = {name: jnp.asarray([one.knobs[name] for one in configs], jnp.float32) for name in different}

    def make(traced: Mapping[str, Any]) -> Algorithm:
        try:
            return first.with_knobs(traced).build(data_dir).algorithm
        except UserError as error:
            names = " or ".join(f"--{name}" for name in traced)
            raise UserError(f"--together: {names} is used outside of the compiled step ({error})") from error

    return population(make, values, alike=True)


class _Member:
    """The files of one of the runs, as a context."""

    def __init__(self, run: Run, evaluate: Callable[[State, Split], Mapping[str, Estimate]]):
        self.run, self.evaluate, self.lost, self._open = run, evaluate, False, ExitStack()

    def __enter__(self) -> _Member:
        folder, experiment = self.run.folder, self.run.experiment
        folder.claim(force=False)
        self.checkpoints = self._open.enter_context(folder.checkpoints(experiment, True, folder.identity()))
        folder.record(force=False)
        self.writer = Writer(self.run.workdir)
        self._open.callback(self.writer.close)
        self.split = experiment.split(self.run.data, "validation")
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def measure(self, step: int, state: State) -> Values:
        """The metrics of the validation split, which are written."""
        found = {f"{VALIDATION}{name}": e.value for name, e in self.evaluate(state, self.split).items()}
        self.writer.write(step, found)
        return found

    def save(self, step: int, state: State, measured: Values) -> None:
        if not self.lost and not self.checkpoints.save(step, state, measured):
            self.lose(f"a parameter is not finite at step {step}")
        if self.checkpoints.best and measured:
            self.checkpoints.best.check(measured)

    def lose(self, why: str) -> None:
        """Leaves the run out from now on."""
        if not self.lost:
            self.lost = True
            print(f"warning: {self.run.workdir} is left out: {why}", file=sys.stderr)


class _Apart(Hook):
    """Gives each run its reports, its measurements and its checkpoints."""

    urgent = True

    def __init__(self, members: Sequence[_Member], preempt: Preempt, evaluate_every: int, checkpoint_every: int):
        self.members, self.preempt, self.due = members, preempt, (evaluate_every, checkpoint_every)
        self.every = math.gcd(*self.due)

    def report(self, step: int, values: Values) -> None:
        for i, one in enumerate(self.members):
            one.writer.write(step, {f"{TRAIN}{name}": each[i] for name, each in values.items()})
            if lost := [name for name, each in values.items() if not math.isfinite(each[i])]:
                one.lose(f"{lost[0]} is not finite at step {step}")

    def visit(self, step: int, state: State, measured: Values) -> None:
        last = step >= self.members[0].run.experiment.steps
        evaluate, save = (last or step % every == 0 for every in self.due)
        for i, one in enumerate(self.members):
            own = member(state, i, alike=True)
            found = one.measure(step, own) if evaluate and one.run.experiment.metrics and not one.lost else {}
            if save or self.preempt.received:
                one.save(step, own, found)
