"""Letters to phonemes (CMU Pronouncing Dictionary); numbers in words where it is not prepared.

python -m gen_jax data prepare cmudict --manual-dir DIR
python train.py phonemes
"""

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.evaluation import log_likelihood, text_to_text_quality
from gen_jax.experiment import Experiment
from gen_jax.models.text import transformer
from gen_jax.optimizers import muon, warm_down

DATA = first_available("cmudict", "numbers")


def config(
    data: str = DATA,
    width: int = 128,
    depth: int = 3,
    heads: int = 2,
    dropout: float = 0.1,
    smoothing: float = 0.0,
    lr: float = 0.02,
    adam_lr: float = 0.003,
    weight_decay: float = 0.1,
    source: int = 128,
    target: int = 128,
    batch: int = 32,
    steps: int = 1500,
    smoke: bool = False,
) -> Experiment:
    """Words may have several pronunciations: any of them is right.

    Args:
        data: pairs of texts, by name or path
        width: of the network
        depth: number of blocks, of the encoder and of the decoder
        heads: of attention
        dropout: share of activations dropped in training
        smoothing: of labels
        lr: learning rate of Muon, for the kernels of the blocks
        adam_lr: learning rate of Adam, for all else
        weight_decay: of all weights
        source: tokens in a row of sources, more if one is longer
        target: tokens in a row of targets, more if one is longer
        batch: rows per step
        steps: training steps
    """
    if smoke:
        width, depth, heads, source, target, batch, steps = 16, 1, 2, 16, 16, 4, min(steps, 20)
        data = "numbers" if data == DATA else data
    pairs = load(data, text="pairs", defaults={"tokenizer": "words", "vocabulary": 420})
    tokenizer = pairs.tokens(pairs=True)
    length = max(pairs[split]["y"].shape[1] for split in pairs.splits)
    model = transformer(tokenizer.size, tokenizer.end, width, depth, heads, length, smoothing, dropout=dropout)
    tx = muon(warm_down(lr, steps), warm_down(adam_lr, steps), weight_decay, clip=1.0)
    return Experiment(
        model,
        descent(model, {"text_to_text": tx}),
        data=pairs,
        packed=(source, target),
        batch=batch,
        steps=steps,
        chunk=10,
        metrics=[
            log_likelihood,
            text_to_text_quality("exact_match", "word_error", beams=4, examples=50 if smoke else None, often=500),
        ],
        plots=[plots.text_to_text_samples],
        report_every=50,
        evaluate_every=500,
        plot_every=500,
        checkpoint_every=500,
        best=Best("validation/exact_match", "max"),
    )
