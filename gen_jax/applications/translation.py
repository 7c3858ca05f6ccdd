"""Translating image files: of any size, in batches of equal size, with results that do not depend on the batch."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gen_jax.core import ImageTranslator, State
from gen_jax.data.images import SUFFIXES, Header, ImageFormat, decode, read_header, reason
from gen_jax.errors import UserError
from gen_jax.evaluation.translation.images import like

__all__ = ["FileTranslator", "ImageFile", "image_files", "write_image"]


def batched(items: Iterable[Any], n: int) -> Iterator[tuple[Any, ...]]:
    """Tuples of n items that follow each other; the last may be shorter."""
    rest = iter(items)
    while batch := tuple(islice(rest, n)):
        yield batch


class ImageFile(NamedTuple):
    """An image to be translated: where it is, its path below the output folder, and its header."""

    path: Path
    name: Path
    header: Header


def image_files(source: Path) -> list[ImageFile]:
    """A file, or all image files below a folder, sorted. Raises UserError for what is no readable image."""
    if not source.exists():
        raise UserError(f"there is no file or folder {source}")
    paths = [source]
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{source} holds no image: files end with {', '.join(SUFFIXES)}")
    base = source if source.is_dir() else source.parent
    found = []
    for path in paths:
        try:
            found.append(ImageFile(path, path.relative_to(base), read_header(path.read_bytes())))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from None
    return found


@dataclass(frozen=True)
class FileTranslator:
    """Translates images in one direction; see `core.ImageTranslator.translate` for `own`.

    channels: those of the images that the model was trained on. draws: how many translations of each image; of one it
    is deterministic, of more each has its own noise and dropout.
    """

    model: ImageTranslator
    channels: int
    direction: str = "a2b"
    draws: int = 1
    own: bool = False
    batch: int = 16
    seed: int = 0

    def __post_init__(self):
        if self.direction not in self.model.directions:
            known = " or ".join(self.model.directions)
            raise UserError(f"--direction {self.direction}: this model translates {known}")
        for name, value in (("draws", self.draws), ("batch", self.batch)):
            if value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")

    def __call__(self, state: State, files: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, list[np.ndarray]]]:
        """Each file with its translations (H, W, D), of the depth of the file; files of one size together."""
        program = self._program()
        size = lambda file: file.header[:2]
        for _, same in groupby(sorted(files, key=size), size):
            for group in batched(same, self.batch):
                x = np.stack([self._read(file) for file in group])
                numbers = [zlib.crc32(str(file.name).encode()) for file in group]  # whatever files there are
                for file, made in zip(group, self._translated(program, state, x, numbers)):
                    top = 2**file.header.bits - 1
                    kind = np.uint8 if top == 255 else np.uint16
                    yield file, [np.rint(one * top).astype(kind) for one in made]

    def arrays(self, state: State, x: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The translations of each image of an array (N, H, W, C) of values in [0, 1], themselves in [0, 1]."""
        program = self._program()
        for rows in batched(range(len(x)), self.batch):
            yield from self._translated(program, state, self._fitting(x[list(rows)], "the array"), rows)

    def _program(self) -> Any:
        return jax.jit(partial(self.model.translate, direction=self.direction, own=self.own))

    def _read(self, file: ImageFile) -> np.ndarray:
        """An image (H, W, C) in [0, 1]."""
        header = file.header
        bits = header.bits if header.gray else 8
        to = ImageFormat((header.height, header.width), 1 if header.gray else 3, bits)
        try:
            [image] = decode(file.path.read_bytes(), to)
        except (OSError, ValueError) as error:
            raise UserError(f"{file.path} cannot be read: {reason(error)}") from None
        return self._fitting(image[None].astype(np.float32) / np.float32(2**bits - 1), str(file.path))[0]

    def _fitting(self, x: np.ndarray, where: str) -> np.ndarray:
        """Images (n, H, W, C) with the channels of the model."""
        fitting = like(x, self.channels)
        if fitting is None:
            raise UserError(f"{where} has {x.shape[-1]} channels, the model was trained on {self.channels}")
        return fitting

    def _translated(self, program: Any, state: State, x: np.ndarray, numbers: Sequence[int]) -> list[list[np.ndarray]]:
        """The translations of images (n, H, W, C), filled up to a whole batch so that few shapes are compiled.

        numbers: choose the noise of each image.
        """
        n = len(x)
        full = np.concatenate([x, np.repeat(x[-1:], self.batch - n, axis=0)]) * 2 - 1
        keys: list[Any] = [None]
        if self.draws > 1:
            place = jnp.asarray(np.resize(np.array(numbers, np.uint32), self.batch))
            of = lambda draw: jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(jax.random.key(self.seed), draw)))
            keys = [of(draw)(place) for draw in range(self.draws)]
        drawn = [np.clip((np.asarray(program(state, full, key=key))[:n] + 1) / 2, 0, 1) for key in keys]
        return [list(images) for images in zip(*drawn)]


def write_image(image: np.ndarray, path: Path) -> None:
    """Writes an image (H, W, C) of 8 or 16 bits; the file appears once it is complete. Raises UserError."""
    data = image[..., 0] if image.shape[-1] == 1 else image
    if image.shape[-1] not in (1, 3, 4):
        raise UserError(f"{path}: images have 1, 3 or 4 channels, this one {image.shape[-1]}: write .npz")
    if data.dtype == np.uint16 and data.ndim == 3:
        data = np.rint(data / 257).astype(np.uint8)  # Pillow writes no colors of 16 bits
    made = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    Image.fromarray(data).save(made, format=Image.registered_extensions()[path.suffix.lower()], **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}-incomplete")
    draft.write_bytes(made.getvalue())
    draft.replace(path)
