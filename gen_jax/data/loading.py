"""`load`: data sets by name or path, or objects.

load("digits")                                   # embedded, or of the tensorflow-datasets catalogue
load("photos", size="64", fit="crop")            # a folder of images
load("photos?size=64&fit=crop")                  # the same in one text, as configs and run.json hold it
load("wine.csv", label="quality")                # a table
load({"train": {"x": a}, "validation": {"x": b}, "test": {"x": c}})
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data import archives, catalogue, pairs, shards, spans, tables, text
from gen_jax.data.builders.corpora import CORPORA
from gen_jax.data.builders.texts import TEXTS
from gen_jax.data.cache import (
    DECODED_ONCE,
    data_folder,
    folder_size,
    locked,
    open_arrays,
    use_data_dir,
    write_arrays,
    write_text,
)
from gen_jax.data.dataset import Dataset
from gen_jax.data.folders import (
    SPLITS,
    Images,
    Index,
    IndexedFile,
    choose_format,
    index_folder,
    labels_of,
    mark_unreadable,
    split_files,
)
from gen_jax.data.hub import is_saved_dataset, open_saved_dataset
from gen_jax.data.images import DecodedRecords, Tolerance
from gen_jax.data.mixing import pairs_apart
from gen_jax.data.options import DataOptions, listed, split_name
from gen_jax.data.records import Arrays, Column, columns, is_lazy, nbytes
from gen_jax.errors import DataError, UserError

__all__ = ["load", "pack", "prepared_folders"]

CATALOGUE_NAME = re.compile(r"\w+(/\w[\w.]*)?(:\d+\.\d+\.\d+)?")  # as tensorflow-datasets writes names
IMAGE_OPTIONS = ("size", "fit", "channels", "bits", "decode")
TOKEN_OPTIONS = ("text", "length", "tokenizer", "vocabulary")
TABLE_OPTIONS = ("columns", "targets", "label", "missing", "id", "time")


def load(
    source: str | os.PathLike | Dataset | Mapping[str, Any],
    data_dir: str | os.PathLike | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """Loads a data set: by its name, from a folder or a file, or from arrays.

    source: a name of the catalogue; a path to a folder of images, a table, a text, or shards; a `Dataset`; or arrays,
    as {"x": ...} or {split: {"x": ...}}. options: see `DataOptions`. defaults: options that those in `source` override.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Mapping):
        return _of_arrays(source)
    name, given = split_name(os.fspath(source))
    known = {field.name for field in fields(DataOptions)}
    if unknown := (given.keys() | options.keys()) - known:
        raise UserError(f"there is no data option {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
    chosen = DataOptions(**{**(defaults or {}), **given, **options})
    with use_data_dir(data_dir):
        if name in catalogue.CATALOGUE and not isinstance(source, Path):
            chosen.only(name, "partner", "pairing")
            return _of_domains(catalogue.load_named(name), chosen)
        if name in (*TEXTS, *CORPORA) and not isinstance(source, Path):
            return _of_texts(name, chosen)
        path = Path(os.path.expanduser(name))
        if path.exists() or isinstance(source, Path) or not CATALOGUE_NAME.fullmatch(name):
            return _of_path(path, chosen)
        chosen.only(name, *IMAGE_OPTIONS)
        return _kept(name, catalogue.load_catalogue(name, chosen), chosen)


def _of_domains(data: Dataset, options: DataOptions) -> Dataset:
    """A data set of the catalogue: alone, with another one as its unpaired partner, or its own pairs taken apart."""
    if options.partner:
        if options.pairing not in ("", "unpaired"):
            raise UserError(f"{data.name} and {options.partner} are unpaired: leave --pairing {options.pairing} out")
        return replace(data, name=f"{data.name}-{options.partner}", partner=load(options.partner))
    if options.pairing == "unpaired":
        return pairs_apart(data)
    if options.pairing:
        raise UserError(f"{data.name} is read with --pairing unpaired, or without")
    return data


def _of_arrays(source: Mapping[str, Any]) -> Dataset:
    """A data set from {split: arrays}, or from the arrays of one, which are split by content."""
    nested = bool(source) and all(isinstance(one, Mapping) for one in source.values())
    parts = {SPLITS.get(s, s): dict(arrays) for s, arrays in source.items()} if nested else {"": dict(source)}
    for split, arrays in parts.items():
        if "x" not in arrays:
            raise UserError(f'the data{f" [{split}]" if split else ""} needs an entry "x", got {sorted(arrays)}')
    if nested:
        return Dataset("arrays", tables.filled_splits(parts, "the data") if "train" in parts else parts)
    return Dataset("arrays", tables.split_rows({name: np.asarray(a) for name, a in source.items()}, "the data"))


_TOKENS: Mapping[str, Callable[..., Dataset]] = {
    "tokens": text.as_corpus,
    "spans": spans.as_spans,
    "pairs": pairs.as_pairs,
}


def _of_texts(name: str, options: DataOptions) -> Dataset:
    """An embedded text, made by rules, or a prepared one."""
    kind = (TEXTS.get(name) or CORPORA[name])[0]
    options.only(name, *TOKEN_OPTIONS)
    allowed = ("tokens", "spans") if kind == "tokens" else (kind,)
    if options.text not in ("lines", *allowed):
        raise UserError(f"{name} is read with --text {' or '.join(allowed)}, not {options.text}")
    texts = TEXTS[name][1]() if name in TEXTS else catalogue.prepared_text(name)
    made = _TOKENS[options.text if options.text in allowed else kind](texts, options, name)
    usual = not options.tokenizer and options.text in ("lines", kind)
    return made if usual else replace(made, name=f"{name}-{made.info.digest[:8]}")


def _of_path(path: Path, options: DataOptions) -> Dataset:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read: permission denied")
    if path.is_dir():
        return _of_folder(path, options)
    return _of_files({"": path}, path, options)


def _of_folder(folder: Path, options: DataOptions) -> Dataset:
    if shards.is_packed(folder):
        options.only(folder)
        return shards.open_packed(folder)
    if is_saved_dataset(folder):
        options.only(folder, *IMAGE_OPTIONS, "label", "columns")
        splits, described = open_saved_dataset(folder, options)
        splits = {SPLITS.get(s.lower(), s): tables.in_random_order(a) for s, a in splits.items()}
        splits = tables.filled_splits(splits, str(folder))
        return _kept(
            folder,
            Dataset(folder.name, splits, {**_described(splits, described), "digest": _key(folder, options)}),
            options,
        )
    if (folder / "features.json").is_file() and (folder / "dataset_info.json").is_file():
        options.only(folder, *IMAGE_OPTIONS)
        return _kept(folder, catalogue.load_catalogue(folder.name, options, folder), options)
    if options.text == "pairs" and (files := pairs.parallel_files(folder, listed(options.columns))):
        options.only(folder, *TOKEN_OPTIONS, "columns")
        return _named(folder, pairs.open_parallel(files, options, folder.name))
    suffixes = (*tables.SUFFIXES, *text.SUFFIXES)
    paths = [(split, folder / f"{stem}{suffix}") for stem, split in SPLITS.items() for suffix in suffixes]
    by_split = {split: path for split, path in paths if path.is_file()}
    if by_split and not any((folder / stem).is_dir() for stem in SPLITS):  # else they may list the images there
        return _of_files(by_split, folder, options)
    if options.text in ("tokens", "spans") and text.text_files(folder):
        options.only(folder, *TOKEN_OPTIONS)
        return _named(folder, _TOKENS[options.text](text.documents_in(folder), options, folder.name))
    options.only(folder, *IMAGE_OPTIONS, "labels", "partner", "pairing")
    read = _with_partner if options.partner else _of_images
    while True:
        try:
            return read(folder, options)
        except _Damaged as found:
            found.leave_out()


def _of_files(paths: Mapping[str, Path], where: Path, options: DataOptions) -> Dataset:
    """A data set from a table, an archive of arrays or a text, or from one for each split."""
    bare = lambda path: path.with_suffix("") if path.suffix in (".gz", ".xz") and options.text in _TOKENS else path
    suffixes = {bare(path).suffix.lower() for path in paths.values()}
    if len(suffixes) > 1:
        raise UserError(f"the splits in {where} have different types: {', '.join(sorted(suffixes))}")
    [suffix] = suffixes
    name = where.stem
    if options.text == "pairs":
        options.only(where, *TOKEN_OPTIONS, "columns", "partner")
        made = pairs.open_pairs(paths, options, name)
    elif options.text in ("tokens", "spans") and suffix not in text.SUFFIXES:
        endings = ", ".join(text.SUFFIXES)
        raise UserError(f"{where} is no text: this config reads files that end with {endings}, and folders of them")
    elif suffix in text.SUFFIXES:
        options.only(where, *TOKEN_OPTIONS)
        if options.text in _TOKENS:
            documents = {split: text.read_text(path).split(text.SEPARATOR) for split, path in paths.items()}
            made = _TOKENS[options.text](documents, options, name)
        else:
            made = text.open_text(paths, options, name)
    elif suffix in (".npz", ".npy"):
        options.only(where, *TABLE_OPTIONS)
        made = archives.open_arrays_files(paths, options, name)
    elif suffix in tables.SUFFIXES:
        options.only(where, *TABLE_OPTIONS)
        made = tables.open_table(paths, options, name)
    elif suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz"):
        raise UserError(f"{where} is an archive: unpack it, and give the folder")
    else:
        known = ", ".join((*tables.SUFFIXES, *text.SUFFIXES))
        raise UserError(f"{where} is of no known type: files end with {known}; images lie in a folder")
    return _named(where, made)


def _named(where: Path, data: Dataset) -> Dataset:
    return replace(data, name=f"{where.stem}-{data.info.digest[:8]}")


@contextmanager
def _bar(label: str, total: int, unit: str = "images"):
    """A progress bar that appears after two seconds; yields a function to advance it."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=f" {unit}", delay=2, leave=False, dynamic_ncols=True) as bar:
        yield bar.update


def _indexed(folder: Path, unique: bool = True) -> Index:
    from tqdm import tqdm

    bar = lambda rows, total: tqdm(rows, f"indexing {folder.name}", total, False, delay=2, unit=" files")
    return index_folder(folder, progress=bar, unique=unique)


def _of_images(folder: Path, options: DataOptions) -> Dataset:
    """A folder of images, or of images whose halves are pairs."""
    halves = options.pairing == "halves"
    if options.pairing in ("names", "unpaired"):
        raise UserError(f"--pairing {options.pairing} needs a second folder: give it as --partner")
    index = _indexed(folder)
    to = choose_format([file.header for file in index.files], options, folder, halves)
    splits = split_files(index.files, folder)
    labels, names = labels_of(splits, folder) if options.labels == "folders" and not halves else ({}, ())
    forms = {"x": to, "y": to} if halves else {"x": to}
    arrays = {
        split: {
            **columns(Images({"x": folder}, {"x": files}, forms, halves, labels.get(split))),
            **({"label": labels[split]} if names else {}),
        }
        for split, files in splits.items()
    }
    notes = index.notes
    if options.labels == "folders" and not halves and not names and any("/" in file.name for file in index.files):
        notes = (*notes, f"{folder}: without labels, as not all images lie in one of several class folders")
    return _images_dataset(folder, arrays, splits, options, names, notes)


def _with_partner(folder: Path, options: DataOptions) -> Dataset:
    """Two folders of images: pairs of the same name, or unpaired domains."""
    other = Path(os.path.expanduser(options.partner))
    if not other.is_dir():
        raise UserError(f"--partner {other} is not a folder")
    if options.pairing == "unpaired":
        alone = replace(options, partner="", pairing="")
        first, second = _of_images(folder, alone), _of_images(other, alone)
        return replace(first, partner=second, notes=(*first.notes, *second.notes))
    indexes = {"x": _indexed(folder, unique=False), "y": _indexed(other, unique=False)}
    stems = {entry: {file.name.rpartition(".")[0]: file for file in index.files} for entry, index in indexes.items()}
    for entry, index in indexes.items():
        if len(stems[entry]) < len(index.files):
            raise UserError(f"{index.folder} has images whose names differ in their ending only: pairs go by the name")
    if alone := sorted(stems["x"].keys() ^ stems["y"].keys()):
        there, missing = (folder, other) if alone[0] in stems["x"] else (other, folder)
        raise UserError(
            f"{len(alone):,} images have no partner; {there / alone[0]} has none in {missing} "
            "(unreadable files count as missing): give pairs the same name, or train on two domains with "
            "--pairing unpaired" + "".join(f"; {n}" for i in indexes.values() for n in i.notes)
        )
    splits = split_files([stems["x"][stem] for stem in sorted(stems["x"])], folder)
    files = {s: {"x": some, "y": [stems["y"][f.name.rpartition(".")[0]] for f in some]} for s, some in splits.items()}
    forms = {
        entry: choose_format([f.header for f in index.files], options, index.folder) for entry, index in indexes.items()
    }
    folders = {"x": folder, "y": other}
    arrays = {split: dict(columns(Images(folders, some, forms))) for split, some in files.items()}
    both = {split: [*some["x"], *some["y"]] for split, some in files.items()}
    return _images_dataset(folder, arrays, both, options, (), (*indexes["x"].notes, *indexes["y"].notes))


def _images_dataset(
    folder: Path,
    splits: dict[str, dict[str, Any]],
    files: Mapping[str, Sequence[IndexedFile]],
    options: DataOptions,
    class_names: Sequence[str],
    notes: tuple[str, ...],
) -> Dataset:
    records = splits["train"]["x"].records
    facts = {
        "files": {s: [(f.name, f.digest) for f in some] for s, some in files.items()},
        "to": {e: asdict(f) for e, f in records.to.items()},
    }
    digest = hashlib.sha256(json.dumps([facts, class_names, options.pairing], sort_keys=True).encode()).hexdigest()
    said = {"class_names": tuple(class_names), "digest": digest, "levels": 2 ** records.to["x"].bits}
    made = Dataset(f"{folder.resolve().name}-{digest[:8]}", splits, _described(splits, said), notes=notes)
    return _kept(folder, made, options)


def _described(splits: Mapping[str, Arrays], said: Mapping[str, Any]) -> dict[str, Any]:
    """The description of splits whose arrays are not read."""
    names, x = said.get("class_names", ()), next(iter(splits.values()))["x"]
    labels = [np.asarray(a["label"]) for a in splits.values() if "label" in a]
    classes = len(names) or (1 + max(int(a.max()) for a in labels) if labels else None)
    return {
        "shape": tuple(x.shape[1:]),
        "levels": 256 if x.dtype == np.uint8 and x.ndim == 4 else None,
        "classes": classes,
        **said,
    }


def _key(folder: Path, options: DataOptions) -> str:
    """A digest of a folder's files by name, size and time, and of the options."""
    about = [
        (f.relative_to(folder).as_posix(), f.stat().st_size, f.stat().st_mtime_ns)
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    ]
    return hashlib.sha256(json.dumps([about, options.changed]).encode()).hexdigest()


def _kept(source: str | Path, data: Dataset, options: DataOptions) -> Dataset:
    """The data set with its images decoded into the data folder, unless they are too many or to be streamed."""
    if not any(map(is_lazy, data.splits.values())):
        return data
    size = sum(nbytes(arrays) for arrays in data.splits.values())
    if options.decode == "stream" or (options.decode == "" and size > DECODED_ONCE):
        note = (
            f"{data.name}: {size / 2**30:.1f} GiB of images are decoded whenever they are read; `data pack` is faster"
        )
        return replace(data, notes=(*data.notes, note)) if options.decode == "" else data
    home = prepared_folder(data)
    if not (home / "arrays").is_dir():
        with locked(home):
            if not (home / "arrays").is_dir():
                total = sum(len(arrays["x"]) for arrays in data.splits.values())
                try:
                    with _bar(f"decoding {Path(source).name}", total) as advance:
                        write_arrays(home / "arrays", data.splits, data.described, advance, _all_decoded(data))
                except DataError:
                    raise
                except OSError as error:
                    raise UserError(
                        f"cannot write data to {home}: {error.strerror}; set TFDS_DATA_DIR to another folder"
                    ) from None
                where = os.fspath(source.resolve()) if isinstance(source, Path) else source
                write_text(home / "source.json", json.dumps({"source": where, **options.changed}))
    return replace(open_arrays(data.name, home / "arrays", data.notes), partner=data.partner)


class _Damaged(Exception):
    """Files that turned out to be damaged when all of them were decoded: {folder: {path: reason}}."""

    def leave_out(self) -> None:
        """Leaves them out from now on, until they change."""
        for folder, reasons in self.args[0].items():
            mark_unreadable(Path(folder), reasons)


def _all_decoded(data: Dataset) -> Callable[[], None]:
    """A check that raises _Damaged if an image could not be decoded. Images of other libraries raise at once."""
    lazy = [a.records for arrays in data.splits.values() for a in arrays.values() if isinstance(a, Column)]
    records = list({id(one): one for one in lazy if isinstance(one, DecodedRecords)}.values())
    for one in records:
        one.tolerance = Tolerance(None if isinstance(one, Images) else 0)

    def check() -> None:
        damaged: dict[str, dict[str, str]] = {}
        for one in (one for one in records if isinstance(one, Images)):
            for path, why in one.tolerance.failed.items():
                folder = next(folder for folder in one.folders.values() if path.startswith(f"{folder}/"))
                damaged.setdefault(folder, {})[path] = why
        if damaged:
            raise _Damaged(damaged)

    return check


def pack(source: str | os.PathLike | Dataset, folder: Path, **options: Any) -> tuple[Dataset, dict[str, int]]:
    """Packs a data set into shards; returns it, and {split: its bytes}. Damaged images are left out.

    options: those of `load`.
    """
    while True:
        data = load(source, **options)
        total = sum(len(arrays["x"]) for arrays in data.splits.values())
        try:
            with _bar(f"packing {data.name}", total, "examples") as advance:
                return data, shards.pack(data, folder, advance, _all_decoded(data))
        except _Damaged as found:
            found.leave_out()
            shutil.rmtree(folder)  # only shards of this data lie there: `shards.pack` refuses other folders


def prepared_folder(data: Dataset) -> Path:
    """The folder below the data folder for the prepared arrays of a data set, by its content."""
    return data_folder() / "gen_jax" / "prepared" / data.name / data.info.digest[:16]


def prepared_folders(data_dir: str | os.PathLike | None = None) -> list[tuple[str, str, int]]:
    """(name, source, bytes) of the folders and catalogue sets that were prepared."""
    found = []
    for home in sorted((data_folder(data_dir) / "gen_jax" / "prepared").glob("*/*")):
        if (home / "arrays").is_dir():
            said = home / "source.json"
            source = json.loads(said.read_text())["source"] if said.is_file() else ""
            found.append((home.parent.name, source, folder_size(home)))
    return found
