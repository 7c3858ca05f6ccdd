"""VAE with two latent dimensions and strided convolutions on MNIST (the enlarged digits where it is not prepared).

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/vae/vae_mnist.py

Results (491 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≥ -153 ± 0.5 nats; active_units 2 of 2;
reconstruction_rmse 0.2044 ± 0.0005 units of x; latent_accuracy 0.6404 ± 0.007 share.
"""

import math

import jax
import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import scale
from gen_jax.evaluation import active_units, elbo, latent_accuracy, reconstruction_error
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.common.networks import ConvEncoder, TransposedDecoder, pyramid
from gen_jax.models.vae import VAE


def config(
    data: str = first_available("mnist", "digits28"),
    latent: int = 2,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 3900,
    parts: int = 0,
    smoke: bool = False,
) -> Experiment:
    """Cross-entropy of gray levels, as is common; it is no likelihood, so compare it with its like only.

    Args:
        data: images of 8 bits, by name or path; sides must be multiples of 4
        latent: dimensions of z
        lr: learning rate of Adam
        batch: examples per step
        steps: ten epochs of 50,000 images
        parts: in which a batch's gradients are computed; 0 is 4 on a CPU, whose caches they fit, and 1 elsewhere
    """
    images = load(data)
    info = images.images(multiple=4)
    size, colors = info.shape[:2], info.shape[-1]
    channels = pyramid(size, 4, 4) if smoke else pyramid(size, 32)
    encoder = ConvEncoder(channels, 16, 2 * latent)
    model = VAE(encoder, TransposedDecoder(size, channels[::-1], colors), Bernoulli(), latent)
    batch = 16 if smoke else batch
    parts = parts or (math.gcd(4, batch) if jax.default_backend() == "cpu" else 1)
    return Experiment(
        model,
        descent(model, {"vae": optax.adam(lr)}, microbatches=parts),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[scale(0, 1, levels=info.levels)],
        metrics=[elbo, active_units, reconstruction_error, *([latent_accuracy] if info.classes else [])],
        plots=[
            plots.manifold if latent > 1 else plots.traversals,
            plots.latent_scatter,
            plots.samples,
            plots.reconstructions,
            plots.imputations,
        ],
    )
