"""The data folder: prepared arrays, written atomically under a lock, and opened without reading them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.dataset import BLOCK, DataInfo, Dataset
from gen_jax.data.records import Arrays, Column, NpyRecords, columns, nbytes, read_blocks
from gen_jax.errors import UserError

__all__ = [
    "DECODED_ONCE",
    "INFO",
    "as_info",
    "data_folder",
    "folder_size",
    "locked",
    "open_arrays",
    "use_data_dir",
    "write_arrays",
    "write_split",
    "write_text",
]

INFO = "info.json"
DECODED_ONCE = 2**30  # bytes of decoded images up to which they are kept in the data folder
MAPPED = 2**30  # bytes of an array up to which it is mapped into memory
_DATA_DIR: ContextVar[Path | None] = ContextVar("data_dir", default=None)


@contextmanager
def use_data_dir(folder: str | os.PathLike | None) -> Iterator[None]:
    """Sets the default folder of data; None changes nothing."""
    token = _DATA_DIR.set(_DATA_DIR.get() if folder is None else Path(folder))
    try:
        yield
    finally:
        _DATA_DIR.reset(token)


def data_folder(data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of data sets: `data_dir`, that of `use_data_dir`, TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(data_dir or _DATA_DIR.get() or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Locks a folder: one process prepares, the others wait."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / "lock", "w")
    except OSError as error:
        raise UserError(
            f"cannot write data to {home}: {error.strerror}; set TFDS_DATA_DIR to a folder you own"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_arrays(
    folder: Path,
    splits: Mapping[str, Arrays],
    info: Mapping[str, Any],
    progress: Callable[[int], Any] = lambda n: None,
    check: Callable[[], Any] = lambda: None,
) -> None:
    """Writes arrays and columns as one .npy file each beside info.json, in blocks, atomically.

    progress is called with the number of examples written; check before the files appear, and may refuse them.
    """
    draft = folder.with_name(f"{folder.name}-incomplete")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for split, arrays in splits.items():
            (draft / split).mkdir(parents=True)
            write_split(draft / split, arrays, progress)
        (draft / INFO).write_text(json.dumps(asdict(DataInfo(**info))))
        check()
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_split(folder: Path, arrays: Arrays, progress: Callable[[int], Any]) -> None:
    """Writes the entries of one split, each example read once."""
    size = len(arrays["x"])
    lazy = {name: a for name, a in arrays.items() if isinstance(a, Column)}
    for name in arrays.keys() - lazy.keys():
        np.save(folder / f"{name}.npy", arrays[name])
    if not lazy:
        progress(size)
        return
    files = {name: open(folder / f"{name}.npy", "wb") for name in lazy}
    try:
        for name, a in lazy.items():
            header = {"descr": np.lib.format.dtype_to_descr(a.dtype), "fortran_order": False, "shape": a.shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        at_once = max(1, BLOCK // 8 // max(1, nbytes(lazy) // max(1, size)))
        for block in read_blocks(lazy, min(at_once, 1024)):
            for name, rows in block.items():
                files[name].write(np.ascontiguousarray(rows).data)
            progress(len(rows))
    finally:
        for file in files.values():
            file.close()


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears only once it is complete and on disk."""
    draft = path.with_name(f"{path.name}-{os.getpid()}-incomplete")
    with open(draft, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def folder_size(folder: Path) -> int:
    """The bytes of all files below a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def open_arrays(name: str, folder: Path, notes: tuple[str, ...] = ()) -> Dataset:
    """Opens prepared arrays: memory-mapped, those above 1 GiB as columns that are read in pieces."""
    order = {"train": 0, "validation": 1, "test": 2}
    names = sorted((f.name for f in folder.iterdir() if f.is_dir()), key=lambda name: (order.get(name, 3), name))
    splits = {split: _open_split(folder / split) for split in names}
    path = folder / INFO
    if not path.exists():  # prepared by an earlier version: described when first asked for
        return Dataset(name, splits, notes=notes)
    return Dataset(name, splits, as_info(json.loads(path.read_text())), notes=notes)


def as_info(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DataInfo` from JSON, which has no tuples."""
    known = {field.name for field in fields(DataInfo)}
    return {field: _plain(value) for field, value in said.items() if field in known}


def _plain(value: Any) -> Any:
    return tuple(_plain(one) for one in value) if isinstance(value, list) else value


def _open_split(folder: Path) -> dict[str, Any]:
    large, arrays = {}, {}
    for path in sorted(folder.glob("*.npy")):
        arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        if arrays[path.stem].nbytes > MAPPED:
            large[path.stem] = path
    return arrays | (typing.cast(dict, columns(NpyRecords(large))) if large else {})
