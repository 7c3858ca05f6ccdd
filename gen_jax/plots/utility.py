"""Figures of the utility of samples: scores by training examples, and the recall of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gen_jax.evaluation.utility import ARMS, Utility
from gen_jax.plots.style import COLORS, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["utility_figure"]

OF_ARMS = {"real": "gray", "synthetic": COLORS[0], "both": COLORS[2]}
MOST = 50  # classes that are drawn one by one


@styled()
def utility_figure(found: Sequence[Utility], score: str, classes: Sequence[str]) -> Figure:
    """The score of each predictor trained on real examples, on samples and on both, and recalls of classes.

    Bars are one standard error.
    """
    by_class = [one for one in found if one.recalls and len(classes) <= MOST]
    height = 2.6 + 0.16 * len(classes) * bool(by_class)
    figure, [axes] = new_figure(3.4 + 2.6 * len(by_class), height, 1, 1 + len(by_class))
    for shift, arm in zip((-0.25, 0, 0.25), ARMS):
        values = [one.scores[arm] for one in found]
        at, error = np.arange(len(found)) + shift, [v.error for v in values]
        axes[0].errorbar(at, [v.value for v in values], error, fmt="o", color=OF_ARMS[arm], label=arm, capsize=3)
    axes[0].set_xticks(range(len(found)), [one.predictor for one in found])
    axes[0].set_xlim(-0.5, len(found) - 0.5)
    axes[0].set(ylabel=f"{score} on real test examples")
    axes[0].legend(title="trained on")
    for axis, one in zip(axes[1:], by_class):
        _recalls(axis, one, classes)
    return figure


def _recalls(axis, one: Utility, classes: Sequence[str]) -> None:
    at = np.arange(len(classes))
    axis.hlines(at, one.recalls["synthetic"], one.recalls["real"], color="lightgray", zorder=0)
    for arm in ("real", "synthetic"):
        axis.errorbar(one.recalls[arm], at, xerr=one.recall_errors[arm], fmt="o", color=OF_ARMS[arm], label=arm, ms=4)
    axis.set_yticks(at, classes)
    axis.invert_yaxis()
    axis.set(xlabel="recall", title=one.predictor)
