"""The command `compare`."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from gen_jax.cli.options import DataDir, EncoderName, Samples, resolve_encoder
from gen_jax.errors import UserError


def compare(
    workdirs: Positional[tuple[Path, ...]] = (),
    configs: tuple[Path, ...] = (),
    data: str = "",
    split: str = "test",
    out: Path = Path("runs/compare"),
    encoder: EncoderName = "",
    samples: Samples = 10_000,
    seed: int = 0,
    write: Path | None = None,
    data_dir: DataDir = None,
) -> None:
    """Measures runs of any family on the same data, and writes one table: .html with pictures, .md, .csv and .json.

    Args:
        workdirs: the working directories of runs
        configs: config files, trained first where runs/NAME has not finished
        data: a data set: given to configs that have a knob for it, demanded of all others
        split: train, validation, test, or a part such as test[:100]
        seed: of the samples and of everything else that is drawn
        out: the folder for the reports
        write: also write the tables into this Markdown file, between its compare markers
    """
    from gen_jax.cli.compare_runs import compared, ready
    from gen_jax.markdown import check_section, write_section

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if write:
        check_section(write, "compare")
    encode = resolve_encoder(encoder, samples)
    folders = [*workdirs, *ready(configs, data, data_dir)]
    if not folders:
        raise UserError("which runs? Name their working directories, or config files after --configs")
    comparison = compared(folders, data, split, encode, samples, seed, data_dir)
    terminal = Console(width=None if sys.stdout.isatty() else 160)
    for table in comparison.tables():
        terminal.print(table)
    print(*comparison.notes(), sep="\n")
    print("written:", *comparison.write(out))
    if write:
        write_section(write, "compare", comparison.markdown(level=4))
