"""Folders of images: an index of their files, splits, labels, pairs, and records that are decoded when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gen_jax.data.cache import data_folder, locked, write_text
from gen_jax.data.images import (
    SUFFIXES,
    DecodedRecords,
    Header,
    ImageFormat,
    Undecodable,
    decode_into,
    decode_jpeg,
    parse_size,
    read_header,
    reason,
)
from gen_jax.errors import UserError

__all__ = [
    "SPLITS",
    "Images",
    "Index",
    "IndexedFile",
    "choose_format",
    "content_splits",
    "fraction",
    "fractions",
    "has_splits",
    "index_folder",
    "labels_of",
    "mark_unreadable",
    "split_files",
]

SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLITS |= {"dev": "validation", "test": "test", "testing": "test"}


class IndexedFile(NamedTuple):
    """An image file of a folder, with what identifies its content."""

    name: str  # path below the folder, with forward slashes
    size: int  # bytes
    modified: int  # nanoseconds
    digest: str  # of the content
    header: Header


@dataclass(frozen=True)
class Index:
    """The images of a folder, and the files that were left out with the reason."""

    folder: Path
    files: Sequence[IndexedFile]
    unreadable: Mapping[str, str] = field(default_factory=dict)  # {name: reason}
    duplicates: Mapping[str, str] = field(default_factory=dict)  # {name: the file of the same content}
    others: Sequence[str] = ()  # files that are no images

    @property
    def notes(self) -> tuple[str, ...]:
        """One line per kind of file that was left out."""
        left_out = {
            "unreadable": [f"{name} ({why})" for name, why in self.unreadable.items()],
            "duplicate": [f"{name} = {same}" for name, same in self.duplicates.items()],
            "other": list(self.others),
        }
        return tuple(
            f"{self.folder}: left out {len(names):,} {kind} file{'s' if len(names) > 1 else ''}: "
            + ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
            for kind, names in left_out.items()
            if names
        )


def index_folder(folder: Path, data_dir: Path | None = None, progress: Any = None, unique: bool = True) -> Index:
    """Indexes the images below a folder. Files that have not changed since the last time are not read again.

    unique: leave out all but one of the files with the same content.
    """
    Image.init()  # once, before several threads open images
    folder = folder.expanduser()
    try:
        found = list(_walk(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
    images = [one for one in found if one[0].lower().endswith(SUFFIXES)]
    others = sorted(name for name, *_ in found if not name.lower().endswith(SUFFIXES))
    if not images:
        has = f"; it has {len(others):,} other files, such as {others[0]}" if others else ""
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"there are no images ({kinds}) in {folder}{has}; of a table or text, give the file itself")
    kept = _Kept.of(folder, data_dir)
    known = kept.read()
    rows = _examined(folder, images, known, progress)
    if rows != list(known.values()):
        kept.write(rows)
    return _sorted_out(folder, rows, others, unique)


def mark_unreadable(folder: Path, reasons: Mapping[str, str], data_dir: Path | None = None) -> None:
    """Notes in the index of a folder that files turned out to be damaged, until they change."""
    kept = _Kept.of(folder.expanduser(), data_dir)
    rows = kept.read()
    for path, why in reasons.items():
        name = Path(path).relative_to(folder.expanduser()).as_posix()
        rows[name] = [*rows[name][:4], None, why]
    kept.write(list(rows.values()))


def _walk(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(name, size, modified) of the files below a folder, without hidden ones. Each real folder is visited once."""
    root, visited = os.fspath(folder), set()
    pending = [(root, "")]
    while pending:
        path, prefix = pending.pop()
        about = os.stat(path)
        if (about.st_dev, about.st_ino) in visited:
            continue  # a symbolic link back to a folder above it, or to one that was seen
        visited.add((about.st_dev, about.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir():
                        pending.append((entry.path, f"{prefix}{entry.name}/"))
                        continue
                    about = entry.stat()
                except OSError:  # a link to nowhere, or to itself
                    about = entry.stat(follow_symlinks=False)
                yield f"{prefix}{entry.name}", about.st_size, about.st_mtime_ns


def _examined(
    folder: Path, images: Sequence[tuple[str, int, int]], known: Mapping[str, Any], progress: Any
) -> list[Any]:
    """[name, size, modified, digest, header, reason] of each file, reading those that are new."""

    def examine(one: tuple[str, int, int]) -> list[Any]:
        name, size, modified = one
        old = known.get(name)
        if old and old[1:3] == [size, modified] and old[3]:  # what could not be read may be readable now
            return old
        try:
            with open(folder / name, "rb") as file:
                data = file.read()
            return [
                name,
                size,
                modified,
                hashlib.blake2b(data, digest_size=16).hexdigest(),
                list(read_header(data)),
                "",
            ]
        except Exception as error:  # Pillow's decoders raise errors of every type for damaged files
            return [name, size, modified, "", None, reason(error)]

    ordered = sorted(images)
    blocks = [ordered[start : start + 256] for start in range(0, len(ordered), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        examined = chain.from_iterable(pool.map(lambda block: [examine(one) for one in block], blocks))
        return list(progress(examined, len(ordered)) if progress else examined)


class _Kept(NamedTuple):
    """The index of a folder in the data folder."""

    path: Path

    @classmethod
    def of(cls, folder: Path, data_dir: Path | None) -> _Kept:
        key = hashlib.blake2b(os.fspath(folder.resolve()).encode(errors="surrogateescape"), digest_size=10).hexdigest()
        return cls(data_folder(data_dir) / "gen_jax" / "folders" / key / "index.json")

    def read(self) -> dict[str, Any]:
        try:
            return {row[0]: row for row in json.loads(self.path.read_text())["files"]}
        except (OSError, ValueError, KeyError):
            return {}

    def write(self, rows: Sequence[Any]) -> None:
        with locked(self.path.parent):
            write_text(self.path, json.dumps({"files": rows}))


def _sorted_out(folder: Path, rows: Sequence[Any], others: Sequence[str], unique: bool) -> Index:
    """The index, without unreadable files and without the second of two files of the same content.

    Of duplicates in several splits the one for testing stays, so that nothing is tested that was trained on.
    """
    first: dict[str, str] = {}
    order = {"test": 0, "validation": 1, "train": 2}
    ranked = sorted(rows, key=lambda row: (order.get(_split_of(row[0]), 3), row[0]))
    for row in ranked:
        if not row[5]:
            first.setdefault(row[3] if unique else row[0], row[0])
    of = lambda row: first[row[3] if unique else row[0]]
    files = [
        IndexedFile(row[0], row[1], row[2], row[3], Header(*row[4])) for row in rows if not row[5] and of(row) == row[0]
    ]
    unreadable = {row[0]: row[5] for row in rows if row[5]}
    duplicates = {row[0]: of(row) for row in rows if not row[5] and of(row) != row[0]}
    if not files:
        name, why = next(iter(unreadable.items()))
        raise UserError(f"none of the {len(rows):,} images in {folder} can be read; {name}: {why}")
    return Index(folder, files, unreadable, duplicates, others)


def _split_of(name: str) -> str:
    """The split that a file's first folder names, "" if none."""
    first, slash, _ = name.partition("/")
    return SPLITS.get(first.lower(), "") if slash else ""


def fraction(digest: str) -> float:
    """A number in [0, 1) from the digest of an example, by which it falls into a split."""
    return int(digest[:13], 16) / 16**13


def fractions(contents: Iterable[bytes]) -> np.ndarray:
    """The `fraction` (N,) of each content, by its hash."""
    return np.array([fraction(hashlib.blake2b(one, digest_size=16).hexdigest()) for one in contents])


def split_files(files: Sequence[IndexedFile], folder: Path | str) -> dict[str, list[IndexedFile]]:
    """The splits: train/, val/ and test/ subfolders, or 80/10/10 % by content, stable when files are added.

    A validation or test split that has no subfolder is taken from the training files in the same way.
    """
    named: dict[str, list[IndexedFile]] = {"train": [], "validation": [], "test": []}
    ordered, by_folder = sorted(files, key=lambda file: fraction(file.digest)), has_splits(files)
    for file in ordered:
        named[_split_of(file.name) if by_folder else "train"].append(file)
    if not named["train"]:
        raise UserError(f"{folder} has no train/ beside val/ and test/: rename them, or give one split as --data")
    missing = [split for split in ("validation", "test") if not named[split]]
    parts = content_splits(np.array([fraction(file.digest) for file in named["train"]]), missing, folder)
    return named | {split: [named["train"][i] for i in part] for split, part in parts.items()}


def has_splits(files: Sequence[IndexedFile]) -> bool:
    """Whether all files lie in folders that are named as splits."""
    return all(_split_of(file.name) for file in files)


def content_splits(values: np.ndarray, missing: Sequence[str], where: Any) -> dict[str, np.ndarray]:
    """{"train" and each missing split: places of its examples}, by a number in [0, 1) of each example, in its order.

    Each missing split gets a tenth, and at least one example; the others keep theirs when examples are added. The
    order is random but fixed, so that the first examples of a split stand for all.
    """
    size = len(values)
    if size <= len(missing):
        few = f"{size} example{'s' if size > 1 else ''}, too few"
        raise UserError(
            f"{where} has {few} for a training, a validation and a test split: {len(missing) + 1} are needed"
        )
    ranked, taken = np.argsort(values, kind="stable"), {}
    for number, split in enumerate(reversed(missing)):
        above = int((values[ranked] >= 0.9 - 0.1 * number).sum())
        count = min(max(1, above), len(ranked) - (len(missing) - number))
        ranked, taken[split] = ranked[:-count], ranked[-count:]
    return {"train": ranked, **{split: taken[split] for split in missing}}


def labels_of(
    splits: Mapping[str, Sequence[IndexedFile]], folder: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels from the subfolders of each split, and their names; ({}, ()) if files do not lie in class folders."""
    by_folder = has_splits([file for files in splits.values() for file in files])
    named = {split: [_class_of(file.name, by_folder) for file in files] for split, files in splits.items()}
    counts = Counter(name for names in named.values() for name in names)
    if "" in counts or len(counts) < 2:
        return {}, ()
    if max(counts.values()) == 1:
        raise UserError(
            f"each of the {len(counts):,} subfolders of {folder} holds one image, which are no classes: "
            "use --labels none, or move the images together"
        )
    names = tuple(sorted(counts))
    numbers = {name: i for i, name in enumerate(names)}
    return {split: np.array([numbers[name] for name in some], np.int32) for split, some in named.items()}, names


def _class_of(name: str, by_folder: bool) -> str:
    """The class folder of a file: its first folder, or the first below that of its split; "" if there is none."""
    parts = name.split("/")[:-1]
    parts = parts[1:] if by_folder else parts
    return parts[0] if parts else ""


def choose_format(headers: Sequence[Header], options: Any, where: Any, halves: bool = False) -> ImageFormat:
    """The common format of images; a UserError if they differ in size and the options do not say what to do."""
    if options.channels not in (0, 1, 3, 4):
        raise UserError(f"channels must be 1 (gray), 3 (RGB) or 4 (with alpha), got {options.channels}")
    if options.bits not in (8, 16):
        raise UserError(f"bits must be 8 or 16, got {options.bits}")
    sizes = Counter((h.height, h.width // 2 if halves else h.width) for h in headers)
    size, common = parse_size(options.size), sizes.most_common(1)[0][0]
    if halves and any(width < 1 for _, width in sizes):
        raise UserError(f"{where} has images one pixel wide, which have no halves")
    if size is None and len(sizes) > 1:
        raise UserError(
            f"the images of {where} have {len(sizes):,} sizes, from {_of(min(sizes))} to {_of(max(sizes))}: "
            "give --size HEIGHTxWIDTH and --fit crop, pad or stretch"
        )
    size = size or common
    if not options.fit and any(h * size[1] != w * size[0] for h, w in sizes):
        other = next(s for s in sizes if s[0] * size[1] != s[1] * size[0])
        raise UserError(
            f"{where} has images of other proportions than {_of(size)}, such as {_of(other)}: "
            "give --fit crop, pad or stretch"
        )
    channels = options.channels or (1 if all(h.gray for h in headers) else 3)
    return ImageFormat(size, channels, options.bits, options.fit or "stretch")


def _of(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class Images(DecodedRecords):
    """Image files as records, decoded when read.

    files: per entry, the files of the examples; with `halves`, one entry whose left half is "x" and right half "y".
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        files: Mapping[str, Sequence[IndexedFile]],
        to: Mapping[str, ImageFormat],
        halves: bool = False,
        labels: np.ndarray | None = None,
    ):
        self.folders, self.halves = {entry: os.fspath(folder) for entry, folder in folders.items()}, halves
        self.files = {entry: [(f.name, f.size, f.modified) for f in some] for entry, some in files.items()}
        self.direct = {
            entry: [not halves and _is_direct(f.header, to[entry]) for f in some] for entry, some in files.items()
        }
        super().__init__(len(next(iter(files.values()))), to, labels)

    def decode_example(self, number: int, out: Mapping[str, np.ndarray]) -> None:
        for entry, files in self.files.items():
            name, size, modified = files[number]
            path = f"{self.folders[entry]}/{name}"
            try:
                data = _unchanged(path, size, modified)
                if self.direct[entry][number]:
                    decode_jpeg(data, self.to[entry].channels, buffer=out[entry])
                else:
                    decode_into(data, self.to[entry], [out["x"], out["y"]] if self.halves else [out[entry]])
            except Exception as error:  # Pillow's decoders raise errors of every type for damaged files
                raise Undecodable(path, reason(error)) from error


def _is_direct(header: Header, to: ImageFormat) -> bool:
    """Whether a file is a JPEG that has the format already."""
    shape = (header.height, header.width, 1 if header.gray else 3)
    return header.plain and shape == to.shape and to.bits == 8


def _unchanged(path: str, size: int, modified: int) -> bytes:
    """The content of a file; OSError if it is not the file that was indexed."""
    file = os.open(path, os.O_RDONLY)
    try:
        about = os.fstat(file)
        if (about.st_size, about.st_mtime_ns) != (size, modified):
            raise OSError("it has changed since it was indexed")
        return os.read(file, size)
    finally:
        os.close(file)
