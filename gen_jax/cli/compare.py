"""The command `compare`."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from gen_jax.cli.options import DataDir, EncoderName, Samples, resolve_encoder
from gen_jax.errors import UserError

__all__ = ["compare"]


def compare(
    workdirs: Positional[tuple[Path, ...]] = (),
    configs: tuple[Path, ...] = (),
    studies: tuple[Path, ...] = (),
    data: str = "",
    split: str = "test",
    out: Path = Path("runs/compare"),
    encoder: EncoderName = "",
    samples: Samples = 10_000,
    seed: int = 0,
    data_dir: DataDir = None,
) -> None:
    """Evaluates runs of any family on the same data and writes one table: .html with figures, .md, .csv and .json.

    Args:
        workdirs: the working directories of runs
        configs: config files, trained first if runs/NAME has not finished
        studies: folders of human studies of these runs, whose results become columns
        data: a data set; set in configs that have a knob for it, required of all others
        split: train, validation, test, or a part such as test[:100]
        seed: random seed for samples and everything else random
        out: the folder for the reports
    """
    from gen_jax.cli.compare_runs import compared, human_columns, ready

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    encode, human = resolve_encoder(encoder, samples), human_columns(studies)
    folders = [*workdirs, *ready(configs, data, data_dir)]
    if not folders:
        raise UserError("which runs? Name their working directories, or config files after --configs")
    comparison = compared(folders, data, split, encode, samples, seed, data_dir, human)
    terminal = Console(width=None if sys.stdout.isatty() else 160)
    for table in comparison.tables():
        terminal.print(table)
    print(*comparison.notes(), sep="\n")
    print("written:", *comparison.write(out))
