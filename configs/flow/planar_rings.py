"""Planar or radial flow on points of the plane (Rezende & Mohamed 2015, arXiv:1505.05770).

python train.py configs/flow/planar_rings.py
python train.py configs/flow/planar_rings.py --layer radial --data two_moons

Results (34 s, 1 x cpu, 2 cores, 2026-11-23): likelihood = -2.061 ± 0.04 nats.
"""

from typing import Literal

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.evaluation import invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Inverse, Planar, Radial, Stack, Standardize
from gen_jax.models.flow import Flow, Normal
from gen_jax.optimizers import adamw

LAYERS = {"planar": Planar(), "radial": Radial()}


def config(
    layer: Literal["planar", "radial"] = "planar",
    data: Literal["rings", "two_moons", "spirals", "checkerboard"] = "rings",
    depth: int = 32,
    lr: float = 5e-3,
    batch: int = 256,
    steps: int = 5000,
    smoke: bool = False,
) -> Experiment:
    """Fitted by maximum likelihood: the closed direction goes from data to noise.

    Args:
        layer: the bijection that is repeated
        data: points of the plane
        depth: layers
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    depth = 4 if smoke else depth
    model = Flow(Normal((2,)), [Stack(Inverse(LAYERS[layer]), depth), Standardize()])
    return Experiment(
        model,
        descent(model, {"flow": adamw(lr, steps, clip=10.0)}),
        data=data,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood, invertibility],
        plots=[plots.flow_density, plots.warped_grid, plots.latent_space],
        chunk=10,
    )
