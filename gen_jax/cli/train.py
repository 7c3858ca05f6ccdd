"""The command line of `train.py`: a config's knobs and the options of a run, parsed from one list of arguments."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gen_jax.cli.usage import one_line_usage_errors
from gen_jax.configs import ConfigFile, knob_help, load, unknown_knob
from gen_jax.data.cache import use_data_dir
from gen_jax.data.options import DataOptions, spell
from gen_jax.errors import Incomplete, UserError

__all__ = ["Options", "parse", "show_summary", "train"]


@dataclass(frozen=True)
class Options:
    """Command-line options of a run, besides the knobs of its config."""

    workdir: Annotated[
        Path | None, tyro.conf.arg(help="working directory; by default runs/NAME and the changed knobs")
    ] = None
    seed: Annotated[int, tyro.conf.arg(help="seed of all random numbers")] = 0
    seeds: Annotated[
        int | None, tyro.conf.arg(help="number of seeds to train as one program; metrics are averaged over them")
    ] = None
    devices: Annotated[int, tyro.conf.arg(help="devices to divide the batch over; 0: as the config says, or all")] = 0
    distributed: Annotated[
        bool, tyro.conf.arg(help="join the other processes of this run; see docs/guides/devices.md")
    ] = False
    stream: Annotated[
        bool | None,
        tyro.conf.arg(help="read the data from the host, or keep it on the device; by default, by its size"),
    ] = None
    origin: Annotated[
        Path | None,
        tyro.conf.arg(name="from", help="begin with the parameters of a run, an exported one, or a GPT-2's files"),
    ] = None
    traceback: Annotated[bool, tyro.conf.arg(help="show all calls that led to an error")] = False
    strict: Annotated[bool, tyro.conf.arg(help="let a metric or plot that fails end the run")] = False
    force: Annotated[bool, tyro.conf.arg(help="continue in a working directory that holds other settings")] = False
    cache: Annotated[bool, tyro.conf.arg(help="keep compiled programs for the next run")] = True
    progress: Annotated[bool, tyro.conf.arg(help="show a progress bar")] = True
    profile: Annotated[
        tuple[int, int] | None, tyro.conf.arg(help="trace the steps FIRST LAST with the JAX profiler")
    ] = None
    track: Annotated[
        tuple[Literal["wandb", "mlflow"], ...],
        tyro.conf.arg(help="also send metrics to Weights & Biases or MLflow; see docs/guides/reliability.md"),
    ] = ()
    data_dir: Annotated[Path | None, tyro.conf.arg(help="the folder of data sets; by default TFDS_DATA_DIR")] = None


def parse(loaded: ConfigFile, arguments: Sequence[str]) -> tuple[ConfigFile, Options]:
    """The config with its knobs set, and the options. Unknown names and wrong types exit with code 2."""
    knobs = knob_help(loaded.config)
    options = {f.name: f for f in dataclasses.fields(Options)}
    reading = _data_options(knobs, options) if "data" in knobs else {}
    if clash := knobs.keys() & options.keys():
        raise UserError(f"{loaded.path}: {sorted(clash)[0]} is an option of every run; rename the knob")
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        there = {*knobs, *options, *reading, "help", "from"}
        if argument.startswith("--") and name not in there and name.removeprefix("no_") not in there:
            known = ["from" if known == "origin" else known for known in (*knobs, *options, *reading)]
            raise UserError(unknown_knob(loaded.path, name, known))
    fields = [
        (name, Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default))
        for name, (kind, default, text) in knobs.items()
    ] + [(name, Options.__annotations__[name], dataclasses.field(default=f.default)) for name, f in options.items()]
    fields += [
        (name, Annotated[kind, tyro.conf.arg(help=text)], default) for name, (kind, default, text) in reading.items()
    ]
    command = dataclasses.make_dataclass(loaded.name, fields, namespace={"__module__": __name__})
    with one_line_usage_errors():
        parsed = tyro.cli(
            command,
            prog=f"train.py {loaded.path}",
            description=_with_line_breaks((loaded.config.__globals__.get("__doc__") or "").strip()),
            args=list(arguments),
        )
    values = {name: getattr(parsed, name) for name in knobs}
    if given := {name: value for name in reading if (value := getattr(parsed, name)) is not None}:
        values["data"] = spell(values["data"], given)
    return loaded.with_knobs(values), Options(**{name: getattr(parsed, name) for name in options})


def _with_line_breaks(text: str) -> str:
    """Indents the commands in a docstring: tyro joins lines that begin with a letter."""
    return re.sub(r"(?m)^(?=python )", "  ", text)


def _data_options(knobs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, tuple[Any, Any, str]]:
    """{option: (type, default, help)} of how data is read, for configs with the knob "data"."""
    found = knob_help(DataOptions)
    if clash := sorted(found.keys() & {*knobs, *options}):
        raise UserError(f"--{clash[0]} is an option of every config with the knob --data: rename the knob")
    return {name: (kind | None, None, f"data: {text}") for name, (kind, _, text) in found.items()}


def train(path: str, arguments: Sequence[str]) -> None:
    """`train.py PATH ARGUMENTS`."""
    try:
        with use_data_dir(_data_dir(arguments)):  # a config may choose its data by what is prepared
            loaded = load(path)
    except UserError as error:
        _show_cause(error, "--traceback" in arguments)
        raise
    loaded, options = parse(loaded, arguments)
    from gen_jax.compilation import use_compilation_cache
    from gen_jax.run import Run
    from gen_jax.sharding import is_writer, start_processes

    use_compilation_cache(options.cache)
    if options.distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        start_processes()
    origin = options.origin and str(options.origin.resolve())
    try:
        run = Run.prepare(
            loaded,
            options.workdir,
            options.seed,
            options.devices,
            options.data_dir,
            stream=options.stream,
            origin=origin,
            seeds=options.seeds,
        )
    except UserError as error:
        _show_cause(error, options.traceback)
        raise
    if is_writer():
        for note in run.notes:
            print(f"note: {note}", file=sys.stderr)
    summary = run.train(
        bar=options.progress,
        force=options.force,
        profile=options.profile,
        origin=_params_of(options.origin, options.data_dir),
        strict=options.strict,
        track=options.track,
    )
    if is_writer():
        show_summary(run.workdir, summary)
    if failed := summary.get("failed"):
        raise Incomplete(
            f"trained and saved, but these failed: {', '.join(failed)}; mended, the same command makes them"
        )


def _show_cause(error: UserError, wanted: bool) -> None:
    if wanted and error.__cause__ is not None:
        traceback.print_exception(error.__cause__)


def _params_of(origin: Path | None, data_dir: Path | None) -> Any:
    """The parameters of another run, or of the files of a GPT-2; None without."""
    if origin is None:
        return None
    if not origin.is_dir():
        raise UserError(f"--from {origin}: there is no such folder")
    if (origin / "run.json").is_file():
        from gen_jax.core import averaged
        from gen_jax.reopen import open_run

        begun = open_run(origin, data_dir=data_dir)[0]
        if begun.experiment.seeds > 1:
            print(f"note: --from {origin}: the first of {begun.experiment.seeds} seeds", file=sys.stderr)
        return averaged(begun.state()).params
    from gen_jax.portable import is_exported, read_params

    if is_exported(origin):
        return read_params(origin)
    from gen_jax.models.text.huggingface import load_gpt2

    return load_gpt2(origin)[1]


def _data_dir(arguments: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data-dir", "--data_dir")
    return parser.parse_known_args([*arguments])[0].data_dir


def show_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Prints the results of a run and the paths of its files."""
    from gen_jax.evaluation.report import console, from_json, table

    terminal = console()
    found = from_json(summary["evaluation"])
    state = (
        "had already finished"
        if summary.get("already_finished")
        else "stopped early"
        if summary["stopped_early"]
        else "finished"
    )
    because = f": {summary['stopped_because']}" if "stopped_because" in summary else ""
    terminal.print(f"\n{workdir} {state} at step {summary['step']}{because}", highlight=False)
    best = summary.get("evaluated_step", summary["step"])
    if found:
        which = "" if best == summary["step"] else f", best checkpoint (step {best})"
        terminal.print(table(f"test split{which}", found))
    if summary.get("seconds_to_first_step") and not summary.get("already_finished"):
        terminal.print(
            f"first step after {summary['seconds_to_first_step']:.1f} s, "
            f"of which {summary['compile_seconds']:.1f} s compiling",
            highlight=False,
        )
    for name, what in {
        "plots": "pictures",
        "metrics.jsonl": "metrics (also in tensorboard)",
        "checkpoints": "checkpoints",
        "evaluation.json": "evaluation",
        "run.json": "config, commit, versions",
    }.items():
        if (workdir / name).exists():
            terminal.print(f"  {workdir / name}  {what}", highlight=False)
