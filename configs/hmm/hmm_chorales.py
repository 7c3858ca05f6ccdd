"""Hidden Markov model of polyphonic music, one bit per key: Bach's chorales where prepared, else a synthetic stand-in.

python -m gen_jax data prepare jsb_chorales --manual-dir DIR
python train.py configs/hmm/hmm_chorales.py

Results (16 s, 1 x cpu, 2 cores, 2026-11-22): likelihood = -7.279 ± 0.1 nats/step.
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.evaluation import log_likelihood_per_step
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Bernoulli


def config(
    states: int = 50,
    data: str = first_available("jsb_chorales", "chorales"),
    stickiness: float = 0.0,
    prior: float = 0.1,
    steps: int = 100,
    tolerance: float = 0.1,
    smoke: bool = False,
) -> Experiment:
    """Each step is one iteration of Baum-Welch over all pieces.

    Args:
        states: number of hidden states
        data: sequences of binary vectors, by name or path
        stickiness: pseudo-counts of staying in a state
        prior: pseudo-counts of either value of each key in each state
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats per piece) changes by less
    """
    sequences = load(data)
    info = sequences.sequences()
    model = HMM(5 if smoke else states, Bernoulli(prior), stickiness=stickiness, length=info.shape[0])
    return Experiment(
        model,
        em(model),
        data=sequences,
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood_per_step],
        plots=[plots.rolls, plots.state_sequence],
        evaluate_every=25,
        plot_every=50,
        checkpoint_every=25,
        hooks=[StopWhen("log_likelihood", tolerance)],
    )
