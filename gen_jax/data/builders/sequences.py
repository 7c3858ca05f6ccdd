"""Sequences of different lengths, zero-padded to the longest, with their "length"."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gen_jax.data.builders.arrays import ArrayBuilder, label, split_arrays, vector
from gen_jax.errors import UserError

__all__ = ["Chorales", "JapaneseVowels", "JsbChorales", "SequenceBuilder", "Vowels", "ends", "padded"]


class SequenceBuilder(ArrayBuilder):
    """Sequences of at most STEPS steps."""

    STEPS = 0
    FILE = ""
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Sequences one after the other in {split}, their lengths in {split}_lengths (.npz)."

    def read(self, downloads):
        path = Path(downloads.manual_dir) / self.FILE
        if not path.is_file():
            raise UserError(f"{path} is not there: give the folder that holds {self.FILE} as --manual-dir")
        return np.load(path, allow_pickle=False)


class JsbChorales(SequenceBuilder):
    """Bach chorales as binary piano rolls (T, 88): 229 / 76 / 77, split as in Boulanger-Lewandowski et al. 2012."""

    STEPS, FILE = 160, "JSB_Chorales.npz"

    def features(self):
        return {"x": vector(self.STEPS, 88, dtype=np.uint8), "length": vector(dtype=np.int32)}

    def arrays(self, downloads):
        file = self.read(downloads)
        splits = {"train": "train", "validation": "valid", "test": "test"}
        return {
            split: padded(
                np.split(np.unpackbits(file[name], axis=1)[:, :88], ends(file[f"{name}_lengths"])), self.STEPS
            )
            for split, name in splits.items()
        }


class JapaneseVowels(SequenceBuilder):
    """Two vowels by nine speakers as 12 cepstral coefficients (T, 12) (Kudo, Toyama & Shimbo 1999): 225 / 45 / 370."""

    STEPS, FILE = 29, "japanese_vowels.npz"

    def features(self):
        return {"x": vector(self.STEPS, 12), "length": vector(dtype=np.int32), "label": label(9)}

    def arrays(self, downloads):
        file = self.read(downloads)

        def split(name: str) -> dict[str, np.ndarray]:
            pieces = np.split(file[name].astype(np.float32), ends(file[f"{name}_lengths"]))
            return {**padded(pieces, self.STEPS), "label": file[f"{name}_labels"].astype(np.int64) - 1}

        known, test = split("train"), split("test")
        held_out = np.arange(len(known["x"])) % 6 == 5
        part = lambda rows: {name: a[rows] for name, a in known.items()}
        return {"train": part(~held_out), "validation": part(held_out), "test": test}


class Chorales(SequenceBuilder):
    """Four voices moving through the chords of random keys, binary (T, 88): 120 / 30 / 30 pieces of 32 to 96 steps."""

    STEPS = 96
    TRIADS = np.array([[0, 4, 7], [2, 5, 9], [4, 7, 11], [5, 9, 12], [7, 11, 14], [9, 12, 16], [11, 14, 17]])
    MOVES = np.array(  # transitions between degrees of the scale, in tenths
        [
            [3, 1, 0, 2, 3, 1, 0],
            [0, 2, 0, 1, 6, 0, 1],
            [0, 1, 2, 3, 0, 4, 0],
            [3, 1, 0, 2, 3, 0, 1],
            [5, 0, 0, 1, 3, 1, 0],
            [0, 3, 0, 3, 2, 2, 0],
            [7, 0, 0, 0, 1, 0, 2],
        ]
    )

    def features(self):
        return {"x": vector(self.STEPS, 88, dtype=np.uint8), "length": vector(dtype=np.int32)}

    def arrays(self, downloads):
        rng = np.random.default_rng(0)
        return split_arrays(padded([self.piece(rng) for _ in range(180)], self.STEPS), train=120, validation=30)

    def piece(self, rng: np.random.Generator) -> np.ndarray:
        x = np.zeros((rng.integers(32, self.STEPS + 1), 88), np.uint8)
        root, degree = 27 + rng.choice([0, 2, 5, 7]), 0
        for t in range(len(x)):
            if t and t % 2 == 0:
                degree = rng.choice(7, p=self.MOVES[degree] / 10)
            chord = root + self.TRIADS[degree]
            voices = [chord[0] - 12, *chord, chord[rng.integers(3)] + 12]
            x[t, [v for v in voices if rng.uniform() > 0.05]] = 1
        return x


class Vowels(SequenceBuilder):
    """Three speakers gliding between vowels in 12 coefficients (T, 12): 90 / 30 / 60 sequences of 8 to 24 steps."""

    STEPS = 24

    def features(self):
        return {"x": vector(self.STEPS, 12), "length": vector(dtype=np.int32), "label": label(3)}

    def arrays(self, downloads):
        rng = np.random.default_rng(0)
        stations = rng.normal(size=(3, 12)) + 0.6 * rng.normal(size=(3, 3, 12))  # vowels; variation by speaker
        labels = rng.integers(3, size=180)
        pieces = [self.piece(rng, stations[speaker]) for speaker in labels]
        return split_arrays({**padded(pieces, self.STEPS), "label": labels}, train=90, validation=30)

    def piece(self, rng: np.random.Generator, stations: np.ndarray) -> np.ndarray:
        steps = int(rng.integers(8, self.STEPS + 1))
        place = np.linspace(0, 2, steps)[:, None] ** rng.uniform(0.8, 1.25)
        glide = np.where(
            place < 1,
            stations[0] + (stations[1] - stations[0]) * place,
            stations[1] + (stations[2] - stations[1]) * (place - 1),
        )
        return (glide + 0.35 * rng.normal(size=(steps, 12))).astype(np.float32)


def ends(lengths: np.ndarray) -> np.ndarray:
    """Split points of concatenated sequences."""
    return np.cumsum(lengths)[:-1]


def padded(pieces: Sequence[np.ndarray], steps: int) -> dict[str, np.ndarray]:
    x = np.zeros((len(pieces), steps, *pieces[0].shape[1:]), pieces[0].dtype)
    for row, piece in zip(x, pieces):
        row[: len(piece)] = piece
    return {"x": x, "length": np.array([len(piece) for piece in pieces], np.int32)}
