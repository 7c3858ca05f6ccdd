"""The one style of all figures: fonts, sizes, colors that color-blind readers tell apart, few ticks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "DPI", "caption", "new_figure", "panels", "plane", "styled"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito 2008
DPI = 200
WIDTH = 3.4  # inches of a panel, as of a column of text
TICKS = 5  # intervals between ticks

_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@contextmanager
def styled() -> Iterator[None]:
    """The style while a figure is drawn, as a context or a decorator; figures of others keep theirs."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": matplotlib.cycler(color=COLORS)}):
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes (rows, columns). options: of `Figure.subplots`."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        for axis in axes.flat:
            axis.locator_params(nbins=TICKS)
    return figure, axes


def panels(n: int, height: float = 2.9, columns: int = 3, width: float = WIDTH) -> tuple[Figure, list[Any]]:
    """A figure of n panels, in rows of at most `columns`. height, width: of a panel, in inches."""
    columns = min(n, columns)
    rows = math.ceil(n / columns)
    figure, axes = new_figure(width * columns, height * rows, rows, columns)
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, list(axes.flat[:n])


def caption(figure: Figure, text: str) -> None:
    """Names what a figure is of, in small letters above it, unless it has a title."""
    if not figure.get_suptitle():
        figure.suptitle(text, fontsize=7, color="gray")


def plane(axis: Any, title: str, across: np.ndarray | None = None, up: np.ndarray | None = None) -> None:
    """Titles a panel of points in the plane, in equal units along both axes, within the range of coordinates."""
    axis.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    if across is not None and up is not None:
        axis.set(xlim=(across.min(), across.max()), ylim=(up.min(), up.max()))
