"""N-gram model with modified Kneser-Ney smoothing (Chen & Goodman 1999), exact, counted in one step.

python train.py ngram
python train.py ngram --data my.txt --order 5 --tokenizer bpe
"""

from gen_jax import plots
from gen_jax.algorithms import closed_form
from gen_jax.data import load
from gen_jax.data.text import Windows
from gen_jax.evaluation import text_likelihood, text_quality
from gen_jax.experiment import Experiment
from gen_jax.models.text import NGram
from gen_jax.sharding import Layout


def config(
    data: str = "tales", order: int = 7, train: str = "train", steps: int = 1, smoke: bool = False
) -> Experiment:
    """The baseline of every language model: the same tokens, the same windows, no seed.

    Args:
        data: a text, or a folder of texts, by name or path
        order: the longest n-grams
        train: split to count; train+validation uses both
        steps: one is enough
    """
    text = load(data, text="tokens")
    tokenizer = text.tokens()
    order, context = (2, 32) if smoke else (order, 256)
    model = NGram(tokenizer.size, tokenizer.end, order, context)
    return Experiment(
        model,
        closed_form(model),
        data=text,
        windows=Windows(context, context // 2, whole=True),
        layout=Layout(data=1),  # the text is counted as one
        steps=steps,
        metrics=[text_likelihood, text_quality()],
        plots=[plots.text_samples],
        train=train,
    )
