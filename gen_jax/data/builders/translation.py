"""Published sets for image translation, from their original files."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import zoom

from gen_jax.data.builders.arrays import ArrayBuilder, label, vector
from gen_jax.data.builders.idx import Mnist
from gen_jax.errors import UserError

__all__ = ["Emoji", "EmojiOutlines", "Facades", "Mnist16", "Usps"]


class _Original(ArrayBuilder):
    """Built from one published file."""

    LEVELS, FILE = 256, ""
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The published file."

    def path(self, downloads) -> Path:
        path = Path(downloads.manual_dir) / self.FILE
        if not path.is_file():
            raise UserError(f"{path} is not there: give the folder that holds {self.FILE} as --manual-dir")
        return path


class Facades(_Original):
    """CMP facades: a map "x" of 12 classes as colors, and the photo "y", 128x128: 400 / 100 / 106 pairs.

    Tylecek & Sara 2013, in the splits of Isola et al. 2017.
    """

    FILE = "facades128.zip"

    def features(self):
        return {"x": vector(128, 128, 3, dtype=np.uint8), "y": vector(128, 128, 3, dtype=np.uint8)}

    def arrays(self, downloads):
        splits = {"train": 400, "validation": 100, "test": 106}
        with zipfile.ZipFile(self.path(downloads)) as file:
            read = lambda name: np.array(Image.open(io.BytesIO(file.read(name))))
            classes = [line.split()[2:] for line in file.read("classes.txt").decode().splitlines()]
            colors = np.array(classes, np.uint8)
            folder = lambda split: "val" if split == "validation" else split
            return {
                split: {
                    "x": np.stack([colors[read(f"label/{folder(split)}/{i}.png")] for i in range(1, n + 1)]),
                    "y": np.stack([read(f"photo/{folder(split)}/{i}.jpg") for i in range(1, n + 1)]),
                }
                for split, n in splits.items()
            }


class _Emoji(_Original):
    """Emoji in two styles, 64x64 on white; of every eight the first is for test, the second for validation."""

    FILE = "emoji64.npz"
    SOURCE, TARGET, LEFT_OUT = "", "", -1

    def features(self):
        channels = 1 if self.SOURCE.endswith("line") else 3
        shapes = {"x": vector(64, 64, channels, dtype=np.uint8), "y": vector(64, 64, 3, dtype=np.uint8)}
        return {**shapes, "label": label(9)}

    def arrays(self, downloads):
        file = np.load(self.path(downloads), allow_pickle=False)
        place, category = np.arange(len(file["category"])) % 8, file["category"]
        sides = {"x": file[self.SOURCE], "y": file[self.TARGET], "label": category.astype(np.int64)}
        sides = {name: a[..., None] if a.ndim == 3 else a for name, a in sides.items()}
        rows = {"train": place > 1, "validation": place == 1, "test": place == 0}
        return {
            split: {name: a[chosen & (category != self.LEFT_OUT)] for name, a in sides.items()}
            for split, chosen in rows.items()
        }


class Emoji(_Emoji):
    """The same emoji by Noto "x" and Twemoji "y"."""

    SOURCE, TARGET = "noto", "twemoji"


class EmojiOutlines(_Emoji):
    """The outlines "x" and the colors "y" of OpenMoji, without flags, whose outlines are all alike."""

    SOURCE, TARGET, LEFT_OUT = "openmoji_line", "openmoji", 2


class Usps(_Original):
    """USPS digits (Le Cun et al. 1990): 7,291 and 2,007 images (16, 16, 1), split as in The Elements of Statistical
    Learning; the last 1,000 training examples are for validation."""

    FILE = "usps.npz"

    def features(self):
        return {"x": vector(16, 16, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        file = np.load(self.path(downloads), allow_pickle=False)
        both = lambda name: {"x": file[f"{name}_x"][..., None], "label": file[f"{name}_y"].astype(np.int64)}
        train, test = both("train"), both("test")
        cut = len(train["x"]) - 1000
        return {
            "train": {name: a[:cut] for name, a in train.items()},
            "validation": {name: a[cut:] for name, a in train.items()},
            "test": test,
        }


class Mnist16(Mnist):
    """MNIST with its box of 20x20 pixels scaled to (16, 16, 1), as USPS fills its images: 50,000 / 10,000 / 10,000."""

    def features(self):
        return {"x": vector(16, 16, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        found = super().arrays(downloads)
        small = {name: {**split, "x": _box(split["x"])} for name, split in found.items()}
        train = small["train"]
        return {
            "train": {name: a[:50_000] for name, a in train.items()},
            "validation": {name: a[50_000:] for name, a in train.items()},
            "test": small["test"],
        }


def _box(x: np.ndarray) -> np.ndarray:
    """The middle 20x20 pixels of images (N, 28, 28, 1), scaled to 16x16."""
    inner = x[:, 4:24, 4:24, 0].astype(np.float32)
    return (
        np.clip(zoom(inner, (1, 0.8, 0.8), order=1, mode="nearest", grid_mode=True), 0, 255)
        .round()
        .astype(np.uint8)[..., None]
    )
