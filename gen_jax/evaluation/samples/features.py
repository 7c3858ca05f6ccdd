"""Encoders: image features for sample metrics. Metrics carry the name of their encoder.

`small` is a classifier of the data set (digits: the packaged one), `raw` the identity, `projected` takes long vectors
to random directions, `Inception` is in `gen_jax.evaluation.samples.inception`; any function of a block of images can be
used: `Encoder("mine", function)`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from tqdm import tqdm

from gen_jax.algorithms import descent
from gen_jax.data.dataset import content_digest, value_range
from gen_jax.data.records import is_lazy
from gen_jax.data.source import Arrays, Resident
from gen_jax.data.transforms import Transform
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.weights_io import read_tensors, write_tensors
from gen_jax.loop import Hook, fit
from gen_jax.models.common.classification import Classification
from gen_jax.models.common.convolutions import Conv

__all__ = [
    "KIND",
    "PACKAGED",
    "Classifier",
    "Encoder",
    "EncoderOutput",
    "TrainedClassifier",
    "fit_classifier",
    "fit_small_cnn",
    "intensities",
    "load_small_cnn",
    "projected",
    "raw",
    "save_small_cnn",
    "small",
    "with_accuracy",
]

PACKAGED = Path(__file__).with_name("encoders")
KIND = "gen_jax small encoder 1"
MOST_CLASSES = 1000
MANY = 20_000  # images that a small encoder is trained on, of sets that do not fit in memory


class EncoderOutput(NamedTuple):
    """Features of N images, and class probabilities."""

    features: np.ndarray  # (N, D) float32
    probabilities: np.ndarray | None = None  # (N, classes), for a classifier


class Encoder(NamedTuple):
    """encode: a block of images (B, H, W, C) in [0, 1] -> features (B, ...), or features and logits (B, classes).

    name: suffix of the metrics based on its features. detail: further information, such as its accuracy.
    shape: of its input images, with None for any size. block: how many images are encoded at once.
    """

    name: str
    encode: Callable[[np.ndarray], Any]
    detail: str = ""
    shape: tuple[int | None, ...] | None = None
    block: int = 500

    def __call__(self, x: np.ndarray) -> EncoderOutput:
        """Encodes any number of images, one block at a time."""
        self._check(x)
        n, found = len(x), []
        for start in range(0, n, self.block):
            part = x[start : start + self.block]
            padded = np.concatenate([part, np.repeat(part[-1:], min(self.block, n) - len(part), axis=0)])
            seen = self.encode(padded)
            seen = seen if isinstance(seen, tuple) else (seen,)
            found.append([np.asarray(a)[: len(part)] for a in seen])
        features, *logits = (np.concatenate(parts) for parts in zip(*found))
        features = features.reshape(n, -1).astype(np.float32)
        if not np.isfinite(features).all():
            bad = int((~np.isfinite(features).all(axis=1)).sum())
            raise UserError(f"{bad} of {n} features of the encoder {self.name} are not finite")
        return EncoderOutput(features, scipy.special.softmax(logits[0].astype(np.float64), axis=1) if logits else None)

    def _check(self, x: np.ndarray) -> None:
        if not len(x):
            raise UserError("there are no images to encode")
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).sum())
            raise UserError(f"{bad} of {len(x)} examples hold NaN or infinite values")
        if self.shape is None:
            return
        if x.ndim != 1 + len(self.shape) or any(w not in (None, n) for w, n in zip(self.shape, x.shape[1:])):
            wanted = " x ".join("any" if w is None else str(w) for w in self.shape)
            raise UserError(f"the encoder {self.name} takes images of {wanted}, these are {x.shape[1:]}")
        low, high = float(x.min()), float(x.max())
        if low < 0 or high > 1:
            raise UserError(f"the encoder {self.name} takes images in [0, 1], these go from {low:g} to {high:g}")


RAW = 1024  # values of an image up to which they are features as they are


def _pooled(x: np.ndarray) -> np.ndarray:
    """Images averaged over the smallest blocks that leave at most 1,024 values; anything else as it is."""
    if x.ndim != 4 or np.prod(x.shape[1:]) <= RAW:
        return x
    n, height, width, channels = x.shape
    side = next(s for s in range(2, max(height, width) + 1) if -(-height // s) * -(-width // s) * channels <= RAW)
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(x.astype(np.float32), rows, axis=1), columns, axis=2)
    areas = np.outer(np.diff(np.r_[rows, height]), np.diff(np.r_[columns, width]))
    return sums / areas[..., None].astype(np.float32)


raw = Encoder("raw", _pooled)
"""Intensities of images, large ones averaged over blocks to at most 1,024 values; coordinates of points."""


@lru_cache(maxsize=4)
def _directions(dimensions: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, RAW**-0.5, (dimensions, RAW)).astype(np.float32)


def _project(x: np.ndarray) -> np.ndarray:
    flat = np.reshape(x, (len(x), -1)).astype(np.float32)
    return flat @ _directions(flat.shape[1])


projected = Encoder("projected", _project, f"values projected to {RAW:,} random directions")
"""1,024 random projections, which keep distances within a few percent (Johnson & Lindenstrauss 1984)."""


class Classifier(nn.Module):
    """Strided convolutions and a hidden layer, whose activations are the features."""

    classes: int
    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128

    @nn.compact
    def __call__(self, x_BHWC: Array) -> tuple[Array, Array]:
        for width in self.channels:
            x_BHWC = nn.relu(Conv(width, strides=2)(x_BHWC))
        features = nn.relu(nn.Dense(self.hidden)(x_BHWC.reshape(len(x_BHWC), -1)))
        return features, nn.Dense(self.classes)(features)


class TrainedClassifier(NamedTuple):
    """A small encoder's network and parameters."""

    name: str
    network: Classifier
    params: Any
    side: tuple[int, ...]  # (H, W, C) of the images
    accuracy: float = float("nan")  # on held-out examples
    data: str = ""  # digest of the data set it was trained on, where known

    def encoder(self) -> Encoder:
        encode = jax.jit(lambda x: self.network.apply({"params": self.params}, x))
        return Encoder(self.name, encode, f"small CNN, accuracy {self.accuracy:.3f} on gray levels", self.side)


class Progress(Hook):
    """Shows a bar of the steps of a training of more than a second."""

    def __init__(self, label: str, steps: int):
        self.bar = tqdm(total=steps, desc=label, unit="step", delay=1, leave=False, dynamic_ncols=True, file=sys.stderr)

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def poll(self, step: int) -> None:
        self.bar.update(step - self.bar.n)


def fit_classifier(
    training: Arrays, test: Arrays, name: str, steps: int = 1000, transforms: Sequence[Transform] = ()
) -> TrainedClassifier:
    """Trains a classifier of images in [0, 1] by "label", deterministically. transforms: of training images."""
    classes = 1 + int(np.max(training["label"]))
    if classes > MOST_CLASSES:
        raise UserError(
            f"the encoder {name} would tell {classes:,} classes apart, and {MOST_CLASSES:,} are the most: "
            "take the encoder raw"
        )
    network = Classifier(classes)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    source = Resident({name: training[name] for name in ("x", "label")}, min(128, len(training["x"])), transforms)
    with Progress(f"training the encoder {name}", steps) as bar:
        algorithm = descent(Classification(network), {"classifier": tx})
        state = fit(algorithm, source, steps, chunk=min(steps, 10), hooks=[bar])
    return with_accuracy(TrainedClassifier(name, network, state.params["classifier"], training["x"].shape[1:]), test)


def with_accuracy(made: TrainedClassifier, test: Arrays) -> TrainedClassifier:
    """The classifier with its accuracy on up to 2,000 test examples."""
    found = made.encoder()(np.asarray(test["x"][:2000])).probabilities.argmax(axis=1)
    return made._replace(accuracy=float(np.mean(found == np.asarray(test["label"][:2000]))))


def intensities(arrays: Arrays, top: float, n: int | None = None) -> Arrays:
    """Converts stored integers 0 .. top to images in [0, 1], all or the first n, with their labels.

    Of images that are read when indexed, at most 20,000 and 256 MB.
    """
    if n is None and is_lazy(arrays):
        n = min(MANY, 2**26 // max(1, int(np.prod(arrays["x"].shape[1:]))))
    return {"x": np.asarray(arrays["x"][:n], np.float32) / np.float32(top), "label": arrays["label"][:n]}


def small(split: Split) -> Encoder:
    """The packaged classifier of this data set, or one trained now on its training split, deterministically."""
    packaged = _packaged(split)
    made = (packaged.name, packaged.data) if packaged else (split.name, *_identity(split))
    if made not in _ENCODERS:
        _ENCODERS[made] = (packaged or fit_small_cnn(split)).encoder()
    return _ENCODERS[made]


def _packaged(split: Split) -> TrainedClassifier | None:
    """The packaged classifier of the data set of this name, unless the data is known to be other data."""
    path = PACKAGED / f"{split.data}.safetensors"
    if not split.data or not path.is_file():
        return None
    made = load_small_cnn(path)
    return made if split.info is None or split.info.digest == made.data else None


def fit_small_cnn(split: Split) -> TrainedClassifier:
    """Trains a classifier on the training split, tested on `split`. Its name holds the number of training examples."""
    key, training = _identity(split), split.reference.arrays
    top = (
        max(value_range(a["x"], split.levels)[1] for a in (training, split.arrays))
        if training["x"].dtype.kind in "iu"
        else 1.0
    )
    test = intensities(split.arrays, top, 2000)
    if key not in _TRAINED:
        name = f"{split.data or 'small'}_cnn_{len(training['x'])}"
        _TRAINED[key] = fit_classifier(intensities(training, top), test, name)
    return with_accuracy(_TRAINED[key], test)._replace(data=split.info.digest if split.info else "")


def _identity(split: Split) -> tuple[Any, ...]:
    """An identifier of the training split by its content; an error if no small encoder can be trained on it."""
    training = split.reference.arrays
    if "label" not in training or np.ndim(training["x"]) != 4:
        raise UserError(
            f"{split.data or 'this data'} has no images with labels for a small encoder: use the encoder raw"
        )
    parts = {"label": training["label"], **({} if is_lazy(training) else {"x": training["x"]})}
    known = split.info.digest if split.info else ""  # what images that are read when indexed are known by
    return split.data, training["x"].shape, known, content_digest({"": parts})


_TRAINED: dict[Any, TrainedClassifier] = {}  # caches of this process; encoders are compiled once
_ENCODERS: dict[Any, Encoder] = {}


def save_small_cnn(made: TrainedClassifier, path: Path) -> None:
    """Writes a small encoder as safetensors. The encoder takes its name from the file, with _cnn appended."""
    about = {"side": made.side, "accuracy": made.accuracy, "data": made.data, **_hyper(made.network)}
    flat = {name: np.asarray(a) for name, a in flatten_dict(made.params, sep=".").items()}
    write_tensors(path, flat, {"kind": KIND, "about": json.dumps(about)})


def load_small_cnn(path: Path) -> TrainedClassifier:
    """Reads a file written by `save_small_cnn`."""
    flat, about = read_tensors(path, KIND)
    try:
        about = json.loads(about["about"])
        network = Classifier(about["classes"], tuple(about["channels"]), about["hidden"])
        side, accuracy = tuple(about["side"]), float(about["accuracy"])
        wanted = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *side), jnp.float32))[
            "params"
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say what its network is ({type(error).__name__}: {error})") from None
    if {name: a.shape for name, a in flat.items()} != {n: s.shape for n, s in flatten_dict(wanted, sep=".").items()}:
        raise UserError(f"{path} holds other arrays than its network has")
    params = unflatten_dict({name: jnp.asarray(a) for name, a in flat.items()}, sep=".")
    return TrainedClassifier(f"{path.stem}_cnn", network, params, side, accuracy, about.get("data", ""))


def _hyper(network: Classifier) -> dict[str, Any]:
    return {"classes": network.classes, "channels": network.channels, "hidden": network.hidden}
