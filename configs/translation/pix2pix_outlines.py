"""Pix2Pix (Isola et al. 2017): from outlines of digits to the digits, or on pairs of your own images.

python train.py pix2pix_outlines
python train.py pix2pix_outlines --data photos/inputs --partner photos/outputs
python train.py pix2pix_outlines --data side_by_side --pairing halves
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.transforms import on, scale
from gen_jax.evaluation import paired_quality
from gen_jax.experiment import Experiment
from gen_jax.models.gan import PatchDiscriminator, mode_seeking
from gen_jax.models.translation import Pix2Pix, UNet
from gen_jax.optimizers import warm_down


def config(
    data: str = "outlines",
    features: int = 16,
    depth: int = 5,
    layers: int = 1,
    l1: float = 100.0,
    noise: int = 0,
    seeking: float = 0.0,
    dropout: float = 0.5,
    lr: float = 2e-4,
    decay: float = 0.5,
    ema: float = 0.99,
    batch: int = 8,
    steps: int = 1500,
    smoke: bool = False,
) -> Experiment:
    """U-Net and discriminator of patches; the reference has features 64, depth 8, layers 3, batch 1, at 256x256.

    Args:
        data: pairs of images, by name or path
        features: channels of the first layer of both networks
        depth: how often the U-Net halves an image
        layers: strided convolutions of the discriminator; its patches must fit into the images
        l1: weight of the mean absolute difference to the truth
        noise: channels of noise beside the source, for several answers; 0 leaves only dropout
        seeking: weight of mode seeking: answers to other noise should differ
        dropout: in the U-Net's decoder, in depth - 5 of its layers
        lr: learning rate of Adam for both players
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0; 0 keeps it constant
        ema: decay of the averaged generator that evaluation and translation use
        batch: pairs per step
        steps: training steps
    """
    pairs = load(data)
    levels = pairs.images().levels
    if smoke:
        features, depth, batch, steps = 4, 3, 4, min(steps, 20)
    channels = pairs["train"]["y"].shape[-1]
    model = Pix2Pix(
        UNet(channels, features, depth, dropout),
        PatchDiscriminator(features, layers),
        l1,
        noise=noise,
        regularizers=[mode_seeking(seeking, channels=channels)] if seeking else [],
    )
    tx = optax.adam(warm_down(lr, steps, share=decay), b1=0.5)
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", ema),
        data=pairs,
        batch=batch,
        steps=steps,
        transforms=[scale(-1, 1, levels), on("y", scale(-1, 1, levels))],
        metrics=[paired_quality(often=20 if smoke else 100)],
        plots=[plots.translations],
        report_every=50,
        evaluate_every=500,
        plot_every=500,
        checkpoint_every=500,
    )
