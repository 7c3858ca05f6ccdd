"""Penalties on a discriminator, which keep the game of a GAN stable. Mescheder et al. 2018 (arXiv:1801.04406) compare.

`every=n` computes a penalty on every n-th step only, n times as strong (lazy regularization, Karras et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import fold_in
from gen_jax.models.common.arrays import sum_except_batch

Critic = Callable[[Array], Array]  # (B, *x) -> (B,) logits


@dataclass(frozen=True)
class Penalty:
    """weight * value(critic, real, fake, key), on every n-th step.

    of_gradients: it is made of the gradients of single examples' logits, which batch normalization mixes.
    """

    name: str
    weight: float
    value: Callable[[Critic, Array, Array, Array], Array]
    every: int = 1
    of_gradients: bool = True

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"the weight of {self.name} must not be negative, got {self.weight}")
        if self.every < 1:
            raise ValueError(f"{self.name} is computed on every n-th step with n at least 1, got {self.every}")

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        return self.weight * self.value(critic, real, fake, key)


def gradient_penalty(weight: float = 10.0, target: float = 1.0, every: int = 1) -> Penalty:
    """E[(|grad D(x)| - target)^2] between pairs of real and fake examples (WGAN-GP, Gulrajani et al. 2017, eq. 3)."""

    def value(critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        norms = jnp.sqrt(_squared_norms(critic, between(real, fake, key)) + 1e-12)  # sqrt has no gradient at 0
        return jnp.mean((norms - target) ** 2)

    return Penalty("gradient_penalty", weight, value, every)


def zero_centered(weight: float = 10.0, every: int = 1) -> Penalty:
    """E|grad D(x)|^2 between pairs of real and fake examples (Thanh-Tung et al. 2019)."""
    value = lambda critic, real, fake, key: _squared_norms(critic, between(real, fake, key)).mean()
    return Penalty("zero_centered", weight, value, every)


def r1(weight: float = 10.0, every: int = 1) -> Penalty:
    """E|grad D(x)|^2 / 2 of real examples (Mescheder et al. 2018, eq. 9)."""
    return Penalty("r1", weight, lambda critic, real, fake, key: _squared_norms(critic, real).mean() / 2, every)


def r2(weight: float = 10.0, every: int = 1) -> Penalty:
    """E|grad D(x)|^2 / 2 of fake examples (Mescheder et al. 2018, eq. 10)."""
    return Penalty("r2", weight, lambda critic, real, fake, key: _squared_norms(critic, fake).mean() / 2, every)


def consistency(change: Callable[[Array, Array], Array], weight: float = 10.0, every: int = 1) -> Penalty:
    """E[(D(x) - D(change(x)))^2] of real and fake examples (bCR, Zhao et al. 2021; CR-GAN, Zhang et al. 2020).

    change: (x, key) -> x, what must not matter to the discriminator, e.g. `augmentations.translation()`.
    """

    def value(critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        moved = lambda x, name: jnp.mean((critic(x) - critic(change(x, fold_in(key, name)))) ** 2)
        return moved(real, "real") + moved(fake, "fake")

    return Penalty("consistency", weight, value, every, of_gradients=False)


def between(real: Array, fake: Array, key: Array) -> Array:
    """A point on the line between each pair, uniformly."""
    share = jax.random.uniform(key, (len(real), *(1,) * (real.ndim - 1)), real.dtype)
    return fake + share * (real - fake)


def _squared_norms(critic: Critic, x: Array) -> Array:
    """(B,) of the gradients of the logits."""
    return sum_except_batch(jax.grad(lambda x: critic(x).sum())(x) ** 2)
