"""Plots of flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import State
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split
from gen_jax.models.bijections.layer import unrolled
from gen_jax.plots.figures import covering, draw, points_of, show, value_limits
from gen_jax.plots.style import COLORS, panels, plane, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["flow_density", "latent_space", "temperatures", "warped_grid"]


@styled()
def flow_density(model: Any, state: State, split: Split, key: Array, points: int = 3000) -> Figure:
    """Two-dimensional data, the model density as a heat map, and samples, on the same axes."""
    x = _plane(model, split, points)
    corners, across, up = covering(x)
    density = np.exp(np.asarray(jax.jit(model.log_prob)(state, {"x": corners})).reshape(across.shape))
    density = np.nan_to_num(density)  # 0 outside the range of the flow
    drawn = np.asarray(draw(model, state, key, len(x))["x"])
    figure, axes = panels(3, height=2.4)
    axes[0].scatter(*x.T, s=1.5, linewidths=0)
    top = np.quantile(density, 0.995)
    mesh = axes[1].pcolormesh(across, up, density, vmin=0, vmax=top, cmap="magma", shading="gouraud", rasterized=True)
    figure.colorbar(mesh, ax=axes[1], label="density", extend="max", shrink=0.7)
    axes[2].scatter(*drawn.T, s=1.5, linewidths=0)
    for axis, title in zip(axes, ("data", "density", "samples")):
        plane(axis, title, across, up)
    return figure


@styled()
def warped_grid(model: Any, state: State, split: Split, key: Array, stages: int = 6) -> Figure:
    """A grid in noise space as the layers transform it to data space, drawn after some of them."""
    _plane(model, split, 1)
    layers = unrolled(model.chain, state.params["flow"].get("layers", {}))
    shown = np.unique(np.linspace(0, len(layers), min(stages, len(layers) + 1)).astype(int))
    line, fine = np.linspace(-2.5, 2.5, 21), np.linspace(-2.5, 2.5, 200)
    lines = [np.stack(np.broadcast_arrays(a, fine), axis=1) for a in line]
    z = jnp.asarray(np.concatenate([*lines, *(a[:, ::-1] for a in lines)]), jnp.float32)
    carried = [z]
    for layer, params in layers:
        carried.append(layer.forward(params, carried[-1])[0])
    figure, axes = panels(len(shown))
    for axis, i in zip(axes, shown):
        for number, curve in enumerate(np.asarray(carried[i]).reshape(-1, len(fine), 2)):
            axis.plot(*curve.T, linewidth=0.5, color=COLORS[0] if number < len(line) else COLORS[1])
        plane(axis, "noise" if i == 0 else f"after {i} of {len(layers)} layers")
    return figure


@styled()
def latent_space(model: Any, state: State, split: Split, key: Array, points: int = 3000) -> Figure:
    """Data beside its inverse image in noise space, and noise beside its samples; colored by position."""
    x = _plane(model, split, points)
    z = np.asarray(model.latent(state, {"x": x})[0])
    drawn = draw(model, state, key, len(x))
    noise, samples = np.asarray(drawn["z"]), np.asarray(drawn["x"])
    of_data, of_noise = (np.arctan2(*(a - a.mean(axis=0)).T) for a in (x, noise))
    shown = {
        "data": (x, of_data),
        "its noise": (z, of_data),
        "noise": (noise, of_noise),
        "its samples": (samples, of_noise),
    }
    figure, axes = panels(len(shown), columns=2)
    for axis, (title, (places, colors)) in zip(axes, shown.items()):
        axis.scatter(*places.T, s=1.5, c=colors, cmap="twilight", linewidths=0)
        plane(axis, title)
    return figure


@styled()
def temperatures(model: Any, state: State, split: Split, key: Array, rows: int = 6, columns: int = 8) -> Figure:
    """Samples, one row per temperature between 0 and 1, from the same noise."""
    heat = np.linspace(0, 1, rows)
    at_temperature = jax.jit(lambda t: model.sample(state, key, columns, temperature=t)["x"])
    images = np.concatenate([np.asarray(at_temperature(t)) for t in heat])
    named = [f"{t:.1f}" for t in heat]
    return show({"samples by temperature": images}, columns=columns, limits=value_limits(split), rows=named)


def _plane(model: Any, split: Split, n: int) -> np.ndarray:
    if model.conditioning:
        raise UserError("this picture is one of a flow without a context")
    return points_of(split, n)
