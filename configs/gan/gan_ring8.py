"""Generative adversarial network on a ring of eight Gaussians, the test of mode collapse (Goodfellow et al. 2014).

python train.py configs/gan/gan_ring8.py

Results (388 s, 1 x cpu, 2 cores, 2026-11-23): modes 8 of 8; high_quality 0.9692 ± 0.003 share; reverse_kl
0.002179 nats.
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data.modes import ring
from gen_jax.evaluation import mode_coverage, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN, MLPDiscriminator, r1


def config(
    latent: int = 2,
    hidden: int = 64,
    layers: int = 4,
    penalty: float = 0.05,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 12_500,
    chunk: int = 100,
    smoke: bool = False,
) -> Experiment:
    """Two players, one compiled step, and 100 steps per call.

    Args:
        latent: dimensions of the generator's noise
        hidden: width of the hidden layers of both networks
        layers: how many
        penalty: weight of the discriminator's squared gradients on real examples (R1, Mescheder et al. 2018)
        lr: learning rate of Adam for both players, which falls to zero as half a cosine
        batch: real examples, and generated ones, per step
        chunk: steps per call of the compiled program
    """
    hidden = (8, 8) if smoke else (hidden,) * layers
    model = GAN(
        MLP(hidden, 2),
        MLPDiscriminator(hidden),
        latent,
        regularizers=(r1(penalty),),
    )
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps), b1=0.5)
    return Experiment(
        model,
        descent(model, {"discriminator": tx, "generator": tx}),
        data="ring8",
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        chunk=chunk,
        metrics=[mode_coverage(ring(8), 0.01), stability],
        plots=[plots.generator_density, plots.scatter],
        report_every=500,
    )
