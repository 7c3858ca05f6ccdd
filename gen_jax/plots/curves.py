"""Learning curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gen_jax.errors import UserError
from gen_jax.plots.style import COLORS, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curves"]

REPEATED = ("examples_per_second", "_per_dim", "frechet_infinity")  # parts of names of what another curve shows
UNITS = {
    "log_likelihood": "nats",
    "log_posterior": "nats",
    "elbo": "nats",
    "iwae": "nats",
    "kl": "nats",
    "reconstruction": "nats",
    "nats_per_token": "nats/token",
    "steps_per_second": "1/s",
}


@styled()
def learning_curves(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """The metrics of a run against the step, training and validation of the same quantity in one panel.

    Curves of many steps are smoothed, and drawn over the raw one. Of several seeds, the mean, and each as a thin line.
    """
    series: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for row in rows:
        for name, value in row.items():
            where, _, metric = name.rpartition("/")
            told = any(part in metric for part in REPEATED)
            if name not in ("step", "time", "compile_seconds") and value is not None and not told:
                series.setdefault(metric, {}).setdefault(where, []).append((row["step"], value))
    if not series:
        raise UserError("there are no metrics to plot yet")
    last = max(row["step"] for row in rows)
    first = sorted(series, key=lambda metric: not re.search("loss|likelihood|elbo|posterior", metric))  # then as found
    figure, axes = panels(len(series), height=2.3)
    for axis, metric in zip(axes, first):
        for where, points in series[metric].items():
            steps, values = zip(*points)
            _curve(axis, np.asarray(steps), np.asarray(values, float).reshape(len(steps), -1), where)
        unit = next((unit for name, unit in UNITS.items() if metric.startswith(name)), "")
        alike = sum(other.partition("@")[0] == metric.partition("@")[0] for other in series) > 1
        name = metric.replace("@", " by ") if alike else metric.partition("@")[0]
        where = next(iter(series[metric])) if len(series[metric]) == 1 else ""
        axis.set_title(f"{where} {name}".strip().replace("_", " ") + (f" ({unit})" if unit else ""))
        axis.set(xlabel="step", xlim=(0, 1.03 * max(last, 1)))
        axis.grid(alpha=0.3)
        if not where and len(series[metric]) > 1:
            axis.legend()
    figure.suptitle(title)
    return figure


def _curve(axis: Any, steps: np.ndarray, values: np.ndarray, where: str) -> None:
    """Draws the mean of values (T, seeds); smoothed over raw where there are many, each seed as a thin line."""
    color, known = COLORS[1 if where == "validation" else 0], np.isfinite(values)
    mean = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    mean = np.where(known.any(axis=1), mean, np.nan)  # of the seeds that are finite
    if values.shape[1] > 1:
        axis.plot(steps, values, color=color, linewidth=0.5, alpha=0.5)
    width = len(steps) // 25
    if width > 1:
        axis.plot(steps, mean, color=color, linewidth=0.5, alpha=0.35)
        kernel, there = (lambda a: np.convolve(a, np.ones(2 * width + 1), "same")), np.isfinite(mean)
        mean = kernel(np.where(there, mean, 0)) / np.maximum(kernel(there.astype(float)), 1)
    axis.plot(steps, mean, color=color, label=where or None, linewidth=1.2, marker="." if len(steps) < 30 else "")
