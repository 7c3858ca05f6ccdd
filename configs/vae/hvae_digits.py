"""Hierarchical VAE with three groups of latents on the embedded 8x8 digits (Sonderby et al. 2016; Child 2021).

python train.py configs/vae/hvae_digits.py

Results (252 s, 1 x cpu, 2 cores, 2026-11-22): likelihood ≤ 1.809 ± 0.01 bits/dim; reconstruction_rmse 1.326 ±
0.02 units of x.
"""

from functools import partial

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.evaluation import elbo, iwae_50, reconstruction_error
from gen_jax.experiment import Experiment
from gen_jax.models.common.likelihoods import DiscretizedLogistic
from gen_jax.models.vae import HVAE, bounds
from gen_jax.optimizers import adamw


def config(
    data: str = "digits",
    groups: int = 3,
    depth: int = 1,
    width: int = 32,
    latent_channels: int = 4,
    warm_up: int = 300,
    free_bits: float = 0.0,
    balance: bool = True,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 1500,
    weight_decay: float = 1.0,
    smoke: bool = False,
) -> Experiment:
    """From coarse to fine, each group at twice the resolution.

    Args:
        data: images of whole numbers, by name or path; sides must be multiples of 4
        groups: latent resolutions
        depth: latent images per group
        width: features of the blocks
        latent_channels: of each latent image
        warm_up: steps in which the weight of the KL grows from 0 to 1
        free_bits: nats of KL per group that cost nothing
        balance: while it grows, groups with more KL weigh more
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
        weight_decay: pull of AdamW towards zero
    """
    images = load(data)
    info = images.images(multiple=2 ** ((2 if smoke else groups) - 1))
    model = HVAE(
        info.shape,
        DiscretizedLogistic(info.levels),
        2 if smoke else groups,
        depth,
        4 if smoke else width,
        2 if smoke else latent_channels,
        beta=bounds.linear(1.0, warm_up),
        bound=partial(bounds.elbo, free_bits=free_bits, balanced=balance),
    )
    return Experiment(
        model,
        with_ema(descent(model, {"vae": adamw(lr, steps, weight_decay)}), "vae", 0.99),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo, iwae_50, reconstruction_error],
        plots=[plots.samples, plots.reconstructions],
        evaluate_every=500,
        checkpoint_every=500,
        best=Best("validation/elbo", "max"),
    )
