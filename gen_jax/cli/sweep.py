"""`gen_jax sweep CONFIG --knob a b c ...`: a config over a grid of knobs, several seeds each, in one table."""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gen_jax.cli.train import parse
from gen_jax.configs import ConfigFile, load, unknown_knob
from gen_jax.errors import Preempted, UserError
from gen_jax.evaluation.comparison import lower_is_better
from gen_jax.evaluation.metric import Estimate, rounded, standard_error
from gen_jax.evaluation.report import console, finite, from_json
from gen_jax.files import write_json, write_text
from gen_jax.logs import VALIDATION, read_metrics, read_record
from gen_jax.workdir import Workdir

__all__ = ["Point", "results", "sweep"]


@dataclass(frozen=True, eq=False)
class Point:
    """One combination of knobs. values: as they were typed."""

    values: Mapping[str, str]
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def knobs(self) -> list[str]:
        flag = {"true": "--{}", "false": "--no-{}"}
        return [flag.get(value.lower(), f"--{name}={value}").format(name) for name, value in self.values.items()]

    def resolved(self, loaded: ConfigFile) -> ConfigFile:
        """The config with these knobs. Raises UserError for values of the wrong type."""
        return parse(loaded, self.knobs)[0]

    def command(self, config: str, more: Sequence[str]) -> list[str]:
        """The command that trains it, or resumes it."""
        return [sys.executable, "-m", "gen_jax", "train", config, *self.knobs, "--workdir", str(self.folder), *more]


def sweep(arguments: Sequence[str]) -> None:
    """`sweep CONFIG ARGUMENTS`: trains every combination, then prints and writes the table."""
    config, asked, knobs = _parsed(arguments)
    loaded = load(config)
    points, more = _points(loaded, asked, knobs), ["--seeds", str(asked.seeds), "--no-progress"]
    more += ["--data-dir", str(asked.data_dir)] if asked.data_dir else []
    for point in points:  # all are checked before the first is trained
        point.resolved(loaded).build(asked.data_dir)
    if asked.print:
        _print(asked.print, [point.command(config, more) for point in points])
        return
    failed = _together(points, loaded, asked) if asked.together else []
    for number, point in enumerate(points):
        if point in failed:
            continue
        known = _trained(point, loaded, asked.seeds)
        print(f"[{number + 1}/{len(points)}] {point.name}: {'trained before' if known else 'training'}", flush=True)
        if not known and not _train(point, config, more):
            failed.append(point)
    found = {point: one for point in points if (one := results(point)) is not None}
    if not found:
        raise UserError("none of the runs could be trained; see above")
    _show(_ordered(found, asked.metric), asked.out, failed)


def _together(points: Sequence[Point], loaded: ConfigFile, asked: argparse.Namespace) -> list[Point]:
    """Trains the runs that have not begun as one program; returns those that failed."""
    from gen_jax.cli.sweep_together import train_together
    from gen_jax.compilation import use_compilation_cache

    if asked.seeds > 1:
        raise UserError("--together trains one seed of each combination: leave out --seeds")
    fresh = [point for point in points if not (point.folder / "checkpoints").is_dir()]
    if len(fresh) < 2:
        return []
    print(f"training {len(fresh)} runs as one program", flush=True)
    use_compilation_cache()
    lost = train_together([point.resolved(loaded) for point in fresh], [p.folder for p in fresh], asked.data_dir)
    return [fresh[i] for i in lost]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parsed(arguments: Sequence[str]) -> tuple[str, argparse.Namespace, dict[str, list[str]]]:
    """The config, the options of the sweep, and the values of each knob that is swept."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("the config comes first: sweep CONFIG --knob VALUE VALUE ...; see `gen_jax sweep --help`")
    parser = _Parser("gen_jax sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--random", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--print", choices=("commands", "slurm"), default="")
    asked, rest = parser.parse_known_args(list(arguments[1:]))
    knobs: dict[str, list[str]] = {}
    name = ""
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            knobs.setdefault(name, []).extend([value] if equals else [])
        elif not name:
            raise UserError(f"{word}: a value without a knob; write --knob {word}")
        else:
            knobs[name].append(word)
    if asked.seeds < 1 or asked.random is not None and asked.random < 1:
        raise UserError("--seeds and --random must be at least 1")
    asked.out = asked.out or Path("runs", "sweeps", Path(arguments[0]).stem)
    if asked.out.is_file():
        raise UserError(f"--out {asked.out}: is a file, and a folder is needed")
    return arguments[0], asked, knobs


def _points(loaded: ConfigFile, asked: argparse.Namespace, knobs: Mapping[str, list[str]]) -> list[Point]:
    """The combinations of all values, or a random choice of them."""
    for name, values in knobs.items():
        if name not in loaded.defaults:
            raise UserError(unknown_knob(loaded.path, name, list(loaded.defaults)))
        if not values and isinstance(loaded.defaults[name], bool):
            values.append("True")
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{name}: give one value or more, each once")
    grid = [dict(zip(knobs, values)) for values in itertools.product(*knobs.values())]
    if asked.random is not None and asked.random < len(grid):
        chosen = np.random.default_rng(asked.seed).permutation(len(grid))[: asked.random]
        grid = [grid[i] for i in sorted(chosen)]
    seeds = [f"seeds={asked.seeds}"] if asked.seeds > 1 else []
    named = lambda values: "-".join([*(f"{k}={v.replace('/', '_')}" for k, v in values.items()), *seeds]) or loaded.name
    return [Point(values, asked.out / named(values)) for values in grid]


def _print(how: str, commands: Sequence[Sequence[str]]) -> None:
    """Prints commands, one per line, or a script for an array job of Slurm."""
    lines = [shlex.join(["python", *command[1:]]) for command in commands]
    if how == "commands":
        print(*lines, sep="\n")
        return
    print("#!/bin/bash", f"#SBATCH --array=0-{len(lines) - 1}", "#SBATCH --requeue", sep="\n")
    print('case "$SLURM_ARRAY_TASK_ID" in')
    print(*(f"{i}) exec {line} ;;" for i, line in enumerate(lines)), "esac", sep="\n")


def _trained(point: Point, loaded: ConfigFile, seeds: int) -> bool:
    """Whether the run has ended with these settings."""
    record = read_record(point.folder)
    if record is None or "summary" not in record:
        return False
    return not Workdir(point.folder, point.resolved(loaded), 0, record.get("data", {}), seeds=seeds).differences(record)


def _train(point: Point, config: str, more: Sequence[str]) -> bool:
    """Whether a run could be trained."""
    try:
        done = subprocess.run(point.command(config, more), stdout=subprocess.DEVNULL)
    except KeyboardInterrupt:
        raise Preempted("stopped; the same command goes on") from None
    if done.returncode == 75:
        raise Preempted("stopped; the same command goes on")
    if done.returncode not in (0, 76):
        print(f"warning: {point.name} ended with exit code {done.returncode}; the others go on", file=sys.stderr)
    return done.returncode in (0, 76)


def results(point: Point) -> dict[str, Any] | None:
    """{"validation": {metric: values of seeds}, "test": {metric: Estimate}} of a run; None if it has not finished."""
    summary = (read_record(point.folder) or {}).get("summary")
    if summary is None:
        return None
    validation: dict[str, list[float]] = {}
    for row in read_metrics(point.folder / "metrics.jsonl"):
        if row["step"] > summary.get("evaluated_step", summary["step"]):
            continue
        for name, value in row.items():
            if name.startswith(VALIDATION):
                each = value if isinstance(value, list) else [value]
                validation[name.removeprefix(VALIDATION)] = [math.nan if v is None else v for v in each]
    return {"validation": validation, "test": from_json(summary["evaluation"])}


def _better(name: str, one: Mapping[str, Any]) -> str:
    """Whether "higher" or "lower" values of a metric are better; "" if that is not known."""
    if name not in one["test"]:
        return ""
    if name.startswith(("log_likelihood", "elbo", "iwae")):
        return "lower" if lower_is_better(one["test"][name].unit) else "higher"
    return one["test"][name].better


def _first_metric(one: Mapping[str, Any]) -> str:
    """The first metric of which it is known whether higher or lower is better."""
    known = [name for name in one["validation"] if _better(name, one)]
    if not known:
        raise UserError(f"--metric is needed, to order the runs: one of {', '.join(one['validation'])}")
    return known[0]


@dataclass(frozen=True)
class Sweep:
    """Runs that were trained and their results, by one metric of the validation split."""

    found: Mapping[Point, Mapping[str, Any]]
    metric: str
    better: str  # "higher" or "lower"

    @property
    def order(self) -> list[Point]:
        """The runs, the best first."""
        sign = -1 if self.better == "higher" else 1
        value = {point: statistics.fmean(self.of(point)) for point in self.found}
        return sorted(self.found, key=lambda point: (math.isnan(value[point]), sign * value[point]))

    def of(self, point: Point) -> list[float]:
        """The metric of each seed of a run."""
        return self.found[point]["validation"].get(self.metric, [math.nan])

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        test = lambda point: _estimate(self.found[point]["test"].get(self.metric))
        header = ["run", f"{self.metric} (validation)", f"{self.metric} (test)"]
        return header, [[point.name, _mean(self.of(point)), test(point)] for point in self.order]

    @property
    def record(self) -> dict[str, Any]:
        """All results as JSON values."""
        plain = lambda found: {k: v._asdict() if isinstance(v, Estimate) else v for k, v in found.items()}
        runs = [
            {"run": str(p.folder), "knobs": dict(p.values), **{k: plain(v) for k, v in self.found[p].items()}}
            for p in self.order
        ]
        return finite({"metric": self.metric, "better": self.better, "best": str(self.order[0].folder), "runs": runs})

    @property
    def varied(self) -> dict[str, list[tuple[str, list[float]]]]:
        """{knob: (value, metric of each seed) of each run} of the knobs that differ between runs."""
        names = {name for point in self.found for name in point.values}
        different = [name for name in sorted(names) if len({point.values[name] for point in self.found}) > 1]
        return {name: [(point.values[name], self.of(point)) for point in self.order] for name in different}


def _ordered(found: Mapping[Point, Mapping[str, Any]], asked: str) -> Sweep:
    """The results by the metric asked for, "NAME", "NAME:max" or "NAME:min", or by the first of the config."""
    one = next(iter(found.values()))
    metric, _, mode = (asked or _first_metric(one)).partition(":")
    if metric not in one["validation"]:
        raise UserError(f"--metric {metric}: is not among {', '.join(one['validation'])}")
    better = {"max": "higher", "min": "lower"}.get(mode) or _better(metric, one)
    if not better:
        raise UserError(f"--metric {metric}: say which is better, {metric}:max or {metric}:min")
    return Sweep(found, metric, better)


def _show(made: Sweep, out: Path, failed: Sequence[Point]) -> None:
    """Prints the table, the best first, and writes it with its picture."""
    from rich.table import Table

    from gen_jax import plots
    from gen_jax.markdown import markdown_table

    header, rows = made.table
    table = Table()
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    lines = [f"best by validation: {made.order[0].folder}", *(f"failed: {point.folder}" for point in failed)]
    write_json(out / "sweep.json", made.record)
    write_text(out / "sweep.md", markdown_table(header, rows) + "\n\n" + "\n".join(lines) + "\n")
    if made.varied:
        plots.swept(made.varied, made.metric).savefig(out / "sweep.png")
    print(*lines, f"written: {out / 'sweep.md'}, sweep.json{' and sweep.png' if made.varied else ''}", sep="\n")


def _mean(values: Sequence[float]) -> str:
    return _with_error(statistics.fmean(values), standard_error(values))


def _estimate(one: Estimate | None) -> str:
    return "" if one is None else _with_error(one.value, one.error)


def _with_error(value: float, error: float) -> str:
    return " ± ".join(filter(None, rounded(value, error)))
