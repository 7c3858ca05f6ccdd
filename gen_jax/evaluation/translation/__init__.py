"""Metrics of image translation, of pairs and of unpaired domains."""

from gen_jax.evaluation.translation.images import absolute_error, partners_found, psnr, ssim
from gen_jax.evaluation.translation.paired import paired_quality
from gen_jax.evaluation.translation.segmentation import segmentation_quality, segmenter
from gen_jax.evaluation.translation.unpaired import unpaired_quality

__all__ = [
    "absolute_error",
    "paired_quality",
    "psnr",
    "partners_found",
    "segmentation_quality",
    "segmenter",
    "ssim",
    "unpaired_quality",
]
