"""Flow matching on two moons (Lipman et al. 2023, arXiv:2210.02747).

python train.py configs/flow/flow_matching_moons.py
"""

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.evaluation import invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Continuous, Field, Standardize
from gen_jax.models.flow import FlowMatching, Normal
from gen_jax.optimizers import adamw


def config(
    data: str = "two_moons",
    width: int = 128,
    tolerance: float = 1e-4,
    lr: float = 3e-3,
    batch: int = 512,
    steps: int = 10_000,
    smoke: bool = False,
) -> Experiment:
    """The field of a continuous flow is regressed on straight lines; only samples and densities solve its equation.

    Args:
        data: points in the plane, or rows of a table, by name or path
        width: of the three hidden layers of the field
        tolerance: of the solver
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    points = load(data)
    dimensions = points.vectors()
    width, tolerance = (8, 1e-2) if smoke else (width, tolerance)
    layer = Continuous(Field((width, width, width)), tolerance=tolerance)
    model = FlowMatching(Normal((dimensions,)), [layer, Standardize()])
    return Experiment(
        model,
        with_ema(descent(model, {"flow": adamw(lr, steps, clip=10.0)}), "flow", 0.99),
        data=points,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood, invertibility],
        plots=[plots.flow_density, plots.warped_grid, plots.latent_space] if dimensions == 2 else [plots.marginals],
        chunk=10,
        evaluate_every=2500,
        plot_every=2500,
        checkpoint_every=2500,
    )
