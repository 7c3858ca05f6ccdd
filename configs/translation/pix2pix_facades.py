"""Pix2Pix (Isola et al. 2017): from maps of facades to photos at 64x64, or from outlines where they are not prepared.

python -m gen_jax data prepare facades --manual-dir DIR
python train.py pix2pix_facades
python train.py pix2pix_facades --data emoji_outlines --shrink 1
"""

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.data.transforms import downsample, flip, jitter, on, scale, shift, together
from gen_jax.evaluation import paired_quality, segmentation_quality
from gen_jax.evaluation.translation import segmenter
from gen_jax.experiment import Experiment
from gen_jax.models.gan import PatchDiscriminator, mode_seeking
from gen_jax.models.translation import Pix2Pix, UNet
from gen_jax.optimizers import warm_down

DATA = first_available("facades", "outlines")


def config(
    data: str = DATA,
    shrink: int = 2,
    features: int = 16,
    depth: int = 6,
    layers: int = 2,
    l1: float = 100.0,
    noise: int = 0,
    seeking: float = 0.0,
    enlarged: float = 286 / 256,
    shifted: int = 0,
    lr: float = 2e-4,
    decay: float = 0.5,
    ema: float = 0.999,
    batch: int = 4,
    steps: int = 5000,
    smoke: bool = False,
) -> Experiment:
    """Both sides are enlarged, cropped and flipped alike; the reference has features 64, 200 epochs with batch 1.

    Args:
        data: pairs of images, by name or path
        shrink: how many pixels along each axis are averaged first
        features: channels of the U-Net's first layer; the discriminator's has twice as many
        depth: how often the U-Net halves an image
        layers: strided convolutions of the discriminator; its patches must fit into the images
        l1: weight of the mean absolute difference to the truth
        noise: channels of noise beside the source, for several answers; 0 leaves only dropout
        seeking: weight of mode seeking: answers to other noise should differ
        enlarged: factor by which training images are enlarged before a random crop; 1 leaves them as they are
        shifted: pixels by which training images are moved at most, along each axis
        lr: learning rate of Adam for both players
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0; 0 keeps it constant
        ema: decay of the averaged generator that evaluation and translation use
        batch: pairs per step
        steps: training steps
    """
    if data == DATA == "outlines":  # where facades are not prepared
        shrink, depth, layers = 1, 5, 1
    if smoke:
        data, shrink, features, depth, layers, batch, steps = "outlines", 1, 4, 3, 1, 4, min(steps, 20)
    pairs = load(data)
    levels = pairs.images(multiple=shrink).levels
    channels = pairs["train"]["y"].shape[-1]
    model = Pix2Pix(
        UNet(channels, features, depth),
        PatchDiscriminator(2 * features, layers),
        l1,
        noise=noise,
        regularizers=[mode_seeking(seeking, channels=channels)] if seeking else [],
    )
    tx = optax.adam(warm_down(lr, steps, share=decay), b1=0.5)
    metrics = [paired_quality(often=20 if smoke else 100)]
    if data == "facades":  # maps of classes
        metrics = [paired_quality(segmenter), segmentation_quality()]
    both = ("x", "y")
    smaller = [together(both, downsample(shrink))] if shrink > 1 else []
    moved = [together(both, shift(shifted))] if shifted else []
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", ema),
        data=pairs,
        batch=batch,
        steps=steps,
        transforms=[
            *smaller,
            scale(-1, 1, levels),
            on("y", scale(-1, 1, levels)),
            together(both, jitter(enlarged)),
            together(both, flip()),
            *moved,
        ],
        metrics=metrics,
        plots=[plots.translations],
        report_every=100,
        evaluate_every=1000,
        plot_every=1000,
        checkpoint_every=1000,
    )
