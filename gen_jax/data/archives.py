"""Arrays in .npy and .npz files, by the names that are in use for them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.dataset import Dataset, describe
from gen_jax.data.folders import SPLITS
from gen_jax.data.tables import Table, TableColumns, align, code_texts, filled_splits, pad, split_rows
from gen_jax.errors import UserError

__all__ = ["open_arrays_files"]

OBSERVATIONS = {"x", "X", "data", "images"}
SHARED = ("columns", "categories_")  # beginnings of names that are of all splits


def open_arrays_files(paths: Mapping[str, Path], options: Any, name: str) -> Dataset:
    """A data set from .npy files, or from the arrays of .npz files by their names; one file, or one per split.

    Names: "x" (also X, data, images), or what the option columns names; "label" (labels, target, y) for classes, or
    "y" for numbers; "length" (lengths) for sequences; "columns" for the names of the columns of "x", and
    "categories_NAME" for what the codes of a column stand for; all with a prefix such as train_ where there are
    several splits. Or one array per column.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for split, path in paths.items():
        for key, a in load_arrays(path).items():
            parts.setdefault(split, {})[key] = a
    if list(parts) == [""]:
        parts = _by_prefix(parts[""])
    path = next(iter(paths.values()))
    common = parts.pop("", {}) if len(parts) > 1 else {}
    shared = {key: a for key, a in common.items() if key.startswith(SHARED)}
    made = {split: _Part(path, some | shared, options) for split, some in parts.items()}
    names = _class_names([one.label for one in made.values() if one.table is None])
    splits = {split: one.examples(names) for split, one in made.items()}
    splits = split_rows(splits[""], name) if "" in splits else filled_splits(splits, name)
    splits = align(splits) if "length" in splits["train"] else splits
    table = next(iter(made.values())).table
    if table is None:
        return Dataset(name, splits, describe(splits, names))
    return Dataset(name, splits, {**describe(splits, table.class_names), **table.described()})


def _by_prefix(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split where all names begin with one, as train_x; else all of them as one part, ""."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, a in arrays.items():
        first, mark, rest = key.replace("/", "_", 1).partition("_")
        split = "" if key.startswith(SHARED) else SPLITS.get(first.lower(), "none")
        parts.setdefault(split, {})[key if not split else rest if mark else "x"] = a
    named = [part for split, part in parts.items() if split]
    if "none" in parts or not all(OBSERVATIONS & part.keys() for part in named):
        return {"": arrays}
    return parts


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz or .npy file, without running code. Raises UserError."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        text = "it holds Python objects, not numbers" if "allow_pickle" in str(error) else str(error)
        raise UserError(f"{path} cannot be read: {text.partition(chr(10))[0][:200]}") from None
    for key, a in arrays.items():
        if a.dtype.kind not in "biufU":
            raise UserError(f"{path}: {key!r} has the type {a.dtype}; numbers are needed")
        if not a.ndim:
            raise UserError(f"{path}: {key!r} is a single number, not an array with an axis of examples")
    return arrays


def _class_names(labels: Sequence[np.ndarray | None]) -> tuple[str, ...]:
    """The names of the classes of all splits; () if the labels are no classes."""
    given = [label for label in labels if label is not None and label.ndim == 1 and label.dtype.kind in "iubU"]
    if not given or len(given) < len(labels):
        return ()
    return tuple(str(value) for value in np.unique(np.concatenate(given)))


class _Part:
    """The arrays of one split."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray], options: Any):
        self.path, self.options, self.arrays = path, options, arrays
        columns = arrays.pop("columns", None)
        pick = lambda *names: next((arrays[n] for n in names if n in arrays), None)
        named = [one if one in arrays and arrays[one].ndim > 1 else "" for one in (options.columns, options.targets)]
        self.x, self.length = pick(named[0], "x", "X", "data", "images"), pick("length", "lengths", "X_lengths")
        self.y = arrays.get(named[1])
        self.label = pick(options.label or "label", "label", "labels", "target", *([] if named[1] else ["y"]))
        if options.label and columns is None and options.label not in arrays:
            raise UserError(f"{path} has no array {options.label!r}; it has {', '.join(arrays)}")
        self.table: TableColumns | None = None
        if self.x is None or (columns is not None and not named[0]):
            self._from_columns(arrays, columns)

    def _from_columns(self, arrays: dict[str, np.ndarray], columns: np.ndarray | None) -> None:
        if columns is not None and self.x is not None:
            if self.x.ndim != 2 or len(columns) != self.x.shape[1]:
                raise UserError(f'{self.path}: {len(columns)} names in "columns" for data of shape {self.x.shape}')
            named = {str(name): a for name, a in zip(columns, self.x.T)}
            texts = {name: arrays[f"categories_{name}"] for name in named if f"categories_{name}" in arrays}
        else:
            named, texts = {key: a for key, a in arrays.items() if a.ndim == 1}, {}
        if len({len(a) for a in named.values()}) != 1:
            raise UserError(f'{self.path} needs an array "x", or columns of one length; it has {", ".join(arrays)}')
        [self.columns] = code_texts([Table(self.path, named)])
        self.columns.categories |= {name: tuple(map(str, known)) for name, known in texts.items()}
        self.table = TableColumns.of(self.columns, self.options)

    def examples(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        if self.table is not None:
            made = self.table.sequences(self.columns) if self.options.id else self.table.examples(self.columns)
            return made[0]
        asked = {"columns": self.options.columns, "targets": self.options.targets}
        applicable = [option for option, name in asked.items() if name in self.arrays]
        self.options.only(self.path, "label", *applicable)
        x = _observations(self.x, self.length is None)
        if self.length is None:
            arrays = {"x": x}
        elif len(x) and len(self.length) == len(x) and x.ndim > 1 and self.length.max() <= x.shape[1]:
            arrays = {"x": x, "length": self.length.astype(np.int32)}
        elif len(self.length) and int(self.length.sum()) == len(x) and self.length.min() >= 1:
            arrays = pad(np.split(x, np.cumsum(self.length)[:-1]))
        else:
            raise UserError(
                f"{self.path}: the lengths of {len(self.length):,} sequences add up to {int(self.length.sum()):,}, "
                f"but there are {len(x):,} steps"
            )
        if class_names:
            numbers = {value: i for i, value in enumerate(class_names)}
            arrays["label"] = np.array([numbers[str(value)] for value in self.label], np.int32)
        elif self.label is not None:
            arrays["y"] = self.label.astype(np.float32)
        if self.y is not None:
            arrays["y"] = _observations(self.y, True)
        sizes = {entry: len(a) for entry, a in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"{self.path}: entries differ in length: {sizes}")
        return arrays


def _observations(x: np.ndarray, images: bool) -> np.ndarray:
    """Values as float32 or at most 32-bit integers; gray images of 8 bits with an axis of channels."""
    x = x[:, None] if x.ndim == 1 else x
    if x.dtype.kind == "U":
        raise UserError("the observations of an array file must be numbers, got texts")
    if x.dtype.itemsize > 4 and x.dtype.kind in "iu" and x.size and not -(2**31) <= x.min() <= x.max() < 2**31:
        raise UserError(f"whole numbers must fit in 32 bits, got {x.min()} to {x.max()}: store them as floats")
    x = x.astype(np.float32) if x.dtype.kind == "f" else x.astype(np.int32) if x.dtype.itemsize > 4 else x
    return x[..., None] if x.ndim == 3 and x.dtype == np.uint8 and images else x
