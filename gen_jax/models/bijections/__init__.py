"""Bijections, the layers of normalizing flows. Each is a `Layer`; forward maps noise to data."""

from gen_jax.models.bijections.autoregressive import MaskedAutoregressive
from gen_jax.models.bijections.certificate import Certificate, certify
from gen_jax.models.bijections.conditioners import Convolutional, Dense, Masked
from gen_jax.models.bijections.continuous import Continuous, Field
from gen_jax.models.bijections.coupling import Checkerboard, Coupling
from gen_jax.models.bijections.elementwise import (
    Affine,
    Elementwise,
    RationalQuadraticSpline,
    Scalar,
    Sigmoid,
    Softplus,
    SumOfSigmoids,
)
from gen_jax.models.bijections.images import FactorOut, Squeezed, glow, realnvp
from gen_jax.models.bijections.layer import Chain, Flattened, Inverse, Layer, Stack
from gen_jax.models.bijections.linear import ActNorm, Linear, Permutation, Reverse, Standardize
from gen_jax.models.bijections.planar import Planar, Radial

__all__ = [
    "ActNorm",
    "Affine",
    "Certificate",
    "Chain",
    "Checkerboard",
    "Continuous",
    "Convolutional",
    "Coupling",
    "Dense",
    "Elementwise",
    "FactorOut",
    "Field",
    "Flattened",
    "Inverse",
    "Layer",
    "Linear",
    "Masked",
    "MaskedAutoregressive",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "Reverse",
    "Scalar",
    "Sigmoid",
    "Softplus",
    "Squeezed",
    "Stack",
    "Standardize",
    "SumOfSigmoids",
    "certify",
    "glow",
    "realnvp",
]
