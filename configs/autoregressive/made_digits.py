"""Masked autoencoder on the embedded 8x8 digits: exact probabilities (MADE, Germain et al. 2015, arXiv:1502.03509).

python train.py configs/autoregressive/made_digits.py
python train.py configs/autoregressive/made_digits.py --binary
"""

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.data.transforms import threshold
from gen_jax.evaluation import log_likelihood
from gen_jax.evaluation.suite import sample_metrics
from gen_jax.experiment import Experiment
from gen_jax.models.autoregressive import MADE
from gen_jax.optimizers import adamw, kernels


def config(
    data: str = "digits",
    binary: bool = False,
    hidden: int = 512,
    depth: int = 2,
    lr: float = 2e-3,
    batch: int = 128,
    steps: int = 1000,
    weight_decay: float = 3.0,
    smoke: bool = False,
) -> Experiment:
    """Every gray level is a symbol, predicted from the pixels before it, row by row.

    Args:
        data: small images of whole numbers, by name or path
        binary: pixels are 1 where they are brighter than half
        hidden: units of each hidden layer
        depth: how many hidden layers
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
        weight_decay: pull of AdamW towards zero
    """
    images = load(data)
    info = images.images()
    model = MADE(2 if binary else info.levels, (16, 16) if smoke else (hidden,) * depth)
    tx = adamw(lr, steps, weight_decay, clip=50.0, decayed=kernels)
    return Experiment(
        model,
        with_ema(descent(model, {"made": tx}), "made", 0.99),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[threshold(info.levels)] if binary else [],
        metrics=[log_likelihood, *sample_metrics(info, 500 if smoke else 10_000)],
        plots=[plots.samples],
        chunk=10,
        evaluate_every=250,
        plot_every=500,
        checkpoint_every=250,
        best=Best("validation/log_likelihood", "max"),
    )
