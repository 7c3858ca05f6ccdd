"""Three digits in the channels of one image, of 1,000 classes: the test of mode collapse of images (Metz et al. 2017).

python train.py configs/gan/stacked_digits.py
python train.py configs/gan/stacked_digits.py --data mnist       # stacked MNIST, where it is prepared

Results (2289 s, 1 x cpu, 2 cores, 2026-11-23): classes 1000 of 1000; class_kl 0.1244 nats; confidence 0.8756
± 0.001 share.
"""

from typing import Literal

import optax

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.data.transforms import scale, stack_images
from gen_jax.evaluation import class_coverage, stability
from gen_jax.experiment import Experiment
from gen_jax.models.gan import GAN, DCGANDiscriminator, DCGANGenerator, r1, r2, relativistic


def config(
    data: Literal["digits", "digits28", "mnist"] = "digits",
    latent: int = 64,
    penalty: float = 1.0,
    packing: int = 1,
    lr: float = 1e-3,
    ema: float = 0.99,
    batch: int = 64,
    steps: int = 5000,
    smoke: bool = False,
) -> Experiment:
    """Every batch stacks its images anew, so that there are as many examples as triples.

    Args:
        data: the set of single digits
        latent: dimensions of the generator's noise
        penalty: weight of the discriminator's squared gradients on real and on fake examples (R1, R2)
        packing: examples the discriminator judges together
        lr: learning rate of Adam for both players
        ema: decay of the averaged generator that evaluation and samples use
        batch: real examples, and generated ones, per step
    """
    side, levels = (8, 17) if data == "digits" else (28, 256)
    channels = (8, 8, 4) if smoke else (128, 64, 32)
    model = GAN(
        DCGANGenerator((side, side), channels, 3),
        DCGANDiscriminator(channels[:0:-1], dropout=0.0),
        latent,
        relativistic(),
        regularizers=(r1(penalty), r2(penalty)),
        packing=packing,
    )
    tx = optax.adam(lr, b1=0.5, b2=0.99)
    return Experiment(
        model,
        with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", ema),
        data=data,
        batch=batch,
        steps=min(steps, 20) if smoke else steps,
        transforms=[scale(0, 1, levels), stack_images(3)],
        metrics=[class_coverage(samples=200 if smoke else 26_000), stability],
        plots=[plots.samples, plots.real_and_fake, plots.noise_interpolations],
    )
