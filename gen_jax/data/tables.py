"""Tables (.csv, .parquet, .npz, .npy) as arrays: named columns, categories, missing cells, labels, sequences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.dataset import Dataset, describe
from gen_jax.data.folders import content_splits, fractions
from gen_jax.data.options import listed
from gen_jax.data.records import Arrays, is_lazy, select
from gen_jax.errors import UserError

__all__ = [
    "SUFFIXES",
    "TABLES",
    "Table",
    "TableColumns",
    "align",
    "code_texts",
    "filled_splits",
    "in_random_order",
    "open_table",
    "pad",
    "read_rows",
    "read_table",
    "split_rows",
    "write_csv",
    "write_table",
]

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz", ".npy")
TABLES = (".csv", ".tsv", ".parquet")  # those of rows with named columns
CATEGORIES = 1000  # different texts of a column up to which they are categories


@dataclass
class Table:
    """Columns of one length.

    categories: {column: the texts that its codes stand for}. refused: {column: its type}, of those without numbers.
    rows_at: for each row a number in [0, 1) by its content, in all columns.
    """

    path: Path
    columns: dict[str, np.ndarray]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.rows_at = _fractions(list(self.columns.values()))

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]


def read_table(paths: Sequence[Path]) -> list[Table]:
    """Reads tables of the same columns, their categories with common codes."""
    read = [_read(path) for path in paths]
    raw = [columns for columns, _ in read]
    for path, columns in zip(paths, raw):
        if list(columns) != list(raw[0]):
            different = sorted(set(columns) ^ set(raw[0])) or ["their order"]
            raise UserError(f"{path} and {paths[0]} have different columns: {', '.join(different)}")
        if not columns or not len(next(iter(columns.values()))):
            raise UserError(f"{path} has no rows")
    return code_texts([Table(path, columns, {}, refused) for path, (columns, refused) in zip(paths, read)])


def code_texts(tables: list[Table]) -> list[Table]:
    """The tables with texts as codes, the same in all of them."""
    for name in list(tables[0].columns):
        parts = [table.columns[name] for table in tables]
        if any(part.dtype.kind == "U" for part in parts):
            names = tuple(sorted({text for part in parts for text in part.astype(str).tolist()} - {""}))
            for table, part in zip(tables, parts):
                table.columns[name], table.categories[name] = _codes(part.astype(str), names), names
    return tables


def _codes(texts: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The places of the texts in the sorted names; NaN for a missing one, ""."""
    codes = np.searchsorted(np.array(names or ("",)), texts).astype(np.float64)
    return np.where(texts == "", np.nan, codes)


def _fractions(columns: Sequence[np.ndarray]) -> np.ndarray:
    """A number in [0, 1) for each row, by a hash of its values."""
    texts = [column.astype(str) if column.dtype.kind == "U" else column.astype(np.float64) for column in columns]
    encoded = [[t.encode() for t in a.tolist()] if a.dtype.kind == "U" else [v.tobytes() for v in a] for a in texts]
    return fractions(b"\0".join(row) for row in zip(*encoded))


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """{column: numbers (N,), or texts with "" where missing}, and {column: its type} where that is neither."""
    if path.suffix.lower() == ".parquet":
        return _from_arrow(path, _arrow(path, "parquet"))
    return _from_arrow(path, _arrow(path, "csv", _delimiter(path)))


def _delimiter(path: Path) -> str:
    """A tab in .tsv; semicolons or tabs, if the first two lines have equally many, and fewer commas; else commas."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            first, second = (re.sub(r'"[^"]*"', "", file.readline()) for _ in range(2))
    except OSError:
        return ","  # the reader tells the reason
    likely = [one for one in ";\t" if first.count(one) == second.count(one) > first.count(",")]
    return likely[0] if likely else ","


def _arrow(path: Path, kind: str, delimiter: str = ",") -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    def read(threads: bool) -> Any:
        if kind == "parquet":
            return pa.parquet.read_table(path)
        texts = pa.csv.ConvertOptions(strings_can_be_null=True)
        rows, columns = pa.csv.ReadOptions(use_threads=threads), pa.csv.ParseOptions(delimiter=delimiter)
        return pa.csv.read_csv(path, rows, columns, texts)

    wrong = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)
    try:
        return read(threads=True)
    except wrong as error:
        found = error
    try:
        return read(threads=False)  # which tells the row
    except wrong as error:
        found = error
    text = str(found).partition("\n")[0]
    if match := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", text):
        text = f"row {match[1]} has {match[3]} cells instead of {match[2]}"
    elif "Empty CSV" in text:
        text = "the file is empty"
    raise UserError(f"{path} cannot be read: {text[:300]}")


def _from_arrow(path: Path, table: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import pyarrow as pa

    names = table.column_names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{path} has several columns named {', '.join(map(repr, twice))}: rename them")
    columns, refused = {}, {}
    for name, column in zip(names, table.columns):
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_null(kind):
            columns[name] = np.full(len(column), np.nan)
        elif pa.types.is_boolean(kind):
            columns[name] = _numbers(column.cast(pa.int8()))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            columns[name] = _numbers(column.cast(pa.float64()) if pa.types.is_decimal(kind) else column)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            columns[name] = np.array(column.fill_null("").to_pylist(), dtype=str)
        else:  # times can order sequences; anything else is refused once it is asked for
            refused[name] = str(kind)
            whole = pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()
            columns[name] = _numbers(column.cast(whole)) if pa.types.is_temporal(kind) else np.zeros(len(column))
    return columns, refused


def _numbers(column: Any) -> np.ndarray:
    return column.to_numpy() if column.null_count == 0 else column.cast("float64", safe=False).to_numpy()


def open_table(paths: Mapping[str, Path], options: Any, name: str) -> Dataset:
    """A data set from one table, split by the content of its rows, or from a table per split."""
    read = dict(zip(paths, read_table(list(paths.values()))))
    first = next(iter(read.values()))
    chosen = TableColumns.of(first, options)
    parts = {s: chosen.sequences(table) if options.id else chosen.examples(table) for s, table in read.items()}
    if len(parts) == 1:
        arrays, values = next(iter(parts.values()))
        splits = split_rows(arrays, name, values=values)
    else:
        splits = filled_splits({split: arrays for split, (arrays, _) in parts.items()}, name)
    splits = align(splits) if options.id else splits
    notes = tuple(f"{first.path}: left out the column {column!r}, which is empty" for column in chosen.empty)
    return Dataset(name, splits, {**describe(splits, chosen.class_names), **chosen.described()}, notes=notes)


@dataclass
class TableColumns:
    """The columns of a table that become "x", "y" and "label"."""

    columns: tuple[str, ...]
    targets: tuple[str, ...]
    label: str
    id: str
    time: str
    categories: dict[str, tuple[str, ...]]
    class_names: tuple[str, ...]
    drop: bool  # rows with missing cells
    empty: tuple[str, ...]  # columns without any value, which are left out

    @classmethod
    def of(cls, table: Table, options: Any) -> TableColumns:
        targets, special = listed(options.targets), [o for o in (options.label, options.id, options.time) if o]
        for name in (*special, *targets):
            table.column(name)
        if options.time and not options.id:
            raise UserError("--time orders the steps of sequences, which --id tells apart: give --id too")
        rest = [name for name in table.columns if name not in (*special, *targets)]
        empty = tuple(n for n in rest if n not in table.refused and np.isnan(table.column(n).astype(float)).all())
        columns = listed(options.columns) or tuple(name for name in rest if name not in empty)
        if not columns:
            raise UserError(f"{table.path} has no columns left for the observations")
        for name in (*columns, *targets):
            _check_numbers(table, name)
        names = cls._classes(table, options.label) if options.label else ()
        return cls(
            columns,
            targets,
            options.label,
            options.id,
            options.time,
            table.categories,
            names,
            options.missing == "drop",
            () if listed(options.columns) else empty,
        )

    @staticmethod
    def _classes(table: Table, label: str) -> tuple[str, ...]:
        values = table.column(label)
        if label in table.refused:
            raise UserError(f"{table.path}: the labels in {label!r} are of the type {table.refused[label]}")
        if label in table.categories:
            names = table.categories[label]
        elif values.dtype.kind in "iub" or (np.isfinite(values).all() and (values == np.rint(values)).all()):
            names = tuple(str(int(v)) for v in np.unique(values))
        else:
            raise UserError(f"{table.path}: the labels in {label!r} must be texts or whole numbers, without gaps")
        if not 2 <= len(names) <= CATEGORIES:
            raise UserError(f"{table.path}: {label!r} has {len(names):,} classes; 2 to {CATEGORIES} are possible")
        return names

    def examples(self, table: Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rows as examples, and a number in [0, 1) for each, by which it falls into a split."""
        arrays = {"x": self._matrix(table, self.columns)}
        if self.targets:
            arrays["y"] = self._matrix(table, self.targets)
        if self.label:
            arrays["label"] = self._labels(table)
        complete = self._complete(table, arrays)
        return {entry: a[complete] for entry, a in arrays.items()}, table.rows_at[complete]

    def _complete(self, table: Table, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The rows that are kept: all of them, or those without missing cells."""
        if not self.drop:
            return np.ones(table.rows, bool)
        complete = ~np.any([np.isnan(a).any(axis=1) for a in arrays.values() if a.dtype.kind == "f"], axis=0)
        if not complete.any():
            raise UserError(f"{table.path}: every row has a missing cell, so --missing drop leaves none")
        return complete

    def _matrix(self, table: Table, names: Sequence[str]) -> np.ndarray:
        for name in names:
            _check_numbers(table, name)
        return np.stack([table.column(name).astype(np.float32) for name in names], axis=1)

    def _labels(self, table: Table) -> np.ndarray:
        values = table.column(self.label)
        if self.label in table.categories:
            if np.isnan(values).any():
                raise UserError(f"{table.path}: row {int(np.argmax(np.isnan(values))) + 1} has no {self.label!r}")
            return values.astype(np.int32)
        numbers = {name: i for i, name in enumerate(self.class_names)}
        try:
            return np.array([numbers[str(int(v))] for v in values], np.int32)
        except (KeyError, ValueError) as error:
            raise UserError(f"{table.path}: the label {error} is not among those of the first table") from None

    def sequences(self, table: Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One sequence per value of the id, its steps ordered by the time or as in the table; and a number for each."""
        x, ids = self._matrix(table, self.columns), table.column(self.id)
        times = table.column(self.time) if self.time else np.arange(table.rows)
        kept = self._complete(table, {"x": x})
        x, ids, times = x[kept], ids[kept], times[kept]
        if ids.dtype.kind == "f" and np.isnan(ids).any():
            raise UserError(f"{table.path}: row {int(np.argmax(np.isnan(ids))) + 1} has no {self.id!r}")
        order = np.lexsort((times, ids))
        starts = np.flatnonzero(np.r_[True, ids[order][1:] != ids[order][:-1]])
        arrays = pad(np.split(x[order], starts[1:]))
        if self.label:
            labels = np.split(self._labels(table)[kept][order], starts[1:])
            if any((one != one[0]).any() for one in labels):
                raise UserError(f"{table.path}: {self.label!r} changes within a sequence, which has one label")
            arrays["label"] = np.array([one[0] for one in labels])
        names = table.categories.get(self.id, ())
        return arrays, _fractions([np.array([names[int(i)] if names else str(i) for i in ids[order][starts]])])

    def described(self) -> dict[str, Any]:
        names = tuple(self.categories.get(name, ()) for name in self.columns)
        return {"columns": self.columns, "targets": self.targets, "label": self.label, "categories": names}


def _check_numbers(table: Table, name: str) -> None:
    column = table.column(name)
    if name in table.refused:
        raise UserError(
            f"{table.path}: the column {name!r} has the type {table.refused[name]}, not numbers: name the others with "
            "--columns"
        )
    texts = len(table.categories.get(name, ()))
    if texts > min(CATEGORIES, max(10, table.rows // 2)):
        raise UserError(
            f"{table.path}: the column {name!r} holds {texts:,} different texts where numbers are wanted: "
            "name the others with --columns, or make it the --label or --id"
        )
    if np.isinf(column).any():
        row = int(np.argmax(np.isinf(column))) + 1
        raise UserError(f"{table.path}: the column {name!r} has infinite values, the first in row {row}")


def pad(sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Sequences (T_i, ...) as "x" (N, max T, ...), padded with zeros, and "length" (N,)."""
    lengths = np.array([len(one) for one in sequences], np.int32)
    x = np.zeros((len(sequences), int(lengths.max()), *sequences[0].shape[1:]), sequences[0].dtype)
    for row, one in zip(x, sequences):
        row[: len(one)] = one
    return {"x": x, "length": lengths}


def align(splits: Mapping[str, dict[str, np.ndarray]], entry: str = "x") -> dict[str, dict[str, np.ndarray]]:
    """The splits with the sequences of an entry padded to the longest of all of them."""
    longest = max(arrays[entry].shape[1] for arrays in splits.values())
    padding = lambda x: np.pad(x, [(0, 0), (0, longest - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return {split: {**arrays, entry: padding(arrays[entry])} for split, arrays in splits.items()}


def split_rows(
    arrays: Mapping[str, np.ndarray],
    name: str,
    missing: Sequence[str] = ("validation", "test"),
    values: np.ndarray | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Splits 80/10/10 % by content: equal rows fall into the same split, also when others are added.

    values: a number in [0, 1) for each example; by default from a hash of "x".
    """
    size = len(arrays["x"])
    if values is None and size:
        rows = np.ascontiguousarray(arrays["x"]).reshape(size, -1).view(np.uint8).reshape(size, -1)
        values = fractions(rows)
    parts = content_splits(np.zeros(0) if values is None else values, missing, name)
    return {split: select(arrays, part) for split, part in parts.items()}


def in_random_order(arrays: Arrays) -> dict[str, Any]:
    """The examples in a random but fixed order, so that the first ones stand for all."""
    return select(arrays, np.random.default_rng(0).permutation(len(arrays["x"])))


def filled_splits(splits: Mapping[str, Arrays], name: str) -> dict[str, Arrays]:
    """The splits, with those that are missing taken from the training split: by content, or of columns by place."""
    if "train" not in splits:
        raise UserError(f"{name} has the splits {', '.join(splits)}, but none for training: call it train")
    missing = [split for split in ("validation", "test") if split not in splits]
    if not missing:
        return dict(splits)
    train = splits["train"]
    if not is_lazy(train):
        return _in_order({**splits, **split_rows(train, name, missing)})
    size = len(train["x"])
    parts = content_splits(np.random.default_rng(0).permutation(size) / size, missing, name)
    return _in_order({**splits, **{split: select(train, part) for split, part in parts.items()}})


def _in_order(splits: dict[str, Arrays]) -> dict[str, Arrays]:
    """The splits with the training split first."""
    return {split: splits[split] for split in sorted(splits, key=("train", "validation", "test").index)}


def read_rows(path: Path, info: Any, label: str = "") -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """All rows of a table, in its order, with the columns and categories of a data set: "x", and texts of a label.

    info: of the data set, a table or vectors. Other columns are ignored. Raises UserError for missing columns, and for
    categories that the data set does not have.
    """
    [table] = read_table([path])
    truth = None
    if label:
        codes, names = table.column(label), table.categories.get(label, ())
        if np.isnan(codes).any():
            raise UserError(f"{path}: row {int(np.argmax(np.isnan(codes))) + 1} has no {label!r}")
        truth = np.array([names[int(c)] if names else _text(c) for c in codes])
    columns = info.columns or tuple(name for name in table.columns if name != label)
    if len(columns) != info.shape[-1]:
        raise UserError(f"{path} has {len(columns)} columns, {info.shape[-1]} are needed: {', '.join(columns[:5])} ...")
    known = info.categories or ((),) * len(columns)
    return {"x": np.stack([_recoded(table, *one) for one in zip(columns, known)], axis=1)}, truth


def read_steps(path: Path, ids: str, time: str = "") -> list[np.ndarray]:
    """The rows of each sequence of a table, ordered by the column `time` or as in the table.

    ids: the column that tells sequences apart. Raises UserError.
    """
    [table] = read_table([path])
    which = table.column(ids)
    if np.isnan(which).any():
        raise UserError(f"{path}: row {int(np.argmax(np.isnan(which))) + 1} has no {ids!r}")
    order = np.lexsort((table.column(time) if time else np.arange(table.rows), which))
    return np.split(order, np.flatnonzero(which[order][1:] != which[order][:-1]) + 1)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _text(number: float) -> str:
    """A number as it is usually written, without a point where it is whole."""
    return str(int(number)) if number == int(number) else repr(float(number))


def _recoded(table: Table, name: str, categories: Sequence[str]) -> np.ndarray:
    """A column of numbers, or the codes of a data set for its texts."""
    values, names = table.column(name), table.categories.get(name, ())
    if not categories:
        _check_numbers(table, name)
        if wrong := [text for text in names if not _is_number(text)]:
            row = int(np.argmax(values == names.index(wrong[0]))) + 1
            raise UserError(
                f"{table.path}: row {row} has {wrong[0]!r} in the column {name!r}, where numbers are needed; leave "
                "missing cells empty"
            )
        return values.astype(np.float32)
    texts = names or tuple(map(_text, np.unique(values[~np.isnan(values)])))
    if unknown := set(texts) - set(categories):
        raise UserError(
            f"{table.path}: the column {name!r} holds {sorted(unknown)[0]!r}, which the data of the run has not"
        )
    codes = np.array([categories.index(text) for text in texts], np.float32)
    places = values if names else np.searchsorted(np.unique(values[~np.isnan(values)]), values)
    found = np.full(len(values), np.nan, np.float32)
    present = ~np.isnan(values)
    found[present] = codes[places[present].astype(int)]
    return found


def write_csv(path: Path, batch: Mapping[str, np.ndarray], info: Any) -> None:
    """Writes examples as a table with the columns and categories of the data; of sequences, one row per step."""
    import pyarrow as pa

    x = np.asarray(batch["x"])
    if x.ndim not in (2, 3) or (x.ndim == 3 and "length" not in batch and not info.columns):
        raise UserError(f"{path}: examples of shape {x.shape[1:]} are no rows of a table: choose .npz or a picture")
    made: dict[str, Any] = {}
    if x.ndim == 3:
        steps = np.asarray(batch.get("length", np.full(len(x), x.shape[1])))
        made["sequence"] = np.repeat(np.arange(len(x)), steps)
        made["step"] = np.concatenate([np.arange(n) for n in steps])
        x = np.concatenate([one[:n] for one, n in zip(x, steps)])
        batch = {"x": x}
    names = info.columns or tuple(f"x{i}" for i in range(x.shape[1]))
    for i, name in enumerate(names):
        known = info.categories[i] if info.categories else ()
        made[name] = np.array(known)[_nearest(x[:, i], len(known))] if known else x[:, i]
    if "label" in batch:
        label = np.asarray(batch["label"])
        made[info.label or "label"] = np.array(info.class_names)[label] if info.class_names else label
    write_table(pa.table(made), path)


def write_table(table: Any, path: Path) -> None:
    """Writes a table of pyarrow as .csv, atomically."""
    import pyarrow.csv

    draft = path.with_suffix(".draft")
    pyarrow.csv.write_csv(table, draft)
    draft.replace(path)


def _nearest(values: np.ndarray, categories: int) -> np.ndarray:
    return np.clip(np.rint(values), 0, categories - 1).astype(int)
