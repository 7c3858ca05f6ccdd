"""Distances of images (N, H, W, C) in [0, 1], and their translation in blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import ImageTranslator, State
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Split, standard_error

__all__ = [
    "BLOCK",
    "absolute_error",
    "class_maps",
    "closest",
    "compare_images",
    "diagnose",
    "is_test",
    "like",
    "mean_of",
    "psnr",
    "partners_found",
    "ssim",
    "transformed",
    "translator_of",
]

BLOCK = 64  # images translated at once
_HIGHEST = 99.0  # decibels of identical images
_WINDOW = 11
_CLASSES = 64  # distinct colors up to which sources are maps of classes


def absolute_error(a: Array, b: Array) -> Array:
    """(N,) mean absolute differences."""
    return jnp.abs(a - b).mean(axis=(1, 2, 3))


def psnr(a: Array, b: Array) -> Array:
    """(N,) peak signal-to-noise ratios in decibels, at most 99."""
    squared = ((a - b) ** 2).mean(axis=(1, 2, 3))
    return jnp.minimum(-10 * jnp.log10(jnp.maximum(squared, 1e-30)), _HIGHEST)


def ssim(a: Array, b: Array) -> Array:
    """(N,) structural similarities (Wang et al. 2004): a Gaussian window of 11x11 pixels, sigma 1.5, where it fits.

    K1 = 0.01 and K2 = 0.03 for values in [0, 1], variances divided by N; the mean over channels and pixels.
    """
    if min(a.shape[1:3]) < _WINDOW:
        raise ValueError(f"SSIM needs images of at least {_WINDOW}x{_WINDOW} pixels, got {a.shape[1:3]}")
    taps = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / 1.5) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)

    def mean(x: Array) -> Array:
        for axis in (1, 2):
            size = x.shape[axis] - _WINDOW + 1
            x = sum(t * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, t in enumerate(taps))
        return x

    of_a, of_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - of_a**2, mean(b * b) - of_b**2, mean(a * b) - of_a * of_b
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * of_a * of_b + c1) * (2 * both + c2) / ((of_a**2 + of_b**2 + c1) * (var_a + var_b + c2))
    return similar.mean(axis=(1, 2, 3))


def compare_images(made: np.ndarray, truth: np.ndarray, suffix: str = "", how: str = "") -> dict[str, Estimate]:
    """l1, psnr and, of images large enough, ssim: means over pairs with standard errors."""
    scores: dict[str, tuple[Callable[[Array, Array], Array], str, str]] = {
        "ssim": (ssim, "", "higher"),
        "l1": (absolute_error, "of [0, 1]", "lower"),
        "psnr": (psnr, "dB", "higher"),
    }
    found = {}
    for name, (score, unit, better) in scores.items():
        if name == "ssim" and min(made.shape[1:3]) < _WINDOW:
            continue
        values = _by_blocks(score, made, truth)
        group = "" if suffix else "translation"
        found[f"{name}{suffix}"] = Estimate(
            float(values.mean()), standard_error(values), unit, "exact", len(values), how, group, better, name == "ssim"
        )
    return found


def _by_blocks(score: Callable[[Array, Array], Array], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    program = jax.jit(score)
    parts = [program(a[i : i + BLOCK], b[i : i + BLOCK]) for i in range(0, len(a), BLOCK)]
    return np.concatenate([np.asarray(part) for part in parts])


def partners_found(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) whether the nearest of all true images, by squared differences, is the true partner."""
    return closest(made.astype(np.float64), truth.astype(np.float64)) == np.arange(len(made))


def closest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) which image of b (M, H, W, C) is nearest to each of a (N, H, W, C), by squared differences."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    return ((b**2).sum(axis=1)[None] - 2 * a @ b.T).argmin(axis=1)


def like(x: np.ndarray, channels: int) -> np.ndarray | None:
    """Images with so many channels: gray ones repeated, colors averaged; None where neither applies."""
    if x.shape[-1] == channels:
        return x
    if x.shape[-1] == 1:
        return np.repeat(x, channels, axis=-1)
    return x.mean(axis=-1, keepdims=True) if channels == 1 and x.shape[-1] == 3 else None


def diagnose(made: np.ndarray, source: np.ndarray | None, real: np.ndarray) -> dict[str, Estimate]:
    """Signs of failed training, each with a note where it points to one.

    changed: the mean absolute difference of a translation to its source. correlation: of their gray levels, the mean
    over images. spread: the mean absolute deviation of translations from their mean image, over that of real ones.
    """
    found = {}
    if source is not None and source.shape == made.shape:
        changes = np.asarray(_by_blocks(absolute_error, made, source))
        same = changes.mean() < 0.01 < np.abs(source.mean(axis=0) - real.mean(axis=0)).mean()
        note = "output equals input: lower the weight of identity, cycle or nce" if same else ""
        found |= mean_of("changed", changes, note)
        gray = [a.mean(axis=-1).reshape(len(a), -1) for a in (made, source)]
        centered = [a - a.mean(axis=1, keepdims=True) for a in gray]
        norms = np.prod([np.sqrt((a**2).sum(axis=1)) for a in centered], axis=0)
        correlation = (centered[0] * centered[1]).sum(axis=1) / np.maximum(norms, 1e-12)
        note = "light and dark are exchanged: if the domains are not, give identity a weight"
        found |= mean_of("correlation", correlation, note if correlation.mean() < -0.2 else "", "")
    deviation = lambda a: float(np.abs(a - a.mean(axis=0)).mean())
    spread = deviation(made) / max(deviation(real), 1e-12)
    note = "all outputs are alike: the generator has collapsed" if spread < 0.1 else ""
    return found | {"spread": Estimate(spread, float("nan"), "of real", "estimate", len(made), note)}


def mean_of(name: str, values: Any, how: str = "", unit: str = "of [0, 1]") -> dict[str, Estimate]:
    """The mean of a value of every image."""
    values = np.asarray(values)
    return {name: Estimate(float(values.mean()), standard_error(values), unit, "exact", len(values), how)}


def class_maps(split: Split, x: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers (N, H, W) of the sources, or of images x (N, H, W, C), and the color of each class, in [0, 1].

    The classes are the colors of the stored training sources; a pixel belongs to the nearest. Raises UserError if there
    are many.
    """
    stored = np.asarray(split.reference.arrays["x"][:200])
    if stored.dtype != np.uint8:
        raise UserError("maps of classes are stored as whole numbers")
    colors = np.unique(stored.reshape(-1, stored.shape[-1]), axis=0).astype(np.float32) / 255
    if len(colors) > _CLASSES:
        raise UserError(f"the sources have {len(colors):,} colors, more than {_CLASSES}: they are no maps of classes")
    x = split.pixels(transformed(split)) if x is None else x
    return np.argmin([((x - color) ** 2).sum(axis=-1) for color in colors], axis=0), colors


def is_test(split: Split) -> bool:
    """Whether a split is the test split, or a part of it."""
    return split.name.partition("[")[0] == "test"


def translator_of(model: ImageTranslator) -> Callable[..., np.ndarray]:
    """Makes (state, images (N, H, W, C), direction, key=None) -> translations, as the model takes and gives them."""
    programs: Mapping[str, Any] = {side: jax.jit(partial(model.translate, direction=side)) for side in model.directions}

    def run(state: State, images: np.ndarray, direction: str = "a2b", key: Array | None = None) -> np.ndarray:
        found = []
        for number, start in enumerate(range(0, len(images), BLOCK)):
            part = np.asarray(images[start : start + BLOCK])
            full = np.concatenate([part, np.repeat(part[-1:], min(BLOCK, len(images)) - len(part), axis=0)])
            own = None if key is None else jax.random.fold_in(key, number)
            found.append(np.asarray(programs[direction](state, full, key=own))[: len(part)])
        return np.concatenate(found)

    return run


def transformed(split: Split, entry: str = "x", n: int | None = None) -> np.ndarray:
    """The first n examples of an entry as the model takes them."""
    n = split.size if n is None else min(n, split.size)
    parts = [split.part(i, min(n, i + 500)) for i in range(0, n, 500)]
    return np.concatenate([np.asarray(part.head(part.size)[entry]) for part in parts])
