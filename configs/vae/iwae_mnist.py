"""Importance-weighted autoencoder with one stochastic layer on stochastically binarized MNIST (Burda et al. 2016).

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/vae/iwae_mnist.py                   (--steps 1968000 are the 3,280 passes of the paper)

Results (2887 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≥ -97.61 ± 0.3 nats, stochastically binarized;
active_units 48 of 50.
"""

from typing import Literal

import flax.linen as nn
import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import binarize
from gen_jax.evaluation import active_units, elbo, iwae_5000
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import VAE, bounds


def config(
    data: str = first_available("mnist", "digits28"),
    bound: Literal["iwae", "elbo"] = "iwae",
    samples: int = 50,
    latent: int = 50,
    hidden: int = 200,
    lr: float = 1e-3,
    batch: int = 100,
    steps: int = 12_000,
    smoke: bool = False,
) -> Experiment:
    """Test log-likelihood from 5,000 importance samples; during training from the first thousand test images.

    Args:
        data: images of whole numbers, by name or path
        bound: what is maximized
        samples: of z per example
        latent: dimensions of z
        hidden: width of the two hidden layers of encoder and decoder
        lr: learning rate of Adam at the start of its cosine decay
        batch: examples per step
    """
    images = load(data)
    info = images.images()
    hidden, samples = (16, 5) if smoke else (hidden, samples)
    encoder = MLP([hidden] * 2, 2 * latent, nn.tanh)
    decoder = MLP([hidden] * 2, info.shape, nn.tanh)
    objective = {"iwae": bounds.iwae, "elbo": bounds.elbo}[bound]
    model = VAE(encoder, decoder, Bernoulli(), latent, bound=objective, samples=samples)
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps, alpha=0.01), eps=1e-4)
    return Experiment(
        model,
        descent(model, {"vae": tx}),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[binarize(info.levels)],
        metrics=[elbo, iwae_5000, active_units],
        plots=[plots.samples, plots.reconstructions],
        evaluate_every=3000,
        plot_every=3000,
        checkpoint_every=3000,
        validation="test[:1000]",
    )
