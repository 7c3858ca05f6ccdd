"""DCGAN with a generator that repeats pixels and convolves, on MNIST (the enlarged digits where it is not prepared).

python -m gen_jax data prepare mnist --manual-dir DIR
python train.py configs/gan/dcgan_mnist.py

Results (1284 s, 1 x cpu, 2 cores, 2026-11-23): frechet_distance@mnist_cnn_50000 28.44 ± 0.2 features^2;
classes 10 of 10; class_kl 0.0304 nats; confidence 0.8397 ± 0.002 share.
"""

from typing import Literal

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data.catalogue import first_available, validation_split
from gen_jax.data.transforms import scale
from gen_jax.evaluation import class_coverage, sample_quality, stability
from gen_jax.experiment import Experiment
from gen_jax.models.common.normalization import batch_norm
from gen_jax.models.gan import GAN, DCGANDiscriminator, DCGANGenerator


def config(
    data: Literal["mnist", "fashion_mnist", "digits28"] = first_available("mnist", "digits28"),
    latent: int = 100,
    dropout: float = 0.25,
    lr: float = 2e-4,
    ema: float = 0.999,
    batch: int = 32,
    steps: int = 6_000,
    smoke: bool = False,
) -> Experiment:
    """Batch normalization in the generator, dropout in the discriminator, the same learning rate for both.

    Args:
        data: the set
        latent: dimensions of the generator's noise
        dropout: in the discriminator
        lr: learning rate of Adam for both players
        ema: decay of the averaged generator that evaluation and samples use
        batch: real examples, and generated ones, per step
    """
    widths, narrowing = ((8, 8, 4), (4, 4, 4)) if smoke else ((128, 128, 64), (32, 64, 128))
    model = GAN(
        DCGANGenerator((28, 28), widths, norm=batch_norm(0.8)),
        DCGANDiscriminator(narrowing, dropout=dropout),
        latent,
    )
    tx = optax.adam(lr, b1=0.5)
    drawn = 200 if smoke else 5000
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", ema),
        data=data,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[scale(0, 1)],
        metrics=[class_coverage(samples=drawn), sample_quality(samples=drawn), stability],
        plots=[plots.samples, plots.real_and_fake, plots.noise_interpolations],
        **validation_split(data),
    )
