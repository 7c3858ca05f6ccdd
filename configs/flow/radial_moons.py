"""Radial flow on two moons (Rezende & Mohamed 2015, arXiv:1505.05770).

python train.py configs/flow/radial_moons.py

Results (28 s, 1 x cpu, 2 cores, 2026-11-23): likelihood = -0.5837 ± 0.02 nats.
"""

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.evaluation import invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Inverse, Radial, Stack, Standardize
from gen_jax.models.flow import Flow, Normal
from gen_jax.optimizers import adamw


def config(
    depth: int = 32,
    lr: float = 5e-3,
    batch: int = 256,
    steps: int = 5000,
    smoke: bool = False,
) -> Experiment:
    """Fitted by maximum likelihood: the closed direction goes from data to noise.

    Args:
        depth: radial layers
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    depth = 4 if smoke else depth
    model = Flow(Normal((2,)), [Stack(Inverse(Radial()), depth), Standardize()])
    return Experiment(
        model,
        descent(model, {"flow": adamw(lr, steps, clip=10.0)}),
        data="two_moons",
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood, invertibility],
        plots=[plots.flow_density, plots.warped_grid, plots.latent_space],
        chunk=10,
    )
