"""Discriminator networks of GANs, (B, *x) -> (B, outputs): the first output is the logit of being real.

A `PatchDiscriminator` has a logit for each patch of an image instead, (B, H', W', 1).

Each takes a normalization from `common.normalization`; minibatch modules, against mode collapse; and a context (B, n)
in a conditional GAN, used by projection (Miyato & Koyama 2018). Dropout is active if there is a key for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gen_jax.models.common.convolutions import Conv
from gen_jax.models.common.normalization import Normalization, batch, none, spectral

__all__ = [
    "DCGANDiscriminator",
    "MLPDiscriminator",
    "MinibatchDeviation",
    "MinibatchDiscrimination",
    "PatchDiscriminator",
    "ResNetDiscriminator",
    "deviations_of_groups",
    "leaky_relu",
    "receptive_field",
]


def leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, 0.2)


class MLPDiscriminator(nn.Module):
    """Dense layers on vectors, or on flattened images."""

    hidden: Sequence[int]
    outputs: int = 1
    norm: Normalization = none
    batchwise: Sequence[nn.Module] = ()
    activation: Callable[[Array], Array] = leaky_relu

    @property
    def compares_examples(self) -> bool:
        return bool(self.batchwise)

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        h = x.reshape(len(x), -1)
        for width in self.hidden:
            layer = nn.Dense(width, use_bias=not self.norm.removes_bias(h.ndim))
            h = self.activation(self.norm.values(self.norm.weights(layer)(h)))
        return _Verdict(self.outputs, self.norm, self.batchwise)(h, *context)


class DCGANDiscriminator(nn.Module):
    """Strided convolutions with dropout, one per channel width (Radford et al. 2016)."""

    channels: Sequence[int] = (32, 64, 128)
    outputs: int = 1
    norm: Normalization = none
    batchwise: Sequence[nn.Module] = ()
    dropout: float = 0.25

    @property
    def compares_examples(self) -> bool:
        return bool(self.batchwise)

    @nn.compact
    def __call__(self, x_BHWC: Array, *context: Array) -> Array:
        for i, width in enumerate(self.channels):
            bias = i == 0 or not self.norm.removes_bias(4)
            x_BHWC = self.norm.weights(Conv(width, strides=2, use_bias=bias))(x_BHWC)
            x_BHWC = leaky_relu(self.norm.values(x_BHWC) if i else x_BHWC)
            x_BHWC = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x_BHWC)
        h = x_BHWC.reshape(len(x_BHWC), -1)
        return _Verdict(self.outputs, self.norm, self.batchwise)(h, *context)


class ResNetDiscriminator(nn.Module):
    """Residual blocks, the first `halvings` of which halve the resolution (Miyato et al. 2018, table 4)."""

    channels: Sequence[int] = (128, 128, 128, 128)
    halvings: int = 2
    outputs: int = 1
    norm: Normalization = spectral
    batchwise: Sequence[nn.Module] = ()

    @property
    def compares_examples(self) -> bool:
        return bool(self.batchwise)

    @nn.compact
    def __call__(self, x_BHWC: Array, *context: Array) -> Array:
        for i, width in enumerate(self.channels):
            x_BHWC = _ShrinkingBlock(width, self.norm, first=i == 0, halved=i < self.halvings)(x_BHWC)
        h = nn.relu(x_BHWC).sum(axis=(1, 2))
        return _Verdict(self.outputs, self.norm, self.batchwise)(h, *context)


class PatchDiscriminator(nn.Module):
    """Judges every patch of an image: PatchGAN (Isola et al. 2017, section 6.1.2).

    layers: strided convolutions; the patches are `receptive_field(layers)` pixels wide, and must fit into the image.
    """

    features: int = 64
    layers: int = 3
    norm: Normalization = batch
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Array, *context: Array) -> Array:
        patch = receptive_field(self.layers)
        if patch > min(x_BHWC.shape[1:3]):
            size = "x".join(map(str, x_BHWC.shape[1:3]))
            raise ValueError(f"patches of {patch}x{patch} pixels do not fit into images of {size}: take fewer layers")
        bias = not self.norm.removes_bias(4)
        small = nn.initializers.normal(0.02)
        widths = [self.features * min(2**i, 8) for i in range(self.layers + 1)] if self.layers else []
        h = x_BHWC
        for i, many in enumerate(widths or [self.features, 2 * self.features]):
            strides = 2 if i < self.layers else 1
            h = self.norm.weights(self._layer(many, strides, bias or i == 0, small))(self._padded(h))
            h = leaky_relu(self.norm.values(h.astype(jnp.float32)) if i else h)
        return self.norm.weights(self._layer(1, 1, True, small))(self._padded(h)).astype(jnp.float32)

    def _layer(self, features: int, strides: int, bias: bool, init: Callable[..., Array]) -> Conv:
        size = (4, 4) if self.layers else (1, 1)
        return Conv(features, size, strides, bias, init, self.dtype, "VALID")

    def _padded(self, h: Array) -> Array:
        return jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))) if self.layers else h


def receptive_field(layers: int) -> int:
    """Height and width of the patches that a `PatchDiscriminator` judges, in pixels: 1, 16, 34, 70, 142, 286."""
    size = 1
    for strides in [1, 1, *[2] * layers] if layers else []:
        size = (size - 1) * strides + 4
    return size


class _ShrinkingBlock(nn.Module):
    features: int
    norm: Normalization
    first: bool
    halved: bool

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        h = x_BHWC if self.first else nn.relu(self.norm.values(x_BHWC))
        layer = Conv(self.features, use_bias=not self.norm.removes_bias(4))
        h = nn.relu(self.norm.values(self.norm.weights(layer)(h)))
        h = self.norm.weights(Conv(self.features))(h)
        short = x_BHWC
        if self.halved:
            h, short = _pooled(h), _pooled(short)
        if self.halved or short.shape[-1] != self.features:
            short = self.norm.weights(Conv(self.features, (1, 1)))(short)
        return h + short


class _Verdict(nn.Module):
    """The last layer: logits from features (B, n)."""

    outputs: int
    norm: Normalization
    batchwise: Sequence[nn.Module]

    @nn.compact
    def __call__(self, h: Array, *context: Array) -> Array:
        for look in self.batchwise:
            h = look(h)
        logits = self.norm.weights(nn.Dense(self.outputs, name="logits"))(h)
        if not context:
            return logits
        (given,) = context
        projection = self.norm.weights(nn.Dense(h.shape[-1], use_bias=False, name="projection"))(given)
        return logits.at[:, :1].add(jnp.sum(projection * h, axis=1, keepdims=True))


class MinibatchDiscrimination(nn.Module):
    """Appends the similarity to other examples of the batch to features (B, n) (Salimans et al. 2016, 3.2).

    Averaged over the others, so that the scale does not depend on the batch size.
    """

    kernels: int = 16
    size: int = 8

    @nn.compact
    def __call__(self, h: Array) -> Array:
        m = nn.Dense(self.kernels * self.size, use_bias=False)(h).reshape(len(h), self.kernels, self.size)
        distances = jnp.abs(m[:, None] - m[None]).sum(axis=-1)
        others = max(len(h) - 1, 1)
        return jnp.concatenate([h, (jnp.exp(-distances).sum(axis=1) - 1) / others], axis=1)


class MinibatchDeviation(nn.Module):
    """Appends the mean standard deviation over the batch to features (B, n) (Karras et al. 2018, section 3).

    group: number of examples it is computed over; by default the whole batch.
    """

    group: int | None = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        group = min(self.group or len(h), len(h))
        if len(h) % group:
            raise ValueError(f"a batch of {len(h)} cannot be cut into groups of {group}")
        return jnp.concatenate([h, deviations_of_groups(h, group)[:, None]], axis=1)


def deviations_of_groups(x: Array, group: int) -> Array:
    """(B,) the mean standard deviation over the group of each example, which is every (B / group)-th one."""
    groups = x.reshape(group, len(x) // group, -1)
    return jnp.tile(jnp.sqrt(groups.var(axis=0) + 1e-8).mean(axis=-1), group)


def _pooled(x_BHWC: Array) -> Array:
    if any(side % 2 for side in x_BHWC.shape[1:3]):
        raise ValueError(f"an image of {x_BHWC.shape[1:3]} cannot be halved: give fewer `halvings`")
    return nn.avg_pool(x_BHWC, (2, 2), (2, 2))
