"""Data sets by name: our own offline builders, and the whole tensorflow-datasets catalog through the same calls.

load("digits")["train"]["x"]            # embedded: prepared on first use, without network or TensorFlow
prepare("mnist", manual_dir="...")      # from its original files, or downloaded
prepare("cifar10")                      # any catalog name; needs the `tfds` extra
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gen_jax.data.builders.corpora import CORPORA
from gen_jax.data.builders.texts import TEXTS
from gen_jax.data.cache import data_folder, folder_size, locked, open_arrays, use_data_dir, write_arrays, write_text
from gen_jax.data.dataset import Dataset, describe
from gen_jax.data.hub import EncodedImages
from gen_jax.data.images import ImageFormat, parse_size
from gen_jax.data.records import Entry, columns
from gen_jax.errors import UserError

__all__ = [
    "CATALOGUE",
    "Row",
    "first_available",
    "held_out_rows",
    "is_prepared",
    "is_text_prepared",
    "load_catalogue",
    "load_named",
    "prepare",
    "prepared_size",
    "prepared_text",
]


@dataclass(frozen=True)
class Row:
    """An entry for one of our own builders: its module and class, a summary, and whether it needs no download."""

    module: str
    builder: str
    summary: str
    embedded: bool = True
    held_out: int = 0  # start of the validation part of the training split, for sets without a validation split


CATALOGUE = {
    "digits": Row("digits", "Digits", "1,797 scans of digits, 8x8, 17 levels"),
    "diabetes": Row("tables", "Diabetes", "a table of 442 patients: 10 measurements, sex, progression"),
    "digits16": Row("digits", "Digits16", "the same digits, enlarged to 16x16, 8 bits"),
    "digits28": Row("digits", "Digits28", "the same digits, enlarged to 28x28, 8 bits: a stand-in for MNIST"),
    "outlines": Row("digits", "Outlines", "pairs: outlines of digits and the digits, 32x32"),
    "twins": Row("digits", "Twins", "pairs: digits and their thicker twins in other colors, 32x32"),
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
    "mnist": Row("idx", "Mnist", "70,000 digits, 28x28, 8 bits", False, held_out=50_000),
    "fashion_mnist": Row("idx", "FashionMnist", "70,000 articles of clothing, 28x28, 8 bits", False, held_out=50_000),
    "mnist16": Row("translation", "Mnist16", "MNIST's box of 20x20 pixels as 16x16, a partner of usps", False),
    "usps": Row("translation", "Usps", "9,298 digits, 16x16, 8 bits", False),
    "facades": Row("translation", "Facades", "606 pairs: maps of facades and photos, 128x128", False),
    "emoji": Row("translation", "Emoji", "1,906 pairs: emoji by Noto and by Twemoji, 64x64", False),
    "emoji_outlines": Row("translation", "EmojiOutlines", "1,636 pairs: outlines and colors of emoji, 64x64", False),
}


def load_named(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads one of our own sets as arrays, memory-mapped from disk. Embedded sets are prepared on first use."""
    row = CATALOGUE[name]
    home = _home(name, row, data_dir)
    if not is_prepared(name, data_dir):
        if not row.embedded:
            raise UserError(
                f"{name} is not prepared in {data_folder(data_dir)}: run `python -m gen_jax data prepare {name}` "
                "(with `--manual-dir DIR` if you already have its files)"
            )
        prepare(name, data_dir)
    return open_arrays(name, home / "arrays")


def prepare(name: str, data_dir: str | os.PathLike | None = None, manual_dir: str | os.PathLike | None = None) -> Path:
    """Prepares a data set for `load`; files found in `manual_dir` are not downloaded. Returns its folder."""
    row = CATALOGUE.get(name)
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise UserError(f"--manual-dir {manual_dir} is not a folder")
    if name in CORPORA:
        with use_data_dir(data_dir):
            return _prepare_text(name, manual_dir)
    if row is None:
        return _prepare_catalogue(name, data_dir, manual_dir)
    home = _home(name, row, data_dir)
    with locked(home):
        if is_prepared(name, data_dir):
            return home
        tfds = _tfds()
        builder = getattr(importlib.import_module(f"gen_jax.data.builders.{row.module}"), row.builder)
        builder = builder(data_dir=home, file_format="array_record")
        config = tfds.download.DownloadConfig(manual_dir=manual_dir and Path(manual_dir).resolve())
        with _explained(name), redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config, download_dir=home / "downloads")
        own = {"levels": builder.LEVELS, "columns": builder.COLUMNS, "categories": builder.CATEGORIES}
        _write_all(home / "arrays", builder, {name: value for name, value in own.items() if value})
    return home


def _prepare_text(name: str, manual_dir: str | os.PathLike | None) -> Path:
    """Keeps the texts of a published corpus, from its original files, as JSON."""
    if manual_dir is None:
        raise UserError(f"{name} is prepared from its original files: give their folder as --manual-dir")
    path = data_folder() / "gen_jax" / "texts" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(CORPORA[name][1](Path(manual_dir)), ensure_ascii=False))
    return path


def is_text_prepared(name: str) -> bool:
    """Whether a text is embedded, or prepared in the data folder."""
    return name in TEXTS or (data_folder() / "gen_jax" / "texts" / f"{name}.json").is_file()


def prepared_text(name: str) -> dict[str, list[Any]]:
    """The texts of a prepared corpus: documents, or pairs, of each split."""
    path = data_folder() / "gen_jax" / "texts" / f"{name}.json"
    if not path.is_file():
        raise UserError(
            f"{name} is not prepared in {data_folder()}: run `python -m gen_jax data prepare {name} --manual-dir DIR` "
            "with the folder of its files"
        )
    return json.loads(path.read_text())


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether one of our own sets is prepared in `data_dir`."""
    return (_home(name, CATALOGUE[name], data_dir) / "arrays").is_dir()


def prepared_size(name: str, data_dir: str | os.PathLike | None = None) -> int:
    """Bytes of the prepared arrays of one of our own sets; 0 if it is not prepared."""
    return folder_size(_home(name, CATALOGUE[name], data_dir) / "arrays")


def first_available(*names: str) -> str:
    """The first of these sets that is prepared or embedded: the real one, or a stand-in for it."""
    there = lambda name: CATALOGUE[name].embedded or is_prepared(name) if name in CATALOGUE else is_text_prepared(name)
    return next(name for name in names if there(name))


def held_out_rows(name: str) -> int:
    """The first row of the usual validation part of a training split, of sets without one; 0 where none is usual."""
    return CATALOGUE[name].held_out if name in CATALOGUE else 0


def _home(name: str, row: Row, data_dir: str | os.PathLike | None) -> Path:
    """The folder of one of our sets, named by a hash of its builder's source: a changed builder prepares anew."""
    text = Path(__file__).with_name("builders").joinpath(f"{row.module}.py").read_bytes()
    return data_folder(data_dir) / "gen_jax" / name / hashlib.sha256(text).hexdigest()[:12]


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


class Examples:
    """The numeric features of a prepared builder's split; an image "image" is called "x"."""

    def __init__(self, source: Any, size: int):
        self.source, self.size = source, size
        first = {name: np.asarray(value) for name, value in source.__getitems__([0])[0].items()} if size else {}
        self.features = {("x" if n == "image" else n): n for n, value in first.items() if value.dtype.kind in "biuf"}
        self.entries = {entry: Entry(first[name].shape, first[name].dtype) for entry, name in self.features.items()}

    def __len__(self) -> int:
        return self.size

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        rows = self.source.__getitems__(index.tolist())
        return {entry: np.stack([row[name] for row in rows]) for entry, name in self.features.items()}


def _write_all(folder: Path, builder: Any, described: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Writes all splits of a prepared builder, and the metadata of its features. described: further fields."""
    sources = {split: builder.as_data_source(split=split) for split in builder.info.splits}
    splits = {split: columns(Examples(source, len(source))) for split, source in sources.items()}
    own = {**described, **_labels_of(builder)}
    draft = {split: _of_few_dimensions(arrays) for split, arrays in splits.items()}
    write_arrays(folder, draft, {**describe(draft), **own})


def _of_few_dimensions(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Single numbers as arrays, e.g. labels; the other entries stay columns, read block by block."""
    return {name: np.asarray(a) if a.ndim == 1 and name != "x" else a for name, a in arrays.items()}


def _labels_of(builder: Any) -> dict[str, Any]:
    """The classes of a builder's "label"."""
    label = dict(builder.info.features).get("label")
    if not isinstance(label, _tfds().features.ClassLabel):
        return {}
    return {"classes": label.num_classes, "class_names": tuple(label.names)}


def load_catalogue(name: str, options: Any, folder: Path | None = None) -> Dataset:
    """Loads a prepared set of the tensorflow-datasets catalogue, or of a folder that one of its builders wrote.

    Images are fitted to `options.size` and decoded whenever they are read; what has none is kept as arrays.
    """
    builder = _catalogue_builder(name, None) if folder is None else _tfds().builder_from_directory(str(folder))
    name = name if folder is None else builder.info.name
    if folder is None and not builder.is_prepared():
        raise UserError(
            f"{name} is not prepared in {data_folder()}: run `pip install tensorflow-cpu` and "
            f"`python -m gen_jax data prepare {name}`"
        )
    if image := _image_feature(builder):
        to = _format_of(dict(builder.info.features)[image], options, name)
        return _with_validation(_streamed(name, builder, image, to))
    options.only(name)
    home = _prepared(name, _key(builder))
    with locked(home), _explained(name):
        if not (home / "arrays").is_dir():
            _write_all(home / "arrays", builder)
    return _with_validation(open_arrays(name, home / "arrays"))


def _prepared(name: str, key: str) -> Path:
    """The folder below the data folder for what was read of a set."""
    return data_folder() / "gen_jax" / "prepared" / name.replace("/", "_") / key[:16]


def _key(builder: Any, to: ImageFormat | None = None) -> str:
    """A digest of a prepared builder's version and sizes, and of the format of its images."""
    splits = {name: (split.num_examples, split.num_bytes) for name, split in builder.info.splits.items()}
    return hashlib.sha256(f"{builder.info.full_name} {sorted(splits.items())} {to}".encode()).hexdigest()


def _with_validation(data: Dataset) -> Dataset:
    """The data set with a validation split: its own, or the last tenth of the training split."""
    splits = dict(data.splits)
    if "validation" in splits or "train" not in splits:
        return data
    start = len(splits["train"]["x"]) * 9 // 10
    part = lambda rows: {entry: a[rows] for entry, a in splits["train"].items()}
    made = {"train": part(slice(start)), "validation": part(slice(start, None))}
    rest = {split: arrays for split, arrays in splits.items() if split != "train"}
    return replace(data, splits={**made, "test": made["validation"], **rest})


def _image_feature(builder: Any) -> str | None:
    """The first feature that is an encoded image."""
    features = dict(builder.info.features)
    return next((name for name, kind in features.items() if isinstance(kind, _tfds().features.Image)), None)


def _format_of(feature: Any, options: Any, name: str) -> ImageFormat:
    height, width, channels = feature.shape
    size = parse_size(options.size) or (None if height is None or width is None else (height, width))
    if size is None:
        raise UserError(f"{name} has images of several sizes: give --size HEIGHTxWIDTH and --fit crop, pad or stretch")
    if not options.fit and (height is None or width is None or height * size[1] != width * size[0]):
        raise UserError(
            f"{name} has images of other proportions than {size[0]}x{size[1]}: give --fit crop, pad or stretch"
        )
    return ImageFormat(size, options.channels or channels or 3, options.bits, options.fit or "stretch")


def _streamed(name: str, builder: Any, image: str, to: ImageFormat) -> Dataset:
    """A set whose images are decoded whenever they are read; labels and other single numbers are kept on disk."""
    tfds, key = _tfds(), _key(builder, to)
    folder = _prepared(name, _key(builder))  # whatever the format of the images
    splits: dict[str, dict[str, Any]] = {}
    for split, about in builder.info.splits.items():
        source = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
        fetch = lambda index, source=source: [row[image] for row in source.__getitems__(index)]
        single = _single_numbers(source, about.num_examples, folder / f"{split}.npz")
        images = EncodedImages(f"{name} [{split}]", fetch, about.num_examples, to, single.get("label"))
        splits[split] = {**columns(images), **single}
    said = {"shape": to.shape, "levels": 2**to.bits, "digest": key, **_labels_of(builder)}
    return Dataset(f"{name.replace('/', '_')}-{key[:8]}", splits, said)


def _single_numbers(source: Any, size: int, path: Path) -> dict[str, np.ndarray]:
    """The features of a data source that are one number for each example, read once and kept."""
    if not path.is_file():
        examples = Examples(source, size)
        single = [entry for entry, (shape, _) in examples.entries.items() if shape == ()]
        found: dict[str, Any] = {entry: [] for entry in single}
        for start in range(0, size if single else 0, 500):
            block = examples.read(np.arange(start, min(size, start + 500)))
            for entry, values in found.items():
                values.append(block[entry])
        found = {entry: np.concatenate(values) for entry, values in found.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(draft, **found)
        draft.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        return {entry: kept[entry] for entry in kept.files}


def _catalogue_builder(name: str, data_dir: str | os.PathLike | None):
    tfds = _tfds()
    try:
        return tfds.builder(name, data_dir=str(data_folder(data_dir)), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = {*CATALOGUE, *re.findall(r"^\s*- (\w+)", str(error), re.MULTILINE)}
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`python -m gen_jax data list` lists what there is"
        raise UserError(f"there is no data set {name!r}, and no file or folder of that name: {hint}") from None
    except ValueError:
        raise UserError(f"there is no data set {name!r}, and no file or folder of that name") from None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{name} needs TensorFlow to be prepared: run `pip install tensorflow-cpu` ({error})") from None


def _prepare_catalogue(name: str, data_dir, manual_dir) -> Path:
    builder = _catalogue_builder(name, data_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{name} needs TensorFlow to be prepared: run `pip install tensorflow-cpu`")
    home = Path(builder.data_dir)
    config = _tfds().download.DownloadConfig(manual_dir=manual_dir and Path(manual_dir).resolve())
    with locked(home.parent), _explained(name):
        builder.download_and_prepare(download_config=config, download_dir=home.parent / "downloads")
    return home
