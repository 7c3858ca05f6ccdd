"""Generator networks of GANs, (B, latent) -> (B, H, W, C); for vectors use `common.networks.MLP`.

Each takes a normalization from `common.normalization`, and a context (B, n) in a conditional GAN, which then sets the
scale and shift after normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gen_jax.models.common.convolutions import Conv, UpsampleConv
from gen_jax.models.common.networks import downsampled_size
from gen_jax.models.common.normalization import Normalization, batch, none

__all__ = ["DCGANGenerator", "ResNetGenerator", "joined", "smallest"]


class DCGANGenerator(nn.Module):
    """A dense layer to the smallest feature map, then an upsampling convolution per further channel width.

    After Radford et al. 2016, with nearest-neighbor upsampling and convolutions instead of transposed convolutions.
    """

    size: tuple[int, int]
    channels: Sequence[int] = (128, 128, 64)
    outputs: int = 1
    norm: Normalization = batch
    final: Callable[[Array], Array] = nn.sigmoid

    @nn.compact
    def __call__(self, z: Array, *context: Array) -> Array:
        first, *rest = self.channels
        height, width = smallest(self.size, len(rest))
        h = nn.relu(self.norm.weights(nn.Dense(height * width * first))(joined(z, *context)))
        h_BHWC = self.norm.values(h.reshape(-1, height, width, first), *context)
        for features in rest:
            h_BHWC = nn.leaky_relu(self.norm.weights(UpsampleConv(features))(h_BHWC), 0.2)
            h_BHWC = self.norm.values(h_BHWC, *context)
        return self.final(Conv(self.outputs)(h_BHWC))


class ResNetGenerator(nn.Module):
    """Upsampling residual blocks, one per channel width (Miyato et al. 2018, table 4)."""

    size: tuple[int, int]
    channels: Sequence[int] = (128, 128)
    outputs: int = 1
    norm: Normalization = batch
    final: Callable[[Array], Array] = jnp.tanh

    @nn.compact
    def __call__(self, z: Array, *context: Array) -> Array:
        height, width = smallest(self.size, len(self.channels))
        h = self.norm.weights(nn.Dense(height * width * self.channels[0]))(joined(z, *context))
        h_BHWC = h.reshape(-1, height, width, self.channels[0])
        for features in self.channels:
            h_BHWC = _GrowingBlock(features, self.norm)(h_BHWC, *context)
        return self.final(Conv(self.outputs)(nn.relu(self.norm.values(h_BHWC, *context))))


class _GrowingBlock(nn.Module):
    features: int
    norm: Normalization = none

    @nn.compact
    def __call__(self, x_BHWC: Array, *context: Array) -> Array:
        h = nn.relu(self.norm.values(x_BHWC, *context))
        h = self.norm.weights(UpsampleConv(self.features, use_bias=not self.norm.removes_bias(4)))(h)
        h = nn.relu(self.norm.values(h, *context))
        h = self.norm.weights(Conv(self.features))(h)
        short = self.norm.weights(Conv(self.features, (1, 1)))(x_BHWC)  # commutes with repeating pixels, cheaper before
        return h + jnp.repeat(jnp.repeat(short, 2, axis=1), 2, axis=2)


def smallest(size: tuple[int, int], times: int) -> tuple[int, int]:
    """The size of a generator's first feature map, before `times` doublings."""
    try:
        return downsampled_size(size, times)
    except ValueError:
        raise ValueError(f"doubling {times} times cannot reach an image of {size}: give other channels") from None


def joined(z: Array, *context: Array) -> Array:
    """Concatenates the noise and the condition."""
    return jnp.concatenate([z, *context], axis=-1)
