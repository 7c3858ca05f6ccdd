"""PacGAN on a grid of twenty-five Gaussians: the discriminator judges packs (Lin et al. 2018, arXiv:1712.04086).

python train.py configs/gan/pacgan_grid25.py

Results (90 s, 1 x cpu, 2 cores, 2026-11-23): modes 25 of 25; high_quality 0.468 ± 0.01 share; reverse_kl
0.01196 nats.
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data.modes import grid
from gen_jax.evaluation import mode_coverage, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN, MLPDiscriminator


def config(
    latent: int = 2,
    hidden: int = 128,
    layers: int = 2,
    packing: int = 2,
    lr: float = 1e-3,
    batch: int = 256,
    steps: int = 15_000,
    chunk: int = 100,
    smoke: bool = False,
) -> Experiment:
    """Packs of generated examples that miss modes look different from real ones.

    Args:
        latent: dimensions of the generator's noise
        hidden: width of the hidden layers of both networks
        layers: how many
        packing: examples that the discriminator judges together
        lr: learning rate of Adam for both players, which falls to zero as half a cosine
        batch: real examples, and generated ones, per step
        chunk: steps per call of the compiled program
    """
    hidden = (8, 8) if smoke else (hidden,) * layers
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps), b1=0.5)
    model = GAN(MLP(hidden, 2), MLPDiscriminator(hidden), latent, packing=packing)
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
