"""Gaussian mixture against scipy, scikit-learn and known truths."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from gen_jax.algorithms import descent, em
from gen_jax.loop import fit
from gen_jax.models.gmm import GMM, kmeans_plus_plus


def points(n=400, scale=1.0, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 0], [4, 1], [-2, 5]])
    x = centres[rng.integers(3, size=n)] + rng.normal(size=(n, 2)) * [1.0, 0.5]
    return (offset + scale * x).astype(np.float32)


def parameters(state):
    components = GMM(1).distribution(state).components_distribution
    return jax.nn.softmax(state.params["gmm"]["logits"]), components.mean(), components.covariance()


def test_log_prob_is_scipys():
    x = points()
    state = fit(em(GMM(3)), {"x": x}, 2)
    w, means, covariances = map(np.asarray, parameters(state))
    expected = np.log(sum(w[k] * multivariate_normal(means[k], covariances[k]).pdf(x) for k in range(3)))
    np.testing.assert_allclose(GMM(3).log_prob(state, {"x": x}), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(GMM(3).distribution(state).log_prob(x), expected, rtol=1e-4, atol=1e-4)


def test_each_iteration_is_scikit_learns():
    """From the same parameters: the same likelihood and parameters after every one of 20 iterations."""
    x = points()
    model, algorithm = GMM(3, floor=0.0), em(GMM(3, floor=0.0))
    state = algorithm.init(jax.random.key(1), {"x": x})
    w, means, covariances = (np.asarray(p, np.float64) for p in parameters(state))
    theirs = GaussianMixture(
        3,
        reg_covar=0.0,
        weights_init=w,
        means_init=means,
        precisions_init=np.linalg.inv(covariances),
        max_iter=1,
        warm_start=True,
    )
    step = jax.jit(algorithm.step)
    for _ in range(20):
        state, _ = step(state, {"x": x})
        with warnings.catch_warnings(action="ignore"):  # that one iteration does not converge
            theirs.fit(x.astype(np.float64))
        ours = float(model.log_prob(state, {"x": x}).mean())
        assert ours == pytest.approx(theirs.score(x.astype(np.float64)), rel=1e-4)
    np.testing.assert_allclose(parameters(state)[1], theirs.means_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale, offset", [(1.0, 0.0), (0.1, 1000.0), (1e-8, 0.0), (1e8, 0.0)])
def test_scale_and_offset_do_not_matter(scale, offset):
    """Data at 1000 +- 0.1 has the right variance in float32; tiny and huge data give the same mixture."""
    x = points(scale=scale, offset=offset)
    reference = fit(em(GMM(3)), {"x": points()}, 30)
    state = fit(em(GMM(3)), {"x": x}, 30)
    _, _, expected = map(np.asarray, parameters(reference))
    _, _, found = map(np.asarray, parameters(state))
    tolerance = 0.02 if offset else 1e-3  # float32 itself stores 1000.1 to 6e-5, a 1000th of its spread
    np.testing.assert_allclose(
        np.sort(np.linalg.det(found / scale**2)), np.sort(np.linalg.det(expected)), rtol=tolerance
    )


@pytest.mark.parametrize(
    "x",
    [np.ones((20, 2)), np.repeat(np.eye(2), 10, axis=0), np.c_[np.arange(20.0), np.zeros(20)], np.zeros((1, 2))],
    ids=["identical", "two distinct", "constant column", "one point"],
)
def test_degenerate_data_never_gives_nan(x):
    state = fit(em(GMM(3)), {"x": x.astype(np.float32)}, 20)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))
    assert np.isfinite(GMM(3).log_prob(state, {"x": x.astype(np.float32)})).all()
    assert np.all(np.linalg.eigvalsh(parameters(state)[2]) >= 0)


def test_descent_reaches_what_em_reaches():
    x = points()
    model = GMM(3)
    start = em(model).init(jax.random.key(0), {"x": x})
    by_em = fit(em(model), {"x": x}, 100)
    by_descent = fit(descent(model, {"gmm": optax.adam(1e-2)}), {"x": x}, 500, chunk=100)
    assert start.params.keys() == by_em.params.keys()
    a, b = (float(model.log_prob(s, {"x": x}).mean()) for s in (by_em, by_descent))
    assert b == pytest.approx(a, abs=2e-3)


def test_samples_have_the_mixtures_moments():
    state = fit(em(GMM(3)), {"x": points()}, 30)
    drawn = GMM(3).sample(state, jax.random.key(0), 100_000)
    w, means, covariances = map(np.asarray, parameters(state))
    for k in range(3):
        of_k = np.asarray(drawn["x"])[np.asarray(drawn["component"]) == k]
        assert len(of_k) / 100_000 == pytest.approx(w[k], abs=0.01)
        np.testing.assert_allclose(of_k.mean(axis=0), means[k], atol=0.03)
        np.testing.assert_allclose(np.cov(of_k.T), covariances[k], atol=0.04)


def test_kmeans_plus_plus_spreads_over_far_clusters():
    x = jnp.asarray(
        np.repeat(100.0 * np.arange(5)[:, None], 30, axis=0) + np.random.default_rng(0).normal(size=(150, 1))
    )
    for seed in range(10):
        assign = kmeans_plus_plus(jax.random.key(seed), x, jnp.ones(len(x)), 5)
        r = np.asarray(assign(x, None))
        centres = np.sort((r @ x[:, 0]) / r.sum(axis=1))
        np.testing.assert_allclose(centres, 100.0 * np.arange(5), atol=5)


def test_responsibilities_sum_to_one_and_a_wrong_k_is_refused():
    state = fit(em(GMM(3)), {"x": points()}, 3)
    np.testing.assert_allclose(GMM(3).responsibilities(state, {"x": points()}).sum(axis=1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="components"):
        GMM(0)
