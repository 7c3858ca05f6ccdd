"""Thresholds of anomaly scores, and p-values.

Scores are higher for examples that are more anomalous. A conformal threshold raises false alarms for at most `level` of
new normal examples on average, whatever the model, if they and the calibration examples are exchangeable and the model
has not seen the latter (Vovk, Gammerman & Shafer 2005; Bates et al. 2023).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.stats

from gen_jax.errors import UserError

__all__ = [
    "Threshold",
    "benjamini_hochberg",
    "check_calibration",
    "check_level",
    "conformal_p_values",
    "conformal_threshold",
    "false_alarm_range",
    "least_calibration",
    "quantile_threshold",
    "tail_threshold",
]


class Threshold(NamedTuple):
    """An example is anomalous if its score exceeds `value`."""

    value: float
    how: str

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores) > self.value


def check_level(level: float) -> None:
    """Raises UserError unless the level is a probability between 0 and 1."""
    if not 0 < level < 1:
        raise UserError(f"the level is the share of false alarms, between 0 and 1, got {level:g}")


def least_calibration(level: float) -> int:
    """The least number of calibration examples: a p-value is at least 1 / (n + 1)."""
    check_level(level)
    return math.ceil(1 / level - 1e-9) - 1


def check_calibration(level: float, n: int) -> int:
    """floor(level (n + 1)), the number of n + 1 exchangeable scores that may be flagged; UserError if it is 0."""
    least = least_calibration(level)
    if n < least:
        raise UserError(
            f"a level of {level:g} needs at least {least:,} calibration examples, there are {n:,}: give a level of at "
            f"least {math.ceil(1e4 / (n + 1)) / 1e4:g}, or train on more examples, a part of which is held out"
        )
    return math.floor(level * (n + 1) + 1e-9)


def conformal_p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + the number of n calibration scores that are at least as high) / (n + 1), of each score (N,)."""
    calibration = np.sort(calibration)
    higher = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return (1 + higher) / (1 + len(calibration))


def conformal_threshold(calibration: np.ndarray, level: float) -> Threshold:
    """The split-conformal threshold: an example is flagged if its p-value is at most `level`."""
    k = check_calibration(level, len(calibration))
    low, high = false_alarm_range(len(calibration), level)
    value = float(np.sort(calibration)[len(calibration) - k])
    return Threshold(
        value,
        f"conformal, {len(calibration):,} calibration examples: at most {level:.4g} of normal examples on average; "
        f"given these, {low:.2g} to {high:.2g} in 9 of 10 cases",
    )


def false_alarm_range(n: int, level: float, coverage: float = 0.9) -> tuple[float, float]:
    """The central range of the rate of false alarms, given n calibration examples.

    Beta(k, n + 1 - k) with k = floor(level (n + 1)) (Vovk 2012). Exact for scores without ties.
    """
    k = check_calibration(level, n)
    low, high = scipy.stats.beta.ppf([(1 - coverage) / 2, (1 + coverage) / 2], k, n + 1 - k)
    return float(low), float(high)


def quantile_threshold(training: np.ndarray, level: float) -> Threshold:
    """The 1 - level quantile of the scores of the training examples, which a flexible model makes too low."""
    check_level(level)
    value = float(np.quantile(training, 1 - level))
    return Threshold(value, f"quantile of {len(training):,} training examples: optimistic, without a guarantee")


def tail_threshold(calibration: np.ndarray, level: float, start: float = 0.9) -> Threshold:
    """Extrapolates the tail of the scores by a generalized Pareto distribution (peaks over threshold, Pickands 1975).

    start: the quantile beyond which it is fitted, by maximum likelihood. For levels that a conformal threshold has too
    few examples for; there is no guarantee.
    """
    check_level(level)
    if not 0 < level < 1 - start:
        raise UserError(
            f"the tail begins at the quantile {start:g}: a level below {1 - start:g} is needed, got {level:g}"
        )
    begin = float(np.quantile(calibration, start))
    excess = calibration[calibration > begin] - begin
    if len(excess) < 20 or np.ptp(excess) == 0:
        raise UserError(
            f"a tail is fitted to at least 20 different scores above the quantile {start:g}, there are {len(excess)}"
        )
    shape, _, scale = scipy.stats.genpareto.fit(excess, floc=0)
    share = len(excess) / len(calibration)
    value = begin + float(scipy.stats.genpareto.ppf(1 - level / share, shape, scale=scale))
    return Threshold(
        value, f"tail fitted to {len(excess):,} calibration examples, shape {shape:.2f}: without a guarantee"
    )


def benjamini_hochberg(p: np.ndarray, level: float) -> np.ndarray:
    """Booleans (N,): the hypotheses rejected at the false discovery rate `level` (Benjamini & Hochberg 1995).

    With conformal p-values from one calibration set the rate holds too (Bates et al. 2023).
    """
    check_level(level)
    order = np.argsort(p)
    below = np.flatnonzero(p[order] <= level * np.arange(1, len(p) + 1) / len(p))
    rejected = np.zeros(len(p), bool)
    if len(below):
        rejected[order[: below[-1] + 1]] = True
    return rejected
