"""Networks of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958; 2020, arXiv:2006.06676, appendix C).

All weights have an equalized learning rate (Karras et al. 2018, section 4.1): they are stored with unit variance and
multiplied by 1 / sqrt(inputs) where they are used. The smallest of the `sizes` of an image is that of the generator's
constant, 4 x 4 for sides that are powers of two.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import fold_in
from gen_jax.models.common.convolutions import convolve, transposed
from gen_jax.models.common.normalization import STATISTICS
from gen_jax.models.common.resampling import BINOMIAL, doubled, downsample, fir, halved, upsample
from gen_jax.models.gan.discriminators import deviations_of_groups

__all__ = [
    "EqualConv",
    "EqualDense",
    "Mapping",
    "ModulatedConv",
    "StyleDiscriminator",
    "StyleGenerator",
    "activate",
    "minibatch_deviation",
    "sizes",
    "widths",
]

CLAMP = 256.0  # of activations in bfloat16


def sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) from the smallest, of 3 to 8 pixels, to the full one, each twice the one before."""
    found = [tuple(size)]
    while min(found[0]) > 5 and all(side % 2 == 0 for side in found[0]):
        found.insert(0, tuple(side // 2 for side in found[0]))
    if not 3 <= min(found[0]) <= 8:
        side = "x".join(map(str, size))
        raise ValueError(
            f"images of {side} cannot be halved down to a side of 3 to 8 pixels: choose sides that are 3 to 8 times a "
            "power of two, such as 64, 96 or 128"
        )
    return tuple(found)


def widths(size: tuple[int, int], base: int, most: int) -> tuple[int, ...]:
    """Channels at each of the `sizes`: base / side, where side is the longer one, at most `most` and at least 1."""
    return tuple(max(1, min(most, base // max(at))) for at in sizes(size))


def activate(x: Array, clamp: float | None = None) -> Array:
    """A leaky ReLU of slope 0.2 times sqrt(2), which keeps the variance."""
    y = nn.leaky_relu(x, 0.2) * jnp.asarray(math.sqrt(2), x.dtype)
    return y if clamp is None else jnp.clip(y, -clamp, clamp)


class EqualDense(nn.Module):
    """A dense layer with equalized learning rate. (B, n) -> (B, features).

    rate: learning rate relative to the other layers; weights are stored 1 / rate times as large. bias: its first value.
    """

    features: int
    rate: float = 1.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(1 / self.rate), (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(self.bias / self.rate), (self.features,), jnp.float32)
        return x @ (kernel * (self.rate / math.sqrt(x.shape[-1]))) + bias * self.rate


class EqualConv(nn.Module):
    """A convolution with equalized learning rate; with `down` after a low-pass filter and of stride 2.

    (B, H, W, C) -> (B, H, W, features), or half as large.
    """

    features: int
    size: int = 3
    down: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        shape = (self.size, self.size, x_BHWC.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        kernel = (kernel / math.sqrt(math.prod(shape[:3]))).astype(self.dtype)
        x_BHWC = x_BHWC.astype(self.dtype)
        if self.down and self.size == 1:
            y_BHWC = convolve(downsample(x_BHWC), kernel)
        elif self.down:
            pads = (self.size // 2 + 1, self.size // 2 + 1)
            y_BHWC = convolve(fir(x_BHWC, BINOMIAL, pads), kernel, (2, 2), "VALID")
        else:
            y_BHWC = convolve(x_BHWC, kernel)
        if not self.use_bias:
            return y_BHWC
        return y_BHWC + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)


class ModulatedConv(nn.Module):
    """A convolution whose kernel is scaled per example and input channel by a style (section 2.2).

    (B, H, W, C), w (B, D) -> (B, H, W, features); with `up` twice as large, then low-pass filtered. There is no kernel
    per example: the inputs are scaled, and with `demodulate` the outputs divided by the norm of the scaled kernel.
    """

    features: int
    size: int = 3
    up: bool = False
    demodulate: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Array, w: Array) -> Array:
        shape = (self.size, self.size, x_BHWC.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        style, inputs = EqualDense(x_BHWC.shape[-1], bias=1.0, name="style")(w), math.prod(shape[:3])
        kernel = kernel / math.sqrt(inputs)
        if self.demodulate:
            norms = jnp.sqrt(style**2 @ jnp.sum(kernel**2, axis=(0, 1)) + 1e-8 / inputs)
        x_BHWC = x_BHWC.astype(self.dtype) * style[:, None, None].astype(self.dtype)
        kernel = kernel.astype(self.dtype)
        y_BHWC = _doubled(x_BHWC, kernel) if self.up else convolve(x_BHWC, kernel)
        return y_BHWC / norms[:, None, None].astype(self.dtype) if self.demodulate else y_BHWC


def _doubled(x_BHWC: Array, kernel: Array) -> Array:
    """A transposed convolution of stride 2 with a kernel (3, 3, C, features), then a low-pass filter of gain 4."""
    # With one more row and column of zeros the output has all 2H + 1 rows that the kernel reaches, and one of zeros.
    full = transposed(jnp.pad(x_BHWC, ((0, 0), (0, 1), (0, 1), (0, 0))), kernel, (2, 2))
    return fir(full, BINOMIAL, (1, 0), gain=2.0)


class Mapping(nn.Module):
    """The mapping network from noise z (B, latent), and a condition (B, n), to w (B, width).

    Without noise (None) it maps the condition alone.
    """

    width: int
    layers: int = 8
    rate: float = 0.01

    @nn.compact
    def __call__(self, z: Array | None, *context: Array) -> Array:
        parts = [] if z is None else [_normalized(z)]
        parts += [_normalized(EqualDense(self.width, name="embedding")(given)) for given in context]
        h = jnp.concatenate(parts, axis=-1)
        for i in range(self.layers):
            h = activate(EqualDense(self.width, self.rate, name=f"layer_{i}")(h))
        return h


def _normalized(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-8)


class StyleGenerator(nn.Module):
    """The generator of StyleGAN2: a constant, modulated convolutions with noise, and a sum of images of all sizes.

    width: of w. layers: of the mapping network. base, most: see `widths`. low: how many of the highest resolutions
    are computed in bfloat16. Noise is drawn if there is a key "noise", else it is fixed.
    """

    architecture = "skip"

    size: tuple[int, int]
    outputs: int = 1
    width: int = 512
    layers: int = 8
    base: int = 16384
    most: int = 512
    low: int = 0
    decay: float = 0.995  # of the running mean of w

    def setup(self):
        channels = widths(self.size, self.base, self.most)
        self.mapping = Mapping(self.width, self.layers)
        self.constant = self.param(
            "constant", nn.initializers.normal(1.0), (*sizes(self.size)[0], channels[0]), jnp.float32
        )
        self.mean = self.variable(STATISTICS, "mean", lambda: jnp.zeros(self.width, jnp.float32))
        dtypes = [jnp.bfloat16 if i >= len(channels) - self.low else jnp.float32 for i in range(len(channels))]
        pairs = [(at, up) for at in range(len(channels)) for up in (True, False)][1:]  # the smallest is not doubled
        self.convolutions = [_Styled(channels[at], up, dtypes[at]) for at, up in pairs]
        self.to_image = [ModulatedConv(self.outputs, 1, demodulate=False, dtype=dtype) for dtype in dtypes]
        self.image_bias = self.param("image_bias", nn.initializers.zeros, (len(channels), self.outputs), jnp.float32)

    @property
    def styles(self) -> int:
        """How many w an image has: one per convolution, and one for the last image."""
        return 2 * len(sizes(self.size))

    def __call__(self, z: Array, *context: Array) -> Array:
        return self.synthesize(self.repeat(self.map(z, *context)))

    def map(self, z: Array, *context: Array) -> Array:
        """w (B, width)."""
        return self.mapping(z, *context)

    def track(self, z: Array, *context: Array) -> Array:
        """w (B, width), moving the running mean of w towards their mean."""
        w = self.map(z, *context)
        self.mean.value = self.decay * self.mean.value + (1 - self.decay) * jax.lax.stop_gradient(w).mean(axis=0)
        return w

    def repeat(self, w: Array) -> Array:
        """(B, styles, width) the same w for each layer."""
        return jnp.repeat(w[:, None], self.styles, axis=1)

    def truncate(self, ws: Array, psi: float = 1.0, cutoff: int | None = None) -> Array:
        """ws (B, styles, width), moved towards their running mean in the first `cutoff` layers, by default in all."""
        nearer = self.mean.value + psi * (ws - self.mean.value)
        return nearer if cutoff is None else jnp.concatenate([nearer[:, :cutoff], ws[:, cutoff:]], axis=1)

    def synthesize(self, ws: Array, level: int | None = None, fade: Array | float = 1.0) -> Array:
        """Images (B, H, W, outputs) of ws (B, styles, width), of full size or that of a level.

        fade: the share of the last level in its image; the rest is the image of the level before, doubled.
        """
        last = len(self.to_image) - 1 if level is None else level
        h = jnp.broadcast_to(self.constant, (len(ws), *self.constant.shape))
        image, at = None, 0
        for i, to_image in enumerate(self.to_image[: last + 1]):
            for layer in self.convolutions[:1] if i == 0 else self.convolutions[2 * i - 1 : 2 * i + 1]:
                h, at = layer(h, ws[:, at]), at + 1
            new = to_image(h, ws[:, at]).astype(jnp.float32) + self.image_bias[i]
            before, image = image, new if image is None else upsample(image) + new
        if level:
            old = doubled(before)
            image = old + (image - old) * fade
        return image


class _Styled(nn.Module):
    """A modulated convolution, noise, a bias and the activation."""

    features: int
    up: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC: Array, w: Array) -> Array:
        h_BHWC = ModulatedConv(self.features, up=self.up, dtype=self.dtype)(x_BHWC, w)
        strength = self.param("noise", nn.initializers.zeros, (), jnp.float32)
        shape = (*h_BHWC.shape[:3], 1)
        if self.has_rng("noise"):
            noise = jax.random.normal(self.make_rng("noise"), shape, jnp.float32)
        else:
            noise = jax.random.normal(fold_in(jax.random.key(0), "/".join(self.path)), (1, *shape[1:]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        h_BHWC += (strength * noise).astype(self.dtype) + bias.astype(self.dtype)
        return activate(h_BHWC, CLAMP if self.dtype == jnp.bfloat16 else None)


class StyleDiscriminator(nn.Module):
    """The residual discriminator of StyleGAN2, conditional by projection. (B, H, W, C) -> (B, outputs).

    group: examples over which the minibatch deviation is computed; 0 for none. residual: without it the plain network
    of CIFAR-10. layers: of the mapping of a condition. size: of full images, if the network grows: smaller ones then
    enter at their level, and `fade` is the share of its newest layers.
    """

    base: int = 16384
    most: int = 512
    outputs: int = 1
    group: int = 4
    residual: bool = True
    layers: int = 8
    low: int = 0
    size: tuple[int, int] | None = None

    architecture = "skip"

    @property
    def compares_examples(self) -> bool:
        return self.group > 0

    @nn.compact
    def __call__(self, x_BHWC: Array, *context: Array, fade: Array | float = 1.0) -> Array:
        here = (x_BHWC.shape[1], x_BHWC.shape[2])
        full = self.size or here
        channels, level = widths(full, self.base, self.most), sizes(full).index(here)
        dtypes = [jnp.bfloat16 if i >= len(channels) - self.low else jnp.float32 for i in range(len(channels))]
        clamps = [CLAMP if dtype == jnp.bfloat16 else None for dtype in dtypes]

        def of_image(i: int, x: Array) -> Array:
            name = f"from_image_{i}" if self.size else "from_image"
            return activate(EqualConv(channels[i], 1, dtype=dtypes[i], name=name)(x), clamps[i])

        h, seen = of_image(level, x_BHWC), x_BHWC
        for i in range(level, 0, -1):
            dtype, clamp = dtypes[i], clamps[i]
            short = EqualConv(channels[i - 1], 1, True, False, dtype, name=f"skip_{i}")(h) if self.residual else None
            h = activate(EqualConv(channels[i], dtype=dtype, name=f"first_{i}")(h), clamp)
            h = activate(EqualConv(channels[i - 1], down=True, dtype=dtype, name=f"second_{i}")(h), clamp)
            h = h if short is None else (h + short) * jnp.asarray(math.sqrt(0.5), dtype)
            if self.size and (i == level or self.is_initializing()):
                seen = halved(seen)
                old = of_image(i - 1, seen)
                h = old + (h - old) * jnp.asarray(fade, old.dtype) if i == level else h
        h = h.astype(jnp.float32)
        if self.group:
            h = minibatch_deviation(h, self.group)
        h = activate(EqualConv(channels[0], name="last")(h))
        h = activate(EqualDense(channels[0], name="dense")(h.reshape(len(h), -1)))
        if not context:
            return EqualDense(self.outputs, name="logits")(h)
        given = Mapping(channels[0], self.layers, name="condition")(None, *context)
        logits = EqualDense(channels[0], name="logits")(h)
        return jnp.sum(logits * given, axis=-1, keepdims=True) / math.sqrt(channels[0])


def minibatch_deviation(x_BHWC: Array, group: int) -> Array:
    """Appends a map with the mean standard deviation over groups of examples (Karras et al. 2018, section 3).

    A group is every (B / group)-th example. The largest divisor of the batch that is at most `group` is used.
    """
    n = len(x_BHWC)
    group = next(size for size in range(min(group, n), 0, -1) if n % size == 0)
    deviations = deviations_of_groups(x_BHWC, group)
    maps = jnp.broadcast_to(deviations[:, None, None, None], (*x_BHWC.shape[:3], 1))
    return jnp.concatenate([x_BHWC, maps], axis=-1)
