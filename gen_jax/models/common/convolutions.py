"""Convolutions and transposed convolutions of images (B, H, W, C), fast on CPUs too.

The same maps and parameters as `flax.linen.Conv` and `flax.linen.ConvTranspose`. On a CPU they are written as matrix
products with slices, pads and concatenations, whose gradients are such products again: the kernel gradients of XLA's
own convolutions are slow there, that of a transposed one takes thirty times its forward pass. With many channels,
Winograd's minimal filtering halves the arithmetic of 3x3 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["BLOCK", "Conv", "ConvTranspose", "UpsampleConv", "convolve", "over_rows", "transposed", "upsample_convolve"]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
BLOCK = 3 << 19  # numbers that fit in a CPU's cache


class Conv(nn.Module):
    """(B, H, W, C) -> (B, ceil(H / strides), ceil(W / strides), features).

    padding: "SAME", or "VALID" for inputs that are padded already: H then shrinks by the kernel's height less one.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    padding: str = "SAME"

    def map(self, x_BHWC: Array, kernel: Array, strides: tuple[int, int]) -> Array:
        return convolve(x_BHWC, kernel, strides, self.padding)

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        shape = (*self.kernel_size, x_BHWC.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y_BHWC = self.map(x_BHWC.astype(self.dtype), kernel.astype(self.dtype), (self.strides, self.strides))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y_BHWC = y_BHWC + bias.astype(self.dtype)
        return y_BHWC


class ConvTranspose(Conv):
    """(B, H, W, C) -> (B, H * strides, W * strides, features)."""

    def map(self, x_BHWC: Array, kernel: Array, strides: tuple[int, int]) -> Array:
        return transposed(x_BHWC, kernel, strides)


class UpsampleConv(Conv):
    """(B, H, W, C) -> (B, 2H, 2W, features): the convolution of the image with every pixel repeated 2x2."""

    def map(self, x_BHWC: Array, kernel: Array, strides: tuple[int, int]) -> Array:
        if strides != (1, 1):
            raise ValueError(f"a doubled image is convolved without strides, got {strides}")
        return upsample_convolve(x_BHWC, kernel)


def convolve(x_BHWC: Array, kernel: Array, strides: tuple[int, int] = (1, 1), padding: str = "SAME") -> Array:
    """Convolution with a kernel (height, width, C, features)."""
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x_BHWC, kernel, strides, padding, dimension_numbers=_DIMENSIONS)
    if padding == "VALID":
        return _unpadded(x_BHWC, kernel, strides)
    (tall, wide, channels, features), pixels = kernel.shape, x_BHWC.shape[1] * x_BHWC.shape[2]
    if _is_filtered(x_BHWC, kernel.shape, strides):
        return _few_at_a_time(_filtered, pixels * 3 * wide * channels // 2, x_BHWC, kernel)
    if strides == (1, 1) and features < channels:
        return _few_at_a_time(_by_taps, pixels * tall * wide * features, x_BHWC, kernel)
    between = pixels * tall * wide * channels // (strides[0] * strides[1])
    return _few_at_a_time(partial(_by_patches, strides=strides), between, x_BHWC, kernel)


def _unpadded(x_BHWC: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """Convolution where the whole kernel lies inside: a part of that with padding, or of the patches there are."""
    sizes = [(n, k, s) for n, k, s in zip(x_BHWC.shape[1:3], kernel.shape[:2], strides)]
    if any(n < k for n, k, _ in sizes):
        raise ValueError(f"a kernel of {kernel.shape[:2]} does not fit into an image of {x_BHWC.shape[1:3]}")
    size = [(n - k) // s + 1 for n, k, s in sizes]
    _, wide, channels, features = kernel.shape
    if _is_filtered(x_BHWC, kernel.shape, strides):
        between = size[0] * size[1] * 3 * wide * channels // 2
        return _few_at_a_time(partial(_filtered, same=False), between, x_BHWC, kernel)
    if strides == (1, 1) and features < channels:
        (top, tall), (left, across) = (((k - 1) // 2, n) for n, (_, k, _) in zip(size, sizes))
        return convolve(x_BHWC, kernel)[:, top : top + tall, left : left + across]
    between = size[0] * size[1] * int(np.prod(kernel.shape[:3]))
    return _few_at_a_time(partial(_by_patches, strides=strides, size=tuple(size)), between, x_BHWC, kernel)


def _few_at_a_time(f: Callable[[Array, Array], Array], between: int, x_BHWC: Array, kernel: Array) -> Array:
    """f(x, kernel) and its gradient, a few images at a time if the intermediates would not fit in the cache.

    between: size of the intermediates per image. A batch sharded over devices is not split: that would gather it.

    Does not use `blocks.by_blocks` and `over_blocks`: both gradients use the same shifts of y, so a single loop that
    computes them together is faster.
    """
    batch, most = len(x_BHWC), max(BLOCK // max(between, 1), 1)
    size = next(n for n in range(max(min(most, batch), 1), 0, -1) if batch % n == 0)
    if batch * between <= 2 * BLOCK or 4 * size < most or _is_divided():
        return f(x_BHWC, kernel)
    cut = lambda a, i: lax.dynamic_slice_in_dim(a, i * size, size)
    put = lambda a, part, i: lax.dynamic_update_slice_in_dim(a, part, i * size, 0)

    @jax.custom_vjp
    def run(x: Array, kernel: Array) -> Array:
        y = jax.eval_shape(f, x, kernel)
        return lax.fori_loop(
            0, batch // size, lambda i, y: put(y, f(cut(x, i), kernel), i), jnp.zeros(y.shape, y.dtype)
        )

    def backward(kept: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
        x, kernel = kept

        def add(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
            part, of_kernel = jax.vjp(f, cut(x, i), kernel)[1](cut(y, i))
            return put(found[0], part, i), found[1] + of_kernel

        start = jnp.zeros_like(x), jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
        of_x, of_kernel = lax.fori_loop(0, batch // size, add, start)
        return of_x, of_kernel.astype(kernel.dtype)

    run.defvjp(lambda x, kernel: (run(x, kernel), (x, kernel)), backward)
    return run(x_BHWC, kernel)


def _is_divided() -> bool:
    """Whether batches are sharded over several devices."""
    return jax.sharding.get_abstract_mesh().shape.get("data", 1) > 1


def _by_patches(x_BHWC: Array, kernel: Array, strides: tuple[int, int], size: tuple[int, ...] | None = None) -> Array:
    """Convolution as im2col: the patch of each output times the kernel.

    size: of the output, where no padding is needed.
    """
    tall, wide, channels, features = kernel.shape
    size = size or tuple(-(-n // s) for n, s in zip(x_BHWC.shape[1:3], strides))
    ends = [(n - 1) * s + 1 for n, s in zip(size, strides)]
    pads = [max(end - 1 + k - n, 0) for end, k, n in zip(ends, (tall, wide), x_BHWC.shape[1:3])]
    x = jnp.pad(x_BHWC, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    # One view per tap, side by side: slices, as gathers are slow on CPUs.
    views = [
        lax.slice(x, (0, i, j, 0), (len(x), i + ends[0], j + ends[1], channels), (1, *strides, 1))
        for i in range(tall)
        for j in range(wide)
    ]
    patches = jnp.concatenate(views, axis=-1).reshape(-1, tall * wide * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(-1, *size, features)


def _by_taps(x_BHWC: Array, kernel: Array) -> Array:
    """Convolution as the product of every pixel with every tap, shifted and summed."""
    tall, wide = kernel.shape[:2]
    return sum(
        _shifted(tap, i - (tall - 1) // 2, j - (wide - 1) // 2)
        for tap, (i, j) in zip(_taps(x_BHWC, kernel), np.ndindex(tall, wide))
    )


def _is_filtered(x_BHWC: Array, kernel: tuple[int, ...], strides: tuple[int, int]) -> bool:
    """Whether Winograd's filtering pays off: many channels, and enough rows for its tiles."""
    tall, wide, channels, features = kernel
    fits = strides == (1, 1) and tall == 3 and wide % 2 == 1 and x_BHWC.shape[1] >= 4
    return fits and 16 <= channels <= 2 * features and jnp.finfo(x_BHWC.dtype).bits >= 32  # not exact in half precision


# Winograd's minimal filtering F(4, 3): four outputs of three taps with six products instead of twelve, here along the
# rows of a column (Lavin & Gray 2016, arXiv:1509.09308, section 4.3; their B^T, G and A^T).
_INPUTS = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
    + [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
)
_TAPS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _filtered(x_BHWC: Array, kernel: Array, same: bool = True) -> Array:
    """Winograd convolution with a kernel (3, odd, C, features), with gradients of the same kind.

    same: padded to the size of the image; else where the whole kernel lies inside.
    """
    _, wide, channels, features = kernel.shape
    batch, height, width = len(x_BHWC), *_size(x_BHWC, wide, same)
    taps = jnp.einsum("ai,ijcf->ajcf", _TAPS.astype(kernel.dtype), kernel).reshape(6, wide * channels, features)
    rows = _sums(_OUTPUTS, [v @ u for v, u in zip(_inputs(x_BHWC, wide, same), taps)])
    tiles = -(-height // 4)
    y = jnp.stack([row.reshape(batch, tiles, width, features) for row in rows], axis=2)
    return y.reshape(batch, 4 * tiles, width, features)[:, :height]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x_BHWC: Array, y_BHWC: Array, wide: int, same: bool) -> Array:
    """Sum over pixels p of x[p + offset of tap] y[p]: (3, wide, C, features)."""
    channels, features = x_BHWC.shape[-1], y_BHWC.shape[-1]
    y = jnp.pad(y_BHWC, ((0, 0), (0, -y_BHWC.shape[1] % 4), (0, 0), (0, 0)))
    outputs = _sums(_OUTPUTS.T, [y[:, i::4] for i in range(4)])
    total = jnp.stack([over_rows(v, u.reshape(-1, features)) for v, u in zip(_inputs(x_BHWC, wide, same), outputs)])
    return jnp.einsum("ai,acf->icf", _TAPS.astype(total.dtype), total).reshape(3, wide, channels, features)


def over_rows(x: Array, y: Array) -> Array:
    """x^T y, (K, N), of rows x (T, K) and y (T, N).

    Large ones are the sum of two halves, with the longer side of the result last: for a single product XLA on CPUs
    chooses the order itself, which takes up to 1.5 times as long.
    """
    if len(x) * x.shape[1] * y.shape[1] < 1 << 23 or len(x) % 2 or _is_divided():
        return x.T @ y
    if x.shape[1] > y.shape[1]:
        return over_rows(y, x).T
    return jnp.einsum("btk,btn->bkn", *(a.reshape(2, -1, a.shape[1]) for a in (x, y))).sum(axis=0)


def _size(x_BHWC: Array, wide: int, same: bool) -> tuple[int, int]:
    """Height and width of a convolution with a kernel (3, wide)."""
    height, width = x_BHWC.shape[1:3]
    return (height, width) if same else (height - 2, width - wide + 1)


def _inputs(x_BHWC: Array, wide: int, same: bool) -> list[Array]:
    """The six inputs of the products for every tile of four rows, each pixel with its neighbors: (B T W, wide C)."""
    height, width = _size(x_BHWC, wide, same)
    tiles, border = -(-height // 4), int(same)
    side = border * (wide // 2)
    x = jnp.pad(x_BHWC, ((0, 0), (border, 4 * tiles + 2 - border - x_BHWC.shape[1]), (side, side), (0, 0)))
    lines = _sums(_INPUTS, [lax.slice_in_dim(x, i, i + 4 * tiles - 3, 4, axis=1) for i in range(6)])
    beside = [jnp.concatenate([line[:, :, j : j + width] for j in range(wide)], axis=-1) for line in lines]
    return [line.reshape(-1, line.shape[-1]) for line in beside]


def _sums(weights: np.ndarray, terms: Sequence[Array]) -> list[Array]:
    """One weighted sum per row of the weights, skipping zeros."""
    return [sum(term * float(w) for w, term in zip(row, terms) if w) for row in weights]


def _turned(kernel: Array) -> Array:
    """The kernel of the transposed map: flipped, with input and output channels swapped."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _spread(y_BHWC: Array, kernel: Array, same: bool) -> Array:
    """The transpose of a convolution: every output times the kernel, added to the pixels it came from."""
    if not same:
        edges = [(n - 1, n - 1) for n in kernel.shape[:2]]
        return convolve(jnp.pad(y_BHWC, ((0, 0), *edges, (0, 0))), _turned(kernel), padding="VALID")
    return convolve(y_BHWC, _turned(kernel))


# Each is bilinear, and their transposes are each other: gradients of gradients are fast too.
_filtered.defvjp(
    lambda x, kernel, same: (_filtered(x, kernel, same), (x, kernel)),
    lambda same, kept, y: (_spread(y, kept[1], same), _kernel_gradient(kept[0], y, kept[1].shape[1], same)),
)
_kernel_gradient.defvjp(
    lambda x, y, wide, same: (_kernel_gradient(x, y, wide, same), (x, y)),
    lambda wide, same, kept, kernel: (
        _spread(kept[1], kernel, same),
        convolve(kept[0], kernel, padding="SAME" if same else "VALID"),
    ),
)


def upsample_convolve(x_BHWC: Array, kernel: Array) -> Array:
    """Convolution with a kernel (3, 3, C, features) of the image with every pixel repeated 2x2.

    Two of the three taps of a row fall on the same pixel, so each of the four positions within a pixel is a convolution
    over 2x2 pixels with sums of taps: 16 products instead of 36.
    """
    if kernel.shape[:2] != (3, 3):
        raise ValueError(f"a doubled image is convolved by kernels 3x3, got {kernel.shape[:2]}")
    if jax.default_backend() != "cpu":
        return convolve(jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2), kernel)
    between = 16 * x_BHWC.shape[1] * x_BHWC.shape[2] * kernel.shape[3]
    return _few_at_a_time(_doubled_by_taps, between, x_BHWC, kernel)


def _doubled_by_taps(x_BHWC: Array, kernel: Array) -> Array:
    """Every pixel times the sums of taps applied to it, shifted and summed for each position within a pixel."""
    (batch, height, width, _), features = x_BHWC.shape, kernel.shape[3]
    positions = [(row, column) for row in range(2) for column in range(2)]
    joined = [_joined(_joined(kernel, row, 0), column, 1) for row, column in positions]
    taps = iter(_taps(x_BHWC, jnp.concatenate(joined, axis=0)))
    phases = [
        sum(_shifted(next(taps), row + i - 1, column + j - 1) for i in range(2) for j in range(2))
        for row, column in positions
    ]
    y = jnp.stack(phases, axis=3).reshape(batch, height, width, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, 2 * height, 2 * width, features)


def _joined(kernel: Array, position: int, axis: int) -> Array:
    """Merges three taps along an axis into two: (a, b + c) for the first of two repeated pixels, else (a + b, c)."""
    a, b, c = jnp.split(kernel, 3, axis)
    return jnp.concatenate([a, b + c] if position == 0 else [a + b, c], axis)


def transposed(x_BHWC: Array, kernel: Array, strides: tuple[int, int] = (1, 1)) -> Array:
    """Transposed convolution with a kernel (height, width, C, features)."""
    if jax.default_backend() != "cpu":
        return lax.conv_transpose(x_BHWC, kernel, strides, "SAME", dimension_numbers=_DIMENSIONS)
    tall, wide, _, features = kernel.shape
    between = x_BHWC.shape[1] * x_BHWC.shape[2] * tall * wide * features
    return _few_at_a_time(partial(_transposed_by_taps, strides=strides), between, x_BHWC, kernel)


def _transposed_by_taps(x_BHWC: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """Every pixel times every tap, shifted and summed for each position modulo the strides."""
    tall, wide, _, features = kernel.shape
    batch, height, width, _ = x_BHWC.shape
    taps = _taps(x_BHWC, kernel)

    def phase(rows, columns):
        """The pixels at one position modulo the strides: the sum of their shifted taps."""
        parts = [_shifted(taps[i * wide + j], up, left) for i, up in rows for j, left in columns]
        return sum(parts[1:], parts[0]) if parts else jnp.zeros((batch, height, width, features), taps[0].dtype)

    lines = [
        jnp.stack([phase(rows, columns) for columns in _phases(wide, strides[1])], axis=3)
        for rows in _phases(tall, strides[0])
    ]
    return jnp.stack(lines, axis=2).reshape(batch, height * strides[0], width * strides[1], features)


def _phases(size: int, stride: int) -> list[list[tuple[int, int]]]:
    """For each position modulo the stride, its taps along one axis, each with the offset of its pixel."""
    before = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)  # the padding of lax.conv_transpose
    offsets = [[(tap, position + tap - before) for tap in range(size)] for position in range(stride)]
    return [[(tap, at // stride) for tap, at in row if at % stride == 0] for row in offsets]


def _taps(x_BHWC: Array, kernel: Array) -> Sequence[Array]:
    """Every pixel times every tap of a kernel in one product, with no multiplication by zero: (B, H, W, features)."""
    tall, wide, channels, features = kernel.shape
    taps = x_BHWC.reshape(-1, channels) @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    # Split, not indexed: the gradient is one concatenation, not a sum of padded arrays as large as `taps`.
    return lax.split(taps.reshape(*x_BHWC.shape[:3], tall * wide * features), [features] * (tall * wide), axis=3)


def _shifted(x: Array, up: int, left: int) -> Array:
    """x[:, i + up, j + left], zero outside; pads of negative width crop."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (-up, up, 0), (-left, left, 0), (0, 0, 0)))
