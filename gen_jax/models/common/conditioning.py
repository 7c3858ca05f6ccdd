"""Contexts: what conditional models are told beside x, as vectors (B, size) made from entries of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, PyTree


class Conditioning:
    """Makes vectors (B, size) from a batch, by parameters of its own where it has any."""

    entry: str
    size: int

    def init(self, key: Array, batch: Batch) -> PyTree:
        """Parameters, {} if there are none."""
        return {}

    def __call__(self, batch: Batch, params: PyTree = None) -> Array:
        raise NotImplementedError

    def unsupported(self, batch: Batch) -> str:
        """What of a batch this context cannot take, in words; "" if nothing."""
        if self.entry not in batch:
            return f'there is no entry "{self.entry}" to condition on; there are {", ".join(batch)}'
        return self.unfit(batch[self.entry])

    def unfit(self, values: Array) -> str:
        return ""

    def example(self, n: int) -> Batch:
        """What samples are drawn for where nothing else is said."""
        raise NotImplementedError


def embed(context: Conditioning, batch: Batch, params: PyTree = None) -> Array:
    """What a context makes of a batch; a ValueError where the batch has no such entry."""
    if context.entry not in batch:
        raise ValueError(context.unsupported(batch))
    return context(batch, params)


def resolve_condition(context: Conditioning | None, n: int, given: Batch | None) -> Batch:
    """What n samples are drawn for: what is given, else what the context says; {} for a model without one."""
    if context is None:
        return {}
    given = given or context.example(n)
    if context.entry in given and len(given[context.entry]) != n:
        raise ValueError(f'"{context.entry}" is given for {len(given[context.entry])} of {n} samples')
    return given


@dataclass(frozen=True)
class ClassLabels(Conditioning):
    """The one-hot class of each example; samples are drawn of every class in turn."""

    classes: int
    entry: str = "label"

    @property
    def size(self) -> int:
        return self.classes

    def __call__(self, batch, params=None):
        return jax.nn.one_hot(batch[self.entry], self.classes)

    def unfit(self, values):
        low, high = values.min(), values.max()
        if low < 0 or high >= self.classes:
            return f'"{self.entry}" goes from {low} to {high}, but the model has {self.classes} classes, from 0'
        return ""

    def example(self, n):
        return {self.entry: jnp.arange(n) % self.classes}


@dataclass(frozen=True)
class Vector(Conditioning):
    """Vectors (B, size) as they are; samples are drawn for zeros."""

    size: int
    entry: str = "context"

    def __call__(self, batch, params=None):
        return batch[self.entry].astype(jnp.float32)

    def unfit(self, values):
        shape = values.shape[1:]
        return "" if shape == (self.size,) else f'"{self.entry}" has shape {shape}, but the model takes ({self.size},)'

    def example(self, n):
        return {self.entry: jnp.zeros((n, self.size))}


@dataclass(frozen=True)
class Images(Conditioning):
    """What a network says of images (B, *shape), e.g. a `ConvEncoder`; samples are drawn for images of zeros."""

    network: nn.Module
    size: int
    shape: tuple[int, ...]
    entry: str = "image"

    def init(self, key, batch):
        images = jnp.zeros((1, *self.shape)) if self.entry not in batch else batch[self.entry][:1]
        features, made = self.network.init_with_output(key, images.astype(jnp.float32))
        if features.shape != (1, self.size):
            raise ValueError(f"the network of the context gives {features.shape[1:]}, not ({self.size},)")
        return made["params"]

    def __call__(self, batch, params: Any = None):
        return self.network.apply({"params": params}, batch[self.entry].astype(jnp.float32))

    def unfit(self, values):
        shape = values.shape[1:]
        return "" if shape == self.shape else f'"{self.entry}" has shape {shape}, but the model takes {self.shape}'

    def example(self, n):
        return {self.entry: jnp.zeros((n, *self.shape))}
