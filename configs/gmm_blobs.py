"""Gaussian mixture by EM on three blobs.

python train.py configs/gmm_blobs.py
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.evaluation import log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.gmm import GMM


def config(components: int = 3, steps: int = 200, tolerance: float = 1e-6, smoke: bool = False) -> Experiment:
    """Each step is one iteration of EM over all of the data.

    Args:
        components: number of Gaussians
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats) changes by less
    """
    model = GMM(components)
    return Experiment(
        model,
        em(model),
        data="blobs",
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood],
        plots=[plots.scatter, plots.density],
        evaluate_every=50,
        plot_every=50,
        checkpoint_every=50,
        hooks=[StopWhen("log_likelihood", tolerance)],
    )
