"""`Dataset`: named splits of arrays, or of columns that are read when indexed, and a description of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.core import is_sequential
from gen_jax.data.records import Arrays, Column, select
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.errors import UserError

__all__ = [
    "BLOCK",
    "DataInfo",
    "Dataset",
    "blocks",
    "content_digest",
    "describe",
    "has_missing",
    "value_range",
]

BLOCK = 64 * 2**20  # bytes read at once of what need not fit in memory


@dataclass(frozen=True)
class DataInfo:
    """Properties of a data set, for configs to read instead of repeating them."""

    shape: tuple[int, ...]  # shape of one example of "x"
    levels: int | None = None  # for integer data 0 .. levels - 1
    classes: int | None = None  # number of values of "label"
    class_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()  # token strings
    tokenizer: str = ""  # of tokens: the JSON of the tokenizer; see `gen_jax.data.tokenizers`
    documents: bool = False  # of tokens: whether the text has several documents, each with an end
    aligned: bool = False  # of unpaired domains: whether examples of the two are true pairs, except in training
    gaps: bool = False  # of pairs of texts: whether sources have gaps, and targets what fills them
    columns: tuple[str, ...] = ()  # of a table: the names of the entries of "x"
    categories: tuple[tuple[str, ...], ...] = ()  # per column: the names of its codes, () for numbers
    targets: tuple[str, ...] = ()  # of a table: the names of the entries of "y"
    label: str = ""  # of a table: the name of the column "label"
    missing: bool = False  # whether NaN marks missing values in "x"
    digest: str = ""  # SHA-256 of all arrays, or of the files and how they are read


@dataclass(frozen=True)
class Dataset:
    """Named splits of arrays. `data["train"]`, or a part of one: `data["train[:50000]"]`, `data["train[90%:]"]`,
    `data["train[label=3,7]"]`, `data["train[@rows.txt]"]`; or several, `data["train+validation"]`.

    partner: of unpaired domains, the other one. notes: remarks for the user, e.g. on files that were left out.
    """

    name: str
    splits: Mapping[str, Arrays]
    described: Mapping[str, Any] | None = None  # the fields of `info`, where already known
    partner: Dataset | None = None
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The content hash of the data, of both domains where there are two."""
        own = self.info.digest
        return own if self.partner is None else hashlib.sha256(f"{own}{self.partner.digest}".encode()).hexdigest()

    @cached_property
    def info(self) -> DataInfo:
        """Shape, levels, classes, names and content hash of the data."""
        return DataInfo(**(self.described or describe(self.splits)))

    def images(self, multiple: int = 1, labels: bool = False) -> DataInfo:
        """The description of a set of images of whole numbers, for configs.

        multiple: of what height and width must be. labels: whether classes are needed. Raises UserError.
        """
        info, need = self.info, f"{self.name} has examples of shape {self.info.shape}, where"
        if len(info.shape) != 3 or info.levels is None:
            raise UserError(f"{need} images (height, width, channels) of whole numbers are needed")
        height, width = info.shape[:2]
        if height % multiple or width % multiple:
            nearest = "x".join(str(max(multiple, round(side / multiple) * multiple)) for side in (height, width))
            raise UserError(
                f"{self.name} has images of {height}x{width}, where multiples of {multiple} are needed: "
                f"give --size {nearest} --fit crop"
            )
        if labels and not info.classes:
            raise UserError(f"{self.name} has no labels: put the images of each class into a subfolder")
        return info

    def domains(self) -> tuple[DataInfo, DataInfo]:
        """The descriptions of two unpaired domains of images with the same levels, for configs. Raises UserError."""
        info = self.images()
        if self.partner is None:
            raise UserError(f"{self.name} is one domain: give the other one as --partner, with --pairing unpaired")
        other = self.partner.images()
        if other.levels != info.levels:
            raise UserError(f"{self.name} has {info.levels} levels, its partner {other.levels}: give --bits")
        return info, other

    def vectors(self, most: int = 10_000) -> int:
        """The number of values of an example, a vector of at most `most` of them, for configs. Raises UserError."""
        if len(self.info.shape) != 1 or self.info.shape[0] > most:
            raise UserError(
                f"{self.name} has examples of shape {self.info.shape}, where vectors of at most {most:,} values are "
                "needed, such as the rows of a table"
            )
        return self.info.shape[0]

    def sequences(self, labels: bool = False) -> DataInfo:
        """The description of a set of sequences, for configs. labels: whether classes are needed. Raises UserError."""
        if not is_sequential(next(iter(self.splits.values()))):
            raise UserError(
                f"{self.name} has examples of shape {self.info.shape}, where sequences are needed: of a table, name "
                "the column that tells them apart with --id"
            )
        if labels and not self.info.classes:
            raise UserError(f"{self.name} has no labels: name their column with --label")
        return self.info

    def tokens(self, pairs: bool = False) -> Any:
        """The tokenizer of a text, for configs. pairs: whether pairs of texts are needed. Raises UserError."""
        x = next(iter(self.splits.values()))
        if not self.info.tokenizer or (x["x"].ndim == 2) != pairs:
            wanted = "pairs of texts, a table with two columns," if pairs else "a text file, or a folder of such files,"
            raise UserError(f"{self.name} has examples of shape {self.info.shape}, where {wanted} is needed")
        return read_tokenizer(self.info.tokenizer)

    @property
    def uncounted_token(self) -> int | None:
        """The token that no likelihood counts: the end, of a text that is a single document."""
        return None if self.info.documents or not self.info.tokenizer else len(self.info.vocabulary) - 1

    def __getitem__(self, split: str) -> Arrays:
        if "+" in split and "[" not in split:
            parts = [self[name.strip()] for name in split.split("+")]
            return {name: np.concatenate([np.asarray(one[name]) for one in parts]) for name in parts[0]}
        match = re.fullmatch(r"(\w+)(?:\[(.*)\])?", split)
        name = match and match[1]
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        arrays = self.splits[name]
        size = len(arrays["x"])
        if match[2] is None:
            return arrays
        rows = self._rows(match[2], arrays, split)
        part = select(arrays, rows)
        if not len(part["x"]):
            raise UserError(f"{self.name} [{split}] is empty: {name} has {size} examples")
        return part

    def _rows(self, part: str, arrays: Arrays, split: str) -> slice | np.ndarray:
        """The rows that a part in brackets selects."""
        size = len(arrays["x"])
        if match := re.fullmatch(r"(\d*)(%?):(\d*)(%?)", part):
            return slice(
                *(_position(number, percent, size) for number, percent in (match.group(1, 2), match.group(3, 4)))
            )
        if match := re.fullmatch(r"label=(.+)", part):
            if "label" not in arrays:
                raise UserError(f"{self.name} has no labels to select {split!r} by")
            wanted = [self._class(name.strip(), split) for name in match[1].split(",")]
            return np.flatnonzero(np.isin(np.asarray(arrays["label"]), wanted))
        if part.startswith("@"):
            return _rows_in_file(Path(part[1:]), size)
        raise UserError(
            f"{split!r} is no part of a split: use [10:20], [:5%], [label=NAME] or [@FILE] with row numbers"
        )

    def _class(self, name: str, split: str) -> int:
        if name in self.info.class_names:
            return self.info.class_names.index(name)
        if name.isdigit() and int(name) < (self.info.classes or 0):
            return int(name)
        known = self.info.class_names or range(self.info.classes or 0)
        raise UserError(f"{split!r}: {self.name} has no class {name!r}; it has {', '.join(map(str, known))}")


def _position(number: str | None, percent: str, size: int) -> int | None:
    return None if not number else int(number) * size // 100 if percent else int(number)


def _rows_in_file(path: Path, size: int) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not hold row numbers, one per line or as .npy: {error}") from None
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise UserError(f"{path} must hold a list of whole numbers")
    if len(rows) and not 0 <= rows.min() <= rows.max() < size:
        raise UserError(f"{path}: row numbers must be between 0 and {size - 1}, got {rows.min()} to {rows.max()}")
    return rows


def blocks(a: Any, size: int = BLOCK):
    """The array or column in consecutive parts of about `size` bytes, as NumPy arrays."""
    rows = max(1, size // max(1, a.dtype.itemsize * int(np.prod(a.shape[1:], dtype=np.int64))))
    for start in range(0, len(a), rows):
        yield np.ascontiguousarray(a[start : start + rows])


def content_digest(splits: Mapping[str, Arrays]) -> str:
    """The SHA-256 of all arrays with their names, read in blocks."""
    digest = hashlib.sha256()
    for split, arrays in sorted(splits.items()):
        for name, a in sorted(arrays.items()):
            digest.update(f"{split}/{name}:{a.dtype.str}{a.shape};".encode())
            for block in blocks(a):
                digest.update(block.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def describe(splits: Mapping[str, Arrays], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of `DataInfo` inferred from arrays; integer labels are assumed to be class indices from 0."""
    first = next(iter(splits.values()))
    labels = [np.asarray(arrays["label"]) for arrays in splits.values() if "label" in arrays]
    classes = 1 + max(int(a.max()) for a in labels) if labels and labels[0].dtype.kind in "iu" else None
    x = first["x"]
    levels = 256 if x.dtype == np.uint8 and x.ndim == 4 else None
    return {
        "shape": tuple(x.shape[1:]),
        "levels": levels,
        "classes": len(class_names) or classes,
        "class_names": tuple(class_names),
        "missing": any(has_missing(arrays["x"]) for arrays in splits.values()),
        "digest": content_digest(splits),
    }


def has_missing(a: Any) -> bool:
    """Whether NaN marks missing values in an array."""
    return a.dtype.kind == "f" and any(bool(np.isnan(block).any()) for block in blocks(a))


def value_range(a: Any, levels: int | None = None) -> tuple[float, float]:
    """The lowest and highest value; of a column of integers 0 .. levels - 1 these, without reading it."""
    if isinstance(a, Column) and levels:
        return 0.0, levels - 1.0
    ranges = [(float(block.min()), float(block.max())) for block in blocks(a)]
    return min(low for low, _ in ranges), max(high for _, high in ranges)
