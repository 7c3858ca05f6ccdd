"""A run and its working directory: train or resume an experiment, and open a finished one again.

workdir/
  run.json            config file, knobs, seed, commit, versions, devices; what it reached
  config.py           the config file's text as it was
  metrics.jsonl       one line per report; tensorboard/ holds the same
  checkpoints/        the newest and the best
  plots/              pictures, by step; final ones without a number
  evaluation.json     metrics on the test split
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gen_jax
from gen_jax.checkpoint import Checkpoints
from gen_jax.configs import ConfigFile, load
from gen_jax.core import State
from gen_jax.data.catalogue import Dataset
from gen_jax.data.catalogue import load as load_data
from gen_jax.errors import Preempted, UserError
from gen_jax.evaluation.metric import Estimate, Split
from gen_jax.evaluation.report import as_json, evaluator
from gen_jax.experiment import Experiment
from gen_jax.hooks import Checkpoint, Diagnose, Evaluate, HaltOnNaN, Log, Plot, Preempt, Profile
from gen_jax.logs import Writer, environment, read_json, read_record, write_json
from gen_jax.loop import abstract_state, fit
from gen_jax.sharding import Layout, is_writer
from gen_jax.workdir import default_workdir, text_changes


def use_compilation_cache(on: bool = True) -> None:
    """Keeps compiled programs for the next run, in JAX_COMPILATION_CACHE_DIR or a folder of the user's cache."""
    if not on:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    try:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gen_jax" / "compiled"
        folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return  # no home, or not writable: that must not stop a run
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclass(frozen=True)
class Run:
    """An experiment bound to a working directory, its data and its devices."""

    loaded: ConfigFile
    workdir: Path
    seed: int
    experiment: Experiment
    data: Dataset
    layout: Layout

    @classmethod
    def prepare(
        cls,
        loaded: ConfigFile,
        workdir: Path | None = None,
        seed: int = 0,
        devices: int = 0,
        data_dir: Path | None = None,
        layout: Layout | None = None,
        training: bool = True,
    ) -> Run:
        """Builds the experiment and loads its data; everything that can be wrong with either is found here.

        devices: how many to divide the batch over, instead of what the experiment's layout (or `layout`) says.
        training: also find what can only be wrong with training, which takes longer: reading all data, tracing a step.
        """
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed must be between 0 and 2^32 - 1, got {seed}")
        if devices < 0:
            raise UserError(f"--devices must be at least 1, or 0 for all, got {devices}")
        experiment = loaded.build()
        layout = layout or experiment.layout
        layout = replace(layout, data=devices or layout.data)
        data = experiment.data if isinstance(experiment.data, Dataset) else load_data(experiment.data, data_dir)
        run = cls(loaded, workdir or default_workdir(loaded, seed), seed, experiment, data, layout)
        run._check()
        if training:
            run._check_training()
        return run

    def _check(self) -> None:
        mesh, batch = self.layout.mesh(), self.source.batch_size
        if batch % mesh.shape["data"]:
            raise UserError(
                f"a batch of {batch} cannot be divided over {mesh.shape['data']} devices: "
                "choose another --batch, or fewer --devices"
            )
        for name in (self.experiment.validation, self.experiment.test):
            self.experiment.split(self.data, name)

    def _check_training(self) -> None:
        if hasattr(self.experiment.model, "outside"):
            for name in dict.fromkeys((self.experiment.train, self.experiment.validation, self.experiment.test)):
                self._check_support(self.experiment.split(self.data, name))
        try:
            jax.eval_shape(self._first_step, self.source.example())
        except ValueError as error:  # what models and algorithms say of data that does not fit them
            raise UserError(f"{self.loaded.path} on {self.data.name}: {error}") from error

    def _first_step(self, view: Any) -> Any:
        batch, algorithm = view.batch_at(0), self.experiment.algorithm
        return algorithm.step(algorithm.init(jax.random.key(0), batch), batch)

    def _check_support(self, split: Split) -> None:
        """Every example is one that the model's likelihood can explain."""
        for start in range(0, split.size, 10_000):
            part = split.part(start, start + 10_000)
            batch = {name: np.asarray(a) for name, a in part.head(part.size).items()}
            if reason := self.experiment.model.unsupported(batch):
                raise UserError(f"{self.data.name} [{split.name}]: {reason}")

    @cached_property
    def source(self) -> Any:
        return self.experiment.source(self.data, self.seed)

    def checkpoints(self, write: bool, config: Mapping[str, Any] | None = None) -> Checkpoints:
        folder, experiment = self.workdir / "checkpoints", self.experiment
        return Checkpoints(folder, experiment.keep, experiment.best, config, write)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the run's State."""
        shapes = abstract_state(self.experiment.algorithm, self.source)
        shardings = self.layout.shardings(shapes, self.layout.mesh())
        return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)

    def state(self, step: int | str | None = None) -> State:
        """A saved State: the newest, the "best", or that of a step."""
        with self.checkpoints(write=False) as checkpoints:
            if step == "best":
                step = checkpoints.best_step
            if step is not None and int(step) not in checkpoints.steps:
                raise UserError(f"{self.workdir} has no checkpoint {step}; there are {checkpoints.steps}")
            found = checkpoints.restore(self.abstract_state(), step if step is None else int(step))
        if found is None:
            raise UserError(f"{self.workdir} has no checkpoint yet")
        return found

    def train(self, bar: bool = True, force: bool = False, profile: tuple[int, int] | None = None) -> dict[str, Any]:
        """Trains, or resumes what the working directory holds, and returns the summary that run.json then ends with.

        Raises Preempted after a signal, once everything is saved.
        """
        experiment = self.experiment
        self._claim(force)
        # With --force, checkpoints of other settings are taken too; those saved from now on have the new ones.
        with self.checkpoints(write=True, config=None if force else self._identity()) as checkpoints:
            self._record(force)
            state = checkpoints.restore(self.abstract_state()) if checkpoints.steps else None
            checkpoints.config = self._identity()
            start = 0 if state is None else int(state.step)
            done = self.summary()
            if done.get("step") == start and (start >= experiment.steps or done["stopped_early"]):
                return {**done, "already_finished": True}
            evaluate = evaluator(experiment.model, experiment.metrics)
            timings = {"resumed_at": start}
            if start < experiment.steps:
                state, more = self._fit(state, start, checkpoints, evaluate, bar, profile)
                timings |= more
            return self._finish(state, evaluate, timings)

    def _fit(self, state, start, checkpoints, evaluate, bar, profile) -> tuple[State, dict[str, Any]]:
        """The training loop with its hooks, until all is saved."""
        experiment, validation = self.experiment, self.experiment.split(self.data, "validation")
        writer = Writer(self.workdir, resumed_at=start)

        def validate(state: State) -> Mapping[str, float]:
            return {f"validation/{name}": e.value for name, e in evaluate(state, validation).items()}

        log = Log(writer, experiment.steps, self.source.batch_size, bar=bar)
        saving = Checkpoint(checkpoints, experiment.checkpoint_every, writer.at)
        preempt = Preempt()
        hooks = [log, HaltOnNaN(checkpoints), *experiment.hooks]
        if hasattr(experiment.model, "diagnosis"):
            hooks.append(Diagnose(experiment.model.diagnose))
        if experiment.metrics:
            hooks.append(Evaluate(validate, writer, experiment.evaluate_every))
        if experiment.plots:
            hooks.append(Plot(lambda s: self._draw(s, validation), self.workdir / "plots", experiment.plot_every))
        if profile:
            hooks.append(Profile(self.workdir / "profile", *profile))
        try:
            state = fit(
                experiment.algorithm,
                self.source,
                experiment.steps,
                state=state,
                seed=self.seed,
                chunk=experiment.chunk,
                report_every=experiment.report_every,
                hooks=[*hooks, saving, preempt],
                layout=self.layout,
            )
            checkpoints.wait()
        finally:
            writer.close()
        if preempt.received and int(state.step) < experiment.steps:
            raise Preempted(
                f"stopped by {preempt.received.name} at step {int(state.step)}, saved in {self.workdir}; "
                "the same command resumes it"
            )
        return state, {
            "seconds_to_first_step": log.first_step_at and round(log.first_step_at - gen_jax.IMPORTED, 2),
            "compile_seconds": log.compile_seconds and round(log.compile_seconds, 2),
            "checkpoint_blocking_seconds": round(saving.seconds, 2),
        }

    def _finish(self, state: State, evaluate, timings: Mapping[str, Any]) -> dict[str, Any]:
        """The evaluation and pictures on the test split, and the summary."""
        test = self.experiment.split(self.data, "test")
        found, figures = evaluate(state, test), self._draw(state, test)
        summary = {
            "step": int(state.step),
            "stopped_early": int(state.step) < self.experiment.steps,
            "evaluation": as_json(found),
            "seconds": round(time.time() - gen_jax.IMPORTED, 1),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            **timings,
        }
        if is_writer():
            for name, figure in figures.items():
                (self.workdir / "plots").mkdir(exist_ok=True)
                figure.savefig(self.workdir / "plots" / f"{name}.png")
            self.keep_evaluation(test.name, summary["step"], found)
            write_json(self.workdir / "run.json", self.recorded() | {"summary": summary})
        return summary

    def keep_evaluation(self, split: str, step: int, found: Mapping[str, Estimate], seed: int = 0) -> None:
        """Writes what was measured on a split into evaluation.json, beside what it says of other splits."""
        path = self.workdir / "evaluation.json"
        write_json(path, (read_json(path) or {}) | {split: {"step": step, "seed": seed, **as_json(found)}})

    def _draw(self, state: State, split: Any) -> dict[str, Any]:
        key = jax.random.key(0)
        return {plot.__name__: plot(self.experiment.model, state, split, key) for plot in self.experiment.plots}

    def recorded(self) -> dict[str, Any]:
        return read_record(self.workdir) or {}

    def summary(self) -> dict[str, Any]:
        return self.recorded().get("summary", {})

    def _identity(self) -> dict[str, Any]:
        """What makes two runs the same run, as JSON gives it back."""
        return json.loads(json.dumps({"knobs": dict(self.loaded.knobs), "seed": self.seed}, default=str))

    def _claim(self, force: bool) -> None:
        """The working directory can be written, and is of this very run."""
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            probe = self.workdir / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = "it is a file" if self.workdir.is_file() else error.strerror
            raise UserError(f"cannot write to the working directory {self.workdir}: {reason}") from None
        before = read_record(self.workdir)
        if before is None or force:
            return
        if differences := self._differences(before):
            raise UserError(
                f"{self.workdir} holds another run: {'; '.join(differences)}. "
                "Choose another --workdir, or --force to go on with the new settings"
            )

    def _differences(self, before: Mapping[str, Any]) -> list[str]:
        old, new = before, self._identity()
        found = [] if old["name"] == self.loaded.name else [f"config {old['name']} there, {self.loaded.name} here"]
        for name in sorted(old["knobs"].keys() | new["knobs"].keys()):
            there, here = old["knobs"].get(name, "absent"), new["knobs"].get(name, "absent")
            if there != here:
                found.append(f"{name} = {there} there, {here} here")
        if old["seed"] != new["seed"]:
            found.append(f"seed = {old['seed']} there, {new['seed']} here")
        if not found and (edits := text_changes(self.workdir, self.loaded.text)):
            found.append("the config file has changed since:\n" + edits + "\n")
        return found

    def _record(self, force: bool) -> None:
        """Writes down what this run is, once."""
        before = read_record(self.workdir)
        if not is_writer() or (before is not None and not force):
            return
        record = {
            "name": self.loaded.name,
            "config": os.path.relpath(self.loaded.path),
            "config_absolute": str(self.loaded.path.resolve()),
            **self._identity(),
            "environment": environment(),
            **({"summary": before["summary"]} if before and "summary" in before else {}),
        }
        (self.workdir / "config.py").write_text(self.loaded.text)
        write_json(self.workdir / "run.json", record)


def open_run(workdir: Path, config: Path | None = None, data_dir: Path | None = None) -> tuple[Run, str]:
    """The run of a working directory, and a warning ("" if none) where its config file is no longer what it was."""
    record = read_record(workdir)
    if record is None:
        raise UserError(f"{workdir} is not the working directory of a run: it has no run.json")
    candidates = [config] if config else [Path(record["config"]), Path(record["config_absolute"])]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise UserError(
            f"the config file of this run, {record['config']}, is gone: give one with --config; "
            f"{workdir / 'config.py'} holds its text"
        )
    loaded = load(path)
    kept = {name: _as(loaded.defaults[name], v) for name, v in record["knobs"].items() if name in loaded.defaults}
    changed = text_changes(workdir, loaded.text)
    warning = f"{path} has changed since this run; it is used with the recorded knobs\n{changed}" if changed else ""
    one = Layout(data=1)  # whatever the run was trained on
    return Run.prepare(
        loaded.with_knobs(kept), workdir, record["seed"], data_dir=data_dir, layout=one, training=False
    ), warning


def _as(default: Any, value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(default, tuple) else value
