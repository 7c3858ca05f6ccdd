"""Scores of imputations: draws (n, ...) of missing values against what they were.

All are proper: in expectation, the true posterior has the best one.
"""

from __future__ import annotations

import numpy as np

__all__ = ["coverage", "crps", "energy_score", "log_loss"]


def crps(drawn: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(...) continuous ranked probability scores E|x - y| - E|x - x'| / 2 (Gneiting & Raftery 2007), lower is better.

    drawn: (n, ...) draws x, at least two. The second term is unbiased: of pairs of different draws.
    """
    n = _enough(drawn)
    places = (2 * np.arange(1, n + 1) - n - 1).reshape(-1, *[1] * truth.ndim)
    spread = np.sum(places * np.sort(drawn, axis=0), axis=0) / (n * (n - 1))  # half of the mean distance of two draws
    return np.abs(drawn - truth).mean(axis=0) - spread


def energy_score(drawn: np.ndarray, truth: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """(rows,) energy scores E|x - y| - E|x - x'| / 2 of the missing cells of rows with any, lower is better.

    drawn: (n, N, D). truth, missing: (N, D). Unlike the CRPS of each cell it sees whether cells are drawn jointly.
    """
    n, some = _enough(drawn), missing.any(axis=1)
    away = np.where(missing, drawn - truth, 0)[:, some]
    near = np.linalg.norm(away, axis=2).mean(axis=0)
    pairs = sum(np.linalg.norm(away - np.roll(away, i, axis=0), axis=2).sum(axis=0) for i in range(1, n))
    return near - pairs / (2 * n * (n - 1))


def coverage(drawn: np.ndarray, truth: np.ndarray, level: float) -> np.ndarray:
    """(...) booleans: whether the central interval of this probability, between quantiles of the draws, has the truth.

    Quantiles are those of n draws at (n + 1) q, at which a further draw would be covered with probability `level`.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if (_enough(drawn) + 1) * (1 - level) < 2 - 1e-9:
        raise ValueError(f"an interval of {level:g} needs {int(np.ceil(2 / (1 - level) - 1e-9)) - 1} draws at least")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return (low <= truth) & (truth <= high)


def log_loss(drawn: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(...) negative log-probabilities in nats of the true categories, by the frequencies among the draws (n, ...).

    Half a draw is added to each category, as otherwise one that is never drawn costs everything.
    """
    count = (np.rint(drawn) == np.rint(truth)).sum(axis=0)
    return -np.log((count + 0.5) / (_enough(drawn) + 0.5 * classes))


def _enough(drawn: np.ndarray) -> int:
    if len(drawn) < 2:
        raise ValueError("scores of imputations need at least two draws")
    return len(drawn)
