"""Handwritten digits, 8x8, as shipped with scikit-learn."""

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, grey_dilation, zoom
from sklearn.datasets import load_digits

from gen_jax.data.builders.arrays import ArrayBuilder, label, split_arrays, vector

__all__ = ["Digits", "Digits16", "Digits28", "Outlines", "Twins", "small"]


class Digits(ArrayBuilder):
    """1,797 scans of handwritten digits: (8, 8, 1) counts 0 .. 16 of ink pixels in 4x4 blocks.

    From Alpaydin & Kaynak 1998. Split by a fixed permutation: 1,347 for training, 150 for validation, 300 for test.
    """

    LEVELS = 17

    def features(self):
        return {"x": vector(8, 8, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        return small()


class Digits16(ArrayBuilder):
    """The images of `Digits`, upsampled to (16, 16, 1) and 256 levels."""

    LEVELS = 256

    def features(self):
        return {"x": vector(16, 16, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        return {name: {**split, "x": enlarged(split["x"], 0, 2)} for name, split in small().items()}


class Digits28(ArrayBuilder):
    """The images of `Digits`, upsampled to (28, 28, 1) and 256 levels: a stand-in for MNIST."""

    LEVELS = 256

    def features(self):
        return {"x": vector(28, 28, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        return {name: {**split, "x": enlarged(split["x"])} for name, split in small().items()}


class Outlines(ArrayBuilder):
    """Pairs of an outline "x" and the digit "y" it was drawn around: (32, 32, 1), 256 levels."""

    LEVELS = 256

    def features(self):
        return {"x": vector(32, 32, 1, dtype=np.uint8), "y": vector(32, 32, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        def pairs(split):
            y = enlarged(split["x"], border=4)
            ink, cross = y[..., 0] > 127, np.ones((1, 3, 3), bool)
            line = binary_dilation(ink, cross) & ~binary_erosion(ink, cross)
            return {"x": 255 * line[..., None].astype(np.uint8), "y": y, "label": split["label"]}

        return {name: pairs(split) for name, split in small().items()}


class Twins(ArrayBuilder):
    """Pairs of a digit "x", white on black, and its twin "y", thicker and dark blue on yellow: (32, 32, 3).

    Meant to be taken apart, so that unpaired translation is judged by the truth.
    """

    LEVELS = 256

    def features(self):
        shape = (32, 32, 3)
        return {"x": vector(*shape, dtype=np.uint8), "y": vector(*shape, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        def pairs(split):
            x = enlarged(split["x"], border=4)
            thick = grey_dilation(x[..., 0], (1, 3, 3))[..., None] / 255
            ink, paper = np.array([20, 30, 120]), np.array([250, 220, 130])
            y = np.rint(paper + thick * (ink - paper)).astype(np.uint8)
            return {"x": np.repeat(x, 3, axis=-1), "y": y, "label": split["label"]}

        return {name: pairs(split) for name, split in small().items()}


def enlarged(x: np.ndarray, border: int = 2, times: int = 3) -> np.ndarray:
    """Digits (N, 8, 8, 1) of 17 levels as (N, 8 times + 2 border, 8 times + 2 border, 1) of 256."""
    wide = zoom(x[..., 0] * (255 / 16), (1, times, times), order=3)
    sides = ((0, 0), (border, border), (border, border))
    return np.pad(np.clip(wide, 0, 255).round().astype(np.uint8), sides)[..., None]


def small() -> dict[str, dict[str, np.ndarray]]:
    """The splits of `Digits`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = digits.images.astype(np.uint8)[order, :, :, None]
    return split_arrays({"x": x, "label": digits.target[order]}, train=1347, validation=150)
