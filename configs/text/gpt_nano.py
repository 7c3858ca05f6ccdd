"""GPT-2 of characters by the recipe of nanoGPT's CPU run: AdamW with cosine decay, learned positions, tied embedding.

python -m gen_jax data prepare tinyshakespeare --manual-dir DIR
python train.py gpt_nano
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.text import Windows
from gen_jax.evaluation import text_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.text import gpt2
from gen_jax.optimizers import matrices


def config(
    data: str = first_available("tinyshakespeare", "tales"),
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    context: int = 64,
    dropout: float = 0.0,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    batch: int = 12,
    steps: int = 2000,
    train: str = "train",
    smoke: bool = False,
) -> Experiment:
    """With --width 384 --depth 6 --heads 6 --context 256 --batch 64 --dropout 0.2 --steps 5000 its GPU run.

    Args:
        data: a text, or a folder of texts, by name or path
        width: of the network
        depth: number of blocks
        heads: of attention
        context: tokens that a prediction sees at most
        dropout: share of activations dropped in training
        lr: learning rate; decays to a tenth
        weight_decay: of matrices and embeddings
        batch: windows per step
        steps: training steps
        train: split for training; train+validation uses both
    """
    if smoke:
        width, depth, context, batch, steps = 16, 2, 16, 4, min(steps, 20)
    text = load(data, text="tokens")
    tokenizer = text.tokens()
    model = gpt2(tokenizer.size, tokenizer.end, context, width, depth, heads, dropout=dropout)
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, min(100, steps // 10), steps, lr / 10)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.99, weight_decay=weight_decay, mask=matrices)
    )
    return Experiment(
        model,
        descent(model, {"lm": tx}),
        data=text,
        windows=Windows(context, max(1, context // 2)),
        batch=batch,
        steps=steps,
        chunk=10,
        metrics=[text_likelihood],
        plots=[plots.loss_by_position, plots.text_samples],
        evaluate_every=250,
        plot_every=1000,
        checkpoint_every=250,
        train=train,
    )
