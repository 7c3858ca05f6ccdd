"""Convolutional VAE on the embedded 8x8 digits (Kingma & Welling 2013).

python train.py configs/vae_digits.py
"""

from typing import Literal

import jax.numpy as jnp
import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.evaluation import elbo
from gen_jax.experiment import Experiment
from gen_jax.models.likelihoods import DiscretizedLogistic
from gen_jax.models.nets import ConvDecoder, ConvEncoder
from gen_jax.models.vae import VAE


def config(
    latent: int = 16,
    beta: float = 1.0,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 2500,
    weight_decay: float = 1.0,
    ema: float = 0.99,
    precision: Literal["float32", "bfloat16"] = "float32",
    smoke: bool = False,
) -> Experiment:
    """The main job.

    Args:
        latent: dimensions of z
        beta: weight of the KL term (Higgins et al. 2017)
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
        weight_decay: pull of AdamW towards zero; the set is small, and without it the model overfits
        ema: decay of the averaged parameters that evaluation and samples use
        precision: type of the networks' computations; parameters are float32
    """
    channels, hidden = ((4, 8), 8) if smoke else ((32, 64), 128)
    dtype = jnp.dtype(precision)
    likelihood = DiscretizedLogistic(levels=17)
    model = VAE(
        encoder=ConvEncoder(channels, hidden, outputs=2 * latent, dtype=dtype),
        decoder=ConvDecoder((8, 8), channels[:1] * 2, outputs=likelihood.channels, dtype=dtype),
        likelihood=likelihood,
        latent=latent,
        beta=beta,
    )
    tx = optax.chain(
        optax.clip_by_global_norm(200.0),
        optax.adamw(optax.cosine_decay_schedule(lr, steps), weight_decay=weight_decay),
    )
    return Experiment(
        model,
        with_ema(descent(model, {"vae": tx}), "vae", ema),
        data="digits",
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo],
        plots=[plots.samples, plots.reconstructions],
        evaluate_every=500,
        plot_every=1000,
        checkpoint_every=500,
        best=Best("validation/elbo", "max"),
    )
