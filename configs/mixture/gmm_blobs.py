"""Gaussian mixture by EM on three blobs.

python train.py configs/mixture/gmm_blobs.py

Results (15 s, 1 x cpu, 2 cores, 2026-11-22): likelihood = -3.999 ± 0.1 nats.
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.evaluation import log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.mixture import GMM, random_from_data, random_responsibilities
from gen_jax.restarts import best_restart


def config(
    data: str = "blobs",
    components: int = 3,
    restarts: int = 8,
    steps: int = 200,
    tolerance: float = 1e-5,
    smoke: bool = False,
) -> Experiment:
    """Each step is one iteration of EM over all of the data.

    Args:
        data: points in the plane, or rows of a table, by name or path
        components: number of Gaussians
        restarts: starts from random points, of which the best after 30 iterations goes on
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats) changes by less
    """
    points = load(data)
    dimensions = points.vectors()
    start = random_responsibilities if smoke else random_from_data  # far from the optimum: a few steps show progress
    model = GMM(components, start=start, missing=points.info.missing)
    return Experiment(
        model,
        best_restart(em(model), restarts, "log_likelihood", iterations=2 if smoke else 30),
        data=points,
        missing=points.info.missing,
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood],
        plots=[*([plots.scatter, plots.density] if dimensions == 2 else [plots.marginals]), plots.restarts],
        evaluate_every=50,
        plot_every=50,
        checkpoint_every=50,
        hooks=[StopWhen("log_likelihood", tolerance)],
    )
