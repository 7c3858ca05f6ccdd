"""Plots of hidden Markov models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from gen_jax.core import State
from gen_jax.evaluation.metric import Split
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.plots.figures import draw, ellipses, show
from gen_jax.plots.style import COLORS, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["rolls", "state_sequence", "states"]


@styled()
def states(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The first two coordinates of sequences of the split and of samples, colored by (most probable) state."""
    batch = {name: a[:32] for name, a in split.head(32).items()}
    found = np.asarray(jax.jit(model.decode)(state, batch).states)
    drawn = draw(model, state, key, len(found), length=batch["x"].shape[1])
    there = np.arange(found.shape[1]) < np.asarray(batch.get("length", np.full(len(found), found.shape[1])))[:, None]
    points = {
        "data": np.asarray(batch["x"])[there],
        "samples": np.asarray(drawn["x"]).reshape(-1, drawn["x"].shape[-1]),
    }
    figure = show(points, [found[there], np.asarray(drawn["state"]).ravel()])
    for axis in figure.axes if isinstance(model.emission, Gaussian) else ():
        ellipses(axis, *model.emission.covariances(state.params["hmm"]["emission"]))
    return figure


@styled()
def state_sequence(model: Any, state: State, split: Split, key: Array) -> Figure:
    """One sequence: the probability of each state over time, the most probable path, and the true one if known."""
    batch = split.head(1)
    steps = int(batch["length"][0]) if "length" in batch else batch["x"].shape[1]
    posterior = np.asarray(jax.jit(model.smooth)(state, batch).marginals)[0, :steps]
    path = np.asarray(jax.jit(model.decode)(state, batch).states)[0, :steps]
    figure, axes = new_figure(6.8, 3.8, 2, 1, sharex=True)
    above, below = axes[:, 0]
    x = np.asarray(batch["x"])[0, :steps]
    if x.shape[1] > 12:
        above.imshow(x.T, aspect="auto", origin="lower", cmap="gray_r", interpolation="nearest")
    else:
        above.plot(x, linewidth=0.9)
    above.set(title="one sequence", ylabel="value" if x.shape[1] <= 12 else "entry of x")
    shown = below.imshow(
        posterior.T, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    below.step(np.arange(steps), path, where="mid", color=COLORS[1], linewidth=1.0, label="most probable path")
    if "state" in batch:
        below.plot(_matched(np.asarray(batch["state"])[0, :steps], path), "k.", markersize=3, label="true states")
    below.set(
        xlabel="step",
        ylabel="state",
        yticks=range(posterior.shape[1]) if posterior.shape[1] <= 30 else range(0, posterior.shape[1], 5),
    )
    below.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.colorbar(shown, ax=below, label="posterior probability")
    return figure


@styled()
def rolls(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Piano rolls: two sequences of the split above, two samples below."""
    figure, axes = new_figure(6.8, 4, 2, 2)
    batch = split.head(2)
    drawn = np.asarray(draw(model, state, key, 2, length=batch["x"].shape[1])["x"])
    titles = ["data"] * 2 + ["sample"] * 2
    for axis, x, title in zip(axes.flat, [*np.asarray(batch["x"]), *drawn], titles):
        axis.imshow(x.T, aspect="auto", origin="lower", cmap="gray_r", interpolation="nearest")
        axis.set(title=title, xlabel="step", ylabel="key")
    return figure


def _matched(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """True states relabeled by the inferred states they most often coincide with."""
    names = {s: np.bincount(found[true == s]).argmax() for s in np.unique(true)}
    return np.array([names[s] for s in true])
