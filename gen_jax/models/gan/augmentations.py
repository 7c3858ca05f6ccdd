"""Differentiable augmentations of real and generated examples before the discriminator.

An augmentation is a function (x, key, state) -> x, or has memory in `state.extra["augmentation"]` like `Adaptive`; see
`ada` for the operations of StyleGAN2-ADA.
DiffAugment (Zhao et al. 2020, arXiv:2006.10738) for grayscale images: `Compose([brightness(), contrast(),
translation(), cutout()])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, State, fold_in

__all__ = [
    "Adaptive",
    "Augmentation",
    "Compose",
    "Controlled",
    "ImageOp",
    "InstanceNoise",
    "brightness",
    "contrast",
    "cutout",
    "translation",
]

ImageOp = Callable[[Array, Array], Array]  # (B, *x), key -> the same shape, with independent noise per example


class Augmentation:
    """The base class and identity augmentation."""

    def __call__(self, x: Array, key: Array, state: State) -> Array:
        return x

    def init(self) -> PyTree:
        """Initial memory, {} if there is none."""
        return {}

    def adapt(self, memory: PyTree, real: Array) -> PyTree:
        """Memory after a batch, from the discriminator's margins (B, ...) on real examples, positive if correct."""
        return memory


@dataclass(frozen=True)
class Compose(Augmentation):
    """Applies several operations in sequence, at every step."""

    ops: Sequence[ImageOp]

    def __call__(self, x, key, state):
        for i, change in enumerate(self.ops):
            x = change(x, fold_in(key, i))
        return x


@dataclass(frozen=True, kw_only=True)
class Controlled(Augmentation):
    """Augmentation with a probability that rises while the discriminator is overconfident on real examples.

    ADA (Karras et al. 2020, arXiv:2006.06676, section 3): after every `every` batches the probability moves so that the
    mean sign of their margins on real examples approaches `target`, by 1 per `examples` examples. It stays below
    `limit`: augmentations that are certain leak into the samples (section 2.2).
    start: the first probability. target: None keeps the probability constant.
    """

    target: float | None = 0.6
    examples: int = 500_000
    every: int = 4
    limit: float = 0.8
    start: float = 0.0

    def __post_init__(self):
        if self.target is not None and not -1 < self.target < 1:
            raise ValueError(f"the target of mean signs must be in (-1, 1), got {self.target}")
        if self.examples < 1 or self.every < 1:
            raise ValueError(f"examples and every must be positive, got {self.examples}, {self.every}")
        if not 0 <= self.start <= self.limit <= 1:
            raise ValueError(f"start and limit are probabilities, start <= limit, got {self.start}, {self.limit}")

    def change(self, x: Array, key: Array, probability: Array) -> Array:
        """x with operations, each applied with this probability."""
        raise NotImplementedError

    def init(self):
        signs = jnp.zeros(3, jnp.float32)  # their sum, how many, and of how many batches
        return {"probability": jnp.float32(self.start), "signs": signs}

    def __call__(self, x, key, state):
        return self.change(x, key, state.extra["augmentation"]["probability"])

    def adapt(self, memory, real):
        if self.target is None:
            return memory
        signs = memory["signs"] + jnp.array([jnp.sign(real).sum(), real.size, 1], jnp.float32)
        moved = jnp.sign(signs[0] / signs[1] - self.target) * signs[2] * (len(real) / self.examples)
        due = signs[2] >= self.every
        probability = jnp.where(due, jnp.clip(memory["probability"] + moved, 0.0, self.limit), memory["probability"])
        return {"probability": probability, "signs": jnp.where(due, 0, signs)}


@dataclass(frozen=True)
class Adaptive(Controlled):
    """Applies each operation with a controlled probability."""

    ops: Sequence[ImageOp]

    def change(self, x, key, probability):
        for i, change in enumerate(self.ops):
            chosen = jax.random.bernoulli(fold_in(key, "chosen", i), probability, (len(x), *(1,) * (x.ndim - 1)))
            x = jnp.where(chosen, change(x, fold_in(key, i)), x)
        return x


@dataclass(frozen=True)
class InstanceNoise(Augmentation):
    """Gaussian noise whose standard deviation decays to zero over `steps` steps (Sonderby et al. 2017, section 3.2)."""

    deviation: float = 0.1
    steps: int = 10_000

    def __post_init__(self):
        if self.deviation < 0 or self.steps < 1:
            raise ValueError(f"deviation must not be negative and steps positive: {self.deviation}, {self.steps}")

    def __call__(self, x, key, state):
        left = jnp.maximum(0.0, 1 - state.step / self.steps)
        return x + self.deviation * left * jax.random.normal(key, x.shape, x.dtype)


def brightness(amount: float = 0.5) -> ImageOp:
    """Shifts the brightness of each image (B, H, W, C) by at most amount/2 either way."""

    def change(x: Array, key: Array) -> Array:
        return x + amount * (jax.random.uniform(key, (len(x), 1, 1, 1), x.dtype) - 0.5)

    return change


def contrast(amount: float = 1.0) -> ImageOp:
    """Scales the deviation from the image's mean by 1 - amount/2 to 1 + amount/2."""

    def change(x: Array, key: Array) -> Array:
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        return mean + (x - mean) * (1 + amount * (jax.random.uniform(key, (len(x), 1, 1, 1), x.dtype) - 0.5))

    return change


def translation(share: float = 0.125) -> ImageOp:
    """Translates each image by whole pixels, up to a fraction of its size, with zero padding."""

    def change(x: Array, key: Array) -> Array:
        for axis in (1, 2):
            size = x.shape[axis]
            reach = max(1, round(share * size))
            moves = jax.random.randint(fold_in(key, axis), (len(x),), -reach, reach + 1)
            at = jnp.arange(size)[None] - moves[:, None]
            picks = jax.nn.one_hot(at, size, dtype=x.dtype)  # zero rows outside the image; matrix products, not gathers
            x = jnp.einsum("bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic", picks, x)
        return x

    return change


def cutout(share: float = 0.5) -> ImageOp:
    """Zeros a square at a random position, possibly partly outside, with side a fraction of the image's size."""

    def change(x: Array, key: Array) -> Array:
        inside = jnp.ones((len(x), 1, 1), bool)
        for axis in (1, 2):
            size = x.shape[axis]
            half = round(share * size) // 2
            center = jax.random.randint(fold_in(key, axis), (len(x), 1), 0, size + 1)
            line = jnp.abs(jnp.arange(size)[None] + 0.5 - center) < half
            inside = inside & (line[:, :, None] if axis == 1 else line[:, None, :])
        return jnp.where(inside[..., None], 0, x)

    return change
