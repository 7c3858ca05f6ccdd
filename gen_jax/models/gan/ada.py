"""The augmentations of StyleGAN2-ADA (Karras et al. 2020, arXiv:2006.06676, appendix B), differentiable.

All geometric operations of an image are one affine map, and all of its colors another, so that it is resampled once.
Shapes are static: instead of padding by what a batch needs, places outside the image are mirrored at its edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import fold_in
from gen_jax.data.geometry import bilinear
from gen_jax.models.common.resampling import SYM6, fir, upsample
from gen_jax.models.gan.augmentations import Controlled

__all__ = ["ADA", "BGC", "BLIT", "COLOR", "CORRUPT", "GEOMETRY", "GLYPHS"]

BLIT = ("xflip", "rotate90", "xint")
GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
CORRUPT = ("imgfilter", "noise", "cutout")
BGC = (*BLIT, *GEOMETRY, *COLOR)
GLYPHS = ("xint", "scale", "aniso", "xfrac", "brightness", "contrast")
"""Those after which a digit or letter is still the same: no flips, no rotations, no exchange of ink and paper."""

_ROOM = 5  # pixels of the doubled image on each side that the filter of the halving needs
_EDGE = 6  # pixels mirrored at each edge before the image is doubled, half of which that filter reaches


@dataclass(frozen=True)
class ADA(Controlled):
    """Operations on images (B, H, W, C) in [-1, 1], each with the same controlled probability.

    xflip, rotate90, xint: mirroring, quarter turns, shifts by whole pixels up to 1/8 of the size. scale, rotate, aniso,
    xfrac: by a log-normal factor, by any angle, a log-normal stretch, shifts by a share of N(0, 1/8). brightness,
    contrast, lumaflip, hue, saturation: of colors; hue and saturation of gray images are nothing. imgfilter, noise,
    cutout: random gains of four frequency bands, Gaussian noise, a square of half the size.
    """

    operations: Sequence[str] = BGC

    def __post_init__(self):
        super().__post_init__()
        if unknown := sorted({*self.operations} - {*BGC, *CORRUPT}):
            raise ValueError(f"there are no operations {unknown}; there are {', '.join((*BGC, *CORRUPT))}")

    def change(self, x, key, probability):
        kind = x.dtype
        chosen = [name for name in _MAPS if name.removesuffix(" again") in self.operations]
        if chosen:
            maps = jnp.broadcast_to(jnp.eye(3), (len(x), 3, 3))
            for name in chosen:
                maps = maps @ _MAPS[name](fold_in(key, name), probability, x)
            x = _warped(x, lax.optimization_barrier(maps.astype(jnp.float32)))
        chosen = [name for name in COLOR if name in self.operations]
        if chosen:
            maps = jnp.broadcast_to(jnp.eye(4), (len(x), 4, 4))
            for name in chosen:
                maps = _COLORS[name](fold_in(key, name), probability, x) @ maps
            x = _recolored(x, maps)
        for name in CORRUPT:
            if name in self.operations:
                x = _CORRUPTIONS[name](fold_in(key, name), probability, x)
        return x.astype(kind)


def _coin(key: Array, probability: Array, drawn: Array, otherwise: float) -> Array:
    """(B,) drawn values, or with 1 - probability the value without effect."""
    return jnp.where(jax.random.bernoulli(fold_in(key, "coin"), probability, drawn.shape[:1]), drawn, otherwise)


def _square(rows: Sequence[Sequence[Array | float]], n: int) -> Array:
    """(n, size, size) matrices from entries (n,) or numbers."""
    full = [[jnp.broadcast_to(jnp.asarray(entry, jnp.float32), (n,)) for entry in row] for row in rows]
    return jnp.stack([jnp.stack(row, axis=-1) for row in full], axis=-2)


# --- maps of places (row, column, 1), in pixels from the center, from the output to the input


def _scaling(rows: Array, columns: Array) -> Array:
    return _square([[rows, 0, 0], [0, columns, 0], [0, 0, 1]], len(rows))


def _shift(rows: Array, columns: Array) -> Array:
    return _square([[1, 0, rows], [0, 1, columns], [0, 0, 1]], len(rows))


def _turn(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _square([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], len(angle))


def _xflip(key, probability, x):
    side = jax.random.randint(key, (len(x),), 0, 2) * 2.0 - 1
    return _scaling(jnp.ones(len(x)), _coin(key, probability, side, 1.0))


def _rotate90(key, probability, x):
    return _turn(
        jnp.pi / 2 * _coin(key, probability, jax.random.randint(key, (len(x),), 0, 4).astype(jnp.float32), 0.0)
    )


def _xint(key, probability, x):
    share = _coin(key, probability, jax.random.uniform(key, (len(x),), minval=-0.125, maxval=0.125), 0.0)
    across = _coin(key, probability, jax.random.uniform(fold_in(key, 1), (len(x),), minval=-0.125, maxval=0.125), 0.0)
    return _shift(jnp.round(share * x.shape[1]), jnp.round(across * x.shape[2]))


def _log_normal(key, probability, x, deviation):
    return _coin(key, probability, jnp.exp2(deviation * jax.random.normal(key, (len(x),))), 1.0)


def _scale(key, probability, x):
    factor = _log_normal(key, probability, x, 0.2)
    return _scaling(factor, factor)


def _rotate(key, probability, x):
    """Applied twice, so that with both coins an image is turned with the probability."""
    angle = jax.random.uniform(key, (len(x),), minval=-jnp.pi, maxval=jnp.pi)
    return _turn(_coin(key, 1 - jnp.sqrt(jnp.clip(1 - probability, 0, 1)), angle, 0.0))


def _aniso(key, probability, x):
    factor = _log_normal(key, probability, x, 0.2)
    return _scaling(factor, 1 / factor)


def _xfrac(key, probability, x):
    draw = jax.random.normal(key, (2, len(x))) * 0.125
    rows, columns = (_coin(key, probability, share, 0.0) for share in draw)
    return _shift(rows * x.shape[1], columns * x.shape[2])


_MAPS = {
    "xflip": _xflip,
    "rotate90": _rotate90,
    "xint": _xint,
    "scale": _scale,
    "rotate": _rotate,
    "aniso": _aniso,
    "rotate again": _rotate,  # once before and once after the stretch, so that this has any direction
    "xfrac": _xfrac,
}


def _warped(x: Array, maps: Array) -> Array:
    """Images whose value at a place is that of x at the mapped place.

    x is doubled by an orthogonal wavelet's filter, interpolated, and halved by the reversed filter, which undoes the
    doubling exactly where the map is the identity.
    """
    height, width = x.shape[1:3]
    edges = ((0, 0), (_EDGE, _EDGE), (_EDGE, _EDGE), (0, 0))
    fine = upsample(jnp.pad(x, edges, mode="reflect"), SYM6)
    lines = [(jnp.arange(-_ROOM, 2 * side + _ROOM) - 0.5) / 2 - (side - 1) / 2 for side in (height, width)]
    grid = jnp.stack([*jnp.meshgrid(*lines, indexing="ij"), jnp.ones((len(lines[0]), len(lines[1])))], axis=-1)
    at = jnp.einsum("bij,hwj->bhwi", maps[:, :2], grid)
    places = [
        2 * (_mirrored(at[..., axis] + (side - 1) / 2, side) + _EDGE) + 0.5 for axis, side in enumerate((height, width))
    ]
    return fir(bilinear(fine, jnp.stack(places, axis=-1)), SYM6[::-1], (0, 0), stride=2)


def _mirrored(at: Array, side: int) -> Array:
    """Places at most a few pixels outside of the image, those further away mirrored at its first or last pixel."""
    period, reach = 2 * (side - 1), _EDGE // 2
    folded = jnp.mod(at, period)
    near = (at >= -reach) & (at <= side - 1 + reach)
    return jnp.where(near, at, jnp.minimum(folded, period - folded))


# --- maps of colors (red, green, blue, 1)

_GRAY = np.array([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
_ALONG_GRAY = np.outer(_GRAY, _GRAY)


def _colors(scale: Array, shift: Array) -> Array:
    return _square([[scale, 0, 0, shift], [0, scale, 0, shift], [0, 0, scale, shift], [0, 0, 0, 1]], len(scale))


def _brightness(key, probability, x):
    return _colors(jnp.ones(len(x)), _coin(key, probability, 0.2 * jax.random.normal(key, (len(x),)), 0.0))


def _contrast(key, probability, x):
    return _colors(_log_normal(key, probability, x, 0.5), jnp.zeros(len(x)))


def _lumaflip(key, probability, x):
    flipped = _coin(key, probability, jax.random.randint(key, (len(x),), 0, 2).astype(jnp.float32), 0.0)
    return jnp.eye(4) - 2 * flipped[:, None, None] * _ALONG_GRAY


def _hue(key, probability, x):
    """A rotation about the axis of grays (Rodrigues' formula)."""
    angle = _coin(key, probability, jax.random.uniform(key, (len(x),), minval=-jnp.pi, maxval=jnp.pi), 0.0)
    r, g, b, _ = _GRAY
    cross = np.array([[0, -b, g, 0], [b, 0, -r, 0], [-g, r, 0, 0], [0, 0, 0, 0]])
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    colors = np.diag([1.0, 1.0, 1.0, 0.0])
    return np.diag([0.0, 0.0, 0.0, 1.0]) + cos * colors + sin * cross + (1 - cos) * _ALONG_GRAY


def _saturation(key, probability, x):
    factor = _log_normal(key, probability, x, 1.0)
    return (
        _ALONG_GRAY
        + factor[:, None, None] * (np.eye(4) - _ALONG_GRAY - np.diag([0, 0, 0, 1.0]))
        + np.diag([0, 0, 0, 1.0])
    )


_COLORS = {
    "brightness": _brightness,
    "contrast": _contrast,
    "lumaflip": _lumaflip,
    "hue": _hue,
    "saturation": _saturation,
}


def _recolored(x: Array, maps: Array) -> Array:
    """Colors under their maps; of other than three or four channels each is taken for gray, and the fourth is kept."""
    if x.shape[-1] in (3, 4):
        colors = jnp.einsum("bij,bhwj->bhwi", maps[:, :3, :3], x[..., :3]) + maps[:, None, None, :3, 3]
        return jnp.concatenate([colors, x[..., 3:]], axis=-1)
    rows = maps[:, :3].mean(axis=1)
    return x * rows[:, :3].sum(axis=1)[:, None, None, None] + rows[:, 3][:, None, None, None]


# --- corruptions


def _frequency_bands() -> np.ndarray:
    """(4, taps) filters of octaves from the lowest to the highest, which sum to an impulse: sym2, undecimated."""
    root = math.sqrt(3)
    low = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * math.sqrt(2))
    high = low[::-1] * (-1) ** np.arange(4)
    smooth, detail = (np.convolve(taps, taps[::-1]) / 2 for taps in (low, high))
    bank = np.eye(4, 1)
    for band in range(1, 4):
        bank = np.stack([bank, np.zeros_like(bank)], axis=2).reshape(4, -1)[:, :-1]  # zeros between taps
        bank = np.stack([np.convolve(row, smooth) for row in bank])
        middle = (bank.shape[1] - len(detail)) // 2
        bank[band, middle : middle + len(detail)] += detail
    return bank


_BANDS = _frequency_bands()


def _imgfilter(key, probability, x):
    """Gains of the frequency bands, whose power stays that of natural images."""
    gains = jnp.ones((len(x), 4))
    for band in range(4):
        one = _log_normal(fold_in(key, band), probability, x, 1.0)
        factors = jnp.ones((len(x), 4)).at[:, band].set(one)
        power = (jnp.array([10, 1, 1, 1]) / 13 * factors**2).sum(axis=1, keepdims=True)
        gains *= factors / jnp.sqrt(power)
    taps = gains @ jnp.asarray(_BANDS, jnp.float32)
    reach = _BANDS.shape[1] // 2
    for axis in (1, 2):
        size, widths = x.shape[axis], [(0, 0)] * 4
        widths[axis] = (reach, reach)
        padded = jnp.pad(x, widths, mode="reflect")
        parts = (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(_BANDS.shape[1]))
        x = sum(taps[:, i, None, None, None] * part for i, part in enumerate(parts))
    return x


def _noise(key, probability, x):
    deviation = _coin(key, probability, 0.1 * jnp.abs(jax.random.normal(key, (len(x),))), 0.0)
    return x + deviation[:, None, None, None] * jax.random.normal(fold_in(key, "pixels"), x.shape, x.dtype)


def _cutout(key, probability, x):
    size = _coin(key, probability, jnp.full(len(x), 0.5), 0.0)[:, None]
    inside = jnp.ones((len(x), 1, 1), bool)
    for axis in (1, 2):
        center = jax.random.uniform(fold_in(key, axis), (len(x), 1))
        line = jnp.abs((jnp.arange(x.shape[axis]) + 0.5) / x.shape[axis] - center) < size / 2
        inside = inside & (line[:, :, None] if axis == 1 else line[:, None, :])
    return jnp.where(inside[..., None], 0.0, x)


_CORRUPTIONS = {"imgfilter": _imgfilter, "noise": _noise, "cutout": _cutout}
