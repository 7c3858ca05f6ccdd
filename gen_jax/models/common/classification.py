"""Classifiers of examples "x" by "label", trained by `descent`: a hidden layer, and a small convolutional network.

Networks return features and logits, so that each is an encoder too.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, State
from gen_jax.models.common.convolutions import Conv

__all__ = ["Classification", "ConvNet", "Perceptron"]


class Perceptron(nn.Module):
    """Examples (B, ...) -> the activations of a hidden layer (B, hidden), and logits (B, classes)."""

    classes: int
    hidden: int = 128

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        features = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return features, nn.Dense(self.classes)(features)


class ConvNet(nn.Module):
    """Images (B, H, W, C) -> features (B, hidden) and logits (B, classes), by 3x3 convolutions with pooling."""

    classes: int
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 128

    @nn.compact
    def __call__(self, x_BHWC: Array) -> tuple[Array, Array]:
        for width in self.channels:
            x_BHWC = _pooled(nn.relu(Conv(width)(x_BHWC)))
        features = nn.relu(nn.Dense(self.hidden)(x_BHWC.reshape(len(x_BHWC), -1)))
        return features, nn.Dense(self.classes)(features)


def _pooled(x_BHWC: Array) -> Array:
    """The maxima of blocks of 2x2 of values that are not negative; XLA's own pooling has a slow gradient on CPUs."""
    batch, height, width, channels = x_BHWC.shape
    padded = jnp.pad(x_BHWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return padded.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).max(axis=(2, 4))


class Classification(NamedTuple):
    """A classifier as a model, trained on the cross-entropy of "label".

    A batch with "mixed_label" and "share" (B,) holds mixtures of two examples: the cross-entropy is then that of
    "label" with the weight `share` and that of "mixed_label" with the rest (mixup, cutmix).
    """

    network: nn.Module

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        return {"classifier": self.network.init(key, batch["x"][:1])["params"]}, {}

    @property
    def classes(self) -> int:
        return self.network.classes

    def logits(self, state: State, batch: Batch) -> Array:
        """(B, classes)."""
        return self.network.apply({"params": state.params["classifier"]}, batch["x"])[1]

    def predict(self, state: State, batch: Batch) -> Array:
        return jnp.argmax(self.logits(state, batch), axis=-1)

    def loss(self, params, state: State, batch: Batch, key: Array):
        _, logits = self.network.apply({"params": params}, batch["x"])
        right = Mean.of(logits.argmax(axis=-1) == batch["label"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        if "mixed_label" in batch:
            other = optax.softmax_cross_entropy_with_integer_labels(logits, batch["mixed_label"])
            loss = batch["share"] * loss + (1 - batch["share"]) * other
        return loss.mean(), ({}, {"accuracy": right})

    @property
    def objectives(self):
        return (Objective("classifier", self.loss),)
