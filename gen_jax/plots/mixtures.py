"""Plots of mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from gen_jax.core import MaximumAPosteriori, State
from gen_jax.evaluation.metric import Split
from gen_jax.plots.figures import show, value_limits
from gen_jax.plots.style import COLORS, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["components", "restarts"]


@styled()
def components(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The means of a mixture as examples, heaviest component first."""
    order = np.argsort(-np.asarray(state.params["gmm"]["logits"]))
    means = np.asarray(state.params["gmm"]["means"])[order]
    images = means.reshape(len(means), *split.head(1)["x"].shape[1:])
    return show({"means of the components, heaviest first": images}, limits=value_limits(split))


@styled()
def restarts(model: Any, state: State, split: Split, key: Array) -> Figure:
    """The learning curve of each restart of `best_restart`: the log-posterior of a model with priors."""
    figure, (axis,) = panels(1)
    curves = np.atleast_2d(np.asarray(state.extra["curve"]))
    ends = [curve[~np.isnan(curve)][-1] for curve in curves]
    for i, curve in enumerate(curves):
        best = i == int(np.argmax(ends))
        style = (
            {"color": COLORS[1], "linewidth": 2, "zorder": 3, "label": "best"}
            if best
            else {"color": COLORS[0], "alpha": 0.6}
        )
        axis.plot(np.arange(1, len(curve) + 1), curve, **style)
    prior = isinstance(model, MaximumAPosteriori) and model.log_prior(state) is not None
    climbed = f"log-{'posterior' if prior else 'likelihood'} per example (nats)"
    axis.set(xlabel="iteration", ylabel=climbed, title=f"{len(curves)} restarts")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
