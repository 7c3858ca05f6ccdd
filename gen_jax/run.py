"""A run: trains or resumes an experiment in a working directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

import gen_jax
from gen_jax.checkpoint import Checkpoints, mean_state
from gen_jax.configs import ConfigFile
from gen_jax.core import (
    Diagnosed,
    ImageTranslator,
    Model,
    Params,
    Seq2Seq,
    Source,
    State,
    Supported,
    averaged,
    is_sequential,
)
from gen_jax.data.cache import use_data_dir
from gen_jax.data.checks import check_arrays
from gen_jax.data.dataset import Dataset
from gen_jax.data.loading import load as load_data
from gen_jax.data.options import split_name
from gen_jax.data.records import is_lazy
from gen_jax.errors import Attempts, Preempted, UserError, check_takes, first_line, place_of, users_line
from gen_jax.evaluation.metric import Estimate, Split
from gen_jax.evaluation.report import as_json, evaluator, over_seeds
from gen_jax.experiment import Experiment
from gen_jax.hooks import Checkpoint, Diagnose, Evaluate, HaltOnNaN, Log, Plot, Preempt, Profile, save_figures
from gen_jax.logs import VALIDATION, Writer, read_record, reports
from gen_jax.loop import Hook, Program, Values, abstract_state, program, same_step
from gen_jax.plots import PlotFn, caption
from gen_jax.restarts import member
from gen_jax.sharding import Layout, is_writer
from gen_jax.trackers import check_trackers, open_trackers
from gen_jax.workdir import Workdir, default_workdir

__all__ = ["Evaluator", "Run"]

T = TypeVar("T")
TRIED = 1000  # examples, at most, that metrics and plots are tried out on
Evaluator = Callable[[State, Split], Sequence[Mapping[str, Estimate]]]  # of every seed


@dataclass(frozen=True)
class Run:
    """An experiment bound to a working directory, its data and its devices.

    member: of several seeds, the one that is sampled, drawn and exported.
    """

    config: ConfigFile
    workdir: Path
    seed: int
    experiment: Experiment
    data: Dataset
    layout: Layout
    origin: str = ""
    member: int = 0
    data_dir: Path | None = None

    @classmethod
    def prepare(
        cls,
        config: ConfigFile,
        workdir: Path | None = None,
        seed: int = 0,
        devices: int = 0,
        data_dir: Path | None = None,
        layout: Layout | None = None,
        training: bool = True,
        stream: bool | None = None,
        origin: str | None = None,
        seeds: int | None = None,
    ) -> Run:
        """Builds the experiment, loads its data and validates both.

        devices: how many to shard the batch over, overriding the experiment's layout (or `layout`).
        stream: whether to stream the training data from the host, overriding the experiment and the choice by size.
        origin: where the parameters come from that training begins with; recorded.
        seeds: how many seeds to train as one program, overriding the experiment.
        training: also run the checks needed for training only, which take longer: reading all data, tracing a step.
        """
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed must be between 0 and 2^32 - 1, got {seed}")
        if devices < 0:
            raise UserError(f"--devices must be at least 1, or 0 for all, got {devices}")
        with use_data_dir(data_dir):
            experiment = config.build()
            if training:
                config.check_recorded()
            data = load_data(experiment.data)
        experiment = experiment.with_validation(data)
        experiment = experiment if stream is None else replace(experiment, resident=not stream)
        seeds = None if seeds == experiment.seeds else seeds
        experiment = experiment if seeds is None else replace(experiment, seeds=seeds)
        layout = layout or experiment.layout
        layout = replace(layout, data=devices or layout.data)
        if experiment.seeds > 1:
            _check_seeds(layout, origin)
        workdir = workdir or default_workdir(config, seed, seeds)
        run = cls(config, workdir, seed, experiment, data, layout, origin or "", data_dir=data_dir)
        for name in (experiment.validation, experiment.test):
            experiment.split(data, name)
        if training:
            run._check_data()
            run._check_support()
            _ = run.program
            run._check_sample()
        return run

    def _check_data(self) -> None:
        """Raises a UserError if the splits for evaluation hold what cannot be evaluated."""
        experiment = self.experiment
        for name in dict.fromkeys((experiment.validation, experiment.test)):
            for data in filter(None, (self.data, self.data.partner)):
                arrays = experiment.examples(data, name)
                if not is_lazy(arrays):
                    check_arrays(arrays, None, f"{data.name} [{name}]", experiment.missing, experiment.transforms)

    def _check_support(self) -> None:
        """Raises a UserError if any example of any split lies outside the model's support."""
        model, experiment = self.experiment.model, self.experiment
        if not isinstance(model, Supported):
            return
        for name in dict.fromkeys((experiment.train, experiment.validation, experiment.test)):
            split = experiment.split(self.data, name)
            at_once = max(1, min(10_000, 2**24 // max(1, int(np.prod(split.arrays["x"].shape[1:])))))
            for start in range(0, min(split.size, 10_000) if is_lazy(split.arrays) else split.size, at_once):
                part = split.part(start, start + at_once)
                batch = {entry: np.asarray(a) for entry, a in part.head(part.size).items()}
                if reason := model.unsupported(batch):
                    raise UserError(f"{self.data.name} [{split.name}]: {reason}")

    @cached_property
    def folder(self) -> Workdir:
        found = {"name": self.data.name, "digest": self.data.digest, "resident": not self.streaming_reason}
        if "data" in self.config.knobs and os.path.exists(path := split_name(self.config.knobs["data"])[0]):
            found["path"] = os.path.abspath(path)
        found |= {"from": self.origin} if self.origin else {}
        seeds = self.experiment.seeds
        return Workdir(self.workdir, self.config, self.seed, found, self.data.info.tokenizer, seeds)

    @cached_property
    def streaming_reason(self) -> str:
        """The reason to stream the training data; "" to keep it on the device. A resumed run goes on as it began."""
        begun = (read_record(self.workdir) or {}).get("data", {}).get("resident")
        if begun is not None and self.experiment.resident is None and not self.experiment.host_transforms:
            return "" if begun else "as when the run began"
        reason = self.experiment.streaming_reason(self.data)
        if jax.process_count() > 1 and np.any(process_allgather(np.array(bool(reason)))):  # all do the same
            reason = reason or "another process streams it"
        return reason

    @property
    def notes(self) -> list[str]:
        """Remarks for the user before training: what was left out, and that data is streamed."""
        streamed = f"{self.data.name} is streamed from the host: {self.streaming_reason}"
        return [*self.data.notes, *([streamed] if self.streaming_reason else [])]

    def source(self) -> Source:
        """The training data as a function of the step."""
        return self.experiment.source(self.data, self.seed, resident=not self.streaming_reason)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the run's State, without tracing a step."""
        return abstract_state(self.experiment.algorithm_of_seeds, self.source(), self.layout)

    @cached_property
    def program(self) -> Program:
        """The training step on this run's data and devices, traced once."""
        make = lambda: program(self.experiment.algorithm_of_seeds, self.source(), self.experiment.chunk, self.layout)
        return self._explained(make)

    def _explained(self, call: Callable[[], T]) -> T:
        """The result of a call; a failure of what a user has written becomes a UserError that names the line."""
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            where = users_line(error)
            if not where and not isinstance(error, ValueError):
                raise
            where = f", at {where}" if where else ""
            raise UserError(f"{self.config.path} on {self.data.name}{where}: {first_line(error)}") from error

    def _check_sample(self) -> None:
        """Raises a UserError if samples of the model are not batches of examples like those of the data."""
        model, experiment = self.experiment.model, self.experiment
        if not isinstance(model, Model):
            raise UserError(f"{self.config.path}: the model, a {type(model).__name__}, needs `init` and `sample`")
        check_takes(model.sample, ("state", "key", "n", "condition"), "`sample`")
        if isinstance(model, (Seq2Seq, ImageTranslator)):
            return
        state = jax.eval_shape(lambda state: self._seed(state, 0), self.program.shapes)
        draw = lambda state: model.sample(averaged(state), jax.random.key(0), 2)
        sample, where = self._explained(lambda: jax.eval_shape(draw, state)), place_of(model.sample)
        if not isinstance(sample, Mapping) or not isinstance(sample.get("x"), jax.ShapeDtypeStruct):
            raise UserError(f'`sample`, at {where}, must return a batch {{"x": samples}}, as a dict')
        if not sample["x"].shape or sample["x"].shape[0] != 2:
            raise UserError(f"`sample`, at {where}, must return n samples; for n = 2 its shape is {sample['x'].shape}")
        examples = experiment.split(self.data, experiment.test).head(1)
        wanted, got = examples["x"].shape[1:], sample["x"].shape[1:]
        if len(wanted) != len(got) or (wanted != got and not is_sequential(examples) and not experiment.windows):
            raise UserError(f"`sample`, at {where}, must return examples of shape {wanted}; theirs is {got}")

    def state(self, step: int | str | None = None) -> State:
        """A saved State, of several seeds that of `member`: the newest, the "best", or that of a given step.

        "mean:3": the newest with the mean parameters of the last 3 checkpoints (Junczys-Dowmunt et al. 2016).
        """
        return self._seed(self._restored(step), self.member)

    def states(self, step: int | str | None = None) -> list[State]:
        """The saved State of every seed; see `state`."""
        state = self._restored(step)
        return [self._seed(state, i) for i in range(self.experiment.seeds)]

    def _seed(self, state: State, i: int) -> State:
        """The State of one seed."""
        return state if self.experiment.seeds == 1 else member(state, i)

    def _restored(self, step: int | str | None) -> State:
        with self.folder.checkpoints(self.experiment, write=False) as checkpoints:
            if isinstance(step, str) and step.startswith("mean:"):
                steps = self._last(checkpoints.steps, int(step.removeprefix("mean:")))
                return mean_state(partial(checkpoints.restore, self.abstract_state()), steps)
            if step == "best" and checkpoints.best_step is None:
                raise UserError(
                    f"{self.workdir} has no best checkpoint: its config lacks `best`, or nothing was measured"
                )
            if step == "best":
                step = checkpoints.best_step
            if step is not None and int(step) not in checkpoints.steps:
                raise UserError(f"{self.workdir} has no checkpoint {step}; there are {checkpoints.steps}")
            state = checkpoints.restore(self.abstract_state(), step if step is None else int(step))
        if state is None:
            raise UserError(f"{self.workdir} has no checkpoint yet")
        return state

    def _last(self, steps: list[int], count: int) -> list[int]:
        """The last steps; the best may have been kept from long before them."""
        there = steps[-self.experiment.keep :]
        if count > len(there):
            kept = f"its last checkpoints are of the steps {there}"
            raise UserError(
                f"{self.workdir} has no {count} checkpoints: {kept}; Experiment(keep=) says how many are kept"
            )
        return there[-count:]

    def train(
        self,
        bar: bool = True,
        force: bool = False,
        profile: tuple[int, int] | None = None,
        origin: Params | None = None,
        strict: bool = False,
        track: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Trains, or resumes the run in the working directory; returns the summary that is added to run.json.

        origin: parameters to begin with, of a new run. strict: let metrics and plots that fail end the run; otherwise
        they are left out and counted. track: "wandb", "mlflow", see `gen_jax.trackers`. Raises Preempted after a
        signal, once everything is saved.
        """
        experiment, folder, attempt = self.experiment, self.folder, Attempts(strict)
        force = force or self._only_longer()
        check_trackers(track)
        folder.claim(force)
        # With --force, checkpoints of other settings are accepted; those saved from now on have the new settings.
        with folder.checkpoints(experiment, True, None if force else folder.identity()) as checkpoints:
            if checkpoints.steps:
                state = checkpoints.restore(self.program.abstract_state)
            else:
                state = None if origin is None else self._beginning(origin)
            folder.record(force)
            checkpoints.config = folder.identity()
            start = 0 if state is None else int(state.step)
            done = folder.summary()
            ended = done.get("step") == start and (start >= experiment.steps or done["stopped_early"])
            if ended and not done.get("failed"):
                return {**done, "already_finished": True}
            one = evaluator(experiment.model, experiment.metrics, attempt=attempt)
            evaluate = lambda state, split: [one(self._seed(state, i), split) for i in range(experiment.seeds)]
            timings = {"resumed_at": start}
            if state is None:
                self._try_out()
            if start < experiment.steps and not ended:
                state, more = self._fit(state, start, checkpoints, evaluate, attempt, bar, profile, track)
                timings |= more
            best = checkpoints.best_step
            shown = state if best in (None, int(state.step)) else checkpoints.restore(self.program.abstract_state, best)
            return self._finish(int(state.step), shown, evaluate, attempt, timings)

    def _try_out(self) -> None:
        """Calls metrics and plots of one's own with the first parameters and a few examples, to report mistakes early.

        Those of this package are tested, and take longer to compile.
        """
        experiment, trial = self.experiment, Attempts(how=f"fails with the first parameters on {TRIED} examples")
        own = lambda function: not function.__module__.startswith("gen_jax.")
        metrics, plots = ([one for one in some if own(one)] for some in (experiment.metrics, experiment.plots))
        if not metrics and not plots:
            return
        split = experiment.split(self.data, "validation")
        state, part = self._seed(self.program.initial_state(self.seed), 0), split.part(0, min(TRIED, split.size))
        evaluator(experiment.model, metrics, attempt=trial)(state, part)
        for plot in plots:
            draw = partial(_drawn, plot, experiment.model, averaged(state), part, jax.random.key(0))
            trial(f"plot {plot.__name__}", draw, None)
        if trial.failed:
            print("the run begins nevertheless; Ctrl-C ends it", file=sys.stderr)

    def _only_longer(self) -> bool:
        """Whether the run in the working directory is this one with fewer steps, and computes the same in each step."""
        before = read_record(self.workdir)
        differences = self.folder.differences(before) if before else {}
        if not differences:
            return False
        there, here = before["knobs"].get("steps"), self.config.knobs.get("steps")
        if differences.keys() != {"steps"} or not isinstance(there, int) or there >= here:
            return False
        shorter = replace(self, config=self.config.with_knobs({"steps": there}))
        with use_data_dir(self.data_dir):
            shorter = replace(shorter, experiment=replace(shorter.config.build(), seeds=self.experiment.seeds))
        shorter = replace(shorter, experiment=shorter.experiment.with_validation(self.data))
        if same_step(self.program, shorter.program):
            return True
        raise UserError(
            f"{self.workdir} holds a run of {there:,} steps, and each step depends on their number, as by a "
            "schedule of the learning rate: choose another --workdir, or --force to go on with the new settings"
        )

    def _beginning(self, origin: Params) -> State:
        """A new State with parameters from elsewhere; those of players that `origin` lacks are new."""
        state = self.program.initial_state(self.seed)
        shapes = lambda tree: jax.tree.map(lambda a: tuple(a.shape), tree)
        for player in sorted(origin.keys() & state.params.keys()):
            if shapes(origin[player]) != shapes(state.params[player]):
                there, here = (sum(a.size for a in jax.tree.leaves(one[player])) for one in (origin, state.params))
                raise UserError(
                    f"--from: the {player} there has other parts or sizes than here ({there:,} and {here:,} "
                    "parameters): choose the same knobs"
                )
        if not origin.keys() & state.params.keys():
            raise UserError(f"--from: there are parameters of {', '.join(origin)}, not of {', '.join(state.params)}")
        taken = lambda params: {
            player: jax.tree.map(
                lambda new, old: jnp.array(new, old.dtype), origin.get(player, params[player]), params[player]
            )
            for player in params
        }
        extra = dict(state.extra)
        if "ema" in extra:
            extra["ema"] = {**extra["ema"], "params": taken(extra["ema"]["params"])}
        return state._replace(params=taken(state.params), extra=extra)

    def _fit(
        self,
        state: State | None,
        start: int,
        checkpoints: Checkpoints,
        evaluate: Evaluator,
        attempt: Attempts,
        bar: bool,
        profile: tuple[int, int] | None,
        track: Sequence[str],
    ) -> tuple[State, dict[str, Any]]:
        """Runs the training loop with its hooks until everything is saved; returns the last State and timings."""
        settings = {"config": self.config.name, **self.folder.identity()["knobs"], "seed": self.seed}
        experiment = self.experiment
        writer = Writer(self.workdir, start, open_trackers(track, self.workdir, settings))
        examples = experiment.seeds * self.program.source.batch_size
        log = Log(writer, experiment.steps, examples, bar=bar)
        saving, preempt = Checkpoint(checkpoints, experiment.checkpoint_every, attempt), Preempt()
        watching = self._watching(writer, evaluate, attempt)
        hooks = [log, HaltOnNaN(checkpoints), *experiment.hooks, *watching, saving, preempt]
        hooks += [Profile(self.workdir / "profile", *profile)] if profile else []
        for step, values in reports(self.workdir, until=start):
            for hook in experiment.hooks:
                hook.replay(step, values)
        try:
            state = self.program.run(
                experiment.steps, state=state, seed=self.seed, report_every=experiment.report_every, hooks=hooks
            )
            checkpoints.wait()
        finally:
            writer.close()
        if preempt.received:
            left = "resumes it" if int(state.step) < experiment.steps else "evaluates it"
            raise Preempted(
                f"stopped by {preempt.received.name} at step {int(state.step)}, saved in {self.workdir}; "
                f"the same command {left}"
            )
        reasons = [hook.reason for hook in hooks if hook.reason] if int(state.step) < experiment.steps else []
        return state, {
            **({"stopped_because": reasons[0]} if reasons else {}),
            "seconds_to_first_step": log.first_step_at and round(log.first_step_at - gen_jax.IMPORTED, 2),
            "compile_seconds": log.compile_seconds and round(log.compile_seconds, 2),
            "checkpoint_blocking_seconds": round(saving.seconds, 2),
        }

    def _watching(self, writer: Writer, evaluate: Evaluator, attempt: Attempts) -> list[Hook]:
        """The hooks that diagnose, evaluate on the validation split, and plot."""
        experiment, validation = self.experiment, self.experiment.split(self.data, "validation")

        def validate(state: State) -> Values:
            found = evaluate(state, validation)
            shared = [name for name in found[0] if all(name in one for one in found)]
            values = {name: [one[name].value for one in found] for name in shared}
            return {f"{VALIDATION}{name}": a if len(a) > 1 else a[0] for name, a in values.items()}

        hooks: list[Hook] = []
        if isinstance(experiment.model, Diagnosed):
            hooks.append(Diagnose(experiment.model.diagnose))
        if experiment.metrics:
            hooks.append(Evaluate(validate, writer, experiment.evaluate_every))
        if experiment.plots:
            draw = lambda state: self._draw(state, validation, attempt)
            hooks.append(Plot(draw, self.workdir / "plots", experiment.plot_every, attempt))
        return hooks

    def _finish(
        self, step: int, state: State, evaluate: Evaluator, attempt: Attempts, timings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Evaluates and plots a State on the test split, the best one if there is one; returns the summary.

        step: at which training has ended.
        """
        test = self.experiment.split(self.data, "test")
        try:
            estimates = over_seeds(evaluate(state, test))
            save_figures(self._draw(state, test, attempt), self.workdir / "plots", ".png", attempt)
        except KeyboardInterrupt:
            raise Preempted(
                f"stopped during the evaluation; the run is saved in {self.workdir}; the same command evaluates it"
            ) from None
        summary = {
            "step": step,
            "evaluated_step": int(state.step),
            "stopped_early": step < self.experiment.steps,
            "evaluation": as_json(estimates),
            "seconds": round(time.time() - gen_jax.IMPORTED, 1),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            **timings,
            **({"failed": dict(attempt.failed)} if attempt.failed else {}),
        }
        if is_writer():
            self.folder.keep_evaluation(test.name, summary["evaluated_step"], as_json(estimates))
            self.folder.finish(summary)
        return summary

    def _draw(self, state: State, split: Split, attempt: Attempts) -> dict[str, Any]:
        """The figures of the plots that do not fail, by name."""
        state, key = averaged(self._seed(state, self.member)), jax.random.key(0)
        drawn = {
            plot.__name__: attempt(
                f"plot {plot.__name__}", partial(_drawn, plot, self.experiment.model, state, split, key), None
            )
            for plot in self.experiment.plots
        }
        figures = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in figures.values():
            caption(figure, f"{self.workdir.name}, {split.name} split, step {int(state.step):,}")
        return figures


def _drawn(plot: PlotFn, *arguments: Any) -> Any:
    """The figure of a plot. Raises UserError if there is none."""
    figure = plot(*arguments)
    if figure is None:
        raise UserError(f"the plot {plot.__name__} must return a figure; it returned nothing")
    return figure


def _check_seeds(layout: Layout, origin: str | None) -> None:
    if origin:
        raise UserError("--from begins one run: give --seeds 1")
    if layout.rules or layout.fsdp:
        raise UserError("this config divides its parameters over devices, which --seeds does not support")
