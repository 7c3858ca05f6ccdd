"""Glow on MNIST (Kingma & Dhariwal 2018, arXiv:1807.03039).

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/flow/glow_mnist.py                   (made for a GPU)
"""

from functools import partial

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import dequantize
from gen_jax.evaluation import invertibility, log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.bijections import Convolutional, Sigmoid, glow
from gen_jax.models.flow import Flow, Normal
from gen_jax.optimizers import adamw


def config(
    data: str = first_available("mnist", "digits28"),
    levels: int = 2,
    depth: int = 16,
    width: int = 64,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 20000,
    smoke: bool = False,
) -> Experiment:
    """Uniformly dequantized, in logits with alpha = 0.05; bits per dimension of 8-bit images.

    Args:
        data: images of whole numbers, by name or path; sides must be multiples of 2^levels
        levels: resolutions after the first
        depth: steps of flow at each
        width: features of the networks
        lr: learning rate of AdamW at the start of its cosine decay
        batch: examples per step
    """
    levels, depth, width = (1, 1, 4) if smoke else (levels, depth, width)
    images = load(data)
    info = images.images(multiple=2**levels)
    network = partial(Convolutional, width=width, blocks=1)
    model = Flow(Normal(info.shape), [glow(levels, depth, network), Sigmoid()])
    batch = 16 if smoke else batch
    return Experiment(
        model,
        with_ema(descent(model, {"flow": adamw(lr, steps, clip=50.0)}), "flow", 0.999),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[dequantize(info.levels)],
        metrics=[log_likelihood, invertibility],
        plots=[plots.samples, plots.temperatures],
    )
