"""Plots of human evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gen_jax.evaluation.human import Interval
from gen_jax.plots.style import COLORS, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["intervals", "scores_by_stimulus"]


@styled()
def intervals(found: Mapping[str, Mapping[str, Interval]], references: Mapping[str, float] = {}) -> Figure:
    """Estimates with their confidence intervals, one panel per quantity and one line per source: a forest plot.

    references: values that mean chance or equality, by the name of the quantity.
    """
    figure, axes = panels(len(found))
    for axis, (title, lines) in zip(axes, found.items()):
        places = np.arange(len(lines))[::-1]
        for place, interval in zip(places, lines.values()):
            axis.plot([interval.low, interval.high], [place, place], color=COLORS[0], linewidth=2)
            axis.plot(interval.value, place, "o", color=COLORS[0])
        if title in references:
            axis.axvline(references[title], color="gray", linestyle="--", linewidth=1)
        axis.set(yticks=places, yticklabels=list(lines), xlabel=title, ylim=(-0.6, len(lines) - 0.4))
        axis.set_title("95 % intervals over raters")
    return figure


@styled()
def scores_by_stimulus(stimuli: Sequence[tuple[str, str, int, float]], score: str) -> Figure:
    """The score of every stimulus (id, source, answers, score), sorted within each source."""
    figure, (axis,) = panels(1)
    for source in dict.fromkeys(source for _, source, _, _ in stimuli):
        values = sorted(value for _, own, _, value in stimuli if own == source)
        axis.plot(np.linspace(0, 1, len(values)), values, ".-", label=f"{source} ({len(values)})", linewidth=1)
    axis.set(xlabel="share of stimuli", ylabel=score)
    axis.legend()
    return figure
