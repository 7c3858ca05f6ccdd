"""Neural spline flow on 8x8 digits given their labels: p(x | y).

python train.py configs/flow/conditional_nsf_digits.py

Results (95 s, 1 x cpu, 2 cores, 2026-11-23): likelihood ≤ 1.94 ± 0.02 bits/dim.
"""

from functools import partial

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.data.transforms import dequantize
from gen_jax.evaluation import invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import (
    ActNorm,
    Chain,
    Coupling,
    Dense,
    Flattened,
    Permutation,
    RationalQuadraticSpline,
    Sigmoid,
    Stack,
)
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.flow import Flow, Normal
from gen_jax.optimizers import adamw, kernels


def config(
    bins: int = 8,
    width: int = 64,
    depth: int = 8,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 1000,
    smoke: bool = False,
) -> Experiment:
    """As `nsf_digits`, every network told of the label.

    Args:
        bins: pieces of each spline
        width: of the two hidden layers of each network
        depth: couplings
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    digits = load("digits").info
    bins, width, depth = (4, 8, 2) if smoke else (bins, width, depth)
    coupling = Coupling(RationalQuadraticSpline(bins), partial(Dense, hidden=(width, width)))
    step = Chain([coupling, Permutation(), ActNorm()])
    model = Flow(Normal(digits.shape), [Flattened(Stack(step, depth)), Sigmoid()], ClassLabels(digits.classes))
    tx = adamw(lr, steps, weight_decay=1e-2, clip=50.0, decayed=kernels)
    return Experiment(
        model,
        with_ema(descent(model, {"flow": tx}), "flow", 0.99),
        data="digits",
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[dequantize(digits.levels)],
        metrics=[log_likelihood, invertibility],
        plots=[plots.samples, plots.temperatures],
        evaluate_every=250,
        plot_every=250,
        checkpoint_every=250,
        best=Best("validation/log_likelihood", "max"),
    )
