"""Data sets by name: our own offline builders, and the whole tensorflow-datasets catalog through the same calls.

load("digits")["train"]["x"]            # embedded: prepared on first use, without network or TensorFlow
prepare("mnist", manual_dir="...")      # from its original files, or downloaded
prepare("cifar10")                      # any catalog name; needs the `tfds` extra
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.errors import UserError

__all__ = [
    "CATALOGUE",
    "INFO",
    "Arrays",
    "DataInfo",
    "Dataset",
    "Row",
    "describe",
    "first_available",
    "is_prepared",
    "load",
    "prepare",
    "use_data_dir",
    "validation_split",
]

Arrays = Mapping[str, np.ndarray]  # "x" holds the observations (N, ...); all entries have the same length
_DATA_DIR: ContextVar[Path | None] = ContextVar("data_dir", default=None)


INFO = "info.json"


@dataclass(frozen=True)
class Row:
    """An entry for one of our own builders: its module and class, a summary, and whether it needs no download."""

    module: str
    builder: str
    summary: str
    embedded: bool = True
    held_out: str = ""  # start of the validation part of the training split, for sets without a validation split


CATALOGUE = {
    "digits": Row("digits", "Digits", "1,797 scans of digits, 8x8, 17 levels"),
    "digits28": Row("digits", "Digits28", "the same digits, enlarged to 28x28, 8 bits: a stand-in for MNIST"),
    "blobs": Row("synthetic", "Blobs", "three Gaussian blobs in the plane"),
    "two_moons": Row("synthetic", "TwoMoons", "two interleaved half circles"),
    "ring8": Row("synthetic", "Ring8", "eight Gaussians on a circle"),
    "grid25": Row("synthetic", "Grid25", "twenty-five Gaussians on a grid"),
    "spirals": Row("synthetic", "Spirals", "two intertwined spirals"),
    "checkerboard": Row("synthetic", "Checkerboard", "uniform on the dark squares of a 4x4 board"),
    "rings": Row("synthetic", "Rings", "two concentric circles"),
    "banana": Row("synthetic", "Banana", "a bent normal, whose density is known"),
    "gaussian_hmm": Row("synthetic", "GaussianHmm", "sequences from a three-state Gaussian HMM"),
    "chorales": Row("sequences", "Chorales", "four voices through random chords, 88 keys"),
    "vowels": Row("sequences", "Vowels", "glides of three synthetic speakers, 12 coefficients"),
    "jsb_chorales": Row("sequences", "JsbChorales", "382 Bach chorales, 88 keys", embedded=False),
    "japanese_vowels": Row("sequences", "JapaneseVowels", "640 vowels by nine speakers", embedded=False),
    "mnist": Row("idx", "Mnist", "70,000 digits, 28x28, 8 bits", False, held_out="50000"),
    "fashion_mnist": Row("idx", "FashionMnist", "70,000 articles of clothing, 28x28, 8 bits", False, held_out="50000"),
}


@dataclass(frozen=True)
class DataInfo:
    """Properties of a data set, for configs to read instead of repeating them."""

    shape: tuple[int, ...]  # shape of one example of "x"
    levels: int | None = None  # for integer data 0 .. levels - 1
    classes: int | None = None  # number of values of "label"
    class_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()  # token strings
    digest: str = ""  # SHA-256 of all arrays


@dataclass(frozen=True)
class Dataset:
    """Named splits of arrays. `data["train"]`, or a slice of one: `data["train[:50000]"]`, `data["train[90%:]"]`."""

    name: str
    splits: Mapping[str, Arrays]
    described: Mapping[str, Any] | None = None  # the fields of `info`, where already known

    @cached_property
    def info(self) -> DataInfo:
        """Shape, levels, classes, names and content hash of the data."""
        return DataInfo(**(self.described or describe(self.splits)))

    def __getitem__(self, split: str) -> Arrays:
        match = re.fullmatch(r"(\w+)(?:\[(\d*)(%?):(\d*)(%?)\])?", split)
        name = match and match[1]
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        arrays = self.splits[name]
        size = len(arrays["x"])
        start, stop = (_position(number, percent, size) for number, percent in (match.group(2, 3), match.group(4, 5)))
        part = {key: a[start:stop] for key, a in arrays.items()}
        if not len(part["x"]):
            raise UserError(f"{self.name} [{split}] is empty: {name} has {size} examples")
        return part


def _position(number: str | None, percent: str, size: int) -> int | None:
    return None if not number else int(number) * size // 100 if percent else int(number)


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a data set as arrays (memory-mapped from disk). Embedded sets are prepared on first use."""
    row = CATALOGUE.get(name)
    if row is None:
        return _load_catalogue(name, data_dir)
    home = _home(name, row, data_dir)
    if not is_prepared(name, data_dir):
        if not row.embedded:
            raise UserError(
                f"{name} is not prepared in {_root(data_dir)}: run `python -m gen_jax data prepare {name}` "
                "(with `--manual-dir DIR` if you already have its files)"
            )
        prepare(name, data_dir)
    return _open(name, home / "arrays")


@contextmanager
def use_data_dir(folder: str | os.PathLike | None) -> Iterator[None]:
    """Sets the default folder of `load` and `prepare`; None changes nothing."""
    token = _DATA_DIR.set(_DATA_DIR.get() if folder is None else Path(folder))
    try:
        yield
    finally:
        _DATA_DIR.reset(token)


def describe(splits: Mapping[str, Arrays]) -> dict[str, Any]:
    """The fields of `DataInfo` inferred from arrays; integer labels are assumed to be class indices from 0."""
    first = next(iter(splits.values()))
    labels = [np.asarray(arrays["label"]) for arrays in splits.values() if "label" in arrays]
    classes = 1 + max(int(a.max()) for a in labels) if labels and labels[0].dtype.kind in "iu" else None
    digest = hashlib.sha256()
    for split, arrays in sorted(splits.items()):
        for name, a in sorted(arrays.items()):
            digest.update(f"{split}/{name}:{a.dtype.str}{a.shape};".encode())
            digest.update(np.ascontiguousarray(a).view(np.uint8))
    x = first["x"]
    levels = 256 if x.dtype == np.uint8 and x.ndim == 4 else None
    return {"shape": tuple(x.shape[1:]), "levels": levels, "classes": classes, "digest": digest.hexdigest()}


def prepare(name: str, data_dir: str | os.PathLike | None = None, manual_dir: str | os.PathLike | None = None) -> Path:
    """Prepares a data set for `load`; files found in `manual_dir` are not downloaded. Returns its folder."""
    row = CATALOGUE.get(name)
    if row is None:
        return _prepare_catalogue(name, data_dir, manual_dir)
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise UserError(f"--manual-dir {manual_dir} is not a folder")
    home = _home(name, row, data_dir)
    with _locked(home):
        if is_prepared(name, data_dir):
            return home
        tfds = _tfds()
        builder = getattr(importlib.import_module(f"gen_jax.data.builders.{row.module}"), row.builder)
        builder = builder(data_dir=home, file_format="array_record")
        config = tfds.download.DownloadConfig(manual_dir=manual_dir and Path(manual_dir).resolve())
        with _explained(name), redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config, download_dir=home / "downloads")
        _write_all(home / "arrays", builder, builder.LEVELS)
    return home


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether one of our own sets is prepared in `data_dir`."""
    return (_home(name, CATALOGUE[name], data_dir) / "arrays").is_dir()


def first_available(*names: str) -> str:
    """The first of these sets that is prepared or embedded: the real one, or a stand-in for it."""
    return next(name for name in names if CATALOGUE[name].embedded or is_prepared(name))


def validation_split(name: str) -> dict[str, str]:
    """Training and validation splits of a set, as fields of an Experiment: its own, or parts of the training split."""
    start = CATALOGUE[name].held_out if name in CATALOGUE else ""
    return {"train": f"train[:{start}]", "validation": f"train[{start}:]"} if start else {}


def _root(data_dir: str | os.PathLike | None) -> Path:
    return Path(data_dir or _DATA_DIR.get() or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _home(name: str, row: Row, data_dir: str | os.PathLike | None) -> Path:
    """The folder of one of our sets, named by a hash of its builder's source: a changed builder prepares anew."""
    text = Path(__file__).with_name("builders").joinpath(f"{row.module}.py").read_bytes()
    return _root(data_dir) / "gen_jax" / name / hashlib.sha256(text).hexdigest()[:12]


@contextmanager
def _locked(home: Path):
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


def _tfds():
    """Imports tensorflow_datasets without its probe of a cloud bucket, which can take minutes without a network."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True
    tfds.disable_progress_bar()
    return tfds


@contextmanager
def _explained(name: str):
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "checksum" in reason:
            raise UserError(f"{name}: a file is not the published one, download it again: {reason[:400]}") from error
        raise UserError(
            f"{name} could not be prepared ({reason[:200]}): without a network, put its original files in a folder and "
            f"run `python -m gen_jax data prepare {name} --manual-dir DIR`"
        ) from error


def _all(source) -> dict[str, np.ndarray]:
    """Every numeric feature of a data source, stacked; "image" is called "x"."""
    rows = source.__getitems__(range(len(source)))
    names = [name for name, value in rows[0].items() if np.asarray(value).dtype.kind in "biuf"]
    return {("x" if name == "image" else name): np.stack([row[name] for row in rows]) for name in names}


def _write_all(folder: Path, builder: Any, levels: int | None = None) -> None:
    """Writes all splits of a prepared builder, and the metadata of its features."""
    splits = {split: _all(builder.as_data_source(split=split)) for split in builder.info.splits}
    features = dict(builder.info.features)
    own: dict[str, Any] = {} if levels is None else {"levels": levels}
    if isinstance(label := features.get("label"), _tfds().features.ClassLabel):
        own |= {"classes": label.num_classes, "class_names": tuple(label.names)}
    _write(folder, splits, {**describe(splits), **own})


def _write(folder: Path, splits: Mapping[str, Arrays], info: Mapping[str, Any]) -> None:
    """Writes arrays as one .npy file each beside info.json, atomically."""
    draft = folder.with_name(f"{folder.name}-incomplete")
    shutil.rmtree(draft, ignore_errors=True)
    for split, arrays in splits.items():
        (draft / split).mkdir(parents=True)
        for name, a in arrays.items():
            np.save(draft / split / f"{name}.npy", a)
    (draft / INFO).write_text(json.dumps(asdict(DataInfo(**info))))
    draft.rename(folder)


def _open(name: str, folder: Path) -> Dataset:
    """Opens a prepared data set, its arrays memory-mapped from disk."""
    splits = {
        split.name: {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in sorted(split.glob("*.npy"))}
        for split in sorted(folder.iterdir())
        if split.is_dir()
    }
    path = folder / INFO
    if not path.exists():  # prepared by an earlier version: described when first asked for
        return Dataset(name, splits)
    info = json.loads(path.read_text())
    return Dataset(name, splits, {field: tuple(v) if isinstance(v, list) else v for field, v in info.items()})


def _catalogue_builder(name: str, data_dir: str | os.PathLike | None):
    tfds = _tfds()
    try:
        return tfds.builder(name, data_dir=str(_root(data_dir)), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = {*CATALOGUE, *re.findall(r"^\s*- (\w+)", str(error), re.MULTILINE)}
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`python -m gen_jax data list` lists what there is"
        raise UserError(f"there is no data set {name!r}: {hint}") from None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{name} needs TensorFlow to be prepared: run `pip install tensorflow-cpu` ({error})") from None


def _load_catalogue(name: str, data_dir: str | os.PathLike | None) -> Dataset:
    builder = _catalogue_builder(name, data_dir)
    folder = Path(builder.data_dir) / "gen_jax_arrays"
    if not folder.is_dir():
        if not builder.is_prepared():
            raise UserError(
                f"{name} is not prepared in {_root(data_dir)}: run `pip install tensorflow-cpu` and "
                f"`python -m gen_jax data prepare {name}`"
            )
        with _locked(folder.parent), _explained(name):
            if not folder.is_dir():
                _write_all(folder, builder)
    return _open(name, folder)


def _prepare_catalogue(name: str, data_dir, manual_dir) -> Path:
    builder = _catalogue_builder(name, data_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{name} needs TensorFlow to be prepared: run `pip install tensorflow-cpu`")
    home = Path(builder.data_dir)
    config = _tfds().download.DownloadConfig(manual_dir=manual_dir and Path(manual_dir).resolve())
    with _locked(home.parent), _explained(name):
        builder.download_and_prepare(download_config=config, download_dir=home.parent / "downloads")
    return home
