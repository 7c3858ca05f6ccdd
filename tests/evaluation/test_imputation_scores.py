"""Scores of imputations against their formulas, and against an oracle: a mixture whose density is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_jax import GMM, impute
from gen_jax.core import State
from gen_jax.evaluation.imputation import coverage, crps, energy_score, log_loss


def test_scores_equal_their_definitions():
    rng = np.random.default_rng(0)
    drawn, truth = rng.normal(size=(7, 4, 3)), rng.normal(size=(4, 3))
    missing = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], bool)
    pairs = [(a, b) for a in range(7) for b in range(7) if a != b]
    wanted = np.abs(drawn - truth).mean(axis=0) - np.mean([np.abs(drawn[a] - drawn[b]) for a, b in pairs], axis=0) / 2
    np.testing.assert_allclose(crps(drawn, truth), wanted)
    length = lambda row, d: np.linalg.norm(d[missing[row]])
    wanted = [
        np.mean([length(row, one[row] - truth[row]) for one in drawn])
        - np.mean([length(row, drawn[a, row] - drawn[b, row]) for a, b in pairs]) / 2
        for row in (0, 2, 3)
    ]
    np.testing.assert_allclose(energy_score(drawn, truth, missing), wanted)
    codes = np.array([[0, 1], [0, 2], [1, 2], [0, 2]])
    np.testing.assert_allclose(log_loss(codes, np.array([0, 1]), 3), -np.log([3.5 / 5.5, 1.5 / 5.5]))
    with pytest.raises(ValueError, match="at least two draws"):
        crps(drawn[:1], truth)
    with pytest.raises(ValueError, match="level"):
        coverage(drawn, truth, 90)
    with pytest.raises(ValueError, match="0.9 needs 19 draws"):
        coverage(drawn, truth, 0.9)


def test_intervals_of_exchangeable_draws_cover_as_often_as_they_say():
    """Of n draws and the truth from one distribution, whatever n is."""
    for n, level in [(9, 0.8), (19, 0.5), (50, 0.9)]:
        x = np.random.default_rng(n).normal(size=(n + 1, 100_000))
        share = coverage(x[1:], x[0], level).mean()
        assert share == pytest.approx(level, abs=0.006)


def test_the_true_model_has_the_best_scores():
    """An oracle: rows of a known mixture, imputed by it, by one Gaussian with its moments, and by too narrow draws."""
    rng = np.random.default_rng(0)
    means, factor = (
        np.array([[-2.0, 1.0, 0.0], [2.0, -1.0, 1.0]]),
        np.linalg.cholesky([[1, 0.8, 0], [0.8, 1, 0.3], [0, 0.3, 1]]),
    )
    x = (means[rng.integers(0, 2, 3000)] + rng.normal(size=(3000, 3)) @ factor.T).astype(np.float32)
    missing = rng.random(x.shape) < 0.4
    missing[missing.all(axis=1), 0] = False
    covariances = np.stack([factor @ factor.T] * 2)
    truth = state_of(GMM(2), means, covariances, [0.5, 0.5])
    moments = state_of(GMM(1), x.mean(axis=0)[None], np.cov(x.T)[None], [1.0])
    draw = lambda model, state: np.asarray(impute(model, state, x, ~missing, jax.random.key(0), 40))
    draws = {"oracle": draw(GMM(2), truth), "Gaussian": draw(GMM(1), moments)}
    center = draws["oracle"].mean(axis=0)
    draws["narrow"] = center + 0.3 * (draws["oracle"] - center)
    rows = missing.any(axis=1)
    joint = {name: energy_score(one, x, missing) for name, one in draws.items()}
    cells = {name: crps(one, x)[missing] for name, one in draws.items()}
    for scores in (joint, cells):
        for other in ("Gaussian", "narrow"):
            worse = scores[other] - scores["oracle"]
            assert worse.mean() > 3 * worse.std() / np.sqrt(rows.sum())
    for level in (0.5, 0.9):
        share = lambda name: coverage(draws[name], x, level)[missing].mean()
        assert share("oracle") == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / missing.sum()) + 0.005)
        assert share("narrow") < level - 0.2
    apart = draws["oracle"].copy()
    for cell in range(3):
        apart[:, :, cell] = rng.permuted(apart[:, :, cell], axis=0)
    several = missing.sum(axis=1)[rows] > 1
    worse = (energy_score(apart, x, missing) - joint["oracle"])[several]
    assert worse.mean() > 2 * scipy.stats.sem(worse)
    np.testing.assert_allclose(crps(apart, x), crps(draws["oracle"], x), atol=1e-5)  # sees each cell alone


def state_of(model, means, covariances, weights):
    as_float = lambda a: jnp.asarray(a, jnp.float32)
    given = {"means": as_float(means), "covariances": as_float(covariances), "weights": as_float(weights)}
    return State(np.int32(0), jax.random.key(0), {"gmm": model.pack(given, {})}, (), {})
