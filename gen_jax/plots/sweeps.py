"""Plots of sweeps over knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gen_jax.plots.style import COLORS, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["swept"]


@styled()
def swept(found: Mapping[str, Sequence[tuple[str, Sequence[float]]]], metric: str) -> Figure:
    """A metric over each knob: every seed of every run as a point, and the means over all runs of a value.

    found: {knob: (value as it was typed, metric of each seed) of each run}. Numbers that span a factor of ten or more
    are on a logarithmic axis; other values are evenly spaced.
    """
    figure, axes = panels(len(found))
    for axis, (knob, runs) in zip(axes, found.items()):
        typed = list(dict.fromkeys(value for value, _ in runs))
        numbers = [_number(value) for value in typed]
        if all(number is not None for number in numbers):
            typed = [value for _, value in sorted(zip(numbers, typed))]
            places = dict(zip(typed, sorted(numbers)))
            if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
                axis.set_xscale("log")
        else:
            places = {value: i for i, value in enumerate(typed)}
            axis.set_xticks(range(len(typed)), typed)
        for value, seeds in runs:
            axis.plot([places[value]] * len(seeds), seeds, "o", color=COLORS[0], alpha=0.5)
        means = [np.nanmean([v for value, seeds in runs if value == one for v in seeds]) for one in typed]
        axis.plot([places[one] for one in typed], means, "-", color=COLORS[1], label="mean")
        axis.set(xlabel=knob, ylabel=f"{metric} (validation)")
        axis.legend()
    return figure


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
