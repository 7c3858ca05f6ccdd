"""Statistics of human evaluation, against textbook values, reference libraries and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from gen_jax.evaluation.human import (
    bradley_terry,
    by_rater,
    detection,
    e_values,
    holm,
    jackknife,
    krippendorff_alpha,
    mean_ratings,
    paired_p_value,
    power_by_rater,
    wilson,
)

NONE = math.nan
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: 4 observers, 12 units
TEXTBOOK = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)


def comparisons(table):
    """(N, 3) from {(first, second): (wins of first, wins of second, ties)}."""
    rows = []
    for (i, j), counts in table.items():
        for outcome, n in enumerate(counts):
            rows += [(i, j, outcome)] * n
    return np.array(rows)


def test_wilson_intervals():
    for given, low, high in (((15, 50), 0.191, 0.438), ((0, 20), 0.0, 0.161), ((25, 50), 0.366, 0.634)):
        np.testing.assert_allclose(wilson(*given), (low, high), atol=5e-4)


def test_sensitivity_with_half_an_answer_added():
    assert abs(detection(np.array([[20, 20, 0, 20]])).sensitivity.value - 3.9615) < 1e-4
    assert abs(detection(np.array([[14, 20, 6, 20]])).sensitivity.value - 0.9944) < 1e-4
    same = detection(np.array([[7, 20, 7, 20], [9, 20, 9, 20]]))
    assert same.sensitivity.value == 0 and same.bias.value > 0
    assert math.isnan(detection(np.array([[7, 20, 7, 20]])).sensitivity.error)


def test_bradley_terry_strengths():
    outcomes = comparisons({(0, 1): (14, 6), (1, 2): (14, 6), (0, 2): (17, 3)})
    found = bradley_terry(outcomes, np.arange(len(outcomes)) % 7, 3)
    np.testing.assert_allclose([s.value for s in found.strengths], [0.858309, 0, -0.858309], atol=1e-5)
    assert not found.regularized and math.isnan(found.tie)
    swapped = outcomes[:, [1, 0, 2]].copy()
    swapped[:, 2] = 1 - swapped[:, 2]
    again = bradley_terry(swapped, np.arange(len(outcomes)) % 7, 3)
    np.testing.assert_allclose([s[:4] for s in again.strengths], [s[:4] for s in found.strengths], atol=1e-8)


def test_bradley_terry_is_that_of_choix():
    choix = pytest.importorskip("choix", reason="choix is in the extra `bench`")
    rng, strengths = np.random.default_rng(0), np.array([1.0, 0.3, -0.2, -1.1])
    pairs = np.array([rng.choice(4, 2, replace=False) for _ in range(800)])
    first = rng.random(800) < 1 / (1 + np.exp(strengths[pairs[:, 1]] - strengths[pairs[:, 0]]))
    found = bradley_terry(np.c_[pairs, ~first], np.arange(800), 4)
    reference = choix.opt_pairwise(4, [tuple(p) if f else tuple(p[::-1]) for p, f in zip(pairs, first)])
    np.testing.assert_allclose([s.value for s in found.strengths], reference - reference.mean(), atol=1e-4)


def test_ties_have_a_strength_of_their_own():
    """Davidson's model at the counts it expects is found again."""
    s, tie, n = np.array([0.5, 0.0, -0.5]), -0.3, 1e5
    table = {}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        weights = np.exp([s[i], s[j], tie + (s[i] + s[j]) / 2])
        table[i, j] = np.rint(n * weights / weights.sum()).astype(int)
    outcomes = comparisons(table)
    found = bradley_terry(outcomes, np.arange(len(outcomes)) % 50, 3)
    np.testing.assert_allclose([one.value for one in found.strengths], s, atol=1e-4)
    assert abs(found.tie - tie) < 1e-4


def test_an_item_that_never_loses_is_regularized_and_unconnected_ones_are_refused():
    outcomes = comparisons({(0, 1): (20, 0), (1, 2): (14, 6), (0, 2): (20, 0)})
    found = bradley_terry(outcomes, np.arange(len(outcomes)) % 5, 3)
    assert found.regularized and all(math.isfinite(one.value) for one in found.strengths)
    assert found.strengths[0].value > 2 > found.strengths[1].value > found.strengths[2].value
    with pytest.raises(ValueError, match="never compared"):
        bradley_terry(comparisons({(0, 1): (3, 2), (2, 3): (1, 4)}), np.zeros(10), 4)


def test_alpha_of_the_textbook():
    for level, value in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert abs(krippendorff_alpha(TEXTBOOK, level) - value) < 5e-4
    assert math.isnan(krippendorff_alpha(np.ones((3, 4)))) and math.isnan(krippendorff_alpha(TEXTBOOK[:1]))
    with pytest.raises(ValueError, match="nominal"):
        krippendorff_alpha(TEXTBOOK, "ratio")


def test_alpha_is_that_of_krippendorff():
    reference = pytest.importorskip("krippendorff", reason="krippendorff is in the extra `bench`")
    answers = np.random.default_rng(0).integers(1, 6, (6, 30)).astype(float)
    answers[:, ::2] = answers[0, ::2]
    answers[0, :7] = answers[3, 20:] = NONE
    for level in ("nominal", "ordinal", "interval"):
        assert abs(krippendorff_alpha(answers, level) - reference.alpha(answers, level_of_measurement=level)) < 1e-12


def ratings(rng, raters=12, each=30, spread=0.7, means=(1.0, 2.0, 2.5)):
    rater, item = np.repeat(np.arange(raters), each), rng.integers(0, len(means), raters * each)
    noise = rng.normal(size=raters)[rater] * spread + rng.normal(size=raters * each)
    return np.array(means)[item] + noise, item, rater


def test_mean_ratings_are_those_of_a_mixed_model():
    statsmodels = pytest.importorskip("statsmodels.api", reason="statsmodels is in the extra `bench`")
    y, item, rater = ratings(np.random.default_rng(0))
    reference = statsmodels.MixedLM(y, np.eye(3)[item], groups=rater).fit()
    found = mean_ratings(y, item, rater, 3)
    np.testing.assert_allclose([one.value for one in found], reference.params[:3], atol=1e-5)
    np.testing.assert_allclose([one.error for one in found], reference.bse[:3], rtol=1e-3)


def test_mean_ratings_of_a_balanced_design_are_means():
    rng = np.random.default_rng(1)
    rater, item = np.repeat(np.arange(8), 6), np.tile([0, 0, 0, 1, 1, 1], 8)
    y = rng.normal(size=48) + rng.normal(size=8)[rater]
    found = mean_ratings(y, item, rater, 2)
    np.testing.assert_allclose([one.value for one in found], [y[item == 0].mean(), y[item == 1].mean()], atol=1e-9)


def test_holm_and_paired_tests():
    assert holm([0.01, 0.04, 0.03, NONE])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([0.01, NONE])[1]) and holm([0.9, 0.8]) == [1.0, 1.0]
    a, b = [0.2, 0.5, 0.9, 0.4], [0.1, 0.3, 0.6, 0.5]
    assert paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p_value(a, a) == 1.0 and math.isnan(paired_p_value([0.2, NONE], [0.1, 0.3]))


def test_power_is_that_of_the_table():
    """Shares of 4,000 simulated studies; .30 against .50, raters x trials, correlation .05."""
    for rate, raters, trials, power in ((0.3, 10, 20, 0.96), (0.3, 5, 10, 0.48), (0.4, 20, 20, 0.79)):
        assert abs(power_by_rater(rate, raters, trials, correlation=0.05) - power) < 0.03
    assert abs(power_by_rater(0.5, 10, 20) - 0.05) < 0.02


def test_e_values_may_be_looked_at_after_every_rater():
    rng = np.random.default_rng(0)
    null = np.stack([e_values(rng.binomial(20, rng.beta(4.5, 4.5, 60)) / 20) for _ in range(1000)])
    assert np.mean(null.max(axis=1) >= 20) <= 0.05
    assert abs(null[:, 4].mean() - 1) < 0.15  # an expectation of 1 under the hypothesis
    other = np.stack([e_values(rng.binomial(20, rng.beta(2.7, 6.3, 30)) / 20) for _ in range(200)])
    assert np.mean(other.max(axis=1) >= 20) > 0.9
    with pytest.raises(ValueError):
        e_values([0.5], null=1.0)


def covered(make, truth, runs):
    """The share of intervals that hold the truth."""
    return np.mean([one.low <= truth <= one.high for one in (make() for _ in range(runs))])


@pytest.mark.representatives("rate")
@pytest.mark.parametrize("kind", ["rate", "sensitivity", "strength", "rating"])
def test_intervals_cover_with_answers_of_raters_alike(kind):
    """95 % +- 1.5 %, with raters that differ: 12 of them with 30 answers each."""
    rng, raters, trials = np.random.default_rng(0), 12, 30
    if kind == "rate":
        make = lambda: by_rater(rng.binomial(trials, rng.beta(3.6, 5.4, raters)) / trials)
        share = covered(make, 0.4, 2000)
    elif kind == "sensitivity":

        def make():
            criterion = 0.5 + 0.4 * rng.normal(size=raters)
            hits = rng.binomial(trials, stats.norm.sf(criterion - 1.0))
            alarms = rng.binomial(trials, stats.norm.sf(criterion))
            return detection(np.c_[hits, np.full(raters, trials), alarms, np.full(raters, trials)]).sensitivity

        # Raters with criteria of their own: d' of their pooled answers is what is estimated, below their own d'.
        spread = math.sqrt(1 + 0.4**2)
        share = covered(make, 1.0 / spread, 2000)
    elif kind == "strength":

        def make():
            pairs = np.array([rng.choice(3, 2, replace=False) for _ in range(raters * trials)])
            rater = np.repeat(np.arange(raters), trials)
            own = np.array([0.6, 0.0, -0.6]) + 0.5 * rng.normal(size=(raters, 3))
            logits = own[rater, pairs[:, 0]] - own[rater, pairs[:, 1]]
            return bradley_terry(np.c_[pairs, rng.random(len(pairs)) > 1 / (1 + np.exp(-logits))], rater, 3).strengths[
                0
            ]

        # The marginal log odds are smaller than the mean of the raters' own; taken from very many answers.
        big = np.random.default_rng(1)
        d = lambda gap: gap + 0.5 * math.sqrt(2) * big.normal(size=2_000_000)
        p = [float(np.mean(1 / (1 + np.exp(-d(gap))))) for gap in (0.6, 0.6, 1.2)]
        counts = {(0, 1): p[0], (1, 2): p[1], (0, 2): p[2]}
        expected = comparisons({k: (round(1e4 * v), round(1e4 * (1 - v))) for k, v in counts.items()})
        truth = bradley_terry(expected, np.arange(len(expected)) % 9, 3).strengths[0].value
        share = covered(make, truth, 600)
    else:
        make = lambda: mean_ratings(*ratings(rng, raters, trials), 3)[1]
        share = covered(make, 2.0, 600)
    slack = 0.015 + 2 * math.sqrt(0.95 * 0.05 / (2000 if kind in ("rate", "sensitivity") else 600))
    assert abs(share - 0.95) < slack, share


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=9)
    found = jackknife(lambda total: total[0] / total[1], np.c_[values, np.ones(9)])
    assert found.error == pytest.approx(values.std(ddof=1) / 3) and found.value == pytest.approx(values.mean())
