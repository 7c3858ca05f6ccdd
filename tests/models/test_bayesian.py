"""Bayesian mixtures: their bound, its closed form, and scikit-learn's."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.mixture
from scipy.special import multigammaln
from scipy.stats import multivariate_normal

from gen_jax.algorithms import em
from gen_jax.estimators import BayesianGaussianMixture
from gen_jax.models.mixture import DIAGONAL, FULL, SPHERICAL, TIED, BayesianGMM, kmeans

KINDS = {"full": FULL, "tied": TIED, "diag": DIAGONAL, "spherical": SPHERICAL}


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def blobs(n: int = 100) -> np.ndarray:
    r = np.random.default_rng(0)
    turn = np.array([[1, 0.5], [0, 0.4]])
    return np.concatenate([r.normal(size=(n, 2)) @ turn + c for c in ((0, 0), (6, 1), (1, 7))])


def bounds(model: BayesianGMM, x: np.ndarray, steps: int) -> np.ndarray:
    """Evidence lower bounds of all of x, by iteration."""
    algorithm, batch = em(model), {"x": jnp.asarray(x)}
    state = algorithm.init(jax.random.key(0), batch)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.step(s, batch), s, length=steps)[1]["log_posterior"])
    return np.asarray(run(state).value) * len(x)


@pytest.mark.representatives("full-True", "diag-False")
@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_iteration_raises_the_bound(kind, process):
    model = BayesianGMM(5, kind=KINDS[kind], start=kmeans, process=process, floor=0.0)
    found = bounds(model, blobs(), 100)
    assert np.all(np.diff(found) > -1e-10) and found[-1] > found[0] + 1


@pytest.mark.representatives("full", "spherical")
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_one_component_is_the_evidence(kind):
    """The normal-Wishart posterior is exact then (Murphy 2012, section 5.3.2); priors away from their defaults."""
    x, mean, before, strength = blobs(7), np.array([1.0, -2.0]), 3.5, 0.3
    n, d = x.shape
    scale = {"full": [[2.0, 0.5], [0.5, 1.0]], "tied": [[2.0, 0.5], [0.5, 1.0]], "diag": [2.0, 1.0], "spherical": 1.5}
    given = tuple(map(tuple, scale[kind])) if kind in ("full", "tied") else np.asarray(scale[kind]).tolist()
    given = tuple(given) if kind == "diag" else given
    model = BayesianGMM(
        1, 0.0, KINDS[kind], mean=tuple(mean), mean_precision=strength, degrees=before, covariance=given
    )
    off = x.mean(axis=0) - mean
    scatter = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0)) + n * strength / (n + strength) * np.outer(off, off)

    def evidence(p: int, degrees: float, more: float, prior: np.ndarray, total: np.ndarray) -> float:
        value = multigammaln((degrees + more) / 2, p) - multigammaln(degrees / 2, p)
        return value + degrees / 2 * np.linalg.slogdet(prior)[1] - (degrees + more) / 2 * np.linalg.slogdet(total)[1]

    prior = scale[kind] * np.eye(d) if kind in ("diag", "spherical") else np.array(scale[kind])
    if kind in ("full", "tied"):
        expected = evidence(d, before, n, prior, prior + scatter)
    elif kind == "diag":
        each = [(prior[i, i].reshape(1, 1), (prior + scatter)[i, i].reshape(1, 1)) for i in range(d)]
        expected = sum(evidence(1, before, n, *one) for one in each)
    else:
        total = np.trace(prior + scatter).reshape(1, 1)
        expected = evidence(1, d * before, d * n, np.trace(prior).reshape(1, 1), total)
    expected += -n * d / 2 * np.log(np.pi) + d / 2 * np.log(strength / (strength + n))
    np.testing.assert_allclose(bounds(model, x, 3)[-1], expected, rtol=1e-10)


def test_full_covariances_are_scikit_learns():
    x, arguments = blobs(), {"n_components": 5, "max_iter": 500, "tol": 1e-10, "random_state": 0}
    for prior in ("dirichlet_distribution", "dirichlet_process"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = BayesianGaussianMixture(weight_concentration_prior_type=prior, **arguments).fit(x)
            theirs = sklearn.mixture.BayesianGaussianMixture(weight_concentration_prior_type=prior, **arguments).fit(x)
        if prior == "dirichlet_distribution":  # a process depends on the order of k-means' clusters
            a, b = np.argsort(-ours.weights_)[:3], np.argsort(-theirs.weights_)[:3]
            for name in ("weights_", "means_", "covariances_", "mean_precision_", "degrees_of_freedom_"):
                np.testing.assert_allclose(getattr(ours, name)[a], getattr(theirs, name)[b], rtol=1e-4, err_msg=name)
        for name in ("mean_prior_", "covariance_prior_", "degrees_of_freedom_prior_", "mean_precision_prior_"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-10)
        for name in ("weights_", "means_", "covariances_", "mean_precision_"):
            setattr(ours, name, getattr(theirs, name))
        np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-10)
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-10)


def test_surplus_components_lose_their_weight_and_arguments_are_scikit_learns():
    x = blobs()
    model = BayesianGaussianMixture(n_components=6, max_iter=1000, n_init=2, random_state=0).fit(x)
    assert (model.weights_ > 0.01).sum() == 3 and np.all(np.diff(model.lower_bounds_) > -1e-10)
    drawn, component = model.sample(2000)
    np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), atol=0.4)
    assert set(component) <= set(range(6)) and not hasattr(model, "bic")
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (BayesianGaussianMixture, sklearn.mixture.BayesianGaussianMixture)
    )
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


def test_densities_are_those_at_the_posterior_means():
    x = jnp.asarray(blobs(30))
    model, batch = BayesianGMM(4, process=True), {"x": x}
    state = jax.jit(lambda key: em(model).step(em(model).init(key, batch), batch)[0])(jax.random.key(0))
    weights, means, covariances = model.parameters(state)
    each = [multivariate_normal.pdf(x, means[k], covariances[k]) for k in range(4)]
    expected = np.log(np.asarray(weights) @ np.stack(each))
    np.testing.assert_allclose(model.log_prob(state, batch), expected, rtol=1e-9)
    np.testing.assert_allclose(model.distribution(state).log_prob(x), expected, rtol=1e-9)
    plain, _ = model.at_means(state)
    marginal = plain.log_prob(model.marginal(state, [1]), {"x": x[:, 1:]})
    given = model.conditional(state, [1], x[:, 1:]).log_prob(x[:, :1])
    np.testing.assert_allclose(given + marginal, expected, rtol=1e-8)
    with pytest.raises(TypeError, match="evidence lower bound"):
        model.criteria(state, batch)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"weight_concentration_prior": 0.0}, "weight_concentration_prior must be above 0"),
        ({"degrees_of_freedom_prior": 0.5}, "degrees_of_freedom_prior must be above 1"),
        ({"mean_prior": [0.0, 1.0, 2.0]}, "mean_prior must be a number or have shape"),
        ({"weight_concentration_prior_type": "dirichlet"}, "must be one of dirichlet_process, dirichlet_distribution"),
    ],
)
def test_bad_priors_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        BayesianGaussianMixture(n_components=2, **arguments).fit(blobs(5))
    with pytest.raises(ValueError, match="X has NaN"):
        BayesianGaussianMixture(n_components=2).fit([[1.0, np.nan], [2.0, 1.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="n_components must be a whole number"):
        BayesianGaussianMixture(n_components=[2, 3]).fit(blobs(5))
