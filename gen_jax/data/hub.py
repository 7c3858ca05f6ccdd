"""Data sets of other libraries, read from disk: tensorflow-datasets by name, and saved Hugging Face data sets."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.folders import choose_format
from gen_jax.data.images import DecodedRecords, ImageFormat, Undecodable, decode_into, read_header, reason
from gen_jax.data.options import listed
from gen_jax.data.records import columns
from gen_jax.errors import UserError

__all__ = ["EncodedImages", "is_saved_dataset", "open_saved_dataset"]


class EncodedImages(DecodedRecords):
    """Encoded images that a function fetches by number, decoded and fitted when read."""

    def __init__(
        self,
        name: str,
        fetch: Callable[[Sequence[int]], Sequence[bytes]],
        size: int,
        to: ImageFormat,
        labels: np.ndarray | None = None,
    ):
        self.name, self.fetch = name, fetch
        super().__init__(size, {"x": to}, labels)

    def decode_example(self, number: int, out: Mapping[str, np.ndarray]) -> None:
        try:
            decode_into(self.fetch([number])[0], self.to["x"], [out["x"]])
        except Exception as error:  # Pillow's decoders raise errors of every type for damaged images
            raise Undecodable(f"{self.name}, image {number}", reason(error)) from error


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library Hugging Face Datasets."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_saved_dataset(folder: Path, options: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The splits of a saved Hugging Face data set, and fields of their description; nothing is downloaded."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{folder} is a Hugging Face data set: reading it needs `pip install datasets`") from None
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # of any kind, for damaged files
        raise UserError(f"{folder} cannot be read: {str(error).partition(chr(10))[0][:200]}") from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    features = next(iter(splits.values())).features
    try:
        image = next((n for n, kind in features.items() if isinstance(kind, datasets.Image)), "")
        encoded = lambda one: one.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        read = {split: encoded(one) for split, one in splits.items()} if image else {}
        headers = [read_header(_bytes_of(row[image])) for one in read.values() for row in one]
        to = choose_format(headers, options, folder) if image else None
        made = {split: _entries_of(one, options, folder, read.get(split), to) for split, one in splits.items()}
    except UserError:
        raise
    except Exception as error:  # of the library, or of Pillow
        raise UserError(f"{folder} cannot be read: {str(error).partition(chr(10))[0][:200]}") from error
    label = features.get(options.label or "label")
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else ()
    return made, {"class_names": names} if names else {}


def _entries_of(saved: Any, options: Any, folder: Path, encoded: Any, to: ImageFormat | None) -> dict[str, Any]:
    """The images of a split as "x", or its numeric columns, and the label. encoded: its images, not decoded."""
    features = saved.features
    label = options.label or ("label" if "label" in features else "")
    if label and (label not in features or "int" not in getattr(features[label], "dtype", "")):
        raise UserError(f"{folder} has no labels of whole numbers called {label!r}; it has {', '.join(features)}")
    table = saved.with_format("numpy")
    labels = {"label": np.asarray(table[label][:], np.int32)} if label else {}
    if to is not None:
        [image] = encoded.column_names
        fetch = lambda index: [_bytes_of(one) for one in encoded[index][image]]
        return {**columns(EncodedImages(folder.name, fetch, len(saved), to, labels.get("label"))), **labels}
    numbers = ("int", "uin", "flo", "boo")
    numeric = [n for n, kind in features.items() if n != label and getattr(kind, "dtype", "")[:3] in numbers]
    wanted = listed(options.columns) or numeric
    if not wanted or (unknown := [name for name in wanted if name not in numeric]):
        raise UserError(f"{folder} has no numeric columns {unknown if wanted else ''}; it has {', '.join(features)}")
    return {"x": np.stack([np.asarray(table[name][:], np.float32) for name in wanted], axis=1), **labels}


def _bytes_of(image: Mapping[str, Any]) -> bytes:
    return image["bytes"] if image["bytes"] is not None else io.FileIO(image["path"]).readall()
