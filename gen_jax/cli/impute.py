"""The command `impute`."""

from __future__ import annotations

from pathlib import Path

from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_ending,
    check_folder,
    open_workdir,
    parse_step,
)
from gen_jax.errors import UserError

__all__ = ["impute"]


def impute(
    workdir: Workdir,
    data: Path,
    n: int | None = None,
    mean: bool = False,
    mask: Path | None = None,
    out: Path = Path("imputed.csv"),
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Fills the missing cells of a table, or a part of images, with draws from a trained model, given the rest.

    The rest is that of the row; of a table of sequences, that of the sequence. Cells that are there, other
    columns and the order of the rows are kept. Several imputations follow each other, told apart by a first column
    "imputation".

    Args:
        data: a table (.csv, .tsv, .parquet) with the columns of the run's data, or an image or a folder of images
        n: imputations, by default 1, or the draws that --mean averages, by default 100
        mean: fill with the mean of the draws, of categories with the most frequent one
        mask: of images: an image that is black where values are missing
        out: the table that is written; of images, a folder
        seed: random seed
    """
    from gen_jax.cli.impute_images import impute_images
    from gen_jax.cli.impute_tables import impute_table
    from gen_jax.data.images import SUFFIXES
    from gen_jax.data.tables import TABLES

    check_folder(out)
    n = (100 if mean else 1) if n is None else n
    if n < 1 + mean:
        raise UserError(f"--n must be at least {1 + mean}, got {n}")
    if not data.exists():
        raise UserError(f"--data {data}: there is no such file or folder")
    images = mask is not None or data.is_dir() or data.suffix.lower() in SUFFIXES
    if not images:
        check_ending(out, (".csv",))
        if data.suffix.lower() not in TABLES:
            raise UserError(f"--data {data}: a table ({', '.join(TABLES)}) or images are needed")
        if data.resolve() == out.resolve():
            raise UserError(f"--out {out}: is the table that is read, and would be lost")
    run = open_workdir(workdir, config, data_dir, member)
    if images:
        impute_images(run, parse_step(step), data, mask, n, mean, out, seed)
    else:
        impute_table(run, parse_step(step), data, n, mean, out, seed)
