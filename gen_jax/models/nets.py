"""Small networks for images and vectors, in plain Flax. `dtype` is the type computed in; parameters stay float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers with an activation between them; the last one is linear. (B, *x) -> (B, outputs)."""

    hidden: Sequence[int]
    outputs: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = self.activation(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


class ConvEncoder(nn.Module):
    """Strided convolutions, each halving the image, then a hidden layer. (B, H, W, C) -> (B, outputs)."""

    channels: Sequence[int]
    hidden: int
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for width in self.channels:
            x_BHWC = nn.relu(nn.Conv(width, (3, 3), strides=2, dtype=self.dtype)(x_BHWC))
        x = x_BHWC.reshape(x_BHWC.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`: (B, latent) -> (B, H, W, outputs), doubling the image once per channel width.

    Images grow by a convolution to four times the channels and a rearrangement of those into 2x2 pixels (Shi et al.
    2016), the same kind of map as a transposed convolution and many times faster on CPU.
    """

    size: tuple[int, int]
    channels: Sequence[int]
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        factor = 2 ** len(self.channels)
        height, width = self.size
        if height % factor or width % factor:
            raise ValueError(f"an image of {self.size} cannot be halved {len(self.channels)} times")
        first = (height // factor, width // factor, self.channels[0])
        x = nn.relu(nn.Dense(first[0] * first[1] * first[2], dtype=self.dtype)(z))
        x_BHWC = x.reshape(z.shape[0], *first)
        for width in self.channels:
            x_BHWC = nn.relu(doubled(nn.Conv(4 * width, (3, 3), dtype=self.dtype)(x_BHWC)))
        return nn.Conv(self.outputs, (3, 3), dtype=self.dtype)(x_BHWC).astype(jnp.float32)


def doubled(x_BHWC: jax.Array) -> jax.Array:
    """(B, H, W, 4C) -> (B, 2H, 2W, C): depth to space."""
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)
