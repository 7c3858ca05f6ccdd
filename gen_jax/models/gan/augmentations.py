"""What real and generated examples go through before a discriminator sees either; gradients pass through.

An augmentation is a function (x, key, state) -> x, or has memory in `state.extra["augmentation"]` like `Adaptive`.
Those of DiffAugment (Zhao et al. 2020, arXiv:2006.10738) for gray images: `Each([brightness(), contrast(),
translation(), cutout()])`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, State, fold_in

ImageOp = Callable[[Array, Array], Array]  # (B, *x), key -> the same, each example by noise of its own


class Augmentation:
    """Leaves everything as it is."""

    def __call__(self, x: Array, key: Array, state: State) -> Array:
        return x

    def init(self) -> PyTree:
        """What it remembers, {} if nothing."""
        return {}

    def adapt(self, memory: PyTree, real: Array) -> PyTree:
        """What it remembers after a batch, by the discriminator's margins (B,) on real examples, positive if right."""
        return memory


@dataclass(frozen=True)
class Compose(Augmentation):
    """Changes one after the other, at every step."""

    ops: Sequence[ImageOp]

    def __call__(self, x, key, state):
        for i, change in enumerate(self.ops):
            x = change(x, fold_in(key, i))
        return x


@dataclass(frozen=True)
class Adaptive(Augmentation):
    """Changes each with a probability that rises as long as the discriminator is too sure of real examples.

    ADA (Karras et al. 2020, arXiv:2006.06676, section 3): the mean sign of the margins on real examples is held at
    `target`, the probability moving by at most 1 in `examples` examples.
    """

    ops: Sequence[ImageOp]
    target: float = 0.6
    examples: int = 500_000

    def __post_init__(self):
        if not -1 < self.target < 1 or self.examples < 1:
            raise ValueError(f"target must be in (-1, 1) and examples positive, got {self.target}, {self.examples}")

    def init(self):
        return {"probability": jnp.zeros(())}

    def __call__(self, x, key, state):
        probability = state.extra["augmentation"]["probability"]
        for i, change in enumerate(self.ops):
            chosen = jax.random.bernoulli(fold_in(key, "chosen", i), probability, (len(x), *(1,) * (x.ndim - 1)))
            x = jnp.where(chosen, change(x, fold_in(key, i)), x)
        return x

    def adapt(self, memory, real):
        moved = jnp.sign(jnp.sign(real).mean() - self.target) * (real.size / self.examples)
        return {"probability": jnp.clip(memory["probability"] + moved, 0.0, 1.0)}


@dataclass(frozen=True)
class InstanceNoise(Augmentation):
    """Normal noise whose standard deviation falls to zero in `steps` steps (Sonderby et al. 2017, section 3.2)."""

    deviation: float = 0.1
    steps: int = 10_000

    def __post_init__(self):
        if self.deviation < 0 or self.steps < 1:
            raise ValueError(f"deviation must not be negative and steps positive: {self.deviation}, {self.steps}")

    def __call__(self, x, key, state):
        left = jnp.maximum(0.0, 1 - state.step / self.steps)
        return x + self.deviation * left * jax.random.normal(key, x.shape, x.dtype)


def brightness(amount: float = 0.5) -> ImageOp:
    """Adds up to half of `amount` to an image (B, H, W, C), or takes it away."""

    def change(x: Array, key: Array) -> Array:
        return x + amount * (jax.random.uniform(key, (len(x), 1, 1, 1)) - 0.5)

    return change


def contrast(amount: float = 1.0) -> ImageOp:
    """Stretches the distance to the image's mean by 1 - amount/2 to 1 + amount/2."""

    def change(x: Array, key: Array) -> Array:
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        return mean + (x - mean) * (1 + amount * (jax.random.uniform(key, (len(x), 1, 1, 1)) - 0.5))

    return change


def translation(share: float = 0.125) -> ImageOp:
    """Moves an image by whole pixels, up to a share of its size, zeros coming in."""

    def change(x: Array, key: Array) -> Array:
        for axis in (1, 2):
            size = x.shape[axis]
            reach = max(1, round(share * size))
            moves = jax.random.randint(fold_in(key, axis), (len(x),), -reach, reach + 1)
            at = jnp.arange(size)[None] - moves[:, None]
            picks = jax.nn.one_hot(at, size, dtype=x.dtype)  # a row of zeros where nothing is; products, not gathers
            x = jnp.einsum("bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic", picks, x)
        return x

    return change


def cutout(share: float = 0.5) -> ImageOp:
    """Sets a square of a share of the image's size to zero, anywhere, partly outside perhaps."""

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
