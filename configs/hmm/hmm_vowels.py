"""Speakers told apart by one hidden Markov model each (Kudo et al. 1999): Japanese vowels if prepared, else synthetic.

python -m gen_jax data prepare japanese_vowels --manual-dir DIR
python train.py configs/hmm/hmm_vowels.py

Results (18 s, 1 x cpu, 2 cores, 2026-11-22): likelihood = 140.7 ± 4 nats; accuracy 0.9757 ± 0.008 share.
"""

from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.evaluation import accuracy, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.hmm import HMM, left_right
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.models.mixture import DIAGONAL, FULL, ClassConditional, Prior


def config(
    states: int = 4,
    data: str = first_available("japanese_vowels", "vowels"),
    full: bool = True,
    shrinkage: float = 10.0,
    steps: int = 50,
    tolerance: float = 0.01,
    smoke: bool = False,
) -> Experiment:
    """Each step is one iteration of Baum-Welch for all speakers at once.

    Args:
        states: number of hidden states, passed through from first to last
        data: sequences of vectors with labels, by name or path
        full: full covariances instead of diagonal ones
        shrinkage: steps of speech that the prior of each covariance is worth
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats per sequence) changes by less
    """
    sequences = load(data)
    info = sequences.sequences(labels=True)
    emission = Gaussian(FULL if full else DIAGONAL, prior=Prior(pseudo_counts=shrinkage, mode=0.1))
    model = ClassConditional(HMM(states, emission, left_right(states), length=info.shape[0]), info.classes)
    return Experiment(
        model,
        em(model),
        data=sequences,
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[accuracy, log_likelihood],
        evaluate_every=10,
        plot_every=50,
        checkpoint_every=10,
        hooks=[StopWhen("log_likelihood", tolerance)],
    )
