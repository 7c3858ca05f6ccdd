"""Plots of latent spaces, for models that `encode` to a distribution of z and `decode` z."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import ndtri

from gen_jax.applications.imputation import impute
from gen_jax.core import Conditional, State
from gen_jax.errors import UserError
from gen_jax.evaluation.latents import count_active
from gen_jax.evaluation.latents import latents as encoded
from gen_jax.evaluation.metric import Split
from gen_jax.models.vae.posteriors import mean
from gen_jax.plots.figures import show, tiled, value_limits
from gen_jax.plots.style import panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["imputations", "interpolations", "latent_scatter", "latent_usage", "manifold", "traversals"]


@styled()
def manifold(model: Any, state: State, split: Split, key: Array, n: int = 20) -> Figure:
    """Decoded n x n grid over the first two latent dimensions, equally spaced in quantiles of the normal.

    Kingma & Welling 2013, figure 4. Other dimensions stay at their mean, the condition at the first example's.
    """
    if model.latent < 2:
        raise UserError("a manifold is drawn of two latent dimensions or more: take `traversals`")
    conditioning = model.conditioning if isinstance(model, Conditional) else None
    one = conditioning.example(1) if conditioning else {}
    condition = {name: jnp.repeat(a, n * n, axis=0) for name, a in one.items()} or None
    steps = ndtri(np.linspace(0.5 / n, 1 - 0.5 / n, n)).astype(np.float32)
    across, up = np.meshgrid(steps, steps[::-1])
    z = jnp.zeros((n * n, model.latent)).at[:, 0].set(across.ravel()).at[:, 1].set(up.ravel())
    images = np.asarray(jax.jit(lambda z: model.decode(state, z, condition).mean())(z))
    figure, (axis,) = panels(1)
    axis.imshow(tiled(images, columns=n, gap=0, limits=value_limits(split)), cmap="gray", vmin=0, vmax=1)
    held = "" if model.latent == 2 else ", other dimensions at 0"
    axis.set(title=f"the latent plane, decoded{held}", xlabel="$z_1$ (quantiles)", ylabel="$z_2$ (quantiles)")
    axis.set(xticks=[], yticks=[])
    return figure


@styled()
def latent_scatter(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Posterior means of up to 5,000 examples by label: both dimensions, or the first two principal components."""
    part = split.part(0, 5000)
    z = encoded(model)(state, part).means
    names = ("$z_1$", "$z_2$")
    if z.shape[1] > 2:
        z = z - z.mean(axis=0)
        _, scales, directions = np.linalg.svd(z, full_matrices=False)
        shares = scales**2 / np.sum(scales**2)
        z, names = z @ directions[:2].T, tuple(f"principal component {i + 1} ({shares[i]:.0%})" for i in range(2))
    figure, (axis,) = panels(1)
    labels = part.arrays.get("label")
    other = z[:, 1] if z.shape[1] > 1 else np.zeros(len(z))
    colors = None if labels is None else np.asarray(labels)
    dots = axis.scatter(z[:, 0], other, s=2, linewidths=0, c=colors, cmap="tab10")
    if labels is not None:
        axis.legend(*dots.legend_elements(num=None), title="label", loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set(title="posterior means", xlabel=names[0], ylabel=names[1], aspect="equal")
    return figure


@styled()
def latent_usage(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Use of each latent dimension, in decreasing order: its KL, and the variance of its posterior means."""
    means, kl = encoded(model)(state, split)
    figure, axes = panels(1 if kl is None else 2)
    of_each = {"variance of posterior means": means.var(axis=0)} | (
        {} if kl is None else {"KL (nats)": kl.mean(axis=0)}
    )
    for axis, (title, values) in zip(axes, of_each.items()):
        axis.bar(np.arange(len(values)), np.sort(values)[::-1])
        axis.set(title=title, xlabel="latent dimension, most first")
        axis.grid(alpha=0.3, axis="y")
    axes[0].set_title(f"variance of means, {count_active(means)} of {means.shape[1]} active")
    return figure


@styled()
def interpolations(model: Any, state: State, split: Split, key: Array, rows: int = 8, steps: int = 10) -> Figure:
    """Rows from one example to another: the examples at the ends, decoded linear interpolations of z between.

    Conditions are those of the nearer end.
    """
    rows = min(rows, split.size // 2)
    batch = split.head(2 * rows)
    z = mean(model.encode(state, batch))
    share = jnp.linspace(0, 1, steps)[None, :, None]
    between = (1 - share) * z[:rows, None] + share * z[rows:, None]
    nearer = jnp.arange(rows)[:, None] + rows * (jnp.arange(steps) >= steps / 2)
    given = {name: a[nearer.ravel()] for name, a in batch.items()}
    decoded = jax.jit(lambda z, given: model.decode(state, z, given).mean())(between.reshape(-1, z.shape[-1]), given)
    x = np.asarray(batch["x"])
    middle = np.asarray(decoded).reshape(rows, steps, *x.shape[1:])
    images = np.concatenate([x[:rows, None], middle, x[rows:, None]], axis=1)
    heads = ["example", *[""] * steps, "example"]
    pixels = images.reshape(-1, *x.shape[1:])
    return show({"between two examples": pixels}, columns=steps + 2, limits=value_limits(split), heads=heads)


@styled()
def traversals(model: Any, state: State, split: Split, key: Array, most: int = 10, steps: int = 11) -> Figure:
    """Latent traversals of one example: each dimension, most used first, from -3 to 3 with the others fixed."""
    variances = encoded(model)(state, split.part(0, 1000)).means.var(axis=0)
    dimensions = np.argsort(-variances)[:most]
    batch = split.head(1)
    z = mean(model.encode(state, batch))[0]
    points = jnp.stack([z.at[d].set(v) for d in dimensions for v in np.linspace(-3, 3, steps)])
    given = {name: jnp.repeat(a, len(points), axis=0) for name, a in batch.items()}
    images = np.asarray(jax.jit(lambda z, given: model.decode(state, z, given).mean())(points, given))
    rows, heads = [f"$z_{{{d + 1}}}$" for d in dimensions], [f"{v:.1f}" for v in np.linspace(-3, 3, steps)]
    title = "one latent dimension varied per row"
    return show({title: images}, columns=steps, limits=value_limits(split), rows=rows, heads=heads)


@styled()
def imputations(model: Any, state: State, split: Split, key: Array, rows: int = 8, n: int = 6) -> Figure:
    """Examples, their observed upper half, samples of the lower half given the upper, and the mean of these."""
    batch = split.head(rows)
    x = np.asarray(batch["x"])
    mask = np.zeros(x.shape, bool)
    mask[:, : x.shape[1] // 2] = True
    drawn = np.asarray(jax.jit(lambda batch, mask: impute(model, state, batch, mask, key, n))(batch, mask))
    limits = value_limits(split)
    seen, mean_drawn = np.where(mask, x, limits[0]), drawn.mean(axis=0)[:, None]
    images = np.concatenate([x[:, None], seen[:, None], drawn.swapaxes(0, 1), mean_drawn], axis=1)
    heads = ["example", "seen", *map(str, range(1, n + 1)), "mean"]
    pixels = images.reshape(-1, *x.shape[1:])
    return show({"completions of the upper half": pixels}, columns=n + 3, limits=limits, heads=heads)
