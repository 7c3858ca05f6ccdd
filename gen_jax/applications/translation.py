"""Translating image files: of any size, in batches of equal size, with results that do not depend on the batch."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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

__all__ = ["FileTranslator", "ImageFile", "batched", "encoded", "image_files", "read_image", "write_whole"]

LOSSY = (".jpg", ".jpeg", ".webp")


class ImageFile(NamedTuple):
    """An image to be translated: where it is, its path below the output folder, its header and a digest of it."""

    path: Path
    name: Path
    header: Header
    digest: int

    @property
    def size(self) -> tuple[int, int]:
        return self.header.height, self.header.width


def image_files(source: Path, progress: Callable[[Any], Iterable[Path]] = iter) -> list[ImageFile]:
    """A file, or all image files below a folder, sorted. Raises UserError for what is no readable image."""
    if not source.exists():
        raise UserError(f"there is no file or folder {source}")
    paths = [source]
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths or source.is_file() and source.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source} holds no image: files end with {', '.join(SUFFIXES)} or .npz")
    base = source if source.is_dir() else source.parent
    found = []
    for path in progress(paths):
        try:
            data = path.read_bytes()
            found.append(ImageFile(path, path.relative_to(base), read_header(data), zlib.crc32(data)))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from None
    return found


def read_image(file: ImageFile, channels: int) -> np.ndarray:
    """An image (H, W, channels) in [0, 1]; the depth of gray files is kept. Raises UserError."""
    own = 4 if channels == 4 else 1 if file.header.gray else 3
    bits = file.header.bits if own == 1 else 8
    try:
        [image] = decode(file.path.read_bytes(), ImageFormat(file.size, own, bits))
    except (OSError, ValueError) as error:
        raise UserError(f"{file.path} cannot be read: {reason(error)}") from None
    return _fitting(image[None].astype(np.float32) / np.float32(2**bits - 1), channels, str(file.path))[0]


def _fitting(x: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Images (n, H, W, C) with so many channels: gray ones repeated, colors averaged."""
    fitting = like(x, channels) if channels in (1, 3) or x.shape[-1] == channels else None
    if fitting is None:
        raise UserError(f"{where} has {x.shape[-1]} channels, the model was trained on {channels}")
    return fitting


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

    def check(self, state: State, sizes: Iterable[tuple[int, int]], suffixes: Iterable[str] = ()) -> None:
        """Raises UserError for sizes the model cannot translate, and formats that cannot hold the result."""
        key = jax.eval_shape(lambda: self._keys([0], 0)) if self.draws > 1 else None
        for height, width in sorted(set(sizes))[:1]:  # the smallest
            x = jax.ShapeDtypeStruct((1, height, width, self.channels), jnp.float32)
            try:
                made = jax.eval_shape(self._program(), state, x, key)
            except ValueError as error:
                raise UserError(f"images of {height}x{width}: {error}") from None
            depth = made.shape[-1]
            for suffix in sorted(set(suffixes)):
                if depth not in (1, 3, 4) or (depth == 4 and suffix in LOSSY):
                    raise UserError(f"{suffix} holds no images of {depth} channels: give .npz")

    def __call__(self, state: State, files: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, list[np.ndarray]]]:
        """Each file with its translations (H, W, D), of the depth of the file; files of one size together."""
        program = self._program()
        size = lambda file: file.size
        for _, same in groupby(sorted(files, key=size), size):
            whole = list(same)
            for group in batched(whole, self.batch):
                x = np.stack([read_image(file, self.channels) for file in group])
                numbers = [file.digest for file in group]
                made = self._translated(program, state, x, numbers, min(self.batch, len(whole)))
                for file, images in zip(group, made):
                    top = 2**file.header.bits - 1
                    kind = np.uint8 if top == 255 else np.uint16
                    yield file, [np.rint(image * top).astype(kind) for image in images]

    def arrays(self, state: State, x: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The translations of each image of an array (N, H, W, C) of values in [0, 1], themselves in [0, 1]."""
        program, size = self._program(), min(self.batch, len(x))
        for rows in batched(range(len(x)), self.batch):
            part = _fitting(x[list(rows)], self.channels, "the array")
            yield from self._translated(program, state, part, rows, size)

    def _program(self) -> Any:
        return jax.jit(lambda state, x, key: self.model.translate(state, x, self.direction, key, self.own))

    def _keys(self, numbers: Sequence[int], draw: int) -> Any:
        """A key for each image, by a number of its own."""
        key = jax.random.fold_in(jax.random.key(self.seed), draw)
        return jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(np.array(numbers, np.uint32)))

    def _translated(
        self, program: Any, state: State, x: np.ndarray, numbers: Sequence[int], size: int
    ) -> list[list[np.ndarray]]:
        """The translations of images (n, H, W, C), filled up to `size` so that one program serves all of a size."""
        n = len(x)
        full = np.concatenate([x, np.repeat(x[-1:], size - n, axis=0)]) * 2 - 1
        several = self.draws > 1
        keys = [self._keys(np.resize(numbers, size), draw) if several else None for draw in range(self.draws)]
        drawn = [np.clip((np.asarray(program(state, full, key))[:n] + 1) / 2, 0, 1) for key in keys]
        if several and all(np.array_equal(drawn[0], other) for other in drawn[1:]):
            raise UserError(
                f"--draws {self.draws}: this model has neither noise nor dropout, all draws are alike; "
                "train one with --noise 8"
            )
        return [list(images) for images in zip(*drawn)]


def batched(items: Iterable[Any], n: int) -> Iterator[tuple[Any, ...]]:
    """Tuples of n items that follow each other; the last may be shorter."""
    rest = iter(items)
    while batch := tuple(islice(rest, n)):
        yield batch


def encoded(image: np.ndarray, suffix: str) -> bytes:
    """An image (H, W, C) of 8 or 16 bits as a file; colors of 16 bits are written with 8."""
    data = image[..., 0] if image.shape[-1] == 1 else image
    if data.dtype == np.uint16 and data.ndim == 3:
        data = np.rint(data / 257).astype(np.uint8)  # Pillow writes no colors of 16 bits
    made = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if suffix.lower() in LOSSY else {}
    Image.fromarray(data).save(made, format=Image.registered_extensions()[suffix.lower()], **options)
    return made.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}-incomplete")
    draft.write_bytes(data)
    draft.replace(path)
