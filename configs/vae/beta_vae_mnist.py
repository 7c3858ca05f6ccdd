"""Beta-VAE on MNIST (Higgins et al. 2017): a heavier KL for latent dimensions that mean something by themselves.

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/vae/beta_vae_mnist.py --beta 4

Results (775 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≥ -118.5 ± 0.3 nats; active_units 10 of 10;
reconstruction_rmse 0.1329 ± 0.0003 units of x; latent_accuracy 0.899 ± 0.004 share.
"""

import math

import jax
import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import scale
from gen_jax.evaluation import active_units, elbo, kl_per_dimension, latent_accuracy, reconstruction_error
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.common.networks import ConvEncoder, TransposedDecoder, pyramid
from gen_jax.models.vae import VAE, bounds


def config(
    data: str = first_available("mnist", "digits28"),
    beta: float = 4.0,
    warm_up: int = 1000,
    latent: int = 10,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 3900,
    parts: int = 0,
    smoke: bool = False,
) -> Experiment:
    """The network of vae_mnist; the traversals show what each dimension does.

    Args:
        data: images of 8 bits, by name or path; sides must be multiples of 4
        beta: weight of the KL term at the end of the warm-up
        warm_up: steps in which it grows from 0
        latent: dimensions of z
        lr: learning rate of Adam
        batch: examples per step
        parts: in which a batch's gradients are computed; 0 is 4 on a CPU, whose caches they fit, and 1 elsewhere
    """
    images = load(data)
    info = images.images(multiple=4)
    size, colors = info.shape[:2], info.shape[-1]
    channels = pyramid(size, 4, 4) if smoke else pyramid(size, 32)
    encoder = ConvEncoder(channels, 16 if smoke else 128, 2 * latent)
    decoder = TransposedDecoder(size, channels[::-1], colors)
    model = VAE(encoder, decoder, Bernoulli(), latent, beta=bounds.linear(beta, warm_up))
    batch = 16 if smoke else batch
    parts = parts or (math.gcd(4, batch) if jax.default_backend() == "cpu" else 1)
    return Experiment(
        model,
        descent(model, {"vae": optax.adam(lr)}, microbatches=parts),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[scale(0, 1, levels=info.levels)],
        metrics=[
            elbo,
            active_units,
            kl_per_dimension,
            reconstruction_error,
            *([latent_accuracy] if info.classes else []),
        ],
        plots=[plots.traversals, plots.latent_usage, plots.latent_scatter, plots.samples, plots.interpolations],
    )
