"""The VAE of Flax's examples: its network, data, optimizer and length, on statically binarized MNIST.

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/vae/vae_flax_example.py             (--ema 0 evaluates the last parameters, as the example does)

Results (90 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≥ -99.19 ± 0.3 nats, statically binarized;
active_units 20 of 20.
"""

from typing import Literal

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import binarize_once
from gen_jax.evaluation import active_units, elbo, iwae_50
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import VAE
from gen_jax.models.vae.posteriors import Diagonal


def config(
    data: Literal["mnist", "fashion_mnist", "digits28"] = first_available("mnist", "digits28"),
    hidden: int = 500,
    latent: int = 20,
    lr: float = 1e-3,
    batch: int = 128,
    ema: float = 0.998,
    steps: int = 3900,
    smoke: bool = False,
) -> Experiment:
    """The test loss is minus the ELBO. The binarization is drawn once, by our own noise.

    Args:
        data: the set
        hidden: width of the one hidden layer of encoder and decoder
        latent: dimensions of z
        lr: learning rate of Adam
        batch: examples per step
        ema: decay of the averaged parameters that are evaluated; 0 evaluates the last ones
        steps: ten epochs of 50,000 images
    """
    hidden = 16 if smoke else hidden
    encoder, decoder = MLP([hidden], 2 * latent), MLP([hidden], (28, 28, 1))
    model = VAE(encoder, decoder, Bernoulli(), latent, posterior=Diagonal(log_variances=True))
    algorithm = descent(model, {"vae": optax.adam(lr)})
    return Experiment(
        model,
        with_ema(algorithm, "vae", ema) if ema else algorithm,
        data=data,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[binarize_once()],
        metrics=[elbo, iwae_50, active_units],
        plots=[plots.samples, plots.reconstructions],
    )
