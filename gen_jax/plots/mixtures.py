"""Plots of mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from gen_jax.core import State
from gen_jax.evaluation.metric import Split
from gen_jax.plots.figures import panels, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["components", "restarts"]


def components(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The means of a mixture as examples, heaviest component first."""
    order = np.argsort(-np.asarray(state.params["gmm"]["logits"]))
    means = np.asarray(state.params["gmm"]["means"])[order]
    return show({"means of the components, heaviest first": means.reshape(len(means), *split.head(1)["x"].shape[1:])})


def restarts(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The learning curve of each restart of `best_restart`."""
    figure, (axis,) = panels(1)
    curves = np.atleast_2d(np.asarray(state.extra["curve"]))
    ends = [curve[~np.isnan(curve)][-1] for curve in curves]
    for i, curve in enumerate(curves):
        best = i == int(np.argmax(ends))
        style = {"color": "C3", "linewidth": 2, "zorder": 3, "label": "best"} if best else {"color": "C0", "alpha": 0.6}
        axis.plot(np.arange(1, len(curve) + 1), curve, **style)
    axis.set(xlabel="iteration", ylabel="mean objective (nats)", title=f"{len(curves)} restarts")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
