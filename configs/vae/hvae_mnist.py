"""Hierarchical VAE on stochastically binarized MNIST (the embedded digits, enlarged, where MNIST is not prepared).

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/vae/hvae_mnist.py                   (made for a GPU)
"""

from functools import partial
from typing import Literal

import jax.numpy as jnp
import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import binarize
from gen_jax.evaluation import elbo, importance_weighted
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.vae import HVAE, bounds


def config(
    data: str = first_available("mnist", "digits28"),
    groups: int = 3,
    depth: int = 3,
    width: int = 64,
    latent_channels: int = 8,
    warm_up: int = 5000,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 40_000,
    precision: Literal["float32", "bfloat16"] = "float32",
    smoke: bool = False,
) -> Experiment:
    """Latent images of 28x28, 14x14 and 7x7 pixels.

    Args:
        data: images of whole numbers, by name or path
        groups: latent resolutions
        depth: latent images per group
        width: features of the blocks
        latent_channels: of each latent image
        warm_up: steps in which the weight of the KL grows from 0 to 1
        lr: learning rate of Adamax at the start of its cosine decay
        batch: examples per step
        precision: type of the networks' computations; parameters are float32
    """
    images = load(data)
    info = images.images(multiple=2 ** ((2 if smoke else groups) - 1))
    sizes = (2, 1, 4, 2) if smoke else (groups, depth, width, latent_channels)
    model = HVAE(
        info.shape,
        Bernoulli(),
        *sizes,
        beta=bounds.linear(1.0, warm_up),
        bound=partial(bounds.elbo, balanced=True),
        dtype=jnp.dtype(precision),
    )
    tx = optax.chain(optax.clip_by_global_norm(200.0), optax.adamax(optax.cosine_decay_schedule(lr, steps)))
    return Experiment(
        model,
        with_ema(descent(model, {"vae": tx}), "vae", 0.999),
        data=images,
        batch=16 if smoke else batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[binarize(info.levels)],
        metrics=[elbo, importance_weighted(100, examples=1000, at_once=512)],
        plots=[plots.samples, plots.reconstructions],
        evaluate_every=5000,
        plot_every=5000,
        checkpoint_every=5000,
    )
