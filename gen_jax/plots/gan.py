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
from gen_jax.plots.figures import covering, draw, panels, show, value_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["generator_density", "noise_interpolations", "real_and_fake", "style_mixing", "truncations"]


def real_and_fake(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Examples of the split beside generated ones, under the same conditions for a conditional model."""
    batch = split.head(64)
    n = len(batch["x"])
    generated = draw(model, state, key, n, batch)["x"]
    shown = {f"real ({split.name})": batch["x"], "generated": generated}
    return show(shown, limits=value_limits(split))


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


def truncations(model: Any, state: State, split: Split, key: Array, rows: int = 6) -> Figure:
    """The same noise, one per row, under truncations psi from 0 (the mean image) to 1.2."""
    z = model.noise(key, rows)
    made = [jax.jit(replace(model, psi=psi).generate)(state, z) for psi in PSI]
    images = np.stack(made, axis=1).reshape(-1, *made[0].shape[1:])
    return show({f"psi {', '.join(f'{psi:g}' for psi in PSI)}": images}, columns=len(PSI), limits=value_limits(split))


def generator_density(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Generator samples in 2D, with contours of the discriminator's logits."""
    x = np.asarray(split.head(2000)["x"])
    points, across, up = covering(x)
    figure, axes = panels(2)
    generated = np.asarray(draw(model, state, key, 20_000)["x"])
    limits = [(across.min(), across.max()), (up.min(), up.max())]
    axes[0].hist2d(*generated.T, bins=150, range=limits, cmap="viridis", norm="symlog")
    axes[0].scatter(*x[:500].T, s=2, c="white", alpha=0.4)
    axes[0].set_title("density of 20,000 generated points, real ones in white", fontsize=10)
    if not model.compares_examples and model.conditioning is None:  # otherwise a point has no logit by itself
        logits = np.asarray(jax.jit(model.discriminate)(state, {"x": points})).reshape(across.shape)
        boundary = model.adversarial.threshold
        middle = np.median(logits) if boundary is None else boundary
        reach = max(np.abs(np.quantile(logits - middle, (0.02, 0.98))).max(), 1e-6)
        levels = middle + np.linspace(-reach, reach, 21)
        filled = axes[1].contourf(across, up, logits, levels=levels, cmap="RdBu", extend="both")
        figure.colorbar(filled, ax=axes[1], label="logit of being real")
    axes[1].scatter(*generated[:1000].T, s=3, c="black", label="generated")
    axes[1].scatter(*x[:500].T, s=3, c="gold", label="real")
    axes[1].set(xlim=limits[0], ylim=limits[1], title="the discriminator")
    axes[1].legend(fontsize=8)
    return figure
