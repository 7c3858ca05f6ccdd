"""Plots for any model, and the helpers shared by all plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from gen_jax.core import Batch, Components, GaussianComponents, Latent, State
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split
from gen_jax.plots.style import DPI, WIDTH, panels, plane, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "PlotFn",
    "covering",
    "draw",
    "density",
    "marginals",
    "points_of",
    "ellipses",
    "reconstructions",
    "samples",
    "scatter",
    "show",
    "tiled",
    "value_limits",
]

PlotFn = Callable[[Any, State, Split, Array], "Figure"]


_PROGRAMS: dict[tuple[Any, ...], tuple[Any, Callable[..., Batch]]] = {}  # by the identity of the model and options


def draw(model: Any, state: State, key: Array, n: int, condition: Batch | None = None, **options: Any) -> Batch:
    """n samples by a program that is compiled once per model and shared by all figures.

    options: further arguments of `model.sample`, which are constants of the program.
    """
    name = (id(model), *sorted(options.items()))
    known, program = _PROGRAMS.get(name, (None, None))
    if program is None or known is not model:
        if len(_PROGRAMS) > 8:
            _PROGRAMS.clear()
        program = jax.jit(partial(model.sample, **options), static_argnums=2)
        _PROGRAMS[name] = model, program
    return program(state, key, n, condition)


@styled()
def samples(model: Any, state: State, split: Split, key: Array) -> Figure:
    """64 samples, from the same noise at every step of training, in the range of the data.

    Of a model with a likelihood of each value, such as a VAE, also the means of p(x | z) of the same z.
    """
    drawn = draw(model, state, key, 64)
    shown = {"samples": drawn["x"]}
    if isinstance(model, Latent) and "z" in drawn and drawn["x"].ndim == 4:
        given = {name: a for name, a in drawn.items() if name not in ("x", "z")} or None
        shown["means of p(x | z)"] = jax.jit(lambda z: model.decode(state, z, given).mean())(drawn["z"])
    return show(shown, limits=value_limits(split))


def points_of(split: Split, n: int) -> np.ndarray:
    """The first n examples, points (N, 2) of the plane. Raises UserError for others."""
    x = np.asarray(split.head(n)["x"])
    if x.ndim != 2 or x.shape[1] != 2:
        raise UserError(f"this picture is one of the plane, and examples have the shape {x.shape[1:]}")
    return x


def value_limits(split: Split) -> tuple[float, float]:
    """Smallest and largest value of the first 1,000 examples."""
    x = split.head(1000)["x"]
    return float(x.min()), float(x.max())


@styled()
def reconstructions(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Pairs of columns: examples of the split and their reconstructions."""
    batch = split.head(32)
    pairs = np.stack([np.asarray(batch["x"]), np.asarray(model.reconstruct(state, batch))], axis=1)
    title = "examples (left) and reconstructions"
    return show({title: pairs.reshape(-1, *pairs.shape[2:])}, limits=value_limits(split))


@styled()
def scatter(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Points of the split beside as many samples, both colored by component where the model has components."""
    n = min(2000, split.size)
    generated, batch = draw(model, state, key, n), split.head(n)
    colors = [split.arrays.get("label"), None]
    if isinstance(model, Components) and "component" in generated:
        colors = [jax.jit(model.responsibilities)(state, batch).argmax(axis=1), generated["component"]]
    figure = show({"data": batch["x"], "samples": generated["x"]}, colors)
    for axis in figure.axes if isinstance(model, GaussianComponents) else ():
        ellipses(axis, *model.covariances(state))
    return figure


@styled()
def marginals(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Histograms of the first 16 values of the examples, of the split and of as many samples.

    Samples outside the range of the split are counted in the titles.
    """
    n = min(2000, split.size)
    real = np.asarray(split.head(n)["x"]).reshape(n, -1)
    made = np.asarray(draw(model, state, key, n)["x"]).reshape(n, -1)
    figure, axes = panels(min(16, real.shape[1]))
    for i, axis in enumerate(axes):
        values = real[:, i][np.isfinite(real[:, i])]
        if not len(values):
            axis.set_title(f"x[{i}], all missing")
            continue
        edges = np.histogram_bin_edges(values, 40)
        outside = np.mean((made[:, i] < edges[0]) | (made[:, i] > edges[-1]))
        for x, label in ((values, split.name), (made[:, i], "samples")):
            axis.hist(x, edges, weights=np.full(len(x), 1 / len(x)), histtype="step", label=label)
        axis.set_title(f"x[{i}]" + (f", {outside:.0%} of samples outside" if outside >= 0.005 else ""))
    axes[0].legend()
    return figure


@styled()
def density(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The log-density in 2D, below its highest value, with the data."""
    x = points_of(split, 1000)
    points, across, up = covering(x)
    log_prob = np.asarray(jax.jit(model.log_prob)(state, {"x": points})).reshape(across.shape)
    log_prob = np.where(np.isfinite(log_prob), log_prob, -np.inf)
    if not np.isfinite(log_prob.max()):
        raise UserError("the log-density is finite nowhere near the data")
    below = np.maximum(log_prob - log_prob.max(), -1e6)
    figure, (axis,) = panels(1)
    levels = [-12, -10, -8, -6, -5, -4, -3, -2, -1, 0]
    filled = axis.contourf(across, up, below, levels=levels, cmap="viridis", extend="min")
    filled.set_edgecolor("face")  # else pages show seams between the levels
    axis.scatter(*x.T, s=2, c="white", alpha=0.4, linewidths=0)
    figure.colorbar(filled, ax=axis, label="log-density below its maximum (nats)", ticks=[-12, -8, -4, 0])
    plane(axis, "density and data", across, up)
    return figure


@styled()
def show(
    arrays: dict[str, Any],
    colors: Sequence[Any] = (),
    columns: int = 0,
    limits: tuple[float, float] | None = None,
    rows: Sequence[str] = (),
    heads: Sequence[str] = (),
    around: Any = None,
) -> Figure:
    """Draws images (N, H, W, C) as grids, points (N, 2) as scatter plots, sequences (N, T, D) as lines; one panel each.

    columns: in a grid of images; by default about as many as rows. limits: values of images that are black and white;
    by default the smallest and largest. rows, heads: names of the rows and of the columns of images. around: points
    (N, 2) whose range is shown, by default the first array; how many lie outside is said.
    """
    arrays = {title: np.asarray(a) for title, a in arrays.items()}
    grids = {title: tiled(a, columns, limits=limits) for title, a in arrays.items() if a.ndim == 4}
    width = max([WIDTH, *(1.1 * grid.shape[1] / DPI for grid in grids.values())])  # no pixel is lost
    shapes = [width * grid.shape[0] / grid.shape[1] + 0.3 for grid in grids.values()]
    figure, axes = panels(len(arrays), max(shapes, default=2.9), width=width)
    box = _limits(next(iter(arrays.values())) if around is None else np.asarray(around))
    for axis, (title, a), color in zip(axes, arrays.items(), [*colors, *[None] * len(arrays)]):
        if a.ndim == 4:
            axis.imshow(grids[title], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            _name_cells(axis, a.shape[1:3], rows, heads)
        elif a.ndim == 2 and a.shape[1] >= 2:
            style = {} if color is None else {"c": np.asarray(color)[: len(a)], "cmap": "tab10"}
            axis.scatter(a[:, 0], a[:, 1], s=3, linewidths=0, **style)
            axis.set(xlim=box[0], ylim=box[1], xlabel="$x_1$", ylabel="$x_2$")
            title += _outside(a, box)
        elif a.ndim == 3:
            axis.plot(a[:8, :, 0].T, linewidth=0.8)
            axis.set(xlabel="step", ylabel="$x_1$")
        else:
            axis.hist(a.reshape(-1), bins=50)
            axis.set(xlabel="x", ylabel="examples")
        axis.set_title(title)
    return figure


def _outside(points: np.ndarray, box: tuple[Any, Any]) -> str:
    """The share of points that a panel does not show, as a part of its title."""
    if box[0] is None:
        return ""
    (left, right), (low, high) = box
    x, y = points[:, 0], points[:, 1]
    share = 1 - np.mean((left <= x) & (x <= right) & (low <= y) & (y <= high))
    return f", {share:.1%} outside" if share > 0 else ""


def _name_cells(axis: Any, size: tuple[int, int], rows: Sequence[str], heads: Sequence[str]) -> None:
    """Names the rows and columns of a grid of images with gaps of a pixel, instead of ticks."""
    middles = lambda names, side: [(side + 1) * i + side / 2 for i in range(len(names))]
    axis.set_yticks(middles(rows, size[0]), list(rows))
    axis.set_xticks(middles(heads, size[1]), list(heads))
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def tiled(
    images_NHWC: np.ndarray, columns: int = 0, gap: int = 1, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """(N, H, W, C) images as one image of floats in [0, 1] on white, a roughly square grid; `limits` as in `show`.

    Of images with two channels, or more than three, the first is shown.
    """
    images_NHWC = images_NHWC if images_NHWC.shape[-1] == 3 else images_NHWC[..., :1]
    n, height, width, channels = images_NHWC.shape
    columns = columns or math.ceil(math.sqrt(n) / 2) * 2  # even, so that pairs stay together
    rows = math.ceil(n / columns)
    low, high = limits or (float(images_NHWC.min()), float(images_NHWC.max()))
    tall, wide = height + gap, width + gap
    canvas = np.ones((rows * columns, tall, wide, channels))
    canvas[:n, :height, :width] = np.clip((images_NHWC - low) / max(high - low, 1e-12), 0, 1)
    grid = canvas.reshape(rows, columns, tall, wide, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(rows * tall, columns * wide, channels)[: rows * tall - gap, : columns * wide - gap]
    return grid[..., 0] if channels == 1 else grid


def ellipses(axis: Any, means: Any, covariances: Any) -> None:
    """Draws two-standard-deviation ellipses around each mean, in the first two coordinates."""
    turn = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.stack([np.cos(turn), np.sin(turn)])
    for mean, covariance in zip(np.asarray(means)[:, :2], np.asarray(covariances)[:, :2, :2]):
        axis.plot(*(mean[:, None] + np.linalg.cholesky(covariance) @ circle), color="black", linewidth=0.9)


def covering(x: np.ndarray, side: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(side^2, 2) points on a grid that covers x (N, 2) with a margin, and their coordinates (side, side)."""
    low, high = x.min(axis=0), x.max(axis=0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    across, up = np.meshgrid(*(np.linspace(a, b, side, dtype=np.float32) for a, b in zip(low, high)))
    return np.stack([across.ravel(), up.ravel()], axis=1), across, up


def _limits(a: np.ndarray) -> tuple[Any, Any]:
    """The range of the first two coordinates with a margin."""
    if a.ndim != 2 or a.shape[1] < 2:
        return None, None
    finite = a[np.isfinite(a[:, :2]).all(axis=1), :2]
    if not len(finite):
        return None, None
    low, high = finite.min(axis=0), finite.max(axis=0)
    margin = 0.15 * (high - low)
    return tuple(zip(low - margin, high + margin))
