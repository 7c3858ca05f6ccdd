"""Three learning rates as one program, given as the algorithm."""

import numpy as np
import optax

from gen_jax import GMM, Experiment, descent, plots, population
from gen_jax.evaluation import log_likelihood

RATES = np.array([0.01, 0.03, 0.1], np.float32)


def config(steps: int = 100, smoke: bool = False) -> Experiment:
    """Members of a population are evaluated like seeds."""
    model = GMM(3)
    return Experiment(
        model,
        population(lambda rate: descent(model, {"gmm": optax.adam(rate)}), RATES),
        data="blobs",
        batch=100,
        steps=min(steps, 20) if smoke else steps,
        report_every=10,
        metrics=[log_likelihood],
        plots=[plots.density],
    )
