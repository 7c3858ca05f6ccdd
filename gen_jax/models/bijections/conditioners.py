"""Conditioners: networks that output transformer parameters. Their last layers start at 0, flows as the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.models.common.convolutions import Conv

__all__ = ["ZEROS", "Convolutional", "Dense", "Masked"]

ZEROS = nn.initializers.zeros


class Dense(nn.Module):
    """Dense layers on vectors (B, D), with a context (B, C). -> (B, outputs)"""

    outputs: int
    hidden: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        if context is not None:
            if x.ndim != 2:
                raise ValueError(f"Dense is told of a context beside vectors, not {x.shape}: take Convolutional")
            x = jnp.concatenate([x, context], axis=-1)
        for width in self.hidden:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.outputs, kernel_init=ZEROS)(x)


class Convolutional(nn.Module):
    """Residual blocks on images (B, H, W, C), with a context (B, C) added to the features of every pixel.
    -> (B, H, W, outputs)"""

    outputs: int
    width: int = 64
    blocks: int = 2

    @nn.compact
    def __call__(self, x_BHWC: Array, context: Array | None = None) -> Array:
        conv = partial(Conv, dtype=x_BHWC.dtype)
        h = conv(self.width)(x_BHWC)
        for _ in range(self.blocks):
            inner = conv(self.width)(nn.relu(h))
            if context is not None:
                inner = inner + nn.Dense(self.width)(context)[:, None, None, :]
            h = h + conv(self.width, (1, 1))(nn.relu(inner))
        return conv(self.outputs, kernel_init=ZEROS)(nn.relu(h))


class Masked(nn.Module):
    """Masked dense layers: output i of each group depends only on the inputs before i (MADE, Germain et al. 2015).
    (B, D) and a context (B, C), on which all outputs depend -> (B, groups * D)"""

    groups: int
    hidden: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        size = x.shape[-1]
        seen = np.arange(1, size + 1)  # MADE degrees: a unit depends on the inputs up to its degree
        for i, width in enumerate(self.hidden):
            units = 1 + np.arange(width) * (size - 1) // width if size > 1 else np.zeros(width, int)
            x = _MaskedDense(units >= seen[:, None], name=f"hidden_{i}")(x)
            if context is not None:
                x = x + nn.Dense(width, use_bias=False, name=f"context_{i}")(context)
            x, seen = self.activation(x), units
        outputs = np.tile(np.arange(1, size + 1), self.groups)
        x = _MaskedDense(outputs > seen[:, None], ZEROS, name="outputs")(x)
        return x if context is None else x + nn.Dense(len(outputs), False, kernel_init=ZEROS, name="context")(context)


class _MaskedDense(nn.Module):
    """A dense layer with a masked kernel."""

    mask: np.ndarray
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, self.mask.shape, jnp.float32)
        bias = self.param("bias", ZEROS, self.mask.shape[1:], jnp.float32)
        return x @ jnp.where(self.mask, kernel, 0) + bias
