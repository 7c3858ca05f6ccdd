"""A VAE trained by the maximum mean discrepancy between its codes and the prior (WAE, Tolstikhin et al. 2018)."""

import optax

from gen_jax import VAE, Experiment, descent, plots
from gen_jax.data.transforms import threshold
from gen_jax.evaluation import elbo
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import bounds


def config(latent: int = 4, weight: float = 50.0, steps: int = 500, smoke: bool = False) -> Experiment:
    """A bound instead of a subclass.

    Args:
        latent: dimensions of z
        weight: of the discrepancy
    """
    encoder, decoder = MLP((64,), 2 * latent), MLP((64,), (8, 8, 1))
    model = VAE(encoder, decoder, Bernoulli(), latent, beta=weight, bound=bounds.mmd)
    return Experiment(
        model,
        descent(model, {"vae": optax.adam(2e-3)}),
        data="digits",
        transforms=[threshold(17)],
        batch=128,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo],
        plots=[plots.samples],
    )
