"""Generative adversarial networks: models, networks, losses, regularizers and augmentations."""

from gen_jax.models.gan.augmentations import (
    Adaptive,
    Augmentation,
    Compose,
    InstanceNoise,
    brightness,
    contrast,
    cutout,
    translation,
)
from gen_jax.models.gan.discriminators import (
    DCGANDiscriminator,
    MinibatchDeviation,
    MinibatchDiscrimination,
    MLPDiscriminator,
    PatchDiscriminator,
    ResNetDiscriminator,
    receptive_field,
)
from gen_jax.models.gan.gan import GAN, Unrolling
from gen_jax.models.gan.generators import DCGANGenerator, ResNetGenerator
from gen_jax.models.gan.losses import (
    AdversarialLoss,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    wasserstein,
)
from gen_jax.models.gan.regularizers import (
    Regularizer,
    consistency,
    drift,
    gradient_penalty,
    mode_seeking,
    r1,
    r2,
    zero_centered,
)

__all__ = [
    "GAN",
    "Adaptive",
    "AdversarialLoss",
    "Augmentation",
    "Compose",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "InstanceNoise",
    "MLPDiscriminator",
    "MinibatchDeviation",
    "MinibatchDiscrimination",
    "PatchDiscriminator",
    "Regularizer",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "Unrolling",
    "brightness",
    "consistency",
    "contrast",
    "cutout",
    "drift",
    "gradient_penalty",
    "hinge",
    "least_squares",
    "minimax",
    "mode_seeking",
    "non_saturating",
    "r1",
    "r2",
    "receptive_field",
    "relativistic",
    "translation",
    "wasserstein",
    "zero_centered",
]
