"""Answers that count, and results as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from rich.table import Table

from gen_jax.applications.study.protocol import Protocol
from gen_jax.evaluation.human import Interval, by_rater, holm, paired_p_value

__all__ = ["Answers", "ResultTable", "Row", "difference_table", "differences", "number", "p_value", "share"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ResultTable:
    """A table of results as texts."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


@dataclass(frozen=True)
class Answers:
    """Main answers of raters that count, and the rules they were judged by."""

    protocol: Protocol
    rows: Sequence[Row]
    sources: Mapping[str, int]  # of stimuli
    raters: Sequence[str]

    def of(self, source: int) -> list[Row]:
        """Answers on one stimulus of a source."""
        return [row for row in self.rows if self.sources[row["stimuli"][0]] == source]

    def means(self, rows: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
        """The mean of a value over the answers of each rater; NaN without any."""
        found: dict[str, list[float]] = {rater: [] for rater in self.raters}
        for row in rows:
            found[row["rater"]].append(value(row))
        return [float(np.mean(values)) if values else math.nan for values in found.values()]

    def counts(self, rows: Sequence[Row], values: Callable[[Row], Sequence[float]], width: int) -> np.ndarray:
        """(raters, width) sums of values over the answers of each rater."""
        found = {rater: np.zeros(width) for rater in self.raters}
        for row in rows:
            found[row["rater"]] += values(row)
        return np.stack(list(found.values()))


def differences(
    answers: Answers, means: Mapping[str, Sequence[float]], title: str, unit: str = ""
) -> list[ResultTable]:
    """Differences between sources within raters, with p-values adjusted by Holm's method."""
    pairs = list(combinations(means, 2))
    if not pairs:
        return []
    p = [paired_p_value(means[a], means[b]) for a, b in pairs]
    apart = [by_rater(np.subtract(means[a], means[b])) for a, b in pairs]
    return [difference_table(title, pairs, apart, p, unit)]


def difference_table(
    title: str, pairs: Sequence[tuple[str, str]], apart: Sequence[Interval], p: Sequence[float], unit: str = ""
) -> ResultTable:
    """Differences of pairs of sources with their p-values, also adjusted by Holm's method."""
    rows = [
        [f"{a} - {b}", number(d, unit), p_value(one), p_value(q)] for (a, b), d, one, q in zip(pairs, apart, p, holm(p))
    ]
    return ResultTable(title, ["pair", "difference", "p", "p (Holm)"], rows)


def share(interval: Interval) -> Interval:
    """The interval of a share, which ends at 0 and 1."""
    return interval._replace(low=float(np.clip(interval.low, 0, 1)), high=float(np.clip(interval.high, 0, 1)))


def number(interval: Interval, unit: str = "") -> str:
    """An interval as text, rounded to its error."""
    if not math.isfinite(interval.value):
        return "—"
    scale = 100 if unit else 1  # "%", or "points" of percentage
    sign = " %" if unit == "%" else ""
    if not math.isfinite(interval.error):
        return f"{scale * interval.value:.3g}{sign} [unknown]"
    digits = max(0, 1 - math.floor(math.log10(scale * interval.error))) if interval.error > 1e-12 else 2
    show = lambda value: f"{scale * value:.{digits}f}"
    return f"{show(interval.value)}{sign} [{show(interval.low)}, {show(interval.high)}]"


def p_value(p: float) -> str:
    if not math.isfinite(p):
        return "—"
    return "< .001" if p < 0.001 else f"{p:.3f}"
