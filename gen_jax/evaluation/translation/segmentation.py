"""Classes read back from translations of their maps: the idea of the FCN score (Isola et al. 2017, section 3)."""

from __future__ import annotations

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
from gen_jax.evaluation.translation.images import class_maps, transformed, translator_of
from gen_jax.loop import fit
from gen_jax.models.common.image_to_image import UNet
from gen_jax.models.common.normalization import instance

__all__ = ["segmentation_quality", "segmentation_scores"]

_SHARPNESS = 10.0  # logits are between -10 and 10


def segmentation_quality(steps: int = 500, features: int = 16, depth: int = 4) -> Metric:
    """Makes the metric of classes read back from translations by a network trained on real pairs; "test" split only.

    pixel_accuracy, class_accuracy (the mean over classes), iou (intersection over union, the mean over classes) of the
    classes in the sources, which must have few colors. _of_real: of real images, an upper bound. steps, features,
    depth: of the network, a `UNet`.
    """

    def metric(model: Any) -> Measure:
        ask(model, ImageTranslator, "segmentation_quality")
        translate, known = translator_of(model), {}

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            if split.name != "test":
                return {}
            if "y" not in split.arrays:
                raise UserError('segmentation_quality needs pairs with the entry "y"')
            x, (maps, colors) = transformed(split), class_maps(split)
            if "read" not in known:
                known["read"] = _trained(split, colors, steps, features, depth)
            images = {"": translate(state, x), "_of_real": transformed(split, "y")}
            found = {}
            for suffix, some in images.items():
                scores = segmentation_scores(known["read"](some), maps, len(colors))
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


def _trained(split: Split, colors: np.ndarray, steps: int, features: int, depth: int):
    """A function of images (N, H, W, C) to class numbers (N, H, W), trained on the real training pairs."""
    training = split.reference
    maps, _ = class_maps(training)
    source = Resident({"x": transformed(training, "y"), "map": maps.astype(np.int32)}, min(8, training.size))
    model = _Segmentation(UNet(len(colors), features, depth, norm=instance))
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = fit(descent(model, {"segmenter": tx}), source, steps)
    program = jax.jit(lambda x: model.logits(state.params["segmenter"], x).argmax(axis=-1))
    return lambda x: np.concatenate([np.asarray(program(x[i : i + 16])) for i in range(0, len(x), 16)])
