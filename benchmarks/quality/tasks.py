"""Trainings by the command line whose evaluations are recorded, with the core-seconds of each.

A run that has finished is not trained again. A record is of all that has finished, and of what it held before.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import ROOT, Report, beside, results
from gen_jax.files import read_json, write_json

__all__ = ["Task", "Tasks", "of_seeds"]


class Task(NamedTuple):
    """A training: the arguments of train.py, and what to read from its evaluation, with a unit and a target."""

    arguments: str
    metrics: Mapping[str, tuple[str, str]]
    why: str = ""
    seeds: int = 1


class Tasks(NamedTuple):
    """The tasks of a record, trained in `runs/NAME`."""

    name: str
    tasks: Mapping[str, Task]

    def folders(self, task: str) -> list[Path]:
        """The working directories of a task, one for each seed."""
        name, folder = task.replace(", ", "_").replace(" ", "_"), ROOT / "runs" / self.name
        return [folder / (f"{name}_{seed}" if seed else name) for seed in range(self.tasks[task].seeds)]

    def train(self, only: str) -> None:
        """Trains the tasks whose name contains `only` with each seed, unless they have finished.

        Keeps the time of all cores that each took. A run of other settings in the same folder is an error of the
        command.
        """
        for task in (task for task in self.tasks if only in task):
            for seed, folder in enumerate(self.folders(task)):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                command = [sys.executable, "train.py", *self.tasks[task].arguments.split(), "--seed", str(seed)]
                command += ["--workdir", str(folder), "--no-progress"]
                subprocess.run(command, cwd=ROOT, env=beside(), check=True, stdout=subprocess.DEVNULL)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                if not (folder / "core_seconds.json").is_file():  # else it had finished, and was only checked
                    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                    write_json(folder / "core_seconds.json", took)

    def finished(self, task: str) -> list[Path]:
        return [folder for folder in self.folders(task) if (folder / "core_seconds.json").is_file()]

    def report(self, report: Report) -> list[str]:
        """The metrics of all tasks that have finished, of several seeds their mean and standard error."""
        report.options.only = ""  # the record is of all that has finished
        done = [name for name in self.tasks if self.finished(name)]
        for task in done:
            folders, about = self.finished(task), self.tasks[task]
            found = [read_json(folder / "evaluation.json")["test"] for folder in folders]
            took = max(read_json(folder / "core_seconds.json") for folder in folders)
            for metric, (unit, target) in about.metrics.items():
                values = [one[metric]["value"] for one in found]
                title = f"{task}: {metric.replace('_', ' ')} (`{about.arguments}`, {took:.0f} core-seconds)"
                title += of_seeds(values) or _of_program(found[0][metric])
                report.fact(title, statistics.mean(values), unit, target, about.why)
        return done

    def keep_earlier(self, report: Report, done: Sequence[str]) -> None:
        """Adds what an earlier record holds of tasks that have no run on this machine."""
        earlier = read_json(results() / f"{self.name}.json") or {"facts": [], "environment": {}}
        now = earlier["environment"]
        for task in (task for task in self.tasks if task not in done):
            kept = [fact for fact in earlier["facts"] if fact["what"].startswith(f"{task}:")]
            kept = [{"measured": f"{now['started'][:10]}, commit {now['commit'][:9]}", **fact} for fact in kept]
            report.facts.extend(kept)
            report.note(f"{task}: " + (f"measured {kept[0]['measured']}." if kept else "not measured on this device."))


def of_seeds(values: Sequence[float]) -> str:
    """How many seeds values are of, with the standard error of their mean."""
    if len(values) < 2:
        return ""
    return _mean_of(len(values), statistics.stdev(values) / len(values) ** 0.5)


def _of_program(estimate: Mapping[str, Any]) -> str:
    """The same of a run whose seeds are one program."""
    seeds = estimate.get("seeds", 1)
    return _mean_of(seeds, estimate["error"]) if seeds > 1 else ""


def _mean_of(seeds: int, error: float) -> str:
    return f", mean of {seeds} seeds ± {error:.4f}"
