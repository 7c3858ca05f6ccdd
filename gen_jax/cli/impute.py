"""The command `impute`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_ending,
    check_folder,
    interruptible,
    open_workdir,
    parse_step,
)
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.run import Run

__all__ = ["impute"]

BLOCK = 256  # rows at once


def impute(
    workdir: Workdir,
    data: Path,
    n: int = 1,
    mean: bool = False,
    out: Path = Path("imputed.csv"),
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Fills the missing cells of a table with draws from a trained model, given the other cells of the row.

    Cells that are there, other columns and the order of the rows are kept. Several imputations follow each other, told
    apart by a first column "imputation".

    Args:
        data: a table (.csv, .tsv, .parquet) with the columns of the run's data
        n: imputations, or the draws that --mean averages
        mean: fill with the mean of the draws, of categories with the most frequent one
        out: the table that is written
        seed: random seed
    """
    from gen_jax.data.tables import TABLES, read_rows

    check_ending(out, (".csv",))
    check_folder(out)
    if n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    if data.suffix.lower() not in TABLES or not data.is_file():
        raise UserError(f"--data {data}: a table ({', '.join(TABLES)}) is needed")
    if data.resolve() == out.resolve():
        raise UserError(f"--out {out}: is the table that is read, and would be lost")
    run = open_workdir(workdir, config, data_dir, member)
    info = run.data.info
    if len(info.shape) != 1 or not info.columns:
        raise UserError(f"{workdir} was not trained on a table, whose rows could be filled: see docs/applications")
    x = read_rows(data, info)[0]["x"]
    empty = np.flatnonzero(np.isnan(x).all(axis=1))
    if len(empty):
        raise UserError(f"{data}: {len(empty):,} rows have no cell to go by, the first is row {empty[0] + 1}")
    missing = np.isnan(x)
    if not missing.any():
        raise UserError(f"{data} has no missing cells in the columns {', '.join(info.columns)}")
    with interruptible():
        drawn = _draws(run, x, n, seed, parse_step(step))
    if mean:
        drawn = _centers(drawn, info.categories)[None]
    _write(out, data, run, drawn, missing)
    cells = f"{missing.sum():,} cells of {missing.any(axis=1).sum():,} rows"
    print(f"{cells} filled{f', {len(drawn)} times' if len(drawn) > 1 else ''}: {out}")


def _draws(run: Run, x: np.ndarray, n: int, seed: int, step: Any) -> np.ndarray:
    """(n, rows, columns) completions in the units of the data."""
    import jax
    import jax.numpy as jnp
    from tqdm import tqdm

    from gen_jax.applications.imputation import default_method
    from gen_jax.core import Imputable, Invertible, Latent, averaged
    from gen_jax.data.source import apply_transforms

    model, state = run.experiment.model, averaged(run.state(step))
    if not isinstance(model, (Imputable, Latent, Invertible)):
        raise UserError(f"{type(model).__name__} cannot fill missing cells: use a Gaussian mixture, a VAE or a flow")
    split = run.experiment.split(run.data, "test")
    method = default_method(model, ~np.isnan(x))
    program = jax.jit(lambda state, x, mask, key: method(model, state, {"x": jnp.where(mask, x, 0)}, mask, key, n))
    found = []
    for i, start in enumerate(tqdm(range(0, len(x), BLOCK), "imputing", leave=False, delay=2, dynamic_ncols=True)):
        rows = np.minimum(np.arange(start, start + BLOCK), len(x) - 1)
        part = apply_transforms({"x": jnp.asarray(x[rows])}, split.transforms, seed, i)["x"]
        made = np.asarray(program(state, part, ~np.isnan(x[rows]), jax.random.fold_in(jax.random.key(seed), i)))
        for transform in reversed(split.transforms_of("x")):
            made = made if transform.inverse is None else transform.inverse(made)
        found.append(made[:, : len(x) - start])
    return np.concatenate(found, axis=1)


def _centers(drawn: np.ndarray, categories: Any) -> np.ndarray:
    """The means of draws (n, rows, columns), of categories the most frequent code."""
    center = drawn.mean(axis=0)
    for column, names in enumerate(categories or ()):
        if names:
            codes = np.clip(np.rint(drawn[..., column]), 0, len(names) - 1).astype(int)
            counts = np.stack([(codes == c).sum(axis=0) for c in range(len(names))])
            center[:, column] = counts.argmax(axis=0)
    return center


def _write(out: Path, data: Path, run: Run, drawn: np.ndarray, missing: np.ndarray) -> None:
    """Writes the table with its missing cells filled, once for each of the draws."""
    import pyarrow as pa

    from gen_jax.data.tables import read_table, write_table

    [table] = read_table([data])
    info, tables = run.data.info, []
    places = {name: i for i, name in enumerate(info.columns)}
    for number, filled in enumerate(drawn):
        columns: dict[str, Any] = {"imputation": np.full(len(filled), number)} if len(drawn) > 1 else {}
        for name, values in table.columns.items():
            values = _named(values, table.categories.get(name, ()))
            if name in places:
                i = places[name]
                gap = missing[:, i]
                known = info.categories[i] if info.categories else ()
                made = filled[:, i]
                if known:
                    made = np.array(known)[np.clip(np.rint(made), 0, len(known) - 1).astype(int)]
                values = np.where(gap, made, values) if gap.any() else values
            columns[name] = values
        tables.append(pa.table(columns))
    write_table(pa.concat_tables(tables), out)


def _named(values: np.ndarray, names: Mapping[int, str] | tuple[str, ...]) -> np.ndarray:
    """The texts of codes, "" for a missing one; numbers as they are."""
    if not names:
        return values
    codes = np.where(np.isnan(values), len(names), values).astype(int)
    return np.array([*names, ""])[codes]
