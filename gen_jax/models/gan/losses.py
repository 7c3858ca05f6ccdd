"""Losses of the two players of a GAN, from the discriminator's logits on real and generated examples.

To add a loss, write a function that returns an `AdversarialLoss`. Lucic et al. 2018 (arXiv:1711.10337) compare most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.nn import relu, softplus

__all__ = ["AdversarialLoss", "hinge", "least_squares", "minimax", "non_saturating", "relativistic", "wasserstein"]


class AdversarialLoss(NamedTuple):
    """The losses of both players: functions of (real logits (B,), fake logits (B,)) that return a scalar."""

    discriminator: Callable[..., Array]
    generator: Callable[..., Array]
    threshold: float | None = 0.0  # logits above it mean "real"; None if only differences are meaningful
    saturates: bool = True  # whether the generator's gradient vanishes if the discriminator is always right
    keyed: bool = False  # whether both functions draw random numbers, from a key after the logits

    def of(self, player: str, real: Array, fake: Array, key: Array) -> Array:
        """The loss of the "discriminator" or the "generator"."""
        loss = self.discriminator if player == "discriminator" else self.generator
        return loss(real, fake, key) if self.keyed else loss(real, fake)

    def correct(self, real: Array, fake: Array) -> tuple[Array, Array]:
        """(B,), (B,): whether the discriminator classifies each real and each fake example correctly."""
        if self.threshold is None:
            return real > fake.mean(), fake < real.mean()
        return real > self.threshold, fake < self.threshold


def _cross_entropy(smoothing: float) -> Callable[[Array, Array], Array]:
    smoothing = _fraction(smoothing)
    return lambda r, f: softplus(-r).mean() + smoothing * r.mean() + softplus(f).mean()


def minimax(smoothing: float = 0.0) -> AdversarialLoss:
    """The minimax loss of Goodfellow et al. 2014 (arXiv:1406.2661, eq. 1): the generator minimizes log(1 - D(G(z))).

    smoothing: one-sided label smoothing, real labels are 1 - smoothing (Salimans et al. 2016, section 3.4).
    """
    return AdversarialLoss(_cross_entropy(smoothing), lambda r, f: -softplus(f).mean())


def non_saturating(smoothing: float = 0.0) -> AdversarialLoss:
    """Like `minimax`, but the generator maximizes log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return AdversarialLoss(_cross_entropy(smoothing), lambda r, f: softplus(-f).mean())


def least_squares(smoothing: float = 0.0) -> AdversarialLoss:
    """LSGAN: targets 1 - smoothing for real examples, 0 for fake ones, 1 for the generator (Mao et al. 2017, eq. 9)."""
    target = 1 - _fraction(smoothing)
    return AdversarialLoss(
        lambda r, f: 0.5 * (jnp.mean((r - target) ** 2) + jnp.mean(f**2)),
        lambda r, f: 0.5 * jnp.mean((f - 1) ** 2),
        threshold=target / 2,
    )


def hinge() -> AdversarialLoss:
    """The hinge loss with margin one (Lim & Ye 2017; Miyato et al. 2018, eq. 16, 17)."""
    return AdversarialLoss(lambda r, f: relu(1 - r).mean() + relu(1 + f).mean(), lambda r, f: -f.mean())


def wasserstein() -> AdversarialLoss:
    """The dual of the Wasserstein-1 distance (Arjovsky et al. 2017); the critic must be kept Lipschitz by a penalty."""
    return AdversarialLoss(lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean(), None, saturates=False)


def relativistic() -> AdversarialLoss:
    """Relativistic pairing loss: each real example should score higher than its paired generated one, and vice versa.

    Jolicoeur-Martineau 2019 (arXiv:1807.00734, RpGAN); with `r1` and `r2`, the loss of R3GAN (Huang et al. 2024).
    """
    return AdversarialLoss(lambda r, f: softplus(f - r).mean(), lambda r, f: softplus(r - f).mean(), threshold=None)


def _fraction(smoothing: float) -> float:
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing must be in [0, 1), got {smoothing}")
    return smoothing
