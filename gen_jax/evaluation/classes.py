"""What a classifier of the data says of samples: classes found, their balance, and the Frechet distance of features.

The classifier is a small network of our own, trained on the training split as the model sees it; its accuracy stands in
the provenance. Numbers of different classifiers cannot be compared with each other, nor with those of Inception.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gen_jax.algorithms import descent
from gen_jax.core import Batch, Mean, Objective, State, fold
from gen_jax.data.source import Resident
from gen_jax.errors import UserError
from gen_jax.evaluation.likelihood import Estimate, Measure, Metric, Split
from gen_jax.loop import fit
from gen_jax.models.blocks import by_blocks
from gen_jax.models.convolutions import Conv


class Seen(NamedTuple):
    """What a classifier makes of images."""

    features: np.ndarray  # (N, D)
    probabilities: np.ndarray  # (N, classes)


class Classifier(nn.Module):
    """Strided convolutions and a hidden layer, whose values are the features. Trainable by `descent`."""

    classes: int
    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128

    @nn.compact
    def __call__(self, x_BHWC: Array) -> tuple[Array, Array]:
        for width in self.channels:
            x_BHWC = nn.relu(Conv(width, strides=2)(x_BHWC))
        features = nn.relu(nn.Dense(self.hidden)(x_BHWC.reshape(len(x_BHWC), -1)))
        return features, nn.Dense(self.classes)(features)


class Classification(NamedTuple):
    """A classifier as a model: cross-entropy of single digits, written side by side in the channels of an image."""

    network: Classifier

    def init(self, key: Array, batch: Batch):
        return {"classifier": self.network.init(key, batch["x"][:1, ..., :1])["params"]}, {}

    def loss(self, params, state: State, batch: Batch, key: Array):
        x, labels = _single(batch["x"]), _digits(batch["label"], batch["x"].shape[-1], self.network.classes)
        _, logits = self.network.apply({"params": params}, x)
        right = Mean.of(logits.argmax(axis=-1) == labels)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, ({}, {"accuracy": right})

    @property
    def objectives(self):
        return (Objective("classifier", self.loss),)


def trained(split: Split, classes: int, steps: int = 1000) -> Callable[[np.ndarray], Seen]:
    """A classifier of the training split of `split`. The same whenever it is trained."""
    if split.training is None or "label" not in split.training:
        raise UserError(f"{split.name} has no training examples with labels to train a classifier on")
    model = Classification(Classifier(classes))
    batch = min(128, len(split.training["x"]))
    source = Resident(split.training, batch, split.transforms)
    state = fit(descent(model, {"classifier": optax.adam(optax.cosine_decay_schedule(2e-3, steps))}), source, steps)
    network = {"params": state.params["classifier"]}

    @jax.jit
    def see(x_BHWC: Array) -> tuple[Array, Array]:
        return by_blocks(lambda x: model.network.apply(network, x), x_BHWC, 1000)

    def seen(images: np.ndarray) -> Seen:
        features, logits = see(jnp.asarray(images))
        return Seen(np.asarray(features, np.float64), np.asarray(jax.nn.softmax(logits), np.float64))

    return seen


def accuracy(see: Callable[[np.ndarray], Seen], split: Split, classes: int) -> float:
    """Of a classifier on up to 2,000 examples of a split."""
    test = split.head(2000)
    found = see(_single(test["x"])).probabilities.argmax(axis=-1)
    return float(np.mean(found == np.asarray(_digits(test["label"], test["x"].shape[-1], classes))))


def class_coverage(classes: int = 10, samples: int = 10_000) -> Metric:
    """Makes the metric of images of one digit, or of several in their channels (stacked digits, Metz et al. 2017).

    classes: how many of all there are have a sample (of three stacked digits there are 1,000). class_kl: KL(samples ||
    data) over classes, nats, the data being the training split's or, of stacked digits, uniform; that of n samples as
    even as the data is about (classes - 1) / 2 n. confidence: the mean of the largest probability. frechet_distance, of
    single digits: between features of samples and of as many examples of the training split.
    """

    def class_coverage(model) -> Measure:
        draw = jax.jit(lambda state, key: model.sample(state, key, 500)["x"])
        classifier = []  # trained when it is first needed

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            if not classifier:
                classifier.append(trained(split, classes))
            (see,) = classifier
            x = np.concatenate([np.asarray(draw(state, fold(key, i))) for i in range(-(-samples // 500))])
            stack, n = x.shape[-1], len(x)
            seen = see(_single(x))
            parts = seen.probabilities.argmax(axis=-1).reshape(stack, n)
            number = np.ravel_multi_index(tuple(parts), (classes,) * stack)
            share = np.bincount(number, minlength=classes**stack) / n
            single = stack == 1
            counts = np.bincount(split.training["label"], minlength=classes) if single else np.ones(classes**stack)
            expected = counts / counts.sum()
            there = share > 0
            kl = float(np.sum(share[there] * np.log(share[there] / expected[there])))
            sure = seen.probabilities.max(axis=-1)
            how = f"small CNN, accuracy {accuracy(see, split, classes):.3f}"
            found = {
                "classes": Estimate(float(there.sum()), math.nan, f"of {classes**stack}", "estimate", n, how),
                "class_kl": Estimate(kl, math.nan, "nats", "estimate", n, how),
                "confidence": Estimate(
                    float(sure.mean()), float(sure.std() / math.sqrt(n)), "share", "estimate", n, how
                ),
            }
            if single:
                real = see(split.trained_on(n)["x"]).features
                distance = frechet_distance(seen.features, real)
                how = f"{how}, against {len(real)} training examples"
                found["frechet_distance"] = Estimate(distance, math.nan, "features^2", "estimate", n, how)
            return found

        return measure

    return class_coverage


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared 2-Wasserstein distance of the normals with the moments of a (N, D) and b (M, D), in float64.

    |m - n|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): the root's argument is symmetric, so that its eigenvalues are real
    whatever the ranks are (Dowson & Landau 1982; Heusel et al. 2017).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    between = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(max(between + np.trace(first) + np.trace(second) - 2 * shared, 0.0))


def _single(x_BHWC):
    """(B, H, W, C) -> (C * B, H, W, 1)"""
    return x_BHWC.transpose(3, 0, 1, 2).reshape(-1, *x_BHWC.shape[1:3], 1)


def _digits(labels: Array, places: int, classes: int) -> Array:
    """(B,) numbers -> (places * B,) their digits, the first place first."""
    return jnp.concatenate([labels // classes ** (places - 1 - i) % classes for i in range(places)])
