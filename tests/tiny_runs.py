"""Runs of a few steps, for tests of commands."""

import contextlib
import io
from pathlib import Path

from gen_jax.cli.train import train


def trained(config: str, folder: Path, *options: str) -> Path:
    """The working directory of a shipped config that was trained for two steps."""
    workdir = folder / config
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(config, ["--smoke", "--steps=2", "--devices=1", "--no-progress", "--workdir", str(workdir), *options])
    return workdir
