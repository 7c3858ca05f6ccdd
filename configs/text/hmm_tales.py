"""Hidden Markov model of characters by EM, beside language models on the same tokens.

python train.py hmm_tales
"""

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.data.text import Windows
from gen_jax.evaluation import text_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Categorical


def config(
    states: int = 48,
    data: str = "tales",
    context: int = 128,
    prior: float = 0.01,
    steps: int = 40,
    tolerance: float = 0.02,
    smoke: bool = False,
) -> Experiment:
    """Each step is one iteration of Baum-Welch over all windows of the text.

    Args:
        states: number of hidden states
        data: a text, or a folder of texts, by name or path
        context: characters of a window
        prior: pseudo-counts of each character in each state
        steps: iterations at most
        tolerance: stop when the mean log-likelihood (nats per window) changes by less
    """
    text = load(data, text="tokens")
    tokenizer = text.tokens()
    model = HMM(4 if smoke else states, Categorical(tokenizer.size, 1 + prior), length=context + 1)
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
