"""Networks from images to images (B, H, W, C) -> (B, H, W, channels) in [-1, 1], of any height and width.

Images whose sides are no multiple of what the network halves are padded by reflection, and the result is cropped.
Dropout is active if there is a key for it. Kernels start from a normal distribution of deviation 0.02, as in the
references. `dtype` is the compute dtype of convolutions; parameters stay float32, and normalization is computed in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.models.common.convolutions import Conv, ConvTranspose
from gen_jax.models.common.normalization import Normalization, batch, instance_norm

__all__ = ["FEATURES", "ResNetTranslator", "UNet", "blurred_down", "blurred_up", "reflect"]

FEATURES = "features"  # the collection of maps that are kept
SMALL = nn.initializers.normal(0.02)


class UNet(nn.Module):
    """Encoder and decoder with skip connections between mirrored layers (Pix2Pix, Isola et al. 2017, section 6.1.1).

    depth: how often it halves the image. features: channels of the first layer, doubled with every layer up to 8 times.
    dropout: of the decoder's layers after the innermost one, as many as there are beyond a depth of 5. The innermost
    maps are not normalized: of 1x1 normalization would leave nothing. They are kept in the collection "features".
    """

    channels: int = 3
    features: int = 64
    depth: int = 8
    dropout: float = 0.5
    norm: Normalization = batch
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        if self.depth < 2:
            raise ValueError(f"a U-Net halves images at least twice, got depth = {self.depth}")
        height, width = x_BHWC.shape[1:3]
        h = _to_multiple(x_BHWC, 2**self.depth)
        widths = [self.features * min(2**i, 8) for i in range(self.depth)]
        bias = not self.norm.removes_bias(4)
        skips = []
        for i, many in enumerate(widths):
            h = nn.leaky_relu(h, 0.2) if i else h
            inner = i == self.depth - 1
            h = Conv(many, (4, 4), 2, bias or inner or i == 0, SMALL, self.dtype, name=f"down_{i}")(h)
            h = h if inner or i == 0 else self.norm.values(h.astype(jnp.float32))
            skips.append(h)
        h = skips.pop()
        self.sow(FEATURES, "innermost", h)
        for i, many in enumerate(reversed(widths[:-1])):
            h = ConvTranspose(many, (4, 4), 2, bias, SMALL, self.dtype, name=f"up_{i}")(nn.relu(h))
            h = self.norm.values(h.astype(jnp.float32))
            if 1 <= i <= self.depth - 5:
                h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
            h = jnp.concatenate([skips.pop(), h], axis=-1)
        last = ConvTranspose(self.channels, (4, 4), 2, True, SMALL, self.dtype, name=f"up_{self.depth - 1}")
        return jnp.tanh(last(nn.relu(h)).astype(jnp.float32))[:, :height, :width]


class ResNetTranslator(nn.Module):
    """Two halvings, residual blocks, two doublings (Johnson et al. 2016; CycleGAN, Zhu et al. 2017, section 7.2).

    resampling: "strided" convolutions, and transposed ones; "nearest": pixels repeated before a convolution; "blurred":
    filtered before every second pixel is taken, and after doubling (CUT, Park et al. 2020, following Zhang 2019).
    Convolutions of stride 2 and transposed ones have the phase of "SAME" padding: mirror images of the reference's.
    The maps that contrastive losses compare are kept in the collection "features": the padded image, the two halved
    ones before normalization, and those of the first block and of the middle one.
    """

    channels: int = 3
    features: int = 64
    blocks: int = 9
    norm: Normalization = instance_norm(affine=False)
    resampling: Literal["strided", "nearest", "blurred"] = "strided"
    kernel_init: Callable[..., Array] = SMALL
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        height, width = x_BHWC.shape[1:3]
        h = reflect(_to_multiple(x_BHWC, 4), 3)
        self.sow(FEATURES, "padded", h)
        h = self._normalized(self._conv(self.features, 7, "VALID")(h))
        for i, many in enumerate((2 * self.features, 4 * self.features)):
            h = self._conv(many, 3, strides=1 if self.resampling == "blurred" else 2)(h)
            self.sow(FEATURES, f"halved_{i}", h)
            h = self._normalized(h)
            h = blurred_down(h) if self.resampling == "blurred" else h
        for i in range(self.blocks):
            h = _ResidualBlock(self.norm, self.kernel_init, self.dtype)(h)
            if i in (0, self.blocks // 2):
                self.sow(FEATURES, f"block_{i}", h)
        for many in (2 * self.features, self.features):
            h = self._normalized(self._doubled(h, many))
        last = Conv(self.channels, (7, 7), 1, True, self.kernel_init, self.dtype, "VALID")
        return jnp.tanh(last(reflect(h, 3)).astype(jnp.float32))[:, :height, :width]

    def _conv(self, features: int, size: int, padding: str = "SAME", strides: int = 1) -> Conv:
        bias = not self.norm.removes_bias(4)
        return Conv(features, (size, size), strides, bias, self.kernel_init, self.dtype, padding)

    def _normalized(self, h: Array) -> Array:
        return nn.relu(self.norm.values(h.astype(jnp.float32)))

    def _doubled(self, h: Array, features: int) -> Array:
        if self.resampling == "strided":
            return ConvTranspose(features, (3, 3), 2, not self.norm.removes_bias(4), self.kernel_init, self.dtype)(h)
        h = blurred_up(h) if self.resampling == "blurred" else jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return self._conv(features, 3)(h)


class _ResidualBlock(nn.Module):
    """Two convolutions, padded by reflection, added to their input without an activation after."""

    norm: Normalization
    kernel_init: Callable[..., Array]
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        h, features = x_BHWC, x_BHWC.shape[-1]
        for i in range(2):
            bias = not self.norm.removes_bias(4)
            h = Conv(features, (3, 3), 1, bias, self.kernel_init, self.dtype, "VALID")(reflect(h, 1))
            h = self.norm.values(h.astype(jnp.float32))
            h = nn.relu(h) if i == 0 else h
        return x_BHWC + h


def reflect(x_BHWC: Array, n: int) -> Array:
    """Pads by n pixels on every side, mirrored at the outermost ones."""
    return _reflected(x_BHWC, (n, n), (n, n))


def blurred_down(x_BHWC: Array) -> Array:
    """Every second pixel after the filter [1, 2, 1] / 4 along both axes (Zhang 2019)."""
    x = _by_filter(reflect(x_BHWC, 1), jnp.array([1.0, 2.0, 1.0]) / 4)
    return x[:, ::2, ::2]


def blurred_up(x_BHWC: Array) -> Array:
    """The image doubled with zeros between, after the filter [1, 3, 3, 1] / 4 along both axes (Karras et al. 2019)."""
    batch, height, width, channels = x_BHWC.shape
    edge = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    spread = lax.pad(edge, jnp.zeros((), x_BHWC.dtype), ((0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0)))
    x = _by_filter(spread, jnp.array([1.0, 3.0, 3.0, 1.0]) / 4)
    return x[:, : 2 * height, : 2 * width].reshape(batch, 2 * height, 2 * width, channels)


def _by_filter(x_BHWC: Array, taps: Array) -> Array:
    """Every channel filtered along both axes, where the filter fits."""
    for axis in (1, 2):
        size = x_BHWC.shape[axis] - len(taps) + 1
        x_BHWC = sum(t * lax.slice_in_dim(x_BHWC, i, i + size, axis=axis) for i, t in enumerate(taps))
    return x_BHWC


def _to_multiple(x_BHWC: Array, multiple: int) -> Array:
    """Pads the lower and the right side by reflection to a multiple."""
    return _reflected(x_BHWC, *((0, -side % multiple) for side in x_BHWC.shape[1:3]))


def _reflected(x_BHWC: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """Pads by reflection, several times where the image is small."""
    return jnp.pad(x_BHWC, ((0, 0), rows, columns, (0, 0)), mode="reflect")
