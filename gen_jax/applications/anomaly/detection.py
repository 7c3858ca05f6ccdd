"""ROC and precision-recall of anomaly scores, with bootstrap intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Curves", "Ranking", "average_precision", "curves", "rank", "roc_auc"]


class Ranking(NamedTuple):
    """Areas under the ROC and precision-recall curves, with central 95 % intervals of the bootstrap."""

    roc_auc: float
    roc_auc_range: tuple[float, float]
    average_precision: float
    average_precision_range: tuple[float, float]
    normal: int
    anomalous: int


class Curves(NamedTuple):
    """One point for each threshold between different scores, from the highest down."""

    false_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def roc_auc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """The probability that an anomaly has a higher score than a normal example; ties count one half."""
    return float(_areas(*_sorted(scores, anomalous), np.ones((1, len(scores))))[0][0])


def average_precision(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """The mean precision at the scores of the anomalies: the area under the precision-recall steps."""
    return float(_areas(*_sorted(scores, anomalous), np.ones((1, len(scores))))[1][0])


def rank(scores: np.ndarray, anomalous: np.ndarray, draws: int = 500, seed: int = 0) -> Ranking:
    """Both areas of scores (N,). The bootstrap draws normal examples and anomalies with replacement, separately."""
    anomalous = np.asarray(anomalous, bool)
    order, ends = _sorted(scores, anomalous)
    rng, weights = np.random.default_rng(seed), np.empty((draws + 1, len(scores)))
    weights[0] = 1
    for kind in (False, True):
        mine = np.flatnonzero(anomalous == kind)
        weights[1:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=draws)
    areas = [
        _areas(order, ends, part) for part in np.array_split(weights[:, order.rows], max(1, weights.size // 2**22))
    ]
    roc, precision = (np.concatenate(parts) for parts in zip(*areas))
    interval = lambda values: tuple(float(v) for v in np.quantile(values[1:], [0.025, 0.975]))
    return Ranking(
        float(roc[0]),
        interval(roc),
        float(precision[0]),
        interval(precision),
        int((~anomalous).sum()),
        int(anomalous.sum()),
    )


def curves(scores: np.ndarray, anomalous: np.ndarray) -> Curves:
    """The ROC and precision-recall curves of scores (N,)."""
    order, ends = _sorted(scores, anomalous)
    hits, alarms = np.cumsum(order.anomalous)[ends], np.cumsum(~order.anomalous)[ends]
    total = max(int(order.anomalous.sum()), 1)
    return Curves(alarms / max(len(scores) - total, 1), hits / total, hits / np.maximum(hits + alarms, 1))


class _Order(NamedTuple):
    rows: np.ndarray  # from the highest score down
    anomalous: np.ndarray  # in that order


def _sorted(scores: np.ndarray, anomalous: np.ndarray) -> tuple[_Order, np.ndarray]:
    """The order from the highest score down, and the last place of each group of ties."""
    scores = np.asarray(scores)
    rows = np.argsort(-scores, kind="stable")
    down = scores[rows]
    ends = np.flatnonzero(np.r_[down[1:] != down[:-1], True])
    return _Order(rows, np.asarray(anomalous, bool)[rows]), ends


def _areas(order: _Order, ends: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC area and average precision for weights (draws, N) of the examples, in their order."""
    hits = np.cumsum(weights * order.anomalous, axis=1)[:, ends]
    alarms = np.cumsum(weights * ~order.anomalous, axis=1)[:, ends]
    before = lambda a: np.concatenate([np.zeros((len(a), 1)), a[:, :-1]], axis=1)
    found, raised = hits - before(hits), alarms - before(alarms)
    total, normal = hits[:, -1], alarms[:, -1]
    roc = (raised * (before(hits) + found / 2)).sum(axis=1) / (total * normal)
    precision = hits / np.maximum(hits + alarms, 1e-300)
    return roc, (found * precision).sum(axis=1) / total
