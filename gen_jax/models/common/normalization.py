"""Activation and weight normalization (batch, instance, pixel, spectral), accepted by all networks of GANs.

    norm.weights(Conv(64))(x)     # a layer, with normalized weights if `norm` normalizes weights
    norm.values(x, *context)      # its output, normalized if `norm` normalizes activations

Modules detect training mode themselves: batch statistics are updated if their collection is mutable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree

__all__ = [
    "STATISTICS",
    "Normalization",
    "batch",
    "batch_norm",
    "instance",
    "instance_norm",
    "mixes_examples",
    "none",
    "pixel",
    "pixel_norm",
    "spectral",
]

STATISTICS = "batch_stats"


class Normalization(NamedTuple):
    """Normalization of activations, of weights, or neither.

    removes_bias: whether it subtracts from values of so many axes any bias added just before. A layer there has none:
    its gradient would be 0 but for rounding, which Adam turns into steps of full length.
    """

    values: Callable[..., Array] = lambda x, *context: x
    weights: Callable[[nn.Module], Callable[[Array], Array]] = lambda layer: layer
    removes_bias: Callable[[int], bool] = lambda axes: False


class _Modulated(nn.Module):
    """Scale and shift of normalized values: learned, or linear functions of the context."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        width = x.shape[-1]
        if not context:
            scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
            return x * scale + self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        (given,) = context
        small = nn.initializers.normal(0.02)
        scale = 1 + nn.Dense(width, use_bias=False, kernel_init=small, name="scale")(given)
        shift = nn.Dense(width, use_bias=False, kernel_init=nn.initializers.zeros, name="shift")(given)
        shape = (len(x), *(1,) * (x.ndim - 2), width)
        return x * scale.reshape(shape) + shift.reshape(shape)


class _Batch(nn.Module):
    momentum: float

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        seen_mean = self.variable(STATISTICS, "mean", jnp.zeros, x.shape[-1:], jnp.float32)
        seen_variance = self.variable(STATISTICS, "variance", jnp.ones, x.shape[-1:], jnp.float32)
        mean, variance = seen_mean.value, seen_variance.value
        if self.is_mutable_collection(STATISTICS):
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            variance = jnp.mean((x - mean) ** 2, axes)
            for seen, new in ((seen_mean, mean), (seen_variance, variance)) if not self.is_initializing() else ():
                seen.value = self.momentum * seen.value + (1 - self.momentum) * lax.stop_gradient(new)
        return _Modulated(name="affine")((x - mean) * lax.rsqrt(variance + 1e-5), *context)


class _Instance(nn.Module):
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        axes = tuple(range(1, x.ndim - 1)) or (-1,)  # for vectors, over the features
        if all(x.shape[axis] == 1 for axis in axes):
            raise ValueError(f"instance normalization of {x.shape[1:]} would leave nothing: take fewer layers")
        centered = x - x.mean(axes, keepdims=True)
        unit = centered * lax.rsqrt(jnp.mean(centered**2, axes, keepdims=True) + 1e-5)
        return _Modulated(name="affine")(unit, *context) if self.affine or context else unit


class _Spectral(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.SpectralNorm(self.layer)(x, update_stats=self.is_mutable_collection(STATISTICS))


def batch_norm(momentum: float = 0.9) -> Normalization:
    """Batch normalization (Ioffe & Szegedy 2015); conditional if there is a context."""
    return Normalization(values=lambda x, *context: _Batch(momentum)(x, *context), removes_bias=lambda axes: True)


def instance_norm(affine: bool = True) -> Normalization:
    """Instance normalization, by the mean and variance of each channel of each example (Ulyanov et al. 2016).

    affine: with a learned scale and shift; CycleGAN has none.
    """
    return Normalization(values=lambda x, *context: _Instance(affine)(x, *context), removes_bias=lambda axes: axes > 2)


def pixel_norm(x: Array, *context: Array) -> Array:
    """Divides by the root mean square over the channels, at each pixel (Karras et al. 2018, section 4.2)."""
    return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-8)


none = Normalization()
"""No normalization."""
batch = batch_norm()
instance = instance_norm()
pixel = Normalization(values=pixel_norm)
spectral = Normalization(weights=_Spectral)
"""Spectral normalization: weights divided by their largest singular value, one power iteration (Miyato et al. 2018)."""


def mixes_examples(statistics: PyTree) -> bool:
    """Whether a network with these statistics normalizes over the batch."""
    paths = (jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(statistics))
    return any(path.endswith("['variance']") for path in paths)
