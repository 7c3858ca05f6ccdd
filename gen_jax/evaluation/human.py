"""Statistics of human evaluation: detection, preference, ratings, agreement, and the power of a design.

Answers of one rater are correlated, so that errors are over raters throughout. Nothing here needs a model or JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

__all__ = [
    "Detection",
    "Interval",
    "Preference",
    "bradley_terry",
    "by_rater",
    "detection",
    "e_values",
    "holm",
    "jackknife",
    "krippendorff_alpha",
    "mean_ratings",
    "paired_p_value",
    "power_by_rater",
    "wilson",
]


class Interval(NamedTuple):
    """An estimate with its standard error and the ends of its confidence interval; NaN where unknown."""

    value: float
    error: float
    low: float
    high: float
    raters: int


class Detection(NamedTuple):
    """Sensitivity d' and bias c of telling signals from noise (Green & Swets 1966)."""

    sensitivity: Interval
    bias: Interval


class Preference(NamedTuple):
    """Strengths of items, whose differences are log odds of being preferred; their mean is 0.

    tie: log odds, at equal strengths, of a tie against half of the wins; NaN without ties. regularized: whether a
    normal prior was needed, since an item, or a group of them, never won or never lost.
    """

    strengths: list[Interval]
    covariance: np.ndarray  # (items, items) of the strengths, over raters
    tie: float
    regularized: bool


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the confidence interval of a share by the score test (Wilson 1927); of independent answers."""
    z = stats.norm.ppf(0.5 + level / 2)
    center, share = 1 + z**2 / n, successes / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    middle = share + z**2 / (2 * n)
    return (middle - half) / center, (middle + half) / center


def by_rater(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of one value per rater with its t interval; none with a single rater, or if all values are equal."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, n)
    error = float(known.std(ddof=1) / math.sqrt(n)) or math.nan
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return Interval(mean, error, mean - half, mean + half, n)


def jackknife(statistic: Callable[[np.ndarray], float], counts: np.ndarray, level: float = 0.95) -> Interval:
    """A statistic of counts summed over raters (R, ...), with an interval by leaving out each rater in turn.

    Efron & Tibshirani 1993, chapter 11; quantiles of t with R - 1 degrees of freedom.
    """
    counts = np.asarray(counts, np.float64)
    n, total = len(counts), counts.sum(axis=0)
    value = float(statistic(total))
    if n < 2:
        return Interval(value, math.nan, math.nan, math.nan, n)
    without = np.array([statistic(total - one) for one in counts])
    error = float(math.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))) or math.nan
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return Interval(value, error, value - half, value + half, n)


def detection(counts: np.ndarray) -> Detection:
    """d' and c of counts (R, 4) per rater: hits, signals, false alarms, noises.

    A half is added to hits and false alarms and one to signals and noises (Hautus 1995), which keeps both finite. NaN
    without signals or without noises.
    """
    if not np.all(np.asarray(counts)[:, [1, 3]].sum(axis=0)):
        unknown = Interval(math.nan, math.nan, math.nan, math.nan, len(counts))
        return Detection(unknown, unknown)
    quantiles = lambda total: (
        stats.norm.ppf((total[0] + 0.5) / (total[1] + 1)),
        stats.norm.ppf((total[2] + 0.5) / (total[3] + 1)),
    )
    difference = lambda total: quantiles(total)[0] - quantiles(total)[1]
    return Detection(jackknife(difference, counts), jackknife(lambda total: -0.5 * sum(quantiles(total)), counts))


def paired_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of a t test of differences within raters; NaN with fewer than two of them."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false rejection stays below the level (Holm 1979); NaN stays NaN."""
    p = np.asarray(p_values, np.float64)
    adjusted, known = np.full(len(p), math.nan), np.flatnonzero(np.isfinite(p))
    highest = 0.0
    for rank, i in enumerate(known[np.argsort(p[known], kind="stable")]):
        highest = max(highest, min(1.0, (len(known) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def e_values(means: Sequence[float], null: float = 0.5) -> np.ndarray:
    """e-values after each rater against the hypothesis that their means, in [0, 1], have the expectation `null`.

    A mixture of bets of constant stakes on both sides (Waudby-Smith & Ramdas 2024, section 4). Under the hypothesis the
    chance that any of them ever exceeds 1 / a is at most a, so that a study may stop as soon as one does.
    """
    if not 0 < null < 1:
        raise ValueError(f"null must be between 0 and 1, got {null}")
    parts = np.linspace(0.5, 0.95, 10)  # of the largest stakes: means vary less than single answers
    stakes = np.concatenate([-parts / (1 - null), parts / null])
    gains = 1 + stakes[:, None] * (np.asarray(means, np.float64)[None] - null)
    return np.cumprod(gains, axis=1).mean(axis=0)


def power_by_rater(
    rate: float, raters: int, trials: int, null: float = 0.5, correlation: float = 0.1, draws: int = 4000, seed: int = 0
) -> float:
    """The chance that a t test of rater means at 5 % tells a rate from `null`, by simulation.

    correlation: within a rater, of beta-binomial answers. Its Monte Carlo error is below .008 with 4,000 draws.
    """
    if raters < 2 or trials < 1:
        return math.nan
    rng = np.random.default_rng(seed)
    total = 1 / correlation - 1
    rates = rng.beta(rate * total, (1 - rate) * total, (draws, raters))
    means = rng.binomial(trials, rates) / trials
    errors = means.std(axis=1, ddof=1) / math.sqrt(raters)
    distance = np.abs(means.mean(axis=1) - null)
    return float(np.mean(distance > stats.t.ppf(0.975, raters - 1) * errors))


def bradley_terry(outcomes: np.ndarray, raters: np.ndarray, items: int, prior: float = 2.0) -> Preference:
    """Strengths of items from comparisons (N, 3) of first item, second item and 0, 1, or 2 for a tie.

    Bradley & Terry 1952, with ties as in Davidson 1970: P(first), P(second) and P(tie) are proportional to exp(s1),
    exp(s2) and exp(t + (s1 + s2) / 2), a concave likelihood, which Newton's method maximizes. Intervals are of the
    sandwich estimator over raters (N,). Where the likelihood has no maximum, since some items only win or only lose
    against the others, or all comparisons are ties, parameters get a normal prior of standard deviation `prior`.

    Raises ValueError if items are not connected by comparisons.
    """
    outcomes, (_, cluster) = np.asarray(outcomes, int), np.unique(raters, return_inverse=True)
    wins, tied = _win_matrix(outcomes, items), bool(np.any(outcomes[:, 2] == 2))
    if not _reaches_all((wins + wins.T) > 0):
        raise ValueError("some items were never compared with the others, directly or through others")
    decided = bool(np.any(outcomes[:, 2] < 2))
    regularized = not (decided and _reaches_all(wins > 0) and _reaches_all(wins.T > 0))
    basis = np.linalg.qr(np.c_[np.ones(items), np.eye(items)[:, : items - 1]])[0][:, 1:]  # strengths of mean 0
    features = _outcome_features(outcomes, items, tied)
    features = np.concatenate([features[..., :items] @ basis, features[..., items:]], axis=-1)
    penalty = np.full(features.shape[-1], regularized / prior**2)
    point = np.zeros(features.shape[-1])
    for _ in range(200):
        scores, information = _score(point, features, outcomes[:, 2])
        information += np.diag(penalty)
        step = np.linalg.solve(information, scores.sum(axis=0) - penalty * point)
        point = point + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    scores, information = _score(point, features, outcomes[:, 2])
    covariance, n = _sandwich(scores, information + np.diag(penalty), cluster)
    back = np.zeros((items, len(point)))
    back[:, : items - 1] = basis
    return _preference(back @ point, back @ covariance @ back.T, n, point[-1] if tied else math.nan, regularized)


def _preference(
    strengths: np.ndarray, covariance: np.ndarray, raters: int, tie: float, regularized: bool
) -> Preference:
    errors = np.sqrt(np.diag(covariance)) if raters > 1 else np.full(len(strengths), math.nan)
    quantile = float(stats.t.ppf(0.975, max(raters - 1, 1)))
    return Preference(_intervals(strengths, errors, quantile, raters), covariance, float(tie), regularized)


def _win_matrix(outcomes: np.ndarray, items: int) -> np.ndarray:
    """(items, items) wins of row over column; a tie is half a win of each."""
    wins = np.zeros((items, items))
    for first, second, outcome in outcomes:
        wins[first, second] += (1.0, 0.0, 0.5)[outcome]
        wins[second, first] += (0.0, 1.0, 0.5)[outcome]
    return wins


def _reaches_all(edges: np.ndarray) -> bool:
    """Whether every item can be reached from the first along edges (items, items)."""
    reached = np.eye(len(edges), dtype=bool)[0]
    for _ in range(len(edges)):
        reached = reached | edges[reached].any(axis=0)
    return bool(reached.all())


def _outcome_features(outcomes: np.ndarray, items: int, tied: bool) -> np.ndarray:
    """(N, outcomes, items + tied): the logit of each outcome is this times (strengths, tie)."""
    rows = np.arange(len(outcomes))
    features = np.zeros((len(outcomes), 2 + tied, items + tied))
    features[rows, 0, outcomes[:, 0]] = 1
    features[rows, 1, outcomes[:, 1]] = 1
    if tied:
        features[rows, 2, outcomes[:, 0]] = features[rows, 2, outcomes[:, 1]] = 0.5
        features[:, 2, -1] = 1
    return features


def _score(point: np.ndarray, features: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of each comparison's log-likelihood (N, p), and the information (p, p)."""
    logits = features @ point
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    mean = np.einsum("no,nop->np", shares, features)
    second = np.einsum("no,nop,noq->pq", shares, features, features)
    return features[np.arange(len(outcome)), outcome] - mean, second - mean.T @ mean


def _sandwich(scores: np.ndarray, information: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, int]:
    """The covariance of a maximum likelihood estimate with dependent observations within clusters, and their number.

    With the correction R / (R - 1) for few clusters.
    """
    n = int(cluster.max()) + 1
    sums = np.zeros((n, scores.shape[1]))
    np.add.at(sums, cluster, scores)
    bread = np.linalg.inv(information)
    return bread @ (sums.T @ sums) @ bread * (n / max(n - 1, 1)), n


def mean_ratings(ratings: np.ndarray, items: np.ndarray, raters: np.ndarray, count: int) -> list[Interval]:
    """Mean ratings of items by a linear mixed model with a random intercept per rater, by REML.

    ratings, items, raters: (N,); items are 0 .. count - 1, each with a rating. Intervals use R - 1 degrees of freedom.
    """
    _, rater = np.unique(raters, return_inverse=True)
    y, design, n = np.asarray(ratings, np.float64), np.eye(count)[np.asarray(items, int)], int(rater.max()) + 1
    if len(y) <= count or n < 2:
        means = [y[np.asarray(items) == item] for item in range(count)]
        return [Interval(float(m.mean()), math.nan, math.nan, math.nan, n) for m in means]
    groups = [(design[rater == r], y[rater == r]) for r in range(n)]

    def fitted(ratio: float) -> tuple[Any, np.ndarray, np.ndarray]:
        """Minus twice the profiled log-likelihood at a ratio of variances, the effects and their covariance."""
        inner, outer, squares, log_det = np.zeros((count, count)), np.zeros(count), 0.0, 0.0
        for x, target in groups:
            shrink = ratio / (1 + len(target) * ratio)
            total = x.sum(axis=0)
            inner += x.T @ x - shrink * np.outer(total, total)
            outer += x.T @ target - shrink * total * target.sum()
            squares += target @ target - shrink * target.sum() ** 2
            log_det += math.log1p(len(target) * ratio)
        effects = np.linalg.solve(inner, outer)
        degrees = len(y) - count
        variance: Any = max((squares - effects @ outer) / degrees, 1e-12)
        loss = degrees * math.log(variance) + log_det + np.linalg.slogdet(inner)[1]
        return loss, effects, variance * np.linalg.inv(inner)

    best = minimize_scalar(lambda log_ratio: fitted(math.exp(log_ratio))[0], bounds=(-12, 8), method="bounded")
    _, effects, covariance = fitted(math.exp(best.x))
    quantile, errors = float(stats.t.ppf(0.975, n - 1)), np.sqrt(np.diag(covariance))
    return _intervals(effects, errors, quantile, n)


def _intervals(values: np.ndarray, errors: np.ndarray, quantile: float, raters: int) -> list[Interval]:
    pairs = [(float(value), float(error)) for value, error in zip(values, errors)]
    return [Interval(v, e, v - quantile * e, v + quantile * e, raters) for v, e in pairs]


def krippendorff_alpha(answers: np.ndarray, level: str = "nominal") -> float:
    """Krippendorff's alpha of answers (raters, units), NaN where there is none (Krippendorff 2019, chapter 12).

    level: "nominal", "ordinal" or "interval". NaN if no unit has two answers or all answers are equal.
    """
    answers = np.asarray(answers, np.float64)
    answers = answers[:, np.isfinite(answers).sum(axis=0) > 1]
    values: np.ndarray = np.unique(answers[np.isfinite(answers)])
    if len(values) < 2:
        return math.nan
    counts = np.stack([(answers == value).sum(axis=0) for value in values])  # (values, units)
    sizes = counts.sum(axis=0)
    coincidences = (counts / (sizes - 1)) @ counts.T - np.diag((counts / (sizes - 1)).sum(axis=1))
    totals = coincidences.sum(axis=1)
    if level == "nominal":
        distance = 1 - np.eye(len(values))
    elif level == "interval":
        distance = (values[:, None] - values[None]) ** 2
    elif level == "ordinal":
        middle = np.cumsum(totals) - totals / 2
        distance = (middle[:, None] - middle[None]) ** 2
    else:
        raise ValueError(f'level must be "nominal", "ordinal" or "interval", got {level!r}')
    expected = np.sum(distance * np.outer(totals, totals)) / (totals.sum() - 1)
    return float(1 - np.sum(distance * coincidences) / expected)
