"""Conditioning inputs of conditional models, computed from other entries of a batch.

A `Conditioning` maps the entries of a batch to a pytree with a leading axis B, the input of the networks: class
vectors, images, or sequences with their masks. Models that concatenate it with their latent vector need one array
(B, size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, PyTree, fold_in

__all__ = ["ClassLabels", "Conditioning", "Dropped", "Images", "Vector", "embed", "resolve_condition"]


class Conditioning:
    """Maps a batch to a condition, with parameters of its own if any."""

    entry: str  # key in the batch
    size: int  # values per example, if the condition is one array (B, size)
    learned = False  # whether it has parameters
    classes: int | None = None  # how many classes, if the entry holds class labels

    def init(self, key: Array, batch: Batch) -> PyTree:
        """Parameters, {} if there are none."""
        return {}

    def __call__(self, batch: Batch, params: PyTree = None, key: Array | None = None) -> PyTree:
        """The condition of a batch; with a key the one for training, which may be random (`Dropped`)."""
        raise NotImplementedError

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lacks the required entry, or its values are invalid, else ""."""
        if self.entry not in batch:
            return f'there is no entry "{self.entry}" to condition on; there are {", ".join(batch)}'
        return self.unfit(batch[self.entry])

    def unfit(self, values: Array) -> str:
        """A message if the values of the entry have the wrong range or shape, else ""."""
        return ""

    def example(self, n: int) -> Batch:
        """Default entries for n samples."""
        raise NotImplementedError


def embed(conditioning: Conditioning, batch: Batch, params: PyTree = None, key: Array | None = None) -> PyTree:
    """The condition of a batch; a ValueError if the batch lacks the entry."""
    if conditioning.entry not in batch:
        raise ValueError(conditioning.unsupported(batch))
    return conditioning(batch, params, key)


def resolve_condition(conditioning: Conditioning | None, n: int, condition: Batch | None) -> Batch:
    """The conditioning entries of n samples: `condition`, else the default ones; {} for an unconditional model."""
    if conditioning is None:
        return {}
    condition = condition or conditioning.example(n)
    if conditioning.entry in condition and len(condition[conditioning.entry]) != n:
        raise ValueError(f'"{conditioning.entry}" is given for {len(condition[conditioning.entry])} of {n} samples')
    return condition


@dataclass(frozen=True)
class ClassLabels(Conditioning):
    """One-hot class labels; the default is every class in turn."""

    classes: int
    entry: str = "label"

    def __post_init__(self):
        if not self.classes or self.classes < 1:
            raise ValueError(f"classes must be at least 1, got {self.classes}")

    @property
    def size(self) -> int:
        return self.classes

    def __call__(self, batch, params=None, key=None):
        return jax.nn.one_hot(batch[self.entry], self.classes, dtype=jnp.float32)

    def unfit(self, values):
        low, high = values.min(), values.max()
        if low < 0 or high >= self.classes:
            return f'"{self.entry}" goes from {low} to {high}, but the model has {self.classes} classes, from 0'
        return ""

    def example(self, n):
        return {self.entry: jnp.arange(n) % self.classes}


@dataclass(frozen=True)
class Vector(Conditioning):
    """Vectors (B, size), unchanged; the default is zeros."""

    size: int
    entry: str = "context"

    def __call__(self, batch, params=None, key=None):
        return batch[self.entry].astype(jnp.float32)

    def unfit(self, values):
        shape = values.shape[1:]
        return "" if shape == (self.size,) else f'"{self.entry}" has shape {shape}, but the model takes ({self.size},)'

    def example(self, n):
        return {self.entry: jnp.zeros((n, self.size))}


@dataclass(frozen=True)
class Images(Conditioning):
    """Features of images (B, *shape) from a network, e.g. a `ConvEncoder`; the default is zero images."""

    network: nn.Module
    size: int
    shape: tuple[int, ...]
    entry: str = "image"
    learned = True

    def init(self, key, batch):
        images = jnp.zeros((1, *self.shape)) if self.entry not in batch else batch[self.entry][:1]
        features, made = self.network.init_with_output(key, images.astype(jnp.float32))
        if features.shape != (1, self.size):
            raise ValueError(f"the network of the condition gives {features.shape[1:]}, not ({self.size},)")
        return made["params"]

    def __call__(self, batch, params: Any = None, key=None):
        return self.network.apply({"params": params}, batch[self.entry].astype(jnp.float32))

    def unfit(self, values):
        shape = values.shape[1:]
        return "" if shape == self.shape else f'"{self.entry}" has shape {shape}, but the model takes {self.shape}'

    def example(self, n):
        return {self.entry: jnp.zeros((n, *self.shape))}


@dataclass(frozen=True)
class Dropped(Conditioning):
    """Replaces a conditioning by a learned null embedding with some probability in training (Ho & Salimans 2022).

    In evaluation and sampling the entry "unconditional" (B,), if present, selects the null embedding; classifier-free
    guidance combines the two.
    """

    conditioning: Conditioning
    probability: float = 0.1
    learned = True

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"conditions are dropped with a probability in [0, 1], got {self.probability}")

    @property
    def entry(self) -> str:
        return self.conditioning.entry

    @property
    def size(self) -> int:
        return self.conditioning.size

    @property
    def classes(self) -> int | None:
        return self.conditioning.classes

    def init(self, key, batch):
        inner = self.conditioning.init(fold_in(key, "conditioning"), batch)
        one = self.conditioning.example(1) if self.entry not in batch else {self.entry: batch[self.entry][:1]}
        shapes = jax.eval_shape(lambda: self.conditioning(one, inner))
        null = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
        return {"null": null} | ({"conditioning": inner} if jax.tree.leaves(inner) else {})

    def __call__(self, batch, params=None, key=None):
        condition = self.conditioning(batch, params.get("conditioning"), key)
        n = len(jax.tree.leaves(condition)[0])
        if key is not None:
            dropped = jax.random.bernoulli(fold_in(key, "dropped"), self.probability, (n,))
        else:
            dropped = jnp.asarray(batch.get("unconditional", jnp.zeros(n, bool)))
        choose = lambda null, a: jnp.where(dropped.reshape(-1, *[1] * (a.ndim - 1)), null, a)
        return jax.tree.map(choose, params["null"], condition)

    def unfit(self, values):
        return self.conditioning.unfit(values)

    def example(self, n):
        return self.conditioning.example(n)
