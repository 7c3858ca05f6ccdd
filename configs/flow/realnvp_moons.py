"""RealNVP on two moons (Dinh et al. 2017, arXiv:1605.08803).

python train.py configs/flow/realnvp_moons.py

Results (44 s, 1 x cpu, 2 cores, 2026-11-23): likelihood = -0.3459 ± 0.03 nats.
"""

from functools import partial

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.evaluation import invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Chain, Coupling, Dense, Reverse, Stack, Standardize
from gen_jax.models.flow import Flow, Normal
from gen_jax.optimizers import adamw


def config(
    data: str = "two_moons",
    width: int = 64,
    depth: int = 8,
    lr: float = 1e-3,
    batch: int = 256,
    steps: int = 5000,
    smoke: bool = False,
) -> Experiment:
    """Affine couplings that take turns with the two coordinates.

    Args:
        data: points in the plane, or rows of a table, by name or path
        width: of the two hidden layers of each network
        depth: couplings
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    points = load(data)
    dimensions = points.vectors()
    width, depth = (8, 2) if smoke else (width, depth)
    coupling = Coupling(network=partial(Dense, hidden=(width, width)))
    model = Flow(Normal((dimensions,)), [Stack(Chain([coupling, Reverse()]), depth), Standardize()])
    return Experiment(
        model,
        descent(model, {"flow": adamw(lr, steps, clip=10.0)}),
        data=points,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood, invertibility],
        plots=[plots.flow_density, plots.warped_grid, plots.latent_space] if dimensions == 2 else [plots.marginals],
        chunk=10,
    )
