"""Handwritten digits, 8x8, as shipped with scikit-learn."""

import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from gen_jax.data.builders.arrays import ArrayBuilder, label, split_arrays, vector

__all__ = ["Digits", "Digits28", "small"]


class Digits(ArrayBuilder):
    """1,797 scans of handwritten digits: (8, 8, 1) counts 0 .. 16 of ink pixels in 4x4 blocks.

    From Alpaydin & Kaynak 1998. Split by a fixed permutation: 1,347 for training, 150 for validation, 300 for test.
    """

    LEVELS = 17

    def features(self):
        return {"x": vector(8, 8, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        return small()


class Digits28(ArrayBuilder):
    """The images of `Digits`, upsampled to (28, 28, 1) and 256 levels: a stand-in for MNIST."""

    LEVELS = 256

    def features(self):
        return {"x": vector(28, 28, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        def enlarged(x):
            wide = zoom(x[..., 0] * (255 / 16), (1, 24 / 8, 24 / 8), order=3)
            return np.pad(np.clip(wide, 0, 255).round().astype(np.uint8), ((0, 0), (2, 2), (2, 2)))[..., None]

        splits = small()
        return {name: {**split, "x": enlarged(split["x"])} for name, split in splits.items()}


def small() -> dict[str, dict[str, np.ndarray]]:
    """The splits of `Digits`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = digits.images.astype(np.uint8)[order, :, :, None]
    return split_arrays({"x": x, "label": digits.target[order]}, train=1347, validation=150)
