"""DCGAN on the embedded 8x8 digits (Radford et al. 2016), every part of it a knob.

python train.py configs/gan/dcgan_digits.py
python train.py configs/gan/dcgan_digits.py --loss hinge --penalty r1 --norm spectral

Results (78 s, 1 x cpu, 2 cores, 2026-11-23): frechet_distance@digits_cnn 2.243 ± 0.2 features^2; classes 10
of 10; class_kl 0.002561 nats; confidence 0.9385 ± 0.001 share.
"""

from typing import Literal

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import load
from gen_jax.data.transforms import scale
from gen_jax.evaluation import sample_metrics, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common import normalization
from gen_jax.models.common.networks import pyramid
from gen_jax.models.gan import (
    GAN,
    Adaptive,
    Augmentation,
    Compose,
    DCGANDiscriminator,
    DCGANGenerator,
    InstanceNoise,
    MinibatchDeviation,
    MinibatchDiscrimination,
    Unrolling,
    brightness,
    consistency,
    cutout,
    gradient_penalty,
    losses,
    mode_seeking,
    r1,
    r2,
    translation,
    zero_centered,
)

WITH_LABELS = {
    "minimax": losses.minimax,
    "non_saturating": losses.non_saturating,
    "least_squares": losses.least_squares,
}
LOSSES = {"hinge": losses.hinge, "wasserstein": losses.wasserstein, "relativistic": losses.relativistic}
PENALTIES = {
    "none": lambda weight, every: (),
    "gradient_penalty": lambda weight, every: (gradient_penalty(weight, every=every),),
    "zero_centered": lambda weight, every: (zero_centered(weight, every),),
    "r1": lambda weight, every: (r1(weight, every),),
    "r2": lambda weight, every: (r2(weight, every),),
    "consistency": lambda weight, every: (consistency(translation(), weight, every),),
}
NORMS = {
    "none": normalization.none,
    "batch": normalization.batch,
    "instance": normalization.instance,
    "pixel": normalization.pixel,
    "spectral": normalization.spectral,
}


def config(
    data: str = "digits",
    latent: int = 64,
    loss: Literal[
        "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"
    ] = "non_saturating",
    smoothing: float = 0.0,
    penalty: Literal["none", "gradient_penalty", "zero_centered", "r1", "r2", "consistency"] = "r1",
    penalty_weight: float = 1.0,
    penalty_every: int = 1,
    norm: Literal["none", "instance", "pixel", "spectral", "batch"] = "none",
    augmentation: Literal["none", "noise", "diff", "adaptive"] = "none",
    batchwise: Literal["none", "discrimination", "deviation"] = "none",
    packing: int = 1,
    unrolled: int = 0,
    diversity: float = 0.0,
    every: int = 1,
    dropout: float = 0.0,
    lr: float = 1e-3,
    lr_discriminator: float = 1e-3,
    ema: float = 0.99,
    batch: int = 64,
    steps: int = 3000,
    smoke: bool = False,
) -> Experiment:
    """A generator with batch normalization against strided convolutions.

    Args:
        data: images of whole numbers, by name or path; sides must be multiples of 4
        latent: dimensions of the generator's noise
        loss: see `gen_jax.models.gan.losses`
        smoothing: of the label "real", for the losses that have labels
        penalty: see `gen_jax.models.gan.regularizers`
        penalty_weight: its weight
        penalty_every: it is computed on every n-th step, n times as strong
        norm: what normalizes the discriminator
        augmentation: noise that fades, DiffAugment, or DiffAugment with a probability that adapts (ADA)
        batchwise: a look at the whole batch before the discriminator's last layer
        packing: examples the discriminator judges together
        unrolled: steps of the discriminator that the generator foresees
        diversity: weight of the mode-seeking regularizer, by which different noise gives different images
        every: steps of the discriminator for each of the generator
        dropout: in the discriminator
        lr: learning rate of the generator (Adam)
        lr_discriminator: learning rate of the discriminator
        ema: decay of the averaged generator that evaluation and samples use
        batch: real examples, and generated ones, per step
    """
    images = load(data)
    info = images.images(multiple=4)
    size, colors = info.shape[:2], info.shape[-1]
    widths = pyramid(size, 4, 8) if smoke else pyramid(size, 32)
    channels = (8 if smoke else min(256, 2 * widths[-1]), *widths[::-1])
    looks = {
        "none": (),
        "discrimination": (MinibatchDiscrimination(),),
        "deviation": (MinibatchDeviation(),),
    }
    ops = (brightness(0.3), translation(), cutout(0.3))
    augmentations = {
        "none": Augmentation(),
        "noise": InstanceNoise(0.2, max(1, steps // 2)),
        "diff": Compose(ops),
        "adaptive": Adaptive(ops, examples=50_000),
    }
    if smoothing and loss not in WITH_LABELS:
        raise ValueError(f"the loss {loss} has no labels to smooth: use smoothing=0")
    by_discriminator = optax.adam(lr_discriminator, b1=0.5, b2=0.99, eps_root=1e-16)
    model = GAN(
        DCGANGenerator(size, channels, colors),
        DCGANDiscriminator(
            channels[:0:-1],
            norm=NORMS[norm],
            batchwise=looks[batchwise],
            dropout=dropout,
        ),
        latent,
        WITH_LABELS[loss](smoothing) if loss in WITH_LABELS else LOSSES[loss](),
        regularizers=(
            *PENALTIES[penalty](penalty_weight, penalty_every),
            *((mode_seeking(diversity),) if diversity else ()),
        ),
        every=every,
        augmentation=augmentations[augmentation],
        packing=packing,
        unrolling=Unrolling(unrolled, by_discriminator) if unrolled else None,
    )
    tx = {"discriminator": by_discriminator, "generator": optax.adam(lr, b1=0.5, b2=0.99)}
    drawn = 200 if smoke else 2000
    return Experiment(
        model,
        with_ema(descent(model, tx), "generator", ema),
        data=images,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[scale(0, 1, levels=info.levels)],
        metrics=[*sample_metrics(info, drawn), stability],
        plots=[plots.samples, plots.real_and_fake, plots.noise_interpolations],
        plot_every=500,
    )
