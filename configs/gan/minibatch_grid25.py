"""Minibatch discrimination on a grid of twenty-five Gaussians (Salimans et al. 2016, arXiv:1606.03498).

python train.py configs/gan/minibatch_grid25.py

Results (436 s, 1 x cpu, 2 cores, 2026-11-23): modes 25 of 25; high_quality 0.8996 ± 0.006 share; reverse_kl
0.06591 nats.
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data.modes import grid
from gen_jax.evaluation import mode_coverage, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN, MinibatchDiscrimination, MLPDiscriminator


def config(
    latent: int = 2,
    hidden: int = 64,
    layers: int = 4,
    kernels: int = 16,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 15_000,
    chunk: int = 100,
    smoke: bool = False,
) -> Experiment:
    """The discriminator sees how close the examples of a batch are to each other.

    Args:
        latent: dimensions of the generator's noise
        hidden: width of the hidden layers of both networks
        layers: how many
        kernels: in how many ways examples are compared
        lr: learning rate of Adam for both players, which falls to zero as half a cosine
        batch: real examples, and generated ones, per step
        chunk: steps per call of the compiled program
    """
    hidden = (8, 8) if smoke else (hidden,) * layers
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps), b1=0.5)
    model = GAN(
        MLP(hidden, 2),
        MLPDiscriminator(hidden, batchwise=(MinibatchDiscrimination(kernels),)),
        latent,
    )
    return Experiment(
        model,
        descent(model, {"discriminator": tx, "generator": tx}),
        data="grid25",
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        chunk=chunk,
        metrics=[mode_coverage(grid(5), 0.05), stability],
        plots=[plots.generator_density, plots.scatter],
        report_every=500,
    )
