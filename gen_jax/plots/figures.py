"""Plots for any model, and the helpers shared by all plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from gen_jax.core import Batch, GaussianComponents, State
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "PlotFn",
    "covering",
    "draw",
    "density",
    "marginals",
    "ellipses",
    "learning_curves",
    "panels",
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


def samples(model: Any, state: State, split: Split, key: Array) -> Figure:
    """64 samples, from the same noise at every step of training, in the range of the data."""
    return show({"samples": draw(model, state, key, 64)["x"]}, limits=value_limits(split))


def value_limits(split: Split) -> tuple[float, float]:
    """Smallest and largest value of the first examples."""
    x = split.head(64)["x"]
    return float(x.min()), float(x.max())


def reconstructions(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Pairs of columns: examples of the split and their reconstructions."""
    batch = split.head(32)
    pairs = np.stack([np.asarray(batch["x"]), np.asarray(model.reconstruct(state, batch))], axis=1)
    return show({f"{split.name} (left of each pair) and reconstruction": pairs.reshape(-1, *pairs.shape[2:])})


def scatter(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Points of the split beside as many samples, colored by component where the model has components."""
    n = min(2000, split.size)
    generated = draw(model, state, key, n)
    colors = [split.arrays.get("label"), generated.get("component")]
    figure = show({split.name: split.head(n)["x"], "samples": generated["x"]}, colors)
    for axis in figure.axes if isinstance(model, GaussianComponents) else ():
        ellipses(axis, *model.covariances(state))
    return figure


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
        edges = np.histogram_bin_edges(values, 40)
        outside = np.mean((made[:, i] < edges[0]) | (made[:, i] > edges[-1]))
        for x, label in ((values, split.name), (made[:, i], "samples")):
            axis.hist(x, edges, weights=np.full(len(x), 1 / len(x)), histtype="step", label=label)
        axis.set_title(f"x[{i}]" + (f", {outside:.0%} of samples outside" if outside >= 0.005 else ""), fontsize=8)
    axes[0].legend(fontsize=8)
    return figure


def density(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Contours of the negative log-likelihood in 2D, with the data."""
    x = np.asarray(split.head(1000)["x"])
    points, across, up = covering(x)
    nll = -np.asarray(jax.jit(model.log_prob)(state, {"x": points})).reshape(across.shape)
    figure, (axis,) = panels(1)
    filled = axis.contourf(
        across, up, nll, levels=np.quantile(nll, np.linspace(0, 1, 30)), cmap="viridis_r", alpha=0.85
    )
    axis.scatter(*x.T, s=6, c="white", edgecolors="black", linewidths=0.3)
    figure.colorbar(filled, ax=axis, label="negative log-likelihood (nats)")
    axis.set_title(f"density and {split.name} data")
    return figure


def learning_curves(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Every metric of a run against the step, training and evaluation of the same quantity in one panel.

    Of several seeds, the mean, and each as a thin line.
    """
    series: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time", "compile_seconds") and value is not None:
                where, _, metric = name.rpartition("/")
                series.setdefault(metric, {}).setdefault(where or metric, []).append((row["step"], value))
    if not series:
        raise UserError("there are no metrics to plot yet")
    figure, axes = panels(len(series))
    for axis, (metric, lines) in zip(axes, series.items()):
        for label, points in lines.items():
            steps, values = zip(*points)
            values = np.asarray(values, float).reshape(len(steps), -1)
            [line] = axis.plot(steps, values.mean(axis=1), label=label, marker="." if len(steps) < 30 else "")
            if values.shape[1] > 1:
                axis.plot(steps, values, color=line.get_color(), linewidth=0.5, alpha=0.5)
        axis.set_title(metric, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def show(
    arrays: dict[str, Any], colors: Sequence[Any] = (), columns: int = 0, limits: tuple[float, float] | None = None
) -> Figure:
    """Draws images (N, H, W, C) as grids, points (N, 2) as scatter plots, sequences (N, T, D) as lines; one panel each.

    columns: in a grid of images; by default about as many as rows. limits: values of images that are black and white;
    by default the smallest and largest.
    """
    figure, axes = panels(len(arrays))
    parts = list(zip(axes, arrays.items(), [*colors, *[None] * len(arrays)]))
    box = _limits([np.asarray(a) for a in arrays.values()][0])
    for axis, (title, a), color in parts:
        a = np.asarray(a)
        if a.ndim == 4:
            axis.imshow(tiled(a, columns, limits=limits), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.axis("off")
        elif a.ndim == 2 and a.shape[1] >= 2:
            style = {} if color is None else {"c": np.asarray(color)[: len(a)], "cmap": "tab10"}
            axis.scatter(a[:, 0], a[:, 1], s=4, **style)
            axis.set(xlim=box[0], ylim=box[1])
        elif a.ndim == 3:
            axis.plot(a[:8, :, 0].T, linewidth=0.8)
        else:
            axis.hist(a.reshape(-1), bins=50)
        axis.set_title(title, fontsize=10)
    return figure


def tiled(
    images_NHWC: np.ndarray, columns: int = 0, gap: int = 1, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """(N, H, W, C) images as one image of floats in [0, 1], a roughly square grid; `limits` as in `show`."""
    n, height, width, channels = images_NHWC.shape
    columns = columns or math.ceil(math.sqrt(n) / 2) * 2  # even, so that pairs stay together
    rows = math.ceil(n / columns)
    low, high = limits or (float(images_NHWC.min()), float(images_NHWC.max()))
    tall, wide = height + gap, width + gap
    canvas = np.zeros((rows * columns, tall, wide, channels))
    canvas[:n, :height, :width] = np.clip((images_NHWC - low) / max(high - low, 1e-12), 0, 1)
    grid = canvas.reshape(rows, columns, tall, wide, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(rows * tall, columns * wide, channels)
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
    low, high = a[:, :2].min(axis=0), a[:, :2].max(axis=0)
    margin = 0.15 * (high - low)
    return tuple(zip(low - margin, high + margin))


def panels(n: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(n, 3)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[n:]:
        axis.axis("off")
    return figure, list(axes[:n])
