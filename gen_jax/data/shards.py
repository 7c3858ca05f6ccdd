"""Data sets as ArrayRecord shards: packed once, read by random access, of any size.

FOLDER/info.json describes the data; FOLDER/SPLIT-00000-of-00012.array_record hold the examples, the bytes of their
entries one after the other. Labels, lengths and other single numbers lie in FOLDER/SPLIT-ENTRY.npy.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.cache import INFO, as_info, write_text
from gen_jax.data.dataset import Dataset
from gen_jax.data.records import Arrays, Entry, columns, nbytes, read_blocks
from gen_jax.errors import DataError, UserError

__all__ = ["Shards", "is_packed", "open_packed", "pack"]

SHARD = 256 * 2**20  # bytes of a shard, about
MANIFEST = "packing.json"  # of a folder that is not complete yet
FORMAT = 1


class Shards:
    """The examples of one split in ArrayRecord files."""

    def __init__(self, paths: Sequence[Path], entries: Mapping[str, Entry]):
        self.paths, self.entries = [os.fspath(path) for path in paths], dict(entries)

    @cached_property
    def _source(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "entries": self.entries}

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: np.empty((len(index), *shape), dtype) for name, (shape, dtype) in self.entries.items()}
        flat = [a.reshape(len(index), -1).view(np.uint8) for a in found.values()]
        try:
            records = self._source.__getitems__(index.tolist())
        except Exception as error:  # of the reader, for damaged or missing files
            raise DataError(f"{self.paths[0]} and its shards cannot be read: {str(error)[:200]}") from error
        for row, record in enumerate(records):
            start, data = 0, np.frombuffer(record, np.uint8)
            for a in flat:
                a[row] = data[start : start + a.shape[1]]
                start += a.shape[1]
        return found


def pack(
    data: Dataset,
    folder: Path,
    progress: Callable[[int], Any] = lambda n: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Writes a data set as ArrayRecord shards; returns {split: its bytes on disk}.

    What was interrupted goes on where it stopped: a shard gets its name when it is complete, and info.json is written
    last. progress is called with the number of examples of each block; check at the end, and may refuse the data.
    """
    if data.partner is not None:
        raise UserError(f"{data.name} has two unpaired domains: pack each of them")
    plan = {
        "format": FORMAT,
        "digest": data.info.digest,
        "splits": {split: len(a["x"]) for split, a in data.splits.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is packing into {folder}") from None
        _check_destination(folder, plan)
        write_text(folder / MANIFEST, json.dumps(plan))
        splits = {}
        for split, arrays in data.splits.items():
            splits[split] = _pack_split(arrays, split, folder, progress)
        check()
        write_text(folder / INFO, json.dumps({**asdict(data.info), "packed": FORMAT, "splits": splits}))
        (folder / MANIFEST).unlink()
    (folder / "lock").unlink()
    return {split: sum((folder / name).stat().st_size for name in said["files"]) for split, said in splits.items()}


def _check_destination(folder: Path, plan: Mapping[str, Any]) -> None:
    before = _read_json(folder / MANIFEST) or _read_json(folder / INFO)
    if before is None:
        if others := sorted(
            path.name for path in folder.iterdir() if path.name != "lock" and "-incomplete" not in path.name
        ):
            raise UserError(f"{folder} is not empty ({others[0]}): choose another folder to pack into")
        return
    if before.get("digest") != plan["digest"]:
        raise UserError(
            f"{folder} holds other data, or the same read in another way: choose another folder to pack into"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _pack_split(arrays: Arrays, split: str, folder: Path, progress: Callable[[int], Any]) -> dict[str, Any]:
    size, single = len(arrays["x"]), {name: a for name, a in arrays.items() if a.ndim == 1 and name != "x"}
    for name, a in single.items():
        np.save(folder / f"{split}-{name}.npy", np.asarray(a))
    arrays = {name: a for name, a in arrays.items() if name not in single}
    width = max(1, nbytes(arrays) // size)
    per_shard = max(1, SHARD // width)
    shards = -(-size // per_shard)
    names = [f"{split}-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
    for i, name in enumerate(names):
        start, stop = i * per_shard, min(size, (i + 1) * per_shard)
        if not (folder / name).exists():
            _write_shard(folder / name, arrays, start, stop, width, progress)
        else:
            progress(stop - start)
    entries = {name: [list(a.shape[1:]), np.dtype(a.dtype).str] for name, a in arrays.items()}
    return {"size": size, "files": names, "entries": entries, "single": sorted(single)}


def _write_shard(path: Path, arrays: Arrays, start: int, stop: int, width: int, progress: Callable[[int], Any]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    draft = path.with_name(f"{path.name}-incomplete")
    at_once = max(1, min(256, 2**23 // width))
    try:
        writer = ArrayRecordWriter(os.fspath(draft), "group_size:1,uncompressed")
        for block in read_blocks(arrays, at_once, start, stop):
            rows = [np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8) for a in block.values()]
            for parts in zip(*rows):
                if not writer.write(b"".join(part.tobytes() for part in parts)) and not writer.ok():
                    raise OSError(28, f"{draft} could not be written: is the disk full?")
            progress(len(rows[0]))
        writer.close()
    except OSError:
        raise
    except RuntimeError as error:  # of the writer
        raise OSError(28, f"{draft} could not be written ({str(error)[:200]}): is the disk full?") from error
    finally:
        if draft.exists() and not _complete(draft, stop - start):
            draft.unlink()
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    draft.rename(path)


def _complete(path: Path, size: int) -> bool:
    """Whether an ArrayRecord file can be read and has all of its records."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        return ArrayRecordReader(os.fspath(path)).num_records() == size
    except (RuntimeError, ValueError, OSError):
        return False


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed shards, complete or not."""
    return (folder / MANIFEST).is_file() or any(folder.glob("*.array_record"))


def open_packed(folder: Path) -> Dataset:
    """Opens a packed data set; its examples are read when indexed."""
    said = _read_json(folder / INFO)
    if said is None or (folder / MANIFEST).exists():
        raise UserError(f"{folder} is not packed completely: run the same `python -m gen_jax data pack` again")
    splits: dict[str, dict[str, Any]] = {}
    for split, about in said["splits"].items():
        paths = [folder / name for name in about["files"]]
        if gone := next((path for path in paths if not path.is_file()), None):
            raise UserError(f"{gone} is missing: pack the data again into an empty folder")
        entries = {name: Entry(tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in about["entries"].items()}
        single = {name: np.load(folder / f"{split}-{name}.npy", allow_pickle=False) for name in about["single"]}
        splits[split] = {**columns(Shards(paths, entries)), **single}
    return Dataset(f"{folder.name}-{said['digest'][:8]}", splits, as_info(said))
