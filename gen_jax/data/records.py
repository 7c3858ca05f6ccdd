"""Records: examples on disk, read by their numbers, and columns of them that stand in for arrays.

Slices and masks of a `Column` are views; integers and arrays of integers read the examples they name, and no others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

__all__ = [
    "Arrays",
    "Column",
    "Entry",
    "NpyRecords",
    "Records",
    "columns",
    "is_lazy",
    "nbytes",
    "read_ahead",
    "read_blocks",
    "select",
    "take",
]

Arrays = Mapping[str, Any]  # arrays or columns, all with the same leading axis; "x" holds the observations
Value = TypeVar("Value")


class Entry(NamedTuple):
    """The shape and dtype of an entry of one example."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Records(Protocol):
    """Examples that are read by their numbers, from several threads at once; picklable for worker processes."""

    def __len__(self) -> int: ...

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The entries (n, ...) of the examples of these numbers (n,)."""


@dataclass(frozen=True, eq=False)
class Column:
    """One entry of records, in place of an array (N, ...). rows: the numbers of the records that it shows."""

    records: Records
    entry: str
    rows: range | np.ndarray = field(repr=False)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.records.entries[self.entry].dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.records.entries[self.entry].shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            raise IndexError("a column is indexed by examples only: read them, then index the array")
        if isinstance(key, slice):
            return replace(self, rows=self.rows[key])
        key = np.asarray(key)
        if key.dtype == bool:
            return self.at(np.flatnonzero(key))
        found = self.records.read(self.numbers(np.atleast_1d(key)))[self.entry]
        return found[0] if key.ndim == 0 else found

    def at(self, index: np.ndarray) -> Column:
        """The column of the examples at these places, not read yet."""
        return replace(self, rows=self.numbers(np.asarray(index)))

    def numbers(self, index: np.ndarray) -> np.ndarray:
        """The numbers of the records at these places of the column."""
        if len(index) and not -len(self) <= index.min() <= index.max() < len(self):
            raise IndexError(f"index {index.min()} to {index.max()} of a column of {len(self)}")
        index = np.where(index < 0, index + len(self), index)
        if isinstance(self.rows, range):
            return self.rows.start + self.rows.step * index
        return self.rows[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype)
        for start in range(0, len(self), 1024):
            index = np.arange(start, min(start + 1024, len(self)))
            whole[index] = self[index]
        return whole if dtype is None else whole.astype(dtype)


def columns(records: Records) -> dict[str, Column]:
    """A column of each entry of the records."""
    return {entry: Column(records, entry, range(len(records))) for entry in records.entries}


def take(arrays: Arrays, index: np.ndarray) -> dict[str, np.ndarray]:
    """The examples at these places of arrays and columns; what is in one record is read once."""
    taken: dict[str, np.ndarray] = {}
    read: dict[int, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    for name, a in arrays.items():
        if not isinstance(a, Column):
            taken[name] = np.asarray(a[index])
            continue
        numbers, known = a.numbers(index), read.get(id(a.records))
        if known is None or not np.array_equal(known[0], numbers):
            known = read[id(a.records)] = (numbers, a.records.read(numbers))
        taken[name] = known[1][a.entry]
    return taken


def select(arrays: Arrays, rows: slice | np.ndarray) -> dict[str, Any]:
    """The examples at these places; columns, and slices of arrays, are views."""
    view = lambda a: a.at(rows) if isinstance(a, Column) and not isinstance(rows, slice) else a[rows]
    return {entry: view(a) for entry, a in arrays.items()}


def is_lazy(arrays: Arrays) -> bool:
    """Whether any entry is read only when indexed."""
    return any(isinstance(a, Column) for a in arrays.values())


def nbytes(arrays: Arrays) -> int:
    """The memory that the arrays and columns would take."""
    return sum(int(a.nbytes) for a in arrays.values())


class NpyRecords:
    """Arrays in .npy files, read in pieces: unlike memory-mapped ones, they never count as memory of the process."""

    def __init__(self, paths: Mapping[str, Path]):
        self.paths = dict(paths)
        self._files: dict[str, int] = {}

    @cached_property
    def _layout(self) -> dict[str, tuple[int, int, Entry]]:
        """{entry: (offset of the data, number of examples, their shape and dtype)}"""
        layout = {}
        for name, path in self.paths.items():
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            layout[name] = (mapped.offset, len(mapped), Entry(mapped.shape[1:], mapped.dtype))
        return layout

    @property
    def entries(self) -> dict[str, Entry]:
        return {name: entry for name, (_, _, entry) in self._layout.items()}

    def __len__(self) -> int:
        return next(iter(self._layout.values()))[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # descriptors do not cross processes

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, (offset, _, (shape, dtype)) in self._layout.items():
            file = self._files.get(name)
            if file is None:
                file = self._files.setdefault(name, os.open(self.paths[name], os.O_RDONLY))
            rows = np.empty((len(index), *shape), dtype)
            flat = rows.reshape(len(index), -1).view(np.uint8)
            width = flat.shape[1]
            for row, number in zip(flat, index.tolist()):
                if os.preadv(file, [memoryview(row)], offset + number * width) != width:
                    raise OSError(f"{self.paths[name]} ends before example {number}")
            found[name] = rows
        return found


def read_blocks(
    arrays: Arrays, at_once: int, start: int = 0, stop: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """The examples from `start` to `stop` in order, `at_once` at a time, read ahead in threads."""
    stop = len(next(iter(arrays.values()))) if stop is None else stop
    read = lambda i: take(arrays, np.arange(start + i * at_once, min(stop, start + (i + 1) * at_once)))
    return read_ahead(read, 0, -(-(stop - start) // at_once), depth=4, threads=os.cpu_count() or 1)


def read_ahead(
    read: Callable[[int], Value], start: int, stop: int, depth: int, threads: int, workers: int = 0
) -> Generator[Value, None, None]:
    """Yields read(start), ..., read(stop - 1), with up to `depth` results read ahead in threads or worker processes."""
    import grain.python as grain

    calls = grain.MapDataset.range(start, stop).map(read)
    if workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # else its worker processes refuse to start
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, depth // workers))
        ready = iter(calls.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(options))
    else:
        ready = iter(calls.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=depth)))
    with closing(ready):
        yield from ready
