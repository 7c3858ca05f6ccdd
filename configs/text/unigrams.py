"""Mixture of unigrams (Nigam et al. 2000) by EM: each window of a text has one distribution of tokens.

python train.py unigrams
python train.py unigrams --data my.txt --tokenizer words --states 50
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.data.text import Windows
from gen_jax.evaluation import text_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.hmm import HMM, left_right
from gen_jax.models.hmm.emissions import Categorical


def config(
    states: int = 16,
    data: str = "tales",
    context: int = 128,
    prior: float = 0.01,
    steps: int = 40,
    tolerance: float = 0.02,
    smoke: bool = False,
) -> Experiment:
    """A chain that never leaves its first state; each step is one iteration of EM over all windows of the text.

    Args:
        states: number of components
        data: a text, or a folder of texts, by name or path
        context: tokens of a window
        prior: pseudo-counts of each token in each component
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats per window) changes by less
    """
    text = load(data, text="tokens")
    tokenizer = text.tokens()
    states = 4 if smoke else states
    emission = Categorical(tokenizer.size, 1 + prior)
    model = HMM(states, emission, left_right(states, 0), length=context + 1)
    return Experiment(
        model,
        em(model),
        data=text,
        windows=Windows(context, max(1, context // 2)),
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[text_likelihood],
        plots=[plots.text_samples],
        evaluate_every=20,
        plot_every=20,
        checkpoint_every=20,
        hooks=[StopWhen("log_likelihood", tolerance)],
    )
