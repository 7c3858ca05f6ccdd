"""Transformer language model of characters with rotary positions and Muon, on embedded tales.

python train.py gpt_tales
python train.py gpt_tales --data my.txt --tokenizer bpe
"""

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.data.text import Windows
from gen_jax.evaluation import text_likelihood, text_quality
from gen_jax.experiment import Experiment
from gen_jax.models.text import modern_lm
from gen_jax.optimizers import muon, warm_down


def config(
    data: str = "tales",
    width: int = 128,
    depth: int = 4,
    heads: int = 2,
    context: int = 128,
    dropout: float = 0.1,
    lr: float = 0.01,
    adam_lr: float = 0.003,
    weight_decay: float = 0.1,
    batch: int = 16,
    steps: int = 600,
    evaluate_every: int = 200,
    train: str = "train",
    smoke: bool = False,
) -> Experiment:
    """Every token is predicted once per epoch, from contexts of all lengths up to `context`.

    Args:
        data: a text, or a folder of texts, by name or path
        width: of the network
        depth: number of blocks
        heads: of attention
        context: tokens that a prediction sees at most
        dropout: share of activations dropped in training
        lr: learning rate of Muon, for the kernels of the blocks
        adam_lr: learning rate of Adam, for all else
        weight_decay: of all weights
        batch: windows per step
        steps: training steps
        evaluate_every: steps between evaluations, pictures and checkpoints
        train: split for training; train+validation uses both
    """
    if smoke:
        width, depth, context, batch, steps = 16, 2, 16, 4, min(steps, 20)
    text = load(data, text="tokens")
    tokenizer = text.tokens()
    model = modern_lm(tokenizer.size, tokenizer.end, context, width, depth, heads, text.info.documents, dropout=dropout)
    tx = muon(warm_down(lr, steps), warm_down(adam_lr, steps), weight_decay, clip=1.0)
    return Experiment(
        model,
        descent(model, {"lm": tx}),
        data=text,
        windows=Windows(context, max(1, context // 2)),
        batch=batch,
        steps=steps,
        chunk=10,
        metrics=[text_likelihood, text_quality()],
        plots=[plots.loss_by_position, plots.calibration, plots.attention_maps, plots.text_samples],
        report_every=50,
        evaluate_every=evaluate_every,
        plot_every=evaluate_every,
        checkpoint_every=evaluate_every,
        best=Best("validation/bits_per_character", "min"),
        train=train,
    )
