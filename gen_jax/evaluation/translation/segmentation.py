"""Classes read back from translations of their maps: the idea of the FCN score (Isola et al. 2017, section 3)."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gen_jax.algorithms import descent
from gen_jax.core import Batch, ImageTranslator, Mean, Objective, State
from gen_jax.data.source import Resident
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.features import Encoder
from gen_jax.evaluation.translation.images import class_maps, is_test, transformed, translator_of
from gen_jax.loop import fit
from gen_jax.models.common.image_to_image import FEATURES, UNet
from gen_jax.models.common.normalization import instance

__all__ = ["segmentation_quality", "segmentation_scores", "segmenter"]

_SHARPNESS = 10.0  # logits are between -10 and 10


def segmentation_quality(steps: int = 500, features: int = 16, depth: int = 4) -> Metric:
    """Makes the metric of classes read back from translations by a network trained on real pairs; "test" split only.

    pixel_accuracy, class_accuracy (the mean over classes), iou (intersection over union, the mean over classes) of the
    classes in the sources, which must have few colors. _of_real: of real images, an upper bound. steps, features,
    depth: of the network, a `UNet`.
    """

    def metric(model: Any) -> Measure:
        ask(model, ImageTranslator, "segmentation_quality")
        translate = translator_of(model)

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            if not is_test(split):
                return {}
            if "y" not in split.arrays:
                raise UserError('segmentation_quality needs pairs with the entry "y"')
            x, (maps, colors) = transformed(split), class_maps(split)
            read = _trained(split, len(colors), steps, features, depth).classes
            images = {"": translate(state, x), "_of_real": transformed(split, "y")}
            found = {}
            for suffix, some in images.items():
                scores = segmentation_scores(read(some), maps, len(colors))
                how = f"U-Net of {steps} steps on {split.reference.size} real pairs"
                found |= {
                    f"{name}{suffix}": Estimate(value, float("nan"), "share", "estimate", len(x), how)
                    for name, value in scores.items()
                }
            return with_group(found, "translation", iou="higher", pixel_accuracy="higher", class_accuracy="higher")

        return measure

    metric.__name__ = "segmentation_quality"
    return metric


def segmentation_scores(found: np.ndarray, maps: np.ndarray, classes: int) -> dict[str, float]:
    """pixel_accuracy, class_accuracy and iou of class numbers (N, H, W); means over the classes in `maps`."""
    confusion = np.bincount(classes * maps.reshape(-1) + found.reshape(-1), minlength=classes**2)
    confusion = confusion.reshape(classes, classes).astype(np.float64)
    right, there, claimed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    occurs = there > 0
    return {
        "pixel_accuracy": float(right.sum() / there.sum()),
        "class_accuracy": float((right[occurs] / there[occurs]).mean()),
        "iou": float((right[occurs] / (there + claimed - right)[occurs]).mean()),
    }


class _Segmentation(NamedTuple):
    """A network as a model trainable by `descent`, on the cross-entropy of the classes "map" of images "x"."""

    network: UNet

    def init(self, key: Array, batch: Batch):
        return {"segmenter": self.network.init(key, batch["x"][:1])["params"]}, {}

    def logits(self, params: Any, x: Array) -> Array:
        return _SHARPNESS * jnp.asarray(self.network.apply({"params": params}, x))

    def loss(self, params: Any, state: State, batch: Batch, key: Array):
        logits = self.logits(params, batch["x"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["map"]).mean()
        return loss, ({}, {"accuracy": Mean.of(logits.argmax(axis=-1) == batch["map"])})

    @property
    def objectives(self):
        return (Objective("segmenter", self.loss),)


class _Segmenter(NamedTuple):
    """A trained network."""

    model: _Segmentation
    params: Any

    def classes(self, x: np.ndarray) -> np.ndarray:
        """Class numbers (N, H, W) of images (N, H, W, C) in [-1, 1]."""
        program = jax.jit(lambda x: self.model.logits(self.params, x).argmax(axis=-1))
        return np.concatenate([np.asarray(program(x[i : i + 16])) for i in range(0, len(x), 16)])

    def features(self, x: Array) -> Array:
        """Means and deviations of the innermost maps (N, 2 C) of images in [0, 1]."""
        _, kept = self.model.network.apply({"params": self.params}, 2 * x - 1, mutable=[FEATURES])
        [maps] = kept[FEATURES]["innermost"]
        return jnp.concatenate([maps.mean(axis=(1, 2)), maps.std(axis=(1, 2))], axis=-1)


_TRAINED: dict[tuple[Any, ...], _Segmenter] = {}  # of this process


def _trained(split: Split, classes: int, steps: int, features: int, depth: int) -> _Segmenter:
    """A network trained on the real pairs of the training split, deterministically."""
    training = split.reference
    y, (maps, _) = transformed(training, "y"), class_maps(training)
    key = (split.data, y.shape, classes, steps, features, depth, zlib.crc32(np.ascontiguousarray(maps)))
    if key not in _TRAINED:
        source = Resident({"x": y, "map": maps.astype(np.int32)}, min(8, training.size))
        model = _Segmentation(UNet(classes, features, depth, norm=instance))
        tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
        _TRAINED[key] = _Segmenter(model, fit(descent(model, {"segmenter": tx}), source, steps).params["segmenter"])
    return _TRAINED[key]


def segmenter(split: Split, steps: int = 500, features: int = 16, depth: int = 4) -> Encoder:
    """An encoder of target images, for sets without labels: a network that reads the classes of the sources from them.

    For `paired_quality(encoder=segmenter)`. Its features are means and deviations of the innermost maps.
    """
    _, colors = class_maps(split)
    made = _trained(split, len(colors), steps, features, depth)
    return Encoder("segmenter", jax.jit(made.features), f"U-Net of {steps} steps on {split.reference.size} real pairs")
