"""A small two-player run with averages, noise and batches, for the tests of reliability.

SLEEP (seconds per step) in the environment slows it down, so that it can be interrupted.
"""

import os
import time

import optax

from gen_jax.algorithms import descent, with_ema
from gen_jax.data.modes import ring
from gen_jax.evaluation import mode_coverage
from gen_jax.experiment import Experiment
from gen_jax.loop import Hook
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN


class Sleep(Hook):
    def poll(self, step):
        time.sleep(float(os.environ.get("SLEEP", "0")))


def config(
    steps: int = 400,
    lr: float = 1e-3,
    checkpoint_every: int = 25,
    resident: bool = True,
    repeats: int = 1,
    smoke: bool = False,
) -> Experiment:
    model = GAN(MLP((8,), 2), MLP((8,), 1), latent=2)
    tx = optax.adam(lr)
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", 0.9),
        data="ring8",
        batch=16,
        steps=steps,
        report_every=25,
        metrics=[mode_coverage(ring(), 0.01, samples=100)],
        evaluate_every=200,
        checkpoint_every=checkpoint_every,
        hooks=[Sleep()],
        resident=resident,
        repeats=repeats,
    )
