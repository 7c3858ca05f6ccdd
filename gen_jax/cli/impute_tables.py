"""The command `impute` for tables, of rows or of sequences."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen_jax.cli.options import interruptible
from gen_jax.core import EncodesMissing, Infilling, Supported, is_sequential
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.data.dataset import DataInfo
    from gen_jax.run import Run

__all__ = ["impute_table"]

BLOCK = 256  # rows at once


def impute_table(run: Run, step: Any, path: Path, n: int, mean: bool, out: Path, seed: int) -> None:
    """Fills the missing cells of a table with n draws, or with their mean, and writes it."""
    from gen_jax.data.tables import read_rows

    info, model = run.data.info, run.experiment.model
    sequences = isinstance(model, Infilling) and is_sequential(run.data[run.experiment.train])
    if not info.columns or not (sequences or len(info.shape) == 1):
        more = ": give images and --mask" if len(info.shape) == 3 else ": see docs/applications/imputation.md"
        raise UserError(f"{run.workdir} was not trained on a table, whose rows could be filled{more}")
    x, table = read_rows(path, info)[0]["x"], _texts(path)
    if n > 1 and not mean and "imputation" in table[0]:
        raise UserError(f"{path} has a column imputation already, which tells several apart: rename it")
    empty = np.flatnonzero(np.isnan(x).all(axis=1))
    if len(empty) and not sequences:
        raise UserError(
            f"{path}: no cell to go by in {len(empty):,} of the rows, the first is row {empty[0] + 1}: remove them"
        )
    missing = np.isnan(x)
    if not missing.any():
        raise UserError(f"{path} has no missing cells in the columns {', '.join(info.columns)}")
    with interruptible():
        draws = partial(_draws_of_steps, path=path) if sequences else _draws
        drawn = draws(run, x, n, seed, step)
    if mean:
        drawn = _centers(drawn, info.categories)[None]
    _write(out, table, info, drawn, missing)
    if isinstance(model, EncodesMissing) and model.mask is not None:
        print(f"assumes that {model.mask.assumption}, which the observed cells can neither confirm nor refute")
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
        raise UserError(f"{type(model).__name__} cannot fill missing cells: use a mixture, a VAE or a flow")
    split = run.experiment.split(run.data, "test")
    if isinstance(model, EncodesMissing) and model.missing and isinstance(model, Supported):
        whole = apply_transforms({"x": jnp.asarray(x)}, split.transforms, seed, 0)
        if said := model.unsupported({"x": np.asarray(whole["x"])}):
            raise UserError(said)
    method = default_method(model, ~np.isnan(x))
    program = jax.jit(lambda state, x, mask, key: method(model, state, {"x": jnp.where(mask, x, 0)}, mask, key, n))
    found = []
    for i, start in enumerate(tqdm(range(0, len(x), BLOCK), "imputing", leave=False, delay=2, dynamic_ncols=True)):
        rows = np.minimum(np.arange(start, start + BLOCK), len(x) - 1)
        part = apply_transforms({"x": jnp.asarray(x[rows])}, split.transforms, seed, i)["x"]
        made = program(state, part, ~np.isnan(x[rows]), jax.random.fold_in(jax.random.key(seed), i))
        found.append(split.untransformed(made)[:, : len(x) - start])
    return np.concatenate(found, axis=1)


def _draws_of_steps(run: Run, x: np.ndarray, n: int, seed: int, step: Any, path: Path) -> np.ndarray:
    """(n, rows, columns) completions of the steps of sequences, each given all known cells of its sequence."""
    import jax
    from tqdm import tqdm

    from gen_jax.core import averaged
    from gen_jax.data.options import split_name
    from gen_jax.data.source import apply_transforms
    from gen_jax.data.tables import pad, read_steps

    model, state = run.experiment.model, averaged(run.state(step))
    options = split_name(run.config.knobs.get("data", ""))[1]
    if not options.get("id"):
        raise UserError(f"{run.workdir}: its data name no column that tells sequences apart (--id)")
    steps = read_steps(path, options["id"], options.get("time", ""))
    split = run.experiment.split(run.data, "test")
    batch = apply_transforms(pad([x[rows] for rows in steps]), split.transforms, seed, 0)
    program = jax.jit(lambda state, batch, key: model.fill(state, batch, key))
    keys = jax.random.split(jax.random.key(seed), n)
    drawn = np.empty((n, *x.shape), np.float32)
    for i, key in enumerate(tqdm(keys, "imputing", leave=False, delay=2, dynamic_ncols=True)):
        made = split.untransformed(program(state, batch, key))
        for rows, sequence in zip(steps, made):
            drawn[i, rows] = sequence[: len(rows)]
    return drawn


def _centers(drawn: np.ndarray, categories: Any) -> np.ndarray:
    """The means of draws (n, rows, columns), of categories the most frequent code."""
    center = drawn.mean(axis=0)
    for column, names in enumerate(categories or ()):
        if names:
            codes = np.clip(np.rint(drawn[..., column]), 0, len(names) - 1).astype(int)
            counts = np.stack([(codes == c).sum(axis=0) for c in range(len(names))])
            center[:, column] = counts.argmax(axis=0)
    return center


def _texts(path: Path) -> list[list[str]]:
    """The header and the rows of a table as they are written."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
        return [table.column_names, *map(list, zip(*columns))]
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [row for row in csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") if row]


def _write(out: Path, table: list[list[str]], info: DataInfo, drawn: np.ndarray, missing: np.ndarray) -> None:
    """Writes the table with its missing cells filled, once for each of the draws; all others as they were."""
    from gen_jax.files import write_text

    header, *rows = table
    if len(rows) != len(missing):
        raise UserError(f"the table has {len(rows):,} lines for {len(missing):,} rows: it has cells over several lines")
    places, text = [header.index(name) for name in info.columns], io.StringIO()
    decimals = [max(_decimals(row[place]) for row in rows) for place in places]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["imputation", *header] if len(drawn) > 1 else header)
    for number, filled in enumerate(drawn):
        for row, gaps, values in zip(rows, missing, filled):
            made = list(row)
            for i in np.flatnonzero(gaps):
                made[places[i]] = _text(values[i], info.categories[i] if info.categories else (), decimals[i])
            writer.writerow([number, *made] if len(drawn) > 1 else made)
    write_text(out, text.getvalue())


def _decimals(text: str) -> int:
    """The decimals of a number as it is written."""
    return 9 if "e" in text.lower() else len(text.strip().partition(".")[2])


def _text(value: float, categories: tuple[str, ...], decimals: int) -> str:
    """A number with the decimals of its column, or the category that is nearest to a code."""
    if not categories:
        return f"{round(float(value), decimals) + 0.0:.7g}"
    return categories[int(np.clip(np.rint(value), 0, len(categories) - 1))]
