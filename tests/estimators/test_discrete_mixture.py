"""Mixtures of bits, symbols and counts with scikit-learn's interface."""

import warnings

import numpy as np
import pytest
from scipy.special import logsumexp, xlogy
from scipy.stats import poisson
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from gen_jax.estimators import BernoulliMixture, CategoricalMixture, PoissonMixture


def survey(n: int = 300, holes: float = 0.0) -> np.ndarray:
    """Answers to three questions with 3, 2 and 4 answers, by two classes of people."""
    r = np.random.default_rng(0)
    z = r.random(n) < 0.4
    first = np.where(z, r.choice(3, n, p=[0.7, 0.2, 0.1]), r.choice(3, n, p=[0.1, 0.2, 0.7]))
    x = np.stack([first, r.random(n) < np.where(z, 0.8, 0.3), np.where(z, r.choice(4, n), r.choice(2, n))], axis=1)
    x = x.astype(float)
    x[r.random(x.shape) < holes] = np.nan
    return x[~np.isnan(x).all(axis=1)]


LOG_TABLE = {  # (N, K, D) log-probabilities of the entries, by NumPy and scipy
    BernoulliMixture: lambda x, p: xlogy(x[:, None], p) + xlogy(1 - x[:, None], 1 - p),
    PoissonMixture: lambda x, rate: poisson.logpmf(x[:, None], rate),
    CategoricalMixture: lambda x, p: np.stack(
        [np.log(np.maximum(p[:, d][:, np.nan_to_num(x[:, d]).astype(int)].T, 1e-30)) for d in range(x.shape[1])], axis=2
    ),
}
DATA = {
    BernoulliMixture: (survey(holes=0.2) > 0) * 1.0,
    PoissonMixture: survey(holes=0.2),
    CategoricalMixture: survey(holes=0.2),
}
DATA[BernoulliMixture][np.isnan(survey(holes=0.2))] = np.nan


@pytest.mark.parametrize("kind", LOG_TABLE)
def test_a_fit_climbs_to_where_em_stays_with_missing_entries(kind):
    """The curve rises, the score is that of scipy's probabilities, and one more EM iteration in NumPy moves nothing."""
    x = DATA[kind]
    model = kind(2, tol=1e-9, max_iter=3000, random_state=0).fit(x)
    p = vars(model)[f"{model.part}_"]
    seen = ~np.isnan(x)
    joint = np.where(seen[:, None], LOG_TABLE[kind](x, p), 0).sum(axis=2) + np.log(model.weights_)
    np.testing.assert_allclose(model.score_samples(x), logsumexp(joint, axis=1), rtol=1e-9)
    assert np.all(np.diff(model.lower_bounds_) > -1e-12) and model.converged_
    assert model.lower_bound_ == pytest.approx(model.score(x), abs=1e-8)
    r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(model.predict_proba(x), r, atol=1e-9)
    np.testing.assert_allclose(r.mean(axis=0), model.weights_, atol=1e-4)
    count = r.T @ seen
    if kind is CategoricalMixture:
        expected = np.stack([r.T @ (x == s) / count for s in range(4)], axis=2)
    else:
        expected = r.T @ np.nan_to_num(x) / count
    np.testing.assert_allclose(p, expected, atol=2e-4)
    assert model.aic(x) == pytest.approx(-2 * model.score(x) * len(x) + 2 * (1 + 2 * (6 if p.ndim == 3 else 3)))


def test_a_start_is_taken_weights_repeat_rows_and_the_number_of_classes_is_found():
    x, weight = survey(400), np.random.default_rng(1).integers(0, 3, 400)
    start = {"weights_init": [0.5, 0.5], "parameters_init": np.array([[0.7], [0.2]]) * np.ones((2, 3))}
    few = {"n_init": 1, "max_iter": 5, "tol": 0}
    bits = (x > 0) * 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weighted = BernoulliMixture(2, **start, **few).fit(bits, sample_weight=weight)
        repeated = BernoulliMixture(2, **start, **few).fit(np.repeat(bits, weight, axis=0))
        again = BernoulliMixture(2, warm_start=True, **few).fit(bits)
        before = again.lower_bound_
        assert again.fit(bits).lower_bounds_[0] >= before
    np.testing.assert_allclose(weighted.probabilities_, repeated.probabilities_, rtol=1e-9)
    np.testing.assert_allclose(weighted.lower_bounds_, repeated.lower_bounds_, rtol=1e-9)
    chosen = CategoricalMixture([1, 2, 3, 4], random_state=0, max_iter=1000).fit(x)
    assert chosen.n_components_ == 2 and set(chosen.criteria_) == {1, 2, 3, 4}
    assert chosen.bic(x) == pytest.approx(chosen.criteria_[2], rel=1e-6)


def test_params_priors_pipelines_and_samples():
    x = survey()
    with_prior = PoissonMixture(2, prior=2.0, random_state=0).fit(x)
    assert np.all(np.diff(with_prior.lower_bounds_) > -1e-9) and with_prior.lower_bound_ < with_prior.score(x)
    rates = np.array([[1.0, 0.5, 1.0], [2.0, 1.0, 3.0]])
    held = PoissonMixture(2, parameters_init=rates, params="w", n_init=1).fit(x)
    np.testing.assert_allclose(held.rates_, rates, rtol=1e-12)
    assert clone(held).get_params()["params"] == "w"
    pipeline = make_pipeline(FunctionTransformer(), PoissonMixture(2, random_state=0))
    assert pipeline.fit(x).predict(x).shape == (len(x),)
    drawn, component = CategoricalMixture(2, random_state=0).fit(x).sample(4000)
    assert drawn.shape == (4000, 3) and set(component) == {0, 1}
    np.testing.assert_allclose((drawn[:, 0] == 2).mean(), (x[:, 0] == 2).mean(), atol=0.05)


@pytest.mark.parametrize(
    "model, x, said",
    [
        (BernoulliMixture(2), [[2.0], [1.0]], "compare it with a threshold"),
        (PoissonMixture(2), [[0.5], [1.0]], "whole numbers from 0 on, got 0.5"),
        (CategoricalMixture(2), [[-1.0], [1.0]], "whole numbers from 0 on, got -1"),
        (PoissonMixture(2, prior=-1.0), [[0], [1]], "prior must be at least 0"),
        (
            PoissonMixture(2, parameters_init=[[1.0, 2.0]]),
            [[0], [1]],
            r"parameters_init must begin with the axes \(2, 1\)",
        ),
        (PoissonMixture(3), [[0], [1]], "take fewer components"),
        (PoissonMixture(2, params="wm"), [[0], [1]], "params may hold the letters 'wp'"),
    ],
)
def test_bad_input_is_named(model, x, said):
    with pytest.raises(ValueError, match=said):
        model.fit(x)


def test_other_data_than_that_of_the_fit_is_named():
    with pytest.raises(NotFittedError):
        PoissonMixture().predict([[1]])
    with pytest.raises(ValueError, match="has 1 features, the model has 3"):
        PoissonMixture(random_state=0).fit(survey()).predict([[1]])
    with pytest.raises(ValueError, match="column 1 of X has symbols beyond the 2"):
        CategoricalMixture(random_state=0).fit(survey()).predict([[0, 2, 0]])
