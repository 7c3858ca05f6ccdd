"""The scikit-learn and hmmlearn interfaces against those libraries, and what they say of impossible arguments."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture as Theirs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gen_jax.data import load
from gen_jax.estimators import (
    GMMHMM,
    AnomalyDetector,
    BayesianGaussianMixture,
    CategoricalHMM,
    GaussianHMM,
    GaussianMixture,
    Imputer,
    PoissonHMM,
)
from gen_jax.models.mixture import Prior

hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is the reference")
KINDS = ["full", "tied", "diag", "spherical"]


@pytest.fixture(scope="module")
def blobs():
    return np.asarray(load("blobs")["train"]["x"], np.float64)


@pytest.mark.slow
@parametrize_with_checks(
    [
        GaussianMixture(),
        BayesianGaussianMixture(),
        AnomalyDetector(GaussianMixture(), level=0.3, calibration=0.5),
        Imputer(GaussianMixture()),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings(action="ignore"):
        check(estimator)


@pytest.mark.parametrize("kind", KINDS)
def test_same_start_same_fit(kind, blobs):
    first = Theirs(3, covariance_type=kind, random_state=0).fit(blobs)
    start = dict(weights_init=first.weights_, means_init=first.means_ + 0.5, precisions_init=first.precisions_)
    theirs = Theirs(3, covariance_type=kind, **start).fit(blobs)
    ours = GaussianMixture(3, covariance_type=kind, **start).fit(blobs)
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-9)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(ours.score_samples(blobs), theirs.score_samples(blobs), rtol=1e-8)
    np.testing.assert_allclose(ours.predict_proba(blobs), theirs.predict_proba(blobs), atol=1e-8)
    np.testing.assert_array_equal(ours.predict(blobs), theirs.predict(blobs))
    for name in ("bic", "aic", "score"):
        assert getattr(ours, name)(blobs) == pytest.approx(getattr(theirs, name)(blobs), rel=1e-9)


def test_restarts_several_k_and_pipelines(blobs):
    several = GaussianMixture(range(1, 6), n_init=3, random_state=0).fit(blobs)
    assert several.n_components_ == 3 and several.means_.shape == (3, 2) and several.curves_.shape == (15, 100)
    one = GaussianMixture(3, n_init=3, random_state=0).fit(blobs)
    assert several.criteria_[3] == pytest.approx(one.bic(blobs), rel=1e-3)
    best = Theirs(3, n_init=3, random_state=0).fit(blobs)
    assert one.score(blobs) == pytest.approx(best.score(blobs), abs=1e-3)
    piped = make_pipeline(StandardScaler(), GaussianMixture(3, random_state=0)).fit(blobs)
    assert piped.predict(blobs).shape == (1000,) and np.isfinite(piped.score(blobs))
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.predict(blobs), one.predict(blobs))
    assert clone(one).get_params() == one.get_params()
    x, component = one.sample(500)
    assert x.shape == (500, 2) and set(component) == {0, 1, 2}


def test_precision_weights_missing_values_warm_start_and_priors(blobs):
    single = GaussianMixture(3, random_state=0).fit(blobs.astype(np.float32))
    assert single.means_.dtype == np.float32
    rng = np.random.default_rng(0)
    holes = np.where(rng.uniform(size=blobs.shape) < 0.2, np.nan, blobs)
    holes = holes[~np.isnan(holes).all(axis=1)]
    from_holes = GaussianMixture(3, n_init=4, random_state=0).fit(holes)
    assert from_holes.score(blobs) == pytest.approx(single.score(blobs), abs=0.02)
    weight = rng.integers(0, 3, size=len(blobs))
    weighted = GaussianMixture(3, means_init=single.means_).fit(blobs, sample_weight=weight)
    repeated = GaussianMixture(3, means_init=single.means_).fit(np.repeat(blobs, weight, axis=0))
    assert weighted.score(blobs) == pytest.approx(repeated.score(blobs), abs=1e-4)
    with pytest.warns(ConvergenceWarning, match="not converged"):
        warm = GaussianMixture(3, init_params="random", warm_start=True, max_iter=3, tol=0.0).fit(blobs)
        first = warm.lower_bound_
        assert warm.fit(blobs).lower_bound_ > first
    shrunk = GaussianMixture(3, prior=Prior(pseudo_counts=1000.0), random_state=0).fit(blobs)
    assert shrunk.score(blobs) < single.score(blobs)


@pytest.mark.parametrize(
    "arguments, x, message",
    [
        (dict(n_components=0), None, "n_components"),
        (dict(n_components=[2, "3"]), None, "n_components"),
        (dict(covariance_type="round"), None, "covariance_type must be one of full"),
        (dict(init_params="best"), None, "init_params must be one of kmeans"),
        (dict(max_iter=0), None, "max_iter"),
        (dict(tol=-1.0), None, "tol"),
        (dict(reg_covar=-1.0), None, "reg_covar"),
        (dict(n_components=2, weights_init=[0.5, 0.6]), None, "weights_init sums to 1.1"),
        (dict(n_components=2, weights_init=[0.5, np.nan]), None, "weights_init must be finite"),
        (dict(n_components=2, means_init=np.zeros((3, 2))), None, "means_init must have shape"),
        (dict(n_components=2, precisions_init=-np.ones((2, 2)), covariance_type="diag"), None, "positive"),
        (dict(n_components=[1, 2], means_init=np.zeros((2, 2))), None, "single n_components"),
        (dict(), np.full((4, 2), np.nan), "rows of NaN only"),
        (dict(), np.full((4, 2), np.inf), "infinity"),
        (dict(n_components=5), np.zeros((3, 2)), "3 samples"),
    ],
)
def test_impossible_mixtures_are_refused(arguments, x, message, blobs):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**arguments).fit(blobs if x is None else x)


@pytest.mark.parametrize("weight, message", [([1.0], "shape"), (-1, "negative"), (np.nan, "finite"), (0, "zero")])
def test_impossible_weights_are_refused(weight, message, blobs):
    weight = weight if isinstance(weight, list) else np.full(len(blobs), weight, float)
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2).fit(blobs, sample_weight=weight)


@pytest.fixture(scope="module")
def chain():
    theirs = hmmlearn.GaussianHMM(3, covariance_type="full")
    theirs.startprob_ = np.array([0.6, 0.3, 0.1])
    theirs.transmat_ = np.array([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.2, 0.2, 0.6]])
    theirs.means_ = np.array([[0.0, 0.0], [3.0, -3.0], [-3.0, 3.0]])
    theirs.covars_ = np.tile(np.eye(2), (3, 1, 1))
    x, states = theirs.sample(500, random_state=0)
    return theirs, x, states, [100, 250, 150]


def like(theirs, model):
    for name in ("startprob_", "transmat_", "means_", "covars_", "weights_", "emissionprob_", "lambdas_"):
        if hasattr(theirs, name):
            setattr(model, name, np.array(getattr(theirs, name)))
    return model


def test_parameters_that_are_set_give_hmmlearns_numbers(chain):
    theirs, x, _, lengths = chain
    ours = like(theirs, GaussianHMM(3, "full"))
    assert ours.score(x, lengths) == pytest.approx(theirs.score(x, lengths), rel=1e-10)
    np.testing.assert_allclose(ours.predict_proba(x, lengths), theirs.predict_proba(x, lengths), atol=1e-9)
    for how in ("viterbi", "map"):
        value, states = ours.decode(x, lengths, algorithm=how)
        expected = theirs.decode(x, lengths, algorithm=how)
        assert value == pytest.approx(expected[0], rel=1e-9)
        np.testing.assert_array_equal(states, expected[1])
    np.testing.assert_array_equal(ours.predict(x, lengths), theirs.predict(x, lengths))
    drawn, states = ours.sample(2000, random_state=1)
    assert drawn.shape == (2000, 2)
    np.testing.assert_allclose(drawn[states == 1].mean(axis=0), [3, -3], atol=0.2)


@pytest.mark.slow
def test_fits_find_the_truth(chain):
    theirs, x, states, lengths = chain
    ours = GaussianHMM(3, "full", n_iter=100, n_init=4, random_state=0).fit(x, lengths)
    assert ours.score(x, lengths) > theirs.score(x, lengths)
    assert ours.monitor_.converged and np.all(np.diff(ours.monitor_.history) > -1e-6)
    order = [int(np.argmin(np.sum((ours.means_ - m) ** 2, axis=1))) for m in theirs.means_]
    assert np.mean(np.array(order)[states] == ours.predict(x, lengths)) > 0.95
    kept = like(theirs, GaussianHMM(3, "full", covars_prior=0, init_params="", n_iter=1)).fit(x, lengths)
    assert kept.monitor_.history[0] == pytest.approx(theirs.score(x, lengths), rel=1e-9)
    holes = np.where(np.random.default_rng(0).uniform(size=x.shape) < 0.1, np.nan, x)
    partial = GaussianHMM(3, "full", n_iter=50, n_init=3, random_state=0).fit(holes, lengths)
    assert partial.score(x, lengths) == pytest.approx(ours.score(x, lengths), rel=0.02)


@pytest.mark.slow
def test_other_emissions_score_as_hmmlearns(chain):
    rng, (_, x, _, lengths) = np.random.default_rng(0), chain
    symbols, counts = rng.integers(5, size=(300, 1)), rng.poisson(4, size=(300, 2))
    with warnings.catch_warnings(action="ignore"):
        discrete = CategoricalHMM(3, random_state=0).fit(symbols)
        rates = PoissonHMM(2, random_state=0).fit(counts)
        mixed = GMMHMM(2, 3, random_state=0).fit(x, lengths)
    for ours, theirs, data, cut in (
        (discrete, hmmlearn.CategoricalHMM(3, n_features=5), symbols, None),
        (rates, hmmlearn.PoissonHMM(2), counts, None),
        (mixed, hmmlearn.GMMHMM(2, 3, covariance_type="diag"), x, lengths),
    ):
        assert ours.score(data, cut) == pytest.approx(like(ours, theirs).score(data, cut), rel=1e-9)
        drawn, states = ours.sample(7)
        assert drawn.shape == (7, data.shape[1]) and states.shape == (7,)
        assert np.isfinite([ours.aic(data, cut), ours.bic(data, cut)]).all()


def test_impossible_chains_are_refused(chain):
    theirs, x, _, _ = chain
    ours = lambda **changes: [m := like(theirs, GaussianHMM(3, "full")), [setattr(m, *c) for c in changes.items()]][0]
    cases = [
        (lambda: ours().score(x, [1, 2]), "lengths add up to 3, but X has 500 rows"),
        (lambda: ours().score(x, [-1, 501]), "lengths must not be negative"),
        (lambda: ours().score(x, [0.5, 499.5]), "lengths must be whole numbers"),
        (lambda: ours(transmat_=theirs.transmat_ * 1.1).score(x), "row 0 of transmat_ sums to 1.1"),
        (lambda: ours(startprob_=np.ones(2) / 2).score(x), "startprob_ must have shape"),
        (lambda: ours(covars_=-theirs.covars_).score(x), "covars_ must be symmetric and positive definite"),
        (lambda: ours().score(x[:, :1]), "1 features, the model has 2"),
        (lambda: ours().score(x * np.inf), "infinite|NaN"),
        (lambda: ours().decode(x, algorithm="best"), "algorithm must be one of"),
        (lambda: GaussianHMM(0).fit(x), "n_components"),
        (lambda: GaussianHMM(2, min_covar=-1).fit(x), "min_covar"),
        (lambda: GaussianHMM(2, init_params="xyz").fit(x), "init_params"),
        (lambda: CategoricalHMM(2).fit([[0.5]]), "whole numbers"),
        (lambda: CategoricalHMM(2, n_features=3).fit([[3]]), "symbol 3"),
        (lambda: CategoricalHMM(2).fit([[0, 1]]), "column"),
        (lambda: PoissonHMM(2).fit([[-1]]), "counts"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(NotFittedError, match="startprob_"):
        GaussianHMM(2).score(x)
