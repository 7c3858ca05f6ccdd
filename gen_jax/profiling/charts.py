"""Plots of `bench` results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gen_jax.plots.style import COLORS, new_figure, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gen_jax.profiling.measure import Measurement

__all__ = ["roofline", "scaling"]


@styled()
def roofline(found: Sequence[Measurement], names: Sequence[str], title: str) -> Figure:
    """Roofline plot: FLOP/s of each step against its FLOPs per byte, under the measured peaks (Williams et al. 2009).

    The slanted roofs are copy bandwidths for working sets of the steps' sizes: small ones are served by caches, so a
    step can lie above the lower roof.
    """
    figure, [[axis]] = new_figure(6.8, 4.8)
    points = [(m.model_flops / max(m.bytes, 1), m.model_flops / m.p50) for m in found]
    peak = max(m.peak_flops for m in found)
    slopes = [m.peak_bandwidth for m in found]
    low = min(x for x, _ in points) / 3
    high = 3 * max(peak / min(slopes), max(x for x, _ in points))
    x = np.geomspace(low, high, 200)
    for slope, style, which in ((min(slopes), "-", "slowest"), (max(slopes), "--", "fastest"))[: len(set(slopes))]:
        roof = f"{which} copy in a step's working set, {slope / 1e9:.0f} GB/s"
        axis.plot(x, np.minimum(slope * x, peak), style, color="gray", linewidth=1, label=roof)
    axis.annotate(f"{peak / 1e9:,.0f} GFLOP/s", (high, peak), color="gray", fontsize=7, ha="right", va="bottom")
    for bound, color in zip(("latency", "memory", "compute"), (COLORS[1], COLORS[0], COLORS[2])):
        if chosen := [point for point, m in zip(points, found) if m.roofline[0] == bound]:
            axis.scatter(*zip(*chosen), s=18, color=color, label=f"bound by {bound}")
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte read or written", ylabel="FLOP/s", title=title)
    axis.legend(loc="lower right")
    figure.draw_without_rendering()  # the layout, from which the places of labels follow
    taken: list[tuple[float, float, float]] = []  # left, right and lower ends of labels, in points
    for point, name in sorted(zip(points, names), key=lambda pair: pair[0][1]):
        left, low = axis.transData.transform(point) * 72 / figure.dpi + (5, 2)
        right, up = left + 3.6 * len(name), 0
        while any(left < r and start < right and abs(low + up - y) < 7 for start, r, y in taken):
            up += 1
        taken.append((left, right, low + up))
        line = {"arrowstyle": "-", "color": "gray", "linewidth": 0.5} if up > 4 else None
        axis.annotate(name, point, (5, 2 + up), textcoords="offset points", fontsize=6, arrowprops=line)
    return figure


@styled()
def scaling(found: Sequence[Measurement], along: str, title: str) -> Figure:
    """Step time and examples per second against `along`: "batch" or "devices"."""
    from matplotlib.ticker import LogLocator

    figure, axes = panels(2)
    others = [name for name in ("batch", "chunk", "dtype", "devices") if name != along]
    kind = lambda m: (m.config, *(f"{name} {getattr(m, name)}" for name in others))
    for axis, name, value in zip(
        axes, ("ms per step", "examples per second"), (lambda m: 1000 * m.p50, lambda m: m.examples_per_second)
    ):
        for one in dict.fromkeys(kind(m) for m in found):
            line = sorted((getattr(m, along), value(m)) for m in found if kind(m) == one)
            axis.plot(*zip(*line), "o-", markersize=3, label=", ".join(one))
        axis.set(xlabel=along, ylabel=name, yscale="log")
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, high / 10), high)  # otherwise noise would fill the plot
        sizes = sorted({getattr(m, along) for m in found})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter("")
        axis.legend()
    figure.suptitle(title)
    return figure
