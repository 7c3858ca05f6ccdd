"""Image-to-image translation: from pairs (Pix2Pix), and between unpaired domains (CycleGAN, CUT)."""

from gen_jax.models.common.image_to_image import ResNetTranslator, UNet
from gen_jax.models.translation.cut import CUT
from gen_jax.models.translation.cyclegan import CycleGAN
from gen_jax.models.translation.pix2pix import Pix2Pix

__all__ = ["CUT", "CycleGAN", "Pix2Pix", "ResNetTranslator", "UNet"]
