"""Image translation learned from pairs: Pix2Pix (Isola et al. 2017, arXiv:1611.07004)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, Extra, Objective, Params, State
from gen_jax.models.gan.augmentations import Augmentation
from gen_jax.models.gan.gan import GAN
from gen_jax.models.gan.losses import AdversarialLoss, non_saturating
from gen_jax.models.gan.regularizers import GENERATOR, Regularizer, Turn
from gen_jax.models.translation.direction import (
    check_direction,
    check_images,
    check_noiseless,
    distance,
    sampled,
    translated,
    translator,
)

__all__ = ["Pix2Pix"]


@dataclass(frozen=True)
class Pix2Pix:
    """A conditional GAN of pairs: from images "x" to images "y", in [-1, 1].

    generator: a module (B, H, W, C) -> (B, H, W, D), such as a `UNet`. discriminator: a module of images, such as a
    `PatchDiscriminator`. l1: weight of the mean absolute difference to "y" (eq. 3).
    conditional: whether the discriminator sees "x" too. noise: channels of noise that the generator sees beside "x"; by
    default its dropout is the only noise. The others are those of a `GAN`.
    """

    generator: nn.Module
    discriminator: nn.Module
    l1: float = 100.0
    conditional: bool = True
    noise: int = 0
    adversarial: AdversarialLoss = non_saturating()
    regularizers: Sequence[Regularizer] = ()
    every: int = 1
    augmentation: Augmentation = Augmentation()

    def __post_init__(self):
        if self.l1 < 0 or self.noise < 0:
            raise ValueError(f"l1 and noise must not be negative, got {self.l1} and {self.noise}")
        if not self.noise:
            check_noiseless(self.regularizers)
        _ = self.gan

    @cached_property
    def gan(self) -> GAN:
        """The GAN of images with the channels of their source in front."""
        close = Regularizer("l1", GENERATOR, self.l1, _to_truth)
        gan = translator(
            self.generator,
            self.discriminator,
            self.adversarial,
            (close, *self.regularizers),
            self.augmentation,
            self.noise,
            self.conditional,
        )
        return replace(gan, every=self.every)

    @property
    def objectives(self) -> Sequence[Objective]:
        return self.gan.objectives

    @property
    def directions(self) -> Sequence[str]:
        return ("a2b",)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        check_images(batch, "x", "y")
        return self.gan.init(key, self._joined(batch))

    def prepare(self, state: State, batch: Batch, key: Array) -> Batch:
        """The batch as the GAN takes it, with noise."""
        return self.gan.prepare(state, self._joined(batch), key)

    def translate(self, state, images, direction="a2b", key=None, own=False):
        check_direction(direction, self.directions)
        made = translated(self.gan, state, images, key, own)
        return made[..., images.shape[-1] :] if self.conditional else made

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        """Translations "y" of the images "x" in the condition, with noise and dropout."""
        return sampled(self, state, key, n, condition)

    def diagnose(self, metrics: Mapping[str, np.ndarray]) -> str:
        return self.gan.diagnose(metrics)

    def _joined(self, batch: Batch) -> Batch:
        real = jnp.concatenate([batch["x"], batch["y"]], axis=-1) if self.conditional else batch["y"]
        return {**batch, "x": real, "source": batch["x"], "target": batch["y"]}


def _to_truth(turn: Turn) -> jax.Array:
    target = turn.batch["target"]
    return distance(turn.fake[..., -target.shape[-1] :], target)
