"""The loss and penalties of R3GAN (Huang et al. 2024, arXiv:2501.05441) on a grid of twenty-five Gaussians.

python train.py configs/gan/gan_grid25.py

Results (705 s, 1 x cpu, 2 cores, 2026-11-23): modes 25 of 25; high_quality 0.9544 ± 0.004 share; reverse_kl
0.01028 nats.
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data.modes import grid
from gen_jax.evaluation import mode_coverage, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN, MLPDiscriminator, r1, r2, relativistic


def config(
    latent: int = 2,
    hidden: int = 64,
    layers: int = 4,
    penalty: float = 0.05,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 15_000,
    ema: float = 0.999,
    chunk: int = 100,
    smoke: bool = False,
) -> Experiment:
    """Two players, one compiled step, and 100 steps per call.

    Args:
        latent: dimensions of the generator's noise
        hidden: width of the hidden layers of both networks
        layers: how many
        penalty: weight of the discriminator's squared gradients on real and on fake examples (R1, R2)
        lr: learning rate of Adam for both players, which falls to zero as half a cosine
        batch: real examples, and generated ones, per step
        ema: decay of the averaged generator that evaluation and samples use
        chunk: steps per call of the compiled program
    """
    hidden = (8, 8) if smoke else (hidden,) * layers
    model = GAN(
        MLP(hidden, 2),
        MLPDiscriminator(hidden),
        latent,
        relativistic(),
        regularizers=(r1(penalty), r2(penalty)),
    )
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps), b1=0.5)
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", ema),
        data="grid25",
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        chunk=chunk,
        metrics=[mode_coverage(grid(5), 0.05), stability],
        plots=[plots.generator_density, plots.scatter],
        report_every=500,
    )
