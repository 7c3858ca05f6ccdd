"""Mixture of independent categorical pixels (latent class analysis) on the embedded 8x8 digits: exact probabilities.

python train.py configs/mixture/categorical_digits.py
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.evaluation import log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.hmm.emissions import Categorical
from gen_jax.models.mixture import Mixture
from gen_jax.restarts import best_restart


def config(
    data: str = "digits",
    components: int = 20,
    concentration: float = 1.1,
    restarts: int = 4,
    steps: int = 100,
    smoke: bool = False,
) -> Experiment:
    """Each step is one iteration of EM over all of the data; gray levels are symbols, without noise between them.

    Args:
        data: small images of whole numbers, by name or path
        components: number of classes
        concentration: of the Dirichlet prior of each pixel's levels; 1 gives levels that a class has not seen no
            probability
        restarts: starts from random probabilities, of which the best after 10 iterations goes on
        steps: iterations at most
    """
    images = load(data)
    info = images.images()
    model = Mixture(components, Categorical(info.levels, concentration), shape=info.shape)
    return Experiment(
        model,
        best_restart(em(model), 2 if smoke else restarts, "log_posterior", iterations=2 if smoke else 10),
        data=images,
        train="train[:1344]" if data == "digits" else "train",  # 1344 divides over up to 64 devices
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood],
        plots=[plots.samples, plots.restarts],
        evaluate_every=20,
        plot_every=30,
        checkpoint_every=20,
        hooks=[StopWhen("log_posterior", 1e-3)],
    )
