"""Figures of anomaly detection: histograms of scores, ROC and precision-recall, density and decision boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from gen_jax.applications.anomaly.detection import Ranking, curves
from gen_jax.plots.figures import covering
from gen_jax.plots.style import panels, plane, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["decision_boundary", "ranking_curves", "score_histograms"]

NORMAL, ANOMALOUS = "tab:blue", "tab:red"


@styled()
def score_histograms(groups: Mapping[str, Mapping[str, np.ndarray]], threshold: tuple[str, float]) -> Figure:
    """A histogram of each score, by name, of several groups of examples. threshold: a score and its value."""
    figure, axes = panels(len(groups))
    for axis, (name, scores) in zip(axes, groups.items()):
        every = np.concatenate(list(scores.values()))
        every = every[np.isfinite(every)]
        edges = np.histogram_bin_edges(np.clip(every, *np.quantile(every, [0.005, 0.995])), 50)
        for label, values in scores.items():
            inside = np.clip(values, edges[0], edges[-1])
            axis.hist(inside, edges, density=True, histtype="step", label=label)
        if name == threshold[0]:
            axis.axvline(threshold[1], color="black", linestyle="dashed", label="threshold")
        axis.set(title=name, xlabel="score", ylabel="density")
        axis.legend()
    return figure


@styled()
def ranking_curves(scores: Mapping[str, np.ndarray], anomalous: np.ndarray, areas: Mapping[str, Ranking]) -> Figure:
    """ROC and precision-recall curves of each score, with their areas and 95 % intervals."""
    figure, (roc, precision) = panels(2)
    for name, values in scores.items():
        found, area = curves(values, anomalous), areas[name]
        roc.plot(
            np.r_[0, found.false_positive_rate],
            np.r_[0, found.recall],
            label=_area(name, area.roc_auc, area.roc_auc_range),
        )
        precision.step(
            found.recall,
            found.precision,
            where="pre",
            label=_area(name, area.average_precision, area.average_precision_range),
        )
    roc.plot([0, 1], [0, 1], color="gray", linewidth=0.7)
    precision.axhline(np.mean(anomalous), color="gray", linewidth=0.7)
    roc.set(xlabel="false-positive rate", ylabel="recall", title="ROC, area [95 %]")
    precision.set(
        xlabel="recall", ylabel="precision", title="precision-recall, average precision [95 %]", ylim=(0, 1.03)
    )
    for axis in (roc, precision):
        axis.legend()
        axis.grid(alpha=0.3)
    return figure


def _area(name: str, value: float, interval: tuple[float, float]) -> str:
    return f"{name} {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


@styled()
def decision_boundary(
    score: Callable[[np.ndarray], np.ndarray],
    threshold: float,
    groups: Mapping[str, np.ndarray],
    normal: np.ndarray,
    name: str,
) -> Figure:
    """Contours of a score over the plane, the points (N, 2) of several groups, and where the score is the threshold.

    normal: points that say what is near; those far beyond are left out.
    """
    low, high = np.quantile(normal, [0.25, 0.75], axis=0)
    near = lambda x: x[(np.abs(x - (low + high) / 2) <= 10 * (high - low)).all(axis=1)]
    shown = {label: near(x) for label, x in groups.items()}
    left = sum(map(len, groups.values())) - sum(map(len, shown.values()))
    every = np.concatenate([near(normal), *shown.values()])
    points, across, up = covering(every, 120)
    values = score(points).reshape(across.shape)
    figure, (axis,) = panels(1)
    levels = np.unique(np.quantile(values, np.linspace(0, 1, 24)))
    filled = axis.contourf(across, up, values, levels=levels, cmap="Purples")
    filled.set_edgecolor("face")
    figure.colorbar(filled, ax=axis, label=name)
    if values.min() < threshold < values.max():
        axis.contour(across, up, values, levels=[threshold], colors=ANOMALOUS, linestyles="dashed")
    styles = ({"c": NORMAL, "s": 6, "alpha": 0.6}, {"c": ANOMALOUS, "s": 18, "marker": "x"}, {"c": "black", "s": 6})
    for (label, x), style in zip(shown.items(), styles):
        axis.scatter(*x.T, label=label, **style)
    beyond = f" ({left} points lie beyond)" if left else ""
    plane(axis, f"score, points and decision boundary{beyond}")
    axis.legend()
    return figure
