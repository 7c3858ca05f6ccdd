"""Random affine maps of images and other changes that keep their label, inside the compiled step.

Every image has draws of its own, keyed by the key of the batch. They apply to training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, fold_in
from gen_jax.data.transforms import Transform

__all__ = ["Affine", "Fill", "affine", "bilinear", "contrast", "cutmix", "cutout", "geometric", "mixup"]

Fill = Literal["nearest", "constant", "reflect"]


class Affine(NamedTuple):
    """Affine maps about the centers of N images, from places in the output to places in the input.

    A place is zoomed, sheared, shifted and rotated, in this order, as in Keras' ImageDataGenerator; but shifts are
    along the axes they name, and the center is that of the image where height and width differ.
    """

    rotation: Array  # (N,) radians; the content turns counter-clockwise
    shift: Array  # (N, 2) pixels along rows and columns; the content moves up and to the left
    zoom: Array  # (N, 2) factors along rows and columns; below 1 the content is enlarged
    shear: Array  # (N,) radians

    def places(self, height: int, width: int) -> Array:
        """(N, H, W, 2) rows and columns in the input."""
        center = jnp.array([(height - 1) / 2, (width - 1) / 2], jnp.float32)
        grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1) - center
        row, column = jnp.moveaxis(self.zoom[:, None, None] * grid, -1, 0)
        of = lambda angle: (jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None])
        (cos, sin), (turned_cos, turned_sin) = of(self.shear), of(self.rotation)
        row, column = cos * row, column - sin * row
        row, column = row + self.shift[:, 0, None, None], column + self.shift[:, 1, None, None]
        row, column = turned_sin * column + turned_cos * row, turned_cos * column - turned_sin * row
        return jnp.stack([row, column], axis=-1) + center


def affine(x: Array, maps: Affine, fill: Fill = "nearest", value: float = 0.0) -> Array:
    """Applies a map to each image (N, H, W, C), by bilinear interpolation.

    fill: beyond the edge: "nearest", its nearest pixel; "reflect", the image mirrored at its edge; "constant": `value`.
    """
    at = lax.optimization_barrier(maps).places(*x.shape[1:3])  # else the maps are drawn again for each pixel
    if fill == "constant":
        x, at = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value), at + 1
    size = jnp.array(x.shape[1:3])
    if fill == "reflect":
        period = jnp.mod(at + 0.5, 2 * size)
        at = jnp.minimum(period, 2 * size - period) - 0.5
    return bilinear(x, jnp.clip(at, 0, size - 1))


def bilinear(x: Array, at: Array) -> Array:
    """(N, H', W', C) values of images (N, H, W, C) at rows and columns inside them, at (N, H', W', 2)."""
    size = jnp.array(x.shape[1:3])
    first = jnp.floor(at).astype(jnp.int32)
    below, width, channels = jnp.minimum(first[..., 0] + 1, size[0] - 1), x.shape[2], x.shape[-1]
    down, right = jnp.moveaxis(at - first, -1, 0)[..., None]
    flat = jnp.pad(x.reshape(len(x), -1, channels), ((0, 0), (0, 1), (0, 0)))  # so that each has a right neighbor
    pair = jax.vmap(
        jax.vmap(lambda image, i: lax.dynamic_slice(image, (i, jnp.zeros_like(i)), (2, channels)), in_axes=(None, 0))
    )

    def interpolated(rows: Array) -> Array:
        """Between the columns, in these rows: both neighbors are read together."""
        places = (rows * width + first[..., 1]).reshape(len(x), -1)
        near = pair(flat, places).reshape(*rows.shape, 2, channels)
        return (1 - right) * near[..., 0, :] + right * near[..., 1, :]

    return (1 - down) * interpolated(first[..., 0]) + down * interpolated(below)


def geometric(
    rotation: float = 0.0,
    shift: float | Sequence[float] = 0.0,
    zoom: float = 0.0,
    isotropic: bool = False,
    shear: float = 0.0,
    fill: Fill = "nearest",
    value: float = 0.0,
) -> Transform:
    """A random affine map of each image (B, H, W, C).

    rotation, shear: at most so many degrees. shift: at most this share of the image, or one along rows and one along
    columns. zoom: by factors between 1 - zoom and 1 + zoom, of each axis, or `isotropic`, of both together.
    `geometric(10, 0.1, 0.1)` is the usual rotation_range=10, width_shift_range=0.1, height_shift_range=0.1,
    zoom_range=0.1 of Keras.
    """
    shifts = (shift, shift) if isinstance(shift, (int, float)) else tuple(shift)
    if min(rotation, shear, *shifts) < 0 or not 0 <= zoom < 1:
        raise ValueError("rotation, shift and shear must not be negative, and zoom must be at least 0 and below 1")

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"].astype(jnp.float32)
        draw = lambda name, *shape: jax.random.uniform(fold_in(key, name), (len(x), *shape), minval=-1.0)
        zooms = draw("zoom", 1 if isotropic else 2) * jnp.ones(2)
        maps = Affine(
            jnp.radians(rotation) * draw("rotation"),
            draw("shift", 2) * jnp.array(shifts) * jnp.array(x.shape[1:3]),
            1 + zoom * zooms,
            jnp.radians(shear) * draw("shear"),
        )
        return {**batch, "x": affine(x, maps, fill, value)}

    return Transform(apply, inverse=lambda x: x, augments=True)


def contrast(brightness: float = 0.0, factor: float = 0.0) -> Transform:
    """Random brightness and contrast of images (B, H, W, C): (x - mean) * c + mean + b.

    b is at most `brightness`, in the units of x; c is between 1 - factor and 1 + factor; the mean is that of the image.
    """

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"].astype(jnp.float32)
        draw = lambda name: jax.random.uniform(fold_in(key, name), (len(x), 1, 1, 1), minval=-1.0)
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        return {**batch, "x": (x - mean) * (1 + factor * draw("contrast")) + mean + brightness * draw("brightness")}

    return Transform(apply, inverse=lambda x: x, augments=True)


def cutout(side: int, value: float = 0.0) -> Transform:
    """Sets a square of each image (B, H, W, C) to `value` (DeVries & Taylor 2017); it may lie partly outside."""

    def apply(batch: Batch, key: Array) -> Batch:
        x, hidden = batch["x"], True
        for axis in (1, 2):
            size = x.shape[axis]
            center = jax.random.randint(fold_in(key, axis), (len(x), 1), 0, size)
            near = (jnp.arange(size) >= center - side // 2) & (jnp.arange(size) < center - side // 2 + side)
            hidden = hidden & (near[:, :, None, None] if axis == 1 else near[:, None, :, None])
        return {**batch, "x": jnp.where(hidden, jnp.asarray(value, x.dtype), x)}

    return Transform(apply, inverse=lambda x: x, augments=True)


def mixup(alpha: float = 0.2) -> Transform:
    """Mixes each example with another one of the batch (Zhang et al. 2018).

    The share of the first is drawn from Beta(alpha, alpha), for each example; the batch gains "mixed_label", the label
    of the second, and "share" (B,).
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")

    def apply(batch: Batch, key: Array) -> Batch:
        x = batch["x"].astype(jnp.float32)
        share = jax.random.beta(fold_in(key, "share"), alpha, alpha, (len(x),))
        other = jax.random.permutation(fold_in(key, "other"), len(x))
        weight = share.reshape(-1, *[1] * (x.ndim - 1))
        return {**_mixed(batch, other, share), "x": weight * x + (1 - weight) * x[other]}

    return Transform(apply, inverse=lambda x: x, augments=True)


def cutmix(alpha: float = 1.0) -> Transform:
    """Pastes a rectangle of another image of the batch into each (B, H, W, C) (Yun et al. 2019).

    The share of the rectangle is drawn from Beta(alpha, alpha); "share" (B,) is that of the first image after clipping
    at the edges, and "mixed_label" the label of the second.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")

    def apply(batch: Batch, key: Array) -> Batch:
        x, inside = batch["x"], jnp.bool_(True)
        cut = jnp.sqrt(1 - jax.random.beta(fold_in(key, "share"), alpha, alpha, (len(x), 1)))
        for axis in (1, 2):
            size = x.shape[axis]
            center = jax.random.uniform(fold_in(key, axis), (len(x), 1)) * size
            near = jnp.abs(jnp.arange(size) + 0.5 - center) < cut * size / 2
            inside = inside & (near[:, :, None, None] if axis == 1 else near[:, None, :, None])
        other = jax.random.permutation(fold_in(key, "other"), len(x))
        share = 1 - inside.mean(axis=(1, 2, 3))
        return {**_mixed(batch, other, share), "x": jnp.where(inside, x[other], x)}

    return Transform(apply, inverse=lambda x: x, augments=True)


def _mixed(batch: Batch, other: Array, share: Array) -> Batch:
    """The batch with the labels of the other examples and the share of the first."""
    if "mixed_label" in batch:
        raise ValueError("examples are mixed once: give mixup or cutmix, not both")
    return {**batch, "mixed_label": batch["label"][other], "share": share}
