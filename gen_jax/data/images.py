"""Image files as arrays: decoding, channels, depth and size.

Pillow reads every format; JPEGs without an orientation tag are decoded by libjpeg-turbo directly, to the same pixels.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from gen_jax.data.records import Entry
from gen_jax.errors import DataError, UserError

__all__ = [
    "SUFFIXES",
    "DecodedRecords",
    "Header",
    "ImageFormat",
    "Tolerance",
    "Undecodable",
    "decode",
    "decode_into",
    "decode_jpeg",
    "parse_size",
    "read_header",
    "reason",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_GRAY, _DEEP = ("1", "L", "I;16", "I;16B", "I"), ("I;16", "I;16B", "I")


class Header(NamedTuple):
    """Properties of an image file that are known without decoding its pixels."""

    height: int
    width: int
    gray: bool
    alpha: bool
    bits: int
    plain: bool = False  # a JPEG that libjpeg-turbo may decode: gray or colors, without an orientation tag


@dataclass(frozen=True)
class ImageFormat:
    """The common format of the images of a data set.

    size: (height, width). channels: 1 (gray), 3 (RGB) or 4 (RGBA). bits: 8 or 16 per channel. fit: how other sizes are
    brought to `size`: "crop" keeps the middle, "pad" adds black, "stretch" changes proportions; always antialiased.
    """

    size: tuple[int, int]
    channels: int = 3
    bits: int = 8
    fit: str = "stretch"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, self.channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) from "64" or "112x92"; None from ""."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text))
    size = match and (int(match[1]), int(match[2] or match[1]))
    if not size or not 1 <= min(size) <= max(size) <= 8192:
        raise UserError(f"size takes a number of pixels or HEIGHTxWIDTH, such as 64 or 112x92, got {text!r}")
    return size


def read_header(data: bytes) -> Header:
    """The header of an image file. Raises OSError or ValueError if it is none, or too large to be decoded safely."""
    if jpeg := _jpeg_header(data):
        return Header(jpeg[0], jpeg[1], jpeg[2] == 1, False, 8, plain=True)
    with Image.open(io.BytesIO(data)) as image:
        _check_size(image)
        if image.mode == "F":
            raise ValueError("floating-point pixels are not supported: save it with 8 or 16 bits")
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        stored = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
        width, height = stored[::-1] if turned else stored
        alpha = image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info
        gray = image.mode in (*_GRAY, "LA", "La") or (image.mode == "P" and _gray_palette(image))
        return Header(height, width, gray, alpha, 16 if image.mode in _DEEP else 8)


def _gray_palette(image: Image.Image) -> bool:
    colors = np.frombuffer(image.palette.getdata()[1], np.uint8)
    if image.palette.mode != "RGB" or len(colors) % 3:
        return False
    return bool((colors.reshape(-1, 3) == colors.reshape(-1, 3)[:, :1]).all())


def decode(data: bytes, to: ImageFormat, halves: bool = False) -> list[np.ndarray]:
    """The image (H, W, C) in the format, or its left and right halves. Raises OSError or ValueError if damaged."""
    out = [np.empty(to.shape, to.dtype) for _ in range(2 if halves else 1)]
    decode_into(data, to, out)
    return out


def decode_into(data: bytes, to: ImageFormat, out: Sequence[np.ndarray]) -> None:
    """As `decode`, into one array, or into two for the halves of the image."""
    jpeg = _jpeg_header(data) if to.bits == 8 and to.channels != 4 else None
    if jpeg == to.shape and len(out) == 1 and out[0].flags.c_contiguous:
        decode_jpeg(data, to.channels, buffer=out[0])
        return
    image = _any(data, to) if jpeg is None else _scaled_jpeg(data, jpeg, to, len(out))
    width, height = image.size
    parts = [(0, 0, width // 2, height), (width // 2, 0, width // 2 * 2, height)] if len(out) == 2 else [None]
    for part, pixels in zip(parts, out):
        pixels[...] = _fitted(image.crop(part) if part else image, to)


def _jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, channels) of a plain JPEG; see `Header`."""
    if data[:2] != b"\xff\xd8" or data.find(b"Exif\0", 0, 65536) >= 0:
        return None
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise OSError(f"damaged JPEG: {error}") from None
    if height * width > (Image.MAX_IMAGE_PIXELS or np.inf) or space not in ("Gray", "YCbCr"):
        return None
    return height, width, 1 if space == "Gray" else 3


def decode_jpeg(data: bytes, channels: int, **options: Any) -> np.ndarray:
    """The pixels of a plain JPEG. Raises OSError if it is damaged."""
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", **options)
    except ValueError as error:
        raise OSError(f"damaged JPEG: {error}") from None


def _scaled_jpeg(data: bytes, header: tuple[int, int, int], to: ImageFormat, parts: int) -> Image.Image:
    """A JPEG decoded at the smallest of its scales that is twice as large as needed."""
    rows, columns, channels = to.size[0] * 2, to.size[1] * 2 * parts, header[2]
    pixels = decode_jpeg(data, channels, min_height=rows, min_width=columns)
    return _converted(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), to)


def _any(data: bytes, to: ImageFormat) -> Image.Image:
    with Image.open(io.BytesIO(data)) as opened:
        _check_size(opened)
        opened.load()
        return _converted(ImageOps.exif_transpose(opened), to)


def _check_size(image: Image.Image) -> None:
    """Raises ValueError above Pillow's limit, which by itself only warns up to twice of it."""
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width * image.height:,} pixels could be a decompression bomb")


def _converted(image: Image.Image, to: ImageFormat) -> Image.Image:
    """The image with the channels of the format; transparent pixels are put on white if it has no alpha channel."""
    if image.mode in _DEEP:
        deep = np.asarray(image)
        if deep.size and not 0 <= deep.min() <= deep.max() <= 65535:
            raise ValueError("pixels have more than 16 bits")
        if to.bits == 16 and to.channels == 1:
            return Image.fromarray(deep.astype(np.float32))
        image = Image.fromarray(np.rint(deep / 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA" and to.channels != 4:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image)
        image = background.convert("RGB")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[to.channels]
    return image if image.mode == mode else image.convert(mode)


def _fitted(image: Image.Image, to: ImageFormat) -> np.ndarray:
    """The image as an array of the format's size."""
    size = to.size[::-1]
    if to.bits == 16:
        planes = [image] if image.mode == "F" else [plane.convert("F") for plane in image.split()]
        scale = 1 if image.mode == "F" else 257
        deep = np.stack([np.asarray(_resized(plane, size, to.fit)) for plane in planes], axis=-1) * scale
        return np.clip(np.rint(deep), 0, 65535).astype(np.uint16)
    a = np.asarray(image if image.size == size else _resized(image, size, to.fit))
    return a if a.ndim == 3 else a[..., None]


def _resized(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    if fit == "pad":
        scale = min(size[0] / image.width, size[1] / image.height)
        inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        padded = Image.new(image.mode, size)
        corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        padded.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
        return padded
    return image.resize(size, Image.Resampling.BICUBIC)


class Undecodable(Exception):
    """An image that cannot be decoded: its path, and why."""


def reason(error: BaseException) -> str:
    """The first line of an error, for a note on a file."""
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).partition("\n")[0]
    if "cannot identify image file" in text:
        return "not an image, or damaged"
    return text[:160] or type(error).__name__


class Tolerance:
    """Counts files that cannot be read while training; beyond a limit, reading ends with the last one's name."""

    def __init__(self, limit: int | None):
        self.limit, self.failed, self._lock = limit, dict[str, str](), threading.Lock()

    def __reduce__(self):
        return Tolerance, (self.limit,)

    def skip(self, path: str, reason: str) -> None:
        """Notes a failure; raises DataError if there are too many. Without a limit, it only notes it."""
        with self._lock:
            if path in self.failed:
                return
            self.failed[path] = reason
            if self.limit is None:
                return
            if len(self.failed) > self.limit:
                raise DataError(
                    f"{path}: {reason}. {len(self.failed)} files could not be read, and {self.limit} may be skipped"
                )
        warnings.warn(f"{path} is skipped: {reason}", stacklevel=2)


class DecodedRecords:
    """Images that are decoded when read.

    One that has become unreadable is replaced by the next, of its label where there are labels (N,), up to a limit.
    """

    def __init__(self, size: int, to: Mapping[str, ImageFormat], labels: np.ndarray | None = None):
        self.size, self.to, self.labels = size, dict(to), labels
        self.tolerance = Tolerance(max(10, size // 100))

    @property
    def entries(self) -> dict[str, Entry]:
        return {entry: Entry(form.shape, form.dtype) for entry, form in self.to.items()}

    def __len__(self) -> int:
        return self.size

    def decode_example(self, number: int, out: Mapping[str, np.ndarray]) -> None:
        """Writes the images of an example into an array for each entry. Raises Undecodable."""
        raise NotImplementedError

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        found = {entry: np.empty((len(index), *form.shape), form.dtype) for entry, form in self.to.items()}
        for place, number in enumerate(index.tolist()):
            self._decode_readable(number, {entry: images[place] for entry, images in found.items()})
        return found

    def _decode_readable(self, number: int, out: Mapping[str, np.ndarray]) -> None:
        """The images of an example, or of the next one that can be decoded."""
        for other in range(number, number + self.size):
            if self.labels is not None and self.labels[other % self.size] != self.labels[number]:
                continue
            try:
                self.decode_example(other % self.size, out)
                return
            except Undecodable as error:
                self.tolerance.skip(*error.args)
        raise DataError("no image can be decoded")
