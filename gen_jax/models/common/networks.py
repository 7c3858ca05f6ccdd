"""Small networks for images and vectors, in plain Flax. `dtype` is the compute dtype; parameters stay float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.models.common.arrays import depth_to_space
from gen_jax.models.common.convolutions import Conv, ConvTranspose
from gen_jax.models.common.normalization import Normalization, none

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "Residual",
    "ResidualDecoder",
    "ResidualEncoder",
    "TransposedDecoder",
    "downsampled_size",
    "pyramid",
]


class MLP(nn.Module):
    """Dense layers with an activation between them; the last one is linear. (B, *x) -> (B, outputs).

    outputs: number of outputs, or their shape. context: additional inputs (B, n).
    """

    hidden: Sequence[int]
    outputs: int | Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    norm: Normalization = none
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *context: jax.Array) -> jax.Array:
        shape = (self.outputs,) if isinstance(self.outputs, int) else tuple(self.outputs)
        x = jnp.concatenate([x.reshape(x.shape[0], -1), *context], axis=-1)
        for width in self.hidden:
            x = self.activation(self.norm.values(self.norm.weights(nn.Dense(width, dtype=self.dtype))(x)))
        x = nn.Dense(math.prod(shape), dtype=self.dtype)(x).astype(jnp.float32)
        return x.reshape(x.shape[0], *shape)


class ConvEncoder(nn.Module):
    """Strided convolutions, each halving the resolution, then a hidden layer. (B, H, W, C) -> (B, outputs)."""

    channels: Sequence[int]
    hidden: int
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *context: jax.Array) -> jax.Array:
        for width in self.channels:
            x_BHWC = nn.relu(Conv(width, strides=2, dtype=self.dtype)(x_BHWC))
        x = jnp.concatenate([x_BHWC.reshape(x_BHWC.shape[0], -1), *context], axis=-1)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`: (B, latent) -> (B, H, W, outputs), doubling the resolution per channel width.

    Upsamples by sub-pixel convolution: a convolution to four times the channels, rearranged into 2x2 pixels (Shi et al.
    2016).
    """

    size: tuple[int, int]
    channels: Sequence[int]
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x_BHWC = nn.relu(_first(self.size, self.channels, self.dtype)(z))
        x_BHWC = x_BHWC.reshape(z.shape[0], *downsampled_size(self.size, len(self.channels)), self.channels[0])
        for features in self.channels:
            x_BHWC = nn.relu(self.upsample(x_BHWC, features))
        return self.pixels(x_BHWC).astype(jnp.float32)

    def upsample(self, x_BHWC: jax.Array, features: int) -> jax.Array:
        return depth_to_space(Conv(4 * features, dtype=self.dtype)(x_BHWC))

    def pixels(self, x_BHWC: jax.Array) -> jax.Array:
        return Conv(self.outputs, dtype=self.dtype)(x_BHWC)


class TransposedDecoder(ConvDecoder):
    """Like `ConvDecoder`, but upsamples by transposed convolutions of stride 2."""

    def upsample(self, x_BHWC: jax.Array, features: int) -> jax.Array:
        return ConvTranspose(features, strides=2, dtype=self.dtype)(x_BHWC)

    def pixels(self, x_BHWC: jax.Array) -> jax.Array:
        return ConvTranspose(self.outputs, dtype=self.dtype)(x_BHWC)


def _first(size: tuple[int, int], channels: Sequence[int], dtype: Any) -> nn.Dense:
    """The dense layer from a vector to the smallest feature map."""
    height, width = downsampled_size(size, len(channels))
    return nn.Dense(height * width * channels[0], dtype=dtype)


class Residual(nn.Module):
    """Pre-activation residual block: x + scale * two convolutions (He et al. 2016). (B, H, W, width) -> the same."""

    width: int
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        h = Conv(self.width, dtype=self.dtype)(nn.relu(x_BHWC))
        h = Conv(self.width, dtype=self.dtype)(nn.relu(h))
        return x_BHWC + self.scale * h


class ResidualEncoder(nn.Module):
    """Halves the resolution per channel width, with a residual block after each. (B, H, W, C) -> (B, outputs).

    If `outputs` is a triple (h, w, D) with the last resolution, the result keeps the spatial axes.
    """

    channels: Sequence[int]
    outputs: int | tuple[int, int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *context: jax.Array) -> jax.Array:
        for width in self.channels:
            x_BHWC = Conv(width, strides=2, dtype=self.dtype)(x_BHWC)
            x_BHWC = Residual(width, dtype=self.dtype)(x_BHWC)
        x_BHWC = nn.relu(x_BHWC)
        if not isinstance(self.outputs, int):
            return nn.Dense(self.outputs[-1], dtype=self.dtype)(x_BHWC).astype(jnp.float32)
        x = jnp.concatenate([x_BHWC.reshape(x_BHWC.shape[0], -1), *context], axis=-1)
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


class ResidualDecoder(nn.Module):
    """The mirror image of `ResidualEncoder`: (B, latent) or (B, h, w, D) -> (B, H, W, outputs)."""

    size: tuple[int, int]
    channels: Sequence[int]
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        smallest = downsampled_size(self.size, len(self.channels))
        if z.ndim == 2:
            x_BHWC = _first(self.size, self.channels, self.dtype)(z).reshape(-1, *smallest, self.channels[0])
        else:
            x_BHWC = nn.Dense(self.channels[0], dtype=self.dtype)(z)
        for features in self.channels:
            x_BHWC = depth_to_space(Conv(4 * features, dtype=self.dtype)(nn.relu(x_BHWC)))
            x_BHWC = Residual(features, dtype=self.dtype)(x_BHWC)
        return Conv(self.outputs, dtype=self.dtype)(nn.relu(x_BHWC)).astype(jnp.float32)


def pyramid(size: tuple[int, int], width: int, most: int = 256) -> tuple[int, ...]:
    """Channel widths of a network for images of this size: one per halving, doubling from `width` up to `most`.

    Halves while both sides are even and longer than 4, but at least twice. Raises ValueError if that is impossible.
    """
    halvings, (height, width_) = 0, size
    while height % 2 == width_ % 2 == 0 and (halvings < 2 or min(height, width_) > 4):
        height, width_, halvings = height // 2, width_ // 2, halvings + 1
    if halvings < 2:
        raise ValueError(f"images of {size[0]}x{size[1]} cannot be halved twice: their sides must be multiples of 4")
    return tuple(min(most, width * 2**i) for i in range(halvings))


def downsampled_size(size: tuple[int, int], times: int) -> tuple[int, int]:
    """The size of an image after halving it `times` times; must divide evenly."""
    if any(side % 2**times for side in size):
        raise ValueError(f"an image of {size} cannot be halved {times} times")
    return tuple(side // 2**times for side in size)
