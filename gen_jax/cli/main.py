"""Work with configs, runs and data: `python -m gen_jax COMMAND`, or `gen_jax COMMAND` once installed."""

from __future__ import annotations

import sys

from gen_jax.cli.anomaly import anomaly
from gen_jax.cli.augment import augment
from gen_jax.cli.bench import bench
from gen_jax.cli.compare import compare
from gen_jax.cli.data import data
from gen_jax.cli.encoder import encoder
from gen_jax.cli.evaluate import evaluate
from gen_jax.cli.export import export
from gen_jax.cli.generate import generate
from gen_jax.cli.impute import impute
from gen_jax.cli.latent_space import edit, interpolate, mix
from gen_jax.cli.listing import configs
from gen_jax.cli.pictures import animate, plot
from gen_jax.cli.project import project
from gen_jax.cli.report import report
from gen_jax.cli.sample import sample
from gen_jax.cli.study import study_main
from gen_jax.cli.translate import translate
from gen_jax.cli.usage import run_command
from gen_jax.cli.utility import utility
from gen_jax.errors import UserError

__all__ = ["COMMANDS", "main", "train", "train_main"]

COMMANDS = (
    sample,
    generate,
    interpolate,
    mix,
    project,
    edit,
    translate,
    augment,
    anomaly,
    impute,
    utility,
    evaluate,
    compare,
    bench,
    encoder,
    plot,
    animate,
    data,
    report,
    export,
    configs,
)


def train(config: str) -> None:
    """Trains a config, or resumes it; `gen_jax train CONFIG --help` lists its knobs."""


def sweep(config: str) -> None:
    """Trains a config over a grid of knobs: sweep CONFIG --lr 1e-3 3e-4 --latent 8 16 --seeds 3, in one table.

    Options: --seeds N, seeds of each run; --random N, so many combinations of the grid, drawn by --seed; --metric
    NAME:max or NAME:min, by which runs are ordered; --out FOLDER; --data-dir FOLDER; --print commands or slurm;
    --together, as one program, where the knobs are numbers such as learning rates.
    """


def study() -> None:
    """Asks people about samples: create, serve, analyze; `gen_jax study --help` lists all."""


def main() -> None:
    """Runs the command named by `sys.argv`."""
    arguments = sys.argv[1:] or ["--help"]
    if arguments[0] != "train":
        _say(arguments)
    if arguments[0] == "train" and arguments[1:] and arguments[1] not in ("-h", "--help"):
        train_main(arguments[1:])
    elif arguments[0] == "sweep" and arguments[1:2] not in (["-h"], ["--help"]):
        sweep_main(arguments[1:])
    elif arguments[0] == "study":
        study_main(arguments[1:])
    else:
        commands = {command.__name__: command for command in (train, sweep, *COMMANDS, study)}
        run_command(commands, "gen_jax", __doc__.partition(":")[0], arguments)


def _say(words: list[str]) -> None:
    """Says in a terminal that a command has begun: JAX alone takes seconds to import."""
    if sys.stderr.isatty() and not {"-h", "--help"} & set(words):
        print(f"{' '.join(words[:2])}: starting", file=sys.stderr)


def sweep_main(arguments: list[str]) -> None:
    """`sweep CONFIG --knob VALUE VALUE ...`."""
    from gen_jax.cli.sweep import sweep

    sweep(arguments)


def train_main(arguments: list[str]) -> None:
    """`train CONFIG [--knob value ...]`: the knobs depend on the config, which comes first."""
    if arguments[0].startswith("-"):
        raise UserError(f"the config comes first: train CONFIG {' '.join(arguments)}")
    _say(["train", *arguments])
    from gen_jax.cli.train import train

    train(arguments[0], arguments[1:])
