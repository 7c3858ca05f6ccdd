"""Regularizers of a GAN's players. Mescheder et al. 2018 (arXiv:1801.04406) compare those of discriminators.

`every=n` applies a regularizer on every n-th step only, scaled by n (lazy regularization, Karras et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, PyTree, State, fold_in
from gen_jax.models.common.arrays import sum_except_batch

__all__ = [
    "Regularizer",
    "Turn",
    "between",
    "consistency",
    "drift",
    "gradient_penalty",
    "mode_seeking",
    "of_gradients",
    "r1",
    "r2",
    "squared_norms",
    "zero_centered",
]

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class Turn(NamedTuple):
    """One turn of a player, the input of its regularizers."""

    model: Any  # the GAN
    player: str
    params: PyTree  # of the player, differentiated
    state: State
    batch: Batch
    key: Array
    z: Array  # (B, latent) noise
    real: Array  # (B, *x); augmented and packed in the discriminator's turn, as is `fake`
    fake: Array
    before: tuple[Array, Array]  # (B, *x) real and fake examples before augmentation and packing


@dataclass(frozen=True)
class Regularizer:
    """A term weight * value(turn) of a player's loss, on every n-th step.

    value: turn -> scalar; or (turn, memory) -> (scalar, memory) if it has `memory`, arrays carried in
    `state.extra["regularizers"][name]` from step to step (e.g. the running mean of path lengths).
    per_example: it uses gradients of individual examples' logits, which batch normalization mixes.
    resamples: it generates a second set of samples.
    """

    name: str
    player: str
    weight: float
    value: Callable[..., Any]
    every: int = 1
    memory: PyTree = field(default_factory=dict)
    per_example: bool = False
    resamples: bool = False

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"the weight of {self.name} must not be negative, got {self.weight}")
        if self.every < 1:
            raise ValueError(f"{self.name} is computed on every n-th step with n at least 1, got {self.every}")
        if self.player not in (GENERATOR, DISCRIMINATOR):
            raise ValueError(f"{self.name} regularizes the generator or the discriminator, got {self.player!r}")

    def __call__(self, turn: Turn, memory: Mapping[str, PyTree]) -> tuple[Array, Mapping[str, PyTree]]:
        """The weighted value, and the updated memory of all regularizers."""
        if self.name not in memory:
            return self.weight * self.value(turn), memory
        value, new = self.value(turn, memory[self.name])
        return self.weight * value, {**memory, self.name: new}


def gradient_penalty(weight: float = 10.0, target: float = 1.0, every: int = 1) -> Regularizer:
    """E[(|grad D(x)| - target)^2] on lines between real and fake examples (WGAN-GP, Gulrajani et al. 2017, eq. 3)."""

    def value(turn: Turn) -> Array:
        norms = jnp.sqrt(squared_norms(turn, between(turn, "gradient_penalty"), "gradient_penalty") + 1e-12)
        return jnp.mean((norms - target) ** 2)  # sqrt is not differentiable at 0

    return of_gradients("gradient_penalty", weight, value, every)


def zero_centered(weight: float = 10.0, every: int = 1) -> Regularizer:
    """E|grad D(x)|^2 on lines between real and fake examples (Thanh-Tung et al. 2019)."""
    value = lambda turn: squared_norms(turn, between(turn, "zero_centered"), "zero_centered").mean()
    return of_gradients("zero_centered", weight, value, every)


def r1(weight: float = 10.0, every: int = 1) -> Regularizer:
    """E|grad D(x)|^2 / 2 on real examples (Mescheder et al. 2018, eq. 9).

    x are the examples before augmentation, as in StyleGAN2-ADA: the gradient goes through the augmentation.
    """
    return of_gradients("r1", weight, lambda turn: _squared_norms_before(turn, 0, "r1").mean() / 2, every)


def r2(weight: float = 10.0, every: int = 1) -> Regularizer:
    """E|grad D(x)|^2 / 2 on fake examples before augmentation (Mescheder et al. 2018, eq. 10)."""
    return of_gradients("r2", weight, lambda turn: _squared_norms_before(turn, 1, "r2").mean() / 2, every)


def drift(weight: float = 0.001) -> Regularizer:
    """E[D(x)^2] on real examples, which keeps a critic's logits near 0 (Karras et al. 2018, appendix A.1)."""
    value = lambda turn: jnp.mean(turn.model.critic(turn, turn.real, "drift") ** 2)
    return Regularizer("drift", DISCRIMINATOR, weight, value)


def consistency(change: Callable[[Array, Array], Array], weight: float = 10.0, every: int = 1) -> Regularizer:
    """E[(D(x) - D(change(x)))^2] on real and fake examples (bCR, Zhao et al. 2021; CR-GAN, Zhang et al. 2020).

    change: (x, key) -> x, an image operation to which the discriminator should be invariant, e.g.
    `augmentations.translation()`.
    """

    def value(turn: Turn) -> Array:
        key, critic = fold_in(turn.key, "consistency"), lambda x: turn.model.critic(turn, x, "consistency")
        moved = lambda x, name: jnp.mean((critic(x) - critic(change(x, fold_in(key, name)))) ** 2)
        return moved(turn.real, "real") + moved(turn.fake, "fake")

    return Regularizer("consistency", DISCRIMINATOR, weight, value, every)


def mode_seeking(weight: float = 1.0, every: int = 1, channels: int = 0) -> Regularizer:
    """1 / (d(G(z), G(z')) / d(z, z')): different noise should give different examples (MSGAN, Mao et al. 2019).

    d is the mean absolute difference. channels: how many of the last ones are compared, where others hold what is
    given; by default all.
    """

    def value(turn: Turn) -> Array:
        key = fold_in(turn.key, "mode_seeking")
        z = turn.model.noise(key, len(turn.z))
        other, _ = turn.model.forward(turn.params, turn.state, turn.batch, z, fold_in(turn.key, "fake"))  # same dropout
        ratio = jnp.mean(_distances(turn.fake[..., -channels:], other[..., -channels:]) / _distances(turn.z, z))
        return 1 / (ratio + 1e-5)

    return Regularizer("mode_seeking", GENERATOR, weight, value, every, resamples=True)


def between(turn: Turn, name: str) -> Array:
    """Uniform points on the lines between pairs of real and fake examples."""
    real, fake = turn.real, turn.fake
    share = jax.random.uniform(fold_in(turn.key, name), (len(real), *(1,) * (real.ndim - 1)), real.dtype)
    return fake + share * (real - fake)


def of_gradients(name: str, weight: float, value: Callable[[Turn], Array], every: int = 1) -> Regularizer:
    """A regularizer of the discriminator that uses gradients of individual logits, such as `squared_norms`."""
    return Regularizer(name, DISCRIMINATOR, weight, value, every, per_example=True)


def squared_norms(turn: Turn, x: Array, name: str) -> Array:
    """(B,) squared norms of the gradients of the logits with respect to x."""
    return sum_except_batch(jax.grad(lambda x: turn.model.critic(turn, x, name).sum())(x) ** 2)


def _squared_norms_before(turn: Turn, which: int, name: str) -> Array:
    """(B / packing,) the same with respect to the real (0) or fake (1) examples before augmentation."""
    logits = lambda x: turn.model.augmented_critic(turn, x, which, name).sum()
    squares = sum_except_batch(jax.grad(logits)(turn.before[which]) ** 2)
    return squares.reshape(turn.model.packing, -1).sum(axis=0)


def _distances(a: Array, b: Array) -> Array:
    """(B,) mean absolute differences."""
    return sum_except_batch(jnp.abs(a - b)) / math.prod(a.shape[1:])
