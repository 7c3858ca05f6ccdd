"""Plots of GANs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.applications.latents import GROUPS, layers_of, mix, spherical
from gen_jax.core import State, fold_in
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.styles import PSI
from gen_jax.plots.figures import covering, draw, points_of, show, value_limits
from gen_jax.plots.style import panels, plane, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["generator_density", "noise_interpolations", "real_and_fake", "style_mixing", "truncations"]


@styled()
def real_and_fake(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Examples of the split beside generated ones, under the same conditions for a conditional model."""
    batch = split.head(64)
    n = len(batch["x"])
    generated = draw(model, state, key, n, batch)["x"]
    shown = {"real": batch["x"], "generated": generated}
    return show(shown, limits=value_limits(split))


@styled()
def noise_interpolations(model: Any, state: State, split: Split, key: Array, rows: int = 8, steps: int = 10) -> Figure:
    """Rows of samples from spherical interpolations between two noise vectors (White 2016)."""
    a, b = (model.noise(fold_in(key, name), rows) for name in ("from", "to"))
    ends = (jnp.repeat(z, steps, axis=0) for z in (a, b))
    z = spherical(*ends, jnp.tile(jnp.linspace(0, 1, steps), rows))
    one = model.conditioning.example(rows) if model.conditioning else {}
    condition = {name: jnp.repeat(v, steps, axis=0) for name, v in one.items()} or None
    images = jax.jit(lambda z: model.generate(state, z, condition))(z)
    title = "between two noises, per row"
    return show({title: images}, columns=steps, limits=value_limits(split))


@styled()
def style_mixing(model: Any, state: State, split: Split, key: Array, rows: int = 4, columns: int = 6) -> Figure:
    """Images on the left with the coarse, middle and fine styles of those on top (Karras et al. 2019, figure 3)."""
    w = jax.jit(model.map)(state, model.noise(key, rows + columns))
    limits = value_limits(split)
    of_rows, of_columns, panels = w[:rows], w[rows:], {}
    made = jax.jit(lambda ws: model.synthesize(state, ws))
    beside, above = np.asarray(made(of_rows)), np.asarray(made(of_columns))
    blank = np.full_like(above[:1], limits[1])
    for group in GROUPS:
        layers = layers_of(group, model.styles)
        if layers:
            mixed = mix(of_rows, of_columns, layers)
            inside = np.asarray(made(mixed.reshape(-1, *mixed.shape[2:]))).reshape(rows, columns, *above.shape[1:])
            grid = np.concatenate([beside[:, None], inside], axis=1).reshape(-1, *above.shape[1:])
            panels[f"{group} styles of the columns"] = np.concatenate([blank, above, grid])
    return show(panels, columns=columns + 1, limits=limits)


@styled()
def truncations(model: Any, state: State, split: Split, key: Array, rows: int = 6) -> Figure:
    """The same noise, one per row, under truncations psi from 0 (the mean image) to 1.2."""
    z = model.noise(key, rows)
    made = [jax.jit(replace(model, psi=psi).generate)(state, z) for psi in PSI]
    images = np.stack(made, axis=1).reshape(-1, *made[0].shape[1:])
    heads = [f"{psi:g}" for psi in PSI]
    return show({"samples by psi": images}, columns=len(PSI), limits=value_limits(split), heads=heads)


@styled()
def generator_density(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Generator samples in 2D, with contours of the discriminator's logits."""
    x = points_of(split, 2000)
    points, across, up = covering(x)
    figure, axes = panels(2)
    generated = np.asarray(draw(model, state, key, 20_000)["x"])
    limits = [(across.min(), across.max()), (up.min(), up.max())]
    *_, mesh = axes[0].hist2d(*generated.T, bins=150, range=limits, cmap="viridis", norm="symlog", rasterized=True)
    axes[0].scatter(*x[:500].T, s=2, c="white", alpha=0.4, linewidths=0)
    figure.colorbar(mesh, ax=axes[0], label="generated points of 20,000", shrink=0.7)
    plane(axes[0], "generated, and real in white", across, up)
    if not model.compares_examples and model.conditioning is None:  # otherwise a point has no logit by itself
        logits = np.asarray(jax.jit(model.discriminate)(state, {"x": points})).reshape(across.shape)
        boundary = model.adversarial.threshold
        middle = np.median(logits) if boundary is None else boundary
        reach = max(np.abs(np.quantile(logits - middle, (0.02, 0.98))).max(), 1e-6)
        levels = middle + np.linspace(-reach, reach, 21)
        filled = axes[1].contourf(across, up, logits, levels=levels, cmap="RdBu", extend="both")
        filled.set_edgecolor("face")
        figure.colorbar(filled, ax=axes[1], label="logit of being real", shrink=0.7)
    axes[1].scatter(*generated[:500].T, s=2, c="black", label="generated", linewidths=0)
    axes[1].scatter(*x[:500].T, s=2, c="gold", label="real", linewidths=0)
    plane(axes[1], "discriminator", across, up)
    axes[1].legend(loc="upper right", markerscale=3)
    return figure
