"""Image layers (B, H, W, C): squeezing, multi-scale splitting, and the Glow and RealNVP architectures."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree
from gen_jax.models.bijections.coupling import Checkerboard, Coupling, Network, halves
from gen_jax.models.bijections.elementwise import Affine, Transformer
from gen_jax.models.bijections.layer import Chain, Layer, Mapped, Stack, Wrapper
from gen_jax.models.bijections.linear import ActNorm, Linear, Reverse
from gen_jax.models.common.arrays import depth_to_space

__all__ = ["FactorOut", "Squeezed", "glow", "multi_scale", "realnvp", "squeeze"]


@dataclass(frozen=True)
class Squeezed(Wrapper):
    """A layer at half the resolution: 2x2 pixels become one with four times the channels."""

    layer: Layer
    triangular = False

    @property
    def support(self) -> tuple[float, float] | None:
        return self.layer.support

    def init(self, key, x, context=None):
        if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise ValueError(f"images {x.shape[1:]} cannot be halved: height and width must be even at every level")
        return self.layer.init(key, squeeze(x), context)

    def forward(self, params, z, context=None):
        x, log_det = self.layer.forward(params, squeeze(z), context)
        return depth_to_space(x), log_det

    def inverse(self, params, x, context=None):
        z, log_det = self.layer.inverse(params, squeeze(x), context)
        return depth_to_space(z), log_det


def squeeze(x_BHWC: Array) -> Array:
    """(B, H, W, C) -> (B, H / 2, W / 2, 4 C)."""
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


@dataclass(frozen=True)
class FactorOut(Wrapper):
    """A layer on the first half of the channels; the rest is factored out as noise (Dinh et al. 2017, section 3.6)."""

    layer: Layer
    triangular = False

    def __post_init__(self):
        if self.layer.support is not None:
            raise ValueError(f"{self.layer!r} gives only values in {self.layer.support}, and the other half any")

    def init(self, key, x, context=None):
        return self.layer.init(key, halves(x)[0], context)

    def forward(self, params, z, context=None):
        return self._of_half(self.layer.forward, params, z, context)

    def inverse(self, params, x, context=None):
        return self._of_half(self.layer.inverse, params, x, context)

    def _of_half(self, f, params: PyTree, x: Array, context: Array | None) -> Mapped:
        deeper, done = halves(x)
        deeper, log_det = f(params, deeper, context)
        return jnp.concatenate([deeper, done], axis=-1), log_det


def multi_scale(steps: list[Layer], network: Network) -> Layer:
    """Multi-scale architecture from the layers of each level, fine to coarse: after each, half of the channels are
    factored out as noise with mean and scale conditioned on the other half."""
    if not steps:
        raise ValueError("images need at least one level")
    layer = None
    for step in reversed(steps):
        layer = Squeezed(Chain([FactorOut(layer), Coupling(Affine(), network), step] if layer else [step]))
    return layer


def glow(levels: int, depth: int, network: Network, transformer: Transformer = Affine()) -> Layer:
    """Glow (Kingma & Dhariwal 2018, arXiv:1807.03039): `depth` steps at each of `levels` resolutions."""
    step = Chain([Coupling(transformer, network), Linear(), ActNorm()])
    return multi_scale([Stack(step, depth, unroll=1)] * levels, network)


def realnvp(levels: int, network: Network, transformer: Transformer = Affine()) -> Layer:
    """RealNVP for images (Dinh et al. 2017): three checkerboard couplings at full resolution, then three channel
    couplings at each of `levels` resolutions."""
    boards = [Chain([Checkerboard(network, transformer, odd), ActNorm()]) for odd in (False, True, False)]
    step = Chain([Coupling(transformer, network), Reverse(), ActNorm()])
    return Chain([multi_scale([Stack(step, 3, unroll=1)] * levels, network), *boards])
