"""Doubling and halving images through low-pass filters, by polyphase sums of shifted images.

A filter is given by its taps along one axis; images are zero outside. The phases are those of upfirdn in StyleGAN2
(Karras et al. 2020, arXiv:1912.04958): an even filter is centered between two pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["BINOMIAL", "SYM6", "doubled", "downsample", "fir", "halved", "upsample"]

BINOMIAL = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
SYM6 = (  # the scaling filter of Daubechies' least asymmetric wavelet with six vanishing moments, divided by sqrt(2)
    0.01089235016328,
    0.00246830618592,
    -0.08343160770584,
    -0.03416156079325,
    0.34722898647835,
    0.55694639196396,
    0.23895218566605,
    -0.05136247841595,
    -0.01489181647735,
    0.03162528132994,
    0.00124996104640,
    -0.00551593375469,
)


def halved(x_BHWC: Array) -> Array:
    """(B, 2H, 2W, C) -> (B, H, W, C): means of 2x2 pixels."""
    return nn.avg_pool(x_BHWC, (2, 2), (2, 2))


def doubled(x_BHWC: Array, times: int = 1) -> Array:
    """(B, H, W, C) -> (B, 2H, 2W, C): every pixel repeated 2x2."""
    return x_BHWC.repeat(2**times, axis=1).repeat(2**times, axis=2) if times else x_BHWC


def fir(x_BHWC: Array, taps: Sequence[float], pads: tuple[int, int], stride: int = 1, gain: float = 1.0) -> Array:
    """Correlates both axes of an image with the taps, after zero padding: (B, H, W, C) -> (B, H', W', C).

    H' = (H + sum of pads - number of taps) // stride + 1.
    """
    for axis in (1, 2):
        widths = [(0, 0)] * 4
        widths[axis] = pads
        padded = jnp.pad(x_BHWC, widths)
        size = (padded.shape[axis] - len(taps)) // stride + 1
        parts = (
            x * np.asarray(gain * tap, x_BHWC.dtype)
            for tap, x in ((tap, _every(padded, axis, i, size, stride)) for i, tap in enumerate(taps))
        )
        x_BHWC = sum(parts, jnp.zeros((), x_BHWC.dtype))
    return x_BHWC


def upsample(x_BHWC: Array, taps: Sequence[float] = BINOMIAL) -> Array:
    """(B, H, W, C) -> (B, 2H, 2W, C): zeros between the pixels, then the filter with a gain of 2 along each axis.

    A constant image keeps its value, except near its edges.
    """
    before = len(taps) // 2  # zeros before the first pixel, of an image with zeros between its pixels
    for axis in (1, 2):
        size, phases = x_BHWC.shape[axis], []
        for phase in (0, 1):
            used = [(i, (phase + i - before) // 2) for i in range(len(taps)) if (phase + i - before) % 2 == 0]
            low, high = -min(at for _, at in used), max(at for _, at in used)
            widths = [(0, 0)] * 4
            widths[axis] = (max(low, 0), max(high, 0))
            padded = jnp.pad(x_BHWC, widths)
            shifted = ((i, _every(padded, axis, at + max(low, 0), size, 1)) for i, at in used)
            parts = (x * np.asarray(2 * taps[i], x_BHWC.dtype) for i, x in shifted)
            phases.append(sum(parts, jnp.zeros((), x_BHWC.dtype)))
        shape = tuple(side * (1 + (i == axis)) for i, side in enumerate(x_BHWC.shape))
        x_BHWC = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x_BHWC


def downsample(x_BHWC: Array, taps: Sequence[float] = BINOMIAL) -> Array:
    """(B, 2H, 2W, C) -> (B, H, W, C): the filter, then every second pixel."""
    if any(side % 2 for side in x_BHWC.shape[1:3]):
        raise ValueError(f"an image of {x_BHWC.shape[1]}x{x_BHWC.shape[2]} cannot be halved")
    before = len(taps) // 2 - 1
    return fir(x_BHWC, taps, (before, len(taps) - 2 - before), stride=2)


def _every(x: Array, axis: int, start: int, size: int, stride: int) -> Array:
    return lax.slice_in_dim(x, start, start + (size - 1) * stride + 1, stride, axis)
