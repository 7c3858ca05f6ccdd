"""Flow matching on 8x8 digits, as vectors (Lipman et al. 2023, arXiv:2210.02747).

python train.py configs/flow/flow_matching_digits.py
"""

from flax import linen as nn

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.transforms import dequantize
from gen_jax.evaluation import log_likelihood
from gen_jax.evaluation.suite import sample_metrics
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Continuous, Field, Flattened, Standardize
from gen_jax.models.flow import FlowMatching, Normal
from gen_jax.optimizers import adamw


def config(
    data: str = "digits",
    width: int = 512,
    depth: int = 3,
    probes: int = 8,
    tolerance: float = 1e-3,
    lr: float = 1e-3,
    batch: int = 256,
    steps: int = 5000,
    smoke: bool = False,
) -> Experiment:
    """Likelihoods are those of dequantized pixels, with Hutchinson's estimate of the trace.

    Args:
        data: small images of whole numbers, by name or path
        width: of the hidden layers of the field
        depth: how many hidden layers
        probes: of the estimate of the trace; 0 for the exact trace
        tolerance: of the solver
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    images = load(data)
    info = images.images()
    width, depth, tolerance = (16, 2, 1e-2) if smoke else (width, depth, tolerance)
    layer = Flattened(Continuous(Field((width,) * depth, nn.silu), probes, tolerance))
    model = FlowMatching(Normal(info.shape), [layer, Standardize()])
    return Experiment(
        model,
        with_ema(descent(model, {"flow": adamw(lr, steps, clip=50.0)}), "flow", 0.999),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[dequantize(info.levels)],
        metrics=[log_likelihood, *sample_metrics(info, 500 if smoke else 10_000)],
        plots=[plots.samples],
        chunk=10,
        evaluate_every=2500,
        plot_every=1000,
        checkpoint_every=2500,
    )
