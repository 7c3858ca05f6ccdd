"""Generative adversarial network (Goodfellow et al. 2014, arXiv:1406.2661)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold, weights


class AdversarialLoss(NamedTuple):
    """What each player minimises, from the discriminator's logits on real and generated examples."""

    discriminator: Callable[[Array, Array], Array]  # (real logits, fake logits) -> scalar
    generator: Callable[[Array], Array]  # fake logits -> scalar


def _discriminate(real: Array, fake: Array) -> Array:
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


non_saturating = AdversarialLoss(_discriminate, lambda fake: jax.nn.softplus(-fake).mean())
"""The generator maximises log D(G(z)) instead of minimising log(1 - D(G(z))) (Goodfellow et al. 2014, section 3)."""


@dataclass(frozen=True)
class GAN:
    """A generator and a discriminator, each a player of its own.

    generator: a module (B, latent) -> (B, *x). discriminator: a module (B, *x) -> (B, 1) logits.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: int
    adversarial: AdversarialLoss = non_saturating

    def __post_init__(self):
        if self.latent < 1:
            raise ValueError(f"latent must be at least 1, got {self.latent}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        z = jnp.zeros((1, self.latent))
        generator = self.generator.init(fold(key, "generator"), z)
        discriminator = self.discriminator.init(fold(key, "discriminator"), batch["x"][:1])
        return {"discriminator": discriminator["params"], "generator": generator["params"]}, {}

    def generate(self, params: PyTree, key: Array, n: int) -> Array:
        z = jax.random.normal(fold(key, "z"), (n, self.latent))
        return self.generator.apply({"params": params}, z)

    def judge(self, params: PyTree, x: Array) -> Array:
        """(B,) logits of being real."""
        return self.discriminator.apply({"params": params}, x)[:, 0]

    def discriminate(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The discriminator tells real from generated."""
        generated = self.generate(state.params["generator"], key, len(batch["x"]))
        real, fake = self.judge(params, batch["x"]), self.judge(params, generated)
        metrics = {"real_accuracy": Mean.of(real > 0), "fake_accuracy": Mean.of(fake < 0)}
        return self.adversarial.discriminator(real, fake), ({}, metrics)

    def fool(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The generator is taken for real."""
        fake = self.judge(state.params["discriminator"], self.generate(params, key, len(batch["x"])))
        return self.adversarial.generator(fake), ({}, {})

    @property
    def objectives(self) -> Sequence[Objective]:
        return Objective("discriminator", self.discriminate), Objective("generator", self.fool)

    def sample(self, state: State, key: Array, n: int) -> Batch:
        return {"x": self.generate(weights(state, "generator"), key, n)}
