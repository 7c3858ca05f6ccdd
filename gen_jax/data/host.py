"""Transforms of single images on the host, while they are read: for streamed data.

Random numbers are keyed by (seed, step, index): a resumed run sees the same crops as one that never stopped. For
evaluation each transform has a fixed version, e.g. the middle crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from gen_jax.data.records import Arrays, Entry, columns, take
from gen_jax.errors import UserError

__all__ = [
    "ColorJitter",
    "HostTransform",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "fixed",
    "generators",
    "transform_images",
]


class HostTransform(Protocol):
    """A transform of one image (H, W, C) of unsigned integers."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...

    def fixed(self, image: np.ndarray) -> np.ndarray:
        """The transform without randomness, for evaluation."""


@dataclass(frozen=True)
class RandomCrop:
    """A crop of (height, width) at a random place; the middle one for evaluation."""

    size: tuple[int, int]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows, width = self._room(image)
        top, left = rng.integers(rows + 1), rng.integers(width + 1)
        return image[top : top + self.size[0], left : left + self.size[1]]

    def fixed(self, image: np.ndarray) -> np.ndarray:
        top, left = (room // 2 for room in self._room(image))
        return image[top : top + self.size[0], left : left + self.size[1]]

    def _room(self, image: np.ndarray) -> tuple[int, int]:
        room = image.shape[0] - self.size[0], image.shape[1] - self.size[1]
        if min(room) < 0:
            raise UserError(f"a crop of {self.size} does not fit into images of {image.shape[:2]}")
        return room


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors an image horizontally with a probability."""

    probability: float = 0.5

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image[:, ::-1] if rng.random() < self.probability else image

    def fixed(self, image: np.ndarray) -> np.ndarray:
        return image


@dataclass(frozen=True)
class ColorJitter:
    """Multiplies brightness, contrast and saturation by factors drawn from [1 - b, 1 + b]. For 8 bits."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        changes = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        )
        gray = image.shape[-1] == 1
        picture = Image.fromarray(image[..., 0] if gray else image)
        for change, amount in changes:
            if amount:
                picture = change(picture).enhance(rng.uniform(max(0.0, 1 - amount), 1 + amount))
        changed = np.asarray(picture)
        return changed[..., None] if gray else changed

    def fixed(self, image: np.ndarray) -> np.ndarray:
        return image


@dataclass(frozen=True)
class Resize:
    """Resizes to (height, width), antialiased. For 8 bits."""

    size: tuple[int, int]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.fixed(image)

    def fixed(self, image: np.ndarray) -> np.ndarray:
        gray = image.shape[-1] == 1
        picture = Image.fromarray(image[..., 0] if gray else image).resize(self.size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(picture)[..., None] if gray else np.asarray(picture)


def generators(seed: int, step: int, index: np.ndarray) -> list[np.random.Generator]:
    """A generator for each example of a batch, by (seed, step, index); copies of an example differ."""
    copies: dict[int, int] = {}
    made = []
    for number in index.tolist():
        copy = copies[number] = copies.get(number, -1) + 1
        key = (int(seed) << 96) | (int(step) << 48) | (copy << 40) | number
        made.append(np.random.Generator(np.random.Philox(key=key)))
    return made


def transform_images(images: np.ndarray, transforms: Sequence[HostTransform], rngs: Sequence[Any]) -> np.ndarray:
    """The images (n, H, W, C), each transformed with its generator."""
    made = []
    for image, rng in zip(images, rngs):
        for transform in transforms:
            image = transform(image, rng)
        made.append(image)
    return np.stack(made)


class _Fixed:
    """Records with the fixed version of host transforms applied to "x"."""

    def __init__(self, arrays: Arrays, transforms: Sequence[HostTransform]):
        self.arrays, self.transforms = {"x": arrays["x"]}, tuple(transforms)
        first = self.read(np.arange(1))["x"]
        self.entries: Mapping[str, Entry] = {"x": Entry(first.shape[1:], first.dtype)}

    def __len__(self) -> int:
        return len(self.arrays["x"])

    def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        images = take(self.arrays, index)["x"]
        made = []
        for image in images:
            for transform in self.transforms:
                image = transform.fixed(image)
            made.append(image)
        return {"x": np.stack(made)}


def fixed(arrays: Arrays, transforms: Sequence[HostTransform]) -> dict[str, Any]:
    """The arrays as evaluation sees them: "x" as a column with the transforms' fixed versions applied."""
    return {**arrays, **columns(_Fixed(arrays, transforms))} if transforms else dict(arrays)
