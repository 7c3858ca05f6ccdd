"""Glow on 8x8 digits (Kingma & Dhariwal 2018, arXiv:1807.03039), dequantized uniformly or by a learned flow.

python train.py configs/flow/glow_digits.py

Results (270 s, 1 x cpu, 2 cores, 2026-11-23): likelihood ≤ 2.257 ± 0.03 bits/dim.
"""

from functools import partial
from typing import Literal

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.data.transforms import dequantize
from gen_jax.evaluation import elbo, invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Convolutional, Sigmoid, glow
from gen_jax.models.flow import Dequantized, Flow, Normal
from gen_jax.optimizers import adamw, kernels


def config(
    data: str = "digits",
    dequantization: Literal["uniform", "variational"] = "uniform",
    levels: int = 2,
    depth: int = 6,
    width: int = 32,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 2000,
    smoke: bool = False,
) -> Experiment:
    """Bits per dimension are of the 17 gray levels.

    Args:
        data: images of whole numbers, by name or path; sides must be multiples of 2^levels
        dequantization: of the integers: uniform noise, or noise that is learned (Flow++)
        levels: resolutions
        depth: steps of flow at each
        width: features of the networks
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    images = load(data)
    info = images.images(multiple=2 ** (1 if smoke else levels))
    levels, depth, width = (2, 1, 4) if smoke else (levels, depth, width)
    network = partial(Convolutional, width=width, blocks=1)
    model = Flow(Normal(info.shape), [glow(levels, depth, network), Sigmoid()])
    learned = dequantization == "variational"
    if learned:
        model = Dequantized(model, network(2), levels=info.levels)
    tx = adamw(lr, steps, weight_decay=1e-2, clip=50.0, decayed=kernels)
    return Experiment(
        model,
        with_ema(descent(model, {"flow": tx}), "flow", 0.99),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[] if learned else [dequantize(info.levels)],
        metrics=[elbo] if learned else [log_likelihood, invertibility],
        plots=[plots.samples, plots.temperatures],
        evaluate_every=500,
        plot_every=500,
        checkpoint_every=500,
        best=Best("validation/elbo" if learned else "validation/log_likelihood", "max"),
    )
