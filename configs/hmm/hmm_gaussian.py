"""Hidden Markov model with Gaussian emissions by Baum-Welch on sequences in the plane, whose true states are known.

python train.py configs/hmm/hmm_gaussian.py

Results (26 s, 1 x cpu, 2 cores, 2026-11-22): likelihood = -3.699 ± 0.01 nats/step.
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.evaluation import log_likelihood, log_likelihood_per_step
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.restarts import best_restart


def config(
    data: str = "gaussian_hmm",
    states: int = 3,
    restarts: int = 4,
    steps: int = 200,
    tolerance: float = 1e-3,
    smoke: bool = False,
) -> Experiment:
    """Each step is one iteration of Baum-Welch over all sequences.

    Args:
        data: sequences of vectors, by name or path
        states: number of hidden states
        restarts: starts from k-means++, of which the best after 10 iterations goes on
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats per sequence) changes by less
    """
    sequences = load(data)
    info = sequences.sequences()
    model = HMM(states, Gaussian(missing=info.missing))
    return Experiment(
        model,
        best_restart(em(model), 2 if smoke else restarts, "log_likelihood", iterations=2 if smoke else 10),
        data=sequences,
        missing=info.missing,
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood, log_likelihood_per_step],
        plots=[plots.states, plots.state_sequence, plots.restarts],
        evaluate_every=50,
        plot_every=50,
        checkpoint_every=50,
        hooks=[StopWhen("log_likelihood", tolerance)],
    )
