"""A GAN with the Pearson divergence (Mao et al. 2017) and a penalty of large gradients only (Petzka et al. 2018)."""

import jax.numpy as jnp
import optax

from gen_jax import GAN, Experiment, descent, plots
from gen_jax.evaluation import stability
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import AdversarialLoss, MLPDiscriminator
from gen_jax.models.gan.regularizers import Regularizer, between, of_gradients, squared_norms


def pearson() -> AdversarialLoss:
    """Targets 1 for real and -1 for fake examples, 0 for the generator: the Pearson chi-square divergence."""
    return AdversarialLoss(
        discriminator=lambda r, f: 0.5 * (jnp.mean((r - 1) ** 2) + jnp.mean((f + 1) ** 2)),
        generator=lambda r, f: 0.5 * jnp.mean(f**2),
    )


def one_sided(weight: float) -> Regularizer:
    """E[max(0, |grad D(x)| - 1)^2] between real and fake examples."""

    def value(turn):
        norms = jnp.sqrt(squared_norms(turn, between(turn, "one_sided"), "one_sided") + 1e-12)
        return jnp.mean(jnp.maximum(0, norms - 1) ** 2)

    return of_gradients("one_sided", weight, value)


def config(penalty: float = 1.0, steps: int = 500, smoke: bool = False) -> Experiment:
    """A loss and a regularizer of one's own.

    Args:
        penalty: weight of the regularizer
    """
    model = GAN(MLP((32, 32), 2), MLPDiscriminator((32, 32)), 2, pearson(), regularizers=(one_sided(penalty),))
    return Experiment(
        model,
        descent(model, {player: optax.adam(1e-3, b1=0.5) for player in ("discriminator", "generator")}),
        data="ring8",
        batch=128,
        steps=min(steps, 20) if smoke else steps,
        metrics=[stability],
        plots=[plots.scatter],
    )
