"""A mixture of Gaussians by gradient descent on its likelihood."""

import optax

from gen_jax import GMM, Experiment, descent, plots
from gen_jax.evaluation import log_likelihood


def config(components: int = 3, lr: float = 0.05, steps: int = 300, smoke: bool = False) -> Experiment:
    """A model with an E-step, and another algorithm.

    Args:
        components: number of Gaussians
        lr: learning rate of Adam
    """
    model = GMM(components)
    return Experiment(
        model,
        descent(model, {"gmm": optax.adam(lr)}),
        data="blobs",
        batch=100,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood],
        plots=[plots.density],
    )
