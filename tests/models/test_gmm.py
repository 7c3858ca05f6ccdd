"""Gaussian mixtures against scipy, scikit-learn, brute force and known truths."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from gen_jax.algorithms import descent, em, stepwise_em
from gen_jax.data import Resident, Streamed
from gen_jax.errors import UserError
from gen_jax.loop import fit
from gen_jax.models.common.blocks import block_size
from gen_jax.models.common.linalg import inverses
from gen_jax.models.mixture import (
    DIAGONAL,
    FULL,
    GMM,
    SPHERICAL,
    TIED,
    Prior,
    gaussians,
    kmeans,
    kmeans_plus_plus,
    random_from_data,
    random_responsibilities,
)
from gen_jax.models.mixture.covariances import Standardizer
from gen_jax.restarts import best_restart, member, population, until_converged
from gen_jax.sharding import Layout

KINDS = {"full": FULL, "tied": TIED, "diag": DIAGONAL, "spherical": SPHERICAL}
INVERSE = {"full": np.linalg.inv, "tied": np.linalg.inv, "diag": np.reciprocal, "spherical": np.reciprocal}
all_kinds = pytest.mark.parametrize("name", KINDS)
every_kind = pytest.mark.parametrize(  # full and diagonal stand for tied and spherical
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("tied", "spherical"))) for name in KINDS]
)
two_kinds = pytest.mark.parametrize("name", ["full", pytest.param("tied", marks=pytest.mark.slow), "diag"])


def points(n=400, scale=1.0, offset=0.0, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    centers = np.array([[0, 0], [4, 1], [-2, 5]])
    x = centers[rng.integers(3, size=n)] + rng.normal(size=(n, 2)) * [1.0, 0.5]
    return (offset + scale * x).astype(dtype)


@partial(jax.jit, static_argnums=0)
def begin(model, x, key=None):
    return em(model).init(jax.random.key(0) if key is None else key, {"x": x})


@partial(jax.jit, static_argnums=0)
def step(model, state, batch):
    return em(model).step(state, batch)


@partial(jax.jit, static_argnums=0)
def log_prob(model, state, x):
    return model.log_prob(state, {"x": x})


@partial(jax.jit, static_argnums=(0, 2))
def trained(model, x, steps, seed=0):
    """EM from the start, compiled once per model and shape however many tests use it."""
    algorithm, batch = em(model), {"x": x}
    state = algorithm.init(jax.random.key(seed), batch)
    return jax.lax.fori_loop(0, steps, lambda _, s: algorithm.step(s, batch)[0], state)


def dense(model, state):
    w, _, _ = model.parameters(state)
    return tuple(np.asarray(a, np.float64) for a in (w, *model.covariances(state)))


@pytest.mark.representatives("full", "diag")
@all_kinds
def test_log_prob_is_scipys(name):
    x, model = points(), GMM(3, kind=KINDS[name])
    state = trained(model, x, 30)
    w, means, covariances = dense(model, state)
    expected = np.log(sum(w[k] * multivariate_normal(means[k], covariances[k]).pdf(x) for k in range(3)))
    np.testing.assert_allclose(log_prob(model, state, x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.distribution(state).log_prob(x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.responsibilities(state, {"x": x}).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.representatives("float64-1e-10-1.0-0.0-full", "float32-0.0001-0.1-1000.0-full")
@every_kind
@pytest.mark.parametrize(
    "dtype, tolerance, scale, offset",
    [
        pytest.param(np.float32, 1e-4, 1.0, 0.0, marks=pytest.mark.slow),
        (np.float64, 1e-10, 1.0, 0.0),
        (np.float32, 1e-4, 0.1, 1000.0),
    ],
)
def test_each_iteration_is_scikit_learns(name, dtype, tolerance, scale, offset):
    """From the same parameters, the same likelihood after every one of 20 iterations. The rival computes in float64, on
    data without the offset, which its own variances would not survive."""
    with jax.enable_x64(dtype == np.float64):
        x = points(scale=scale, offset=offset, dtype=dtype)
        shifted = x.astype(np.float64) - offset
        model = GMM(3, floor=0.0, kind=KINDS[name])
        state = begin(model, x, jax.random.key(1))
        w, means, covariances = (np.asarray(p, np.float64) for p in model.parameters(state))
        theirs = GaussianMixture(
            3,
            covariance_type=name,
            reg_covar=0.0,
            weights_init=w / w.sum(),
            means_init=means - offset,
            precisions_init=INVERSE[name](covariances),
            max_iter=1,
            warm_start=True,
        )
        for _ in range(20):
            state, _ = step(model, state, {"x": x})
            with warnings.catch_warnings(action="ignore"):  # that one iteration does not converge
                theirs.fit(shifted)
            ours = float(log_prob(model, state, x).mean())
            assert ours == pytest.approx(theirs.score(shifted), rel=tolerance if not offset else 1e-4)
        np.testing.assert_allclose(model.parameters(state)[1] - offset, theirs.means_, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.representatives("0.001-full", "0.001-diag")
@every_kind
@pytest.mark.parametrize("narrow", [0.3, 0.001])
def test_both_ways_to_evaluate_agree_with_float64(name, narrow):
    """The fast way where it is chosen, the exact one elsewhere; the choice is by how narrow components are."""
    rng, kind = np.random.default_rng(0), KINDS[name]
    centers = rng.choice([-1.0, 1.0], size=(3, 4))
    x = (centers[rng.integers(3, size=3000)] + narrow * rng.normal(size=(3000, 4))).astype(np.float32)

    def evaluate(x, evaluation):
        means = jnp.asarray(centers, x.dtype)
        covariances = jnp.broadcast_to(narrow**2 * jnp.eye(4, dtype=x.dtype), (3, 4, 4))
        model = gaussians.Gaussians(kind)
        params = model.pack(means, covariances)
        gemm, sharpness = kind.gemm(params, Standardizer.of(x))
        if evaluation == "chosen":
            log_prob = model.log_prob(params, x)
        else:
            log_prob = kind.direct(params).log_prob(x).T
        return log_prob, model.moments(params, x, jax.nn.softmax(log_prob)), float(sharpness)

    with jax.enable_x64(True):
        expected, moments, _ = evaluate(jnp.asarray(x, jnp.float64), "exact")
        expected, moments = np.asarray(expected), jax.tree.map(np.asarray, moments)
    found, of_found, sharpness = evaluate(jnp.asarray(x), "chosen")
    assert (sharpness < 800) == (narrow > 0.1)
    near = expected > expected.max() - 100
    np.testing.assert_allclose(np.asarray(found)[near], expected[near], atol=2e-3)
    np.testing.assert_allclose(of_found.count, moments.count, rtol=1e-4)
    np.testing.assert_allclose(of_found.second, moments.second, rtol=2e-3, atol=1e-3 * np.abs(moments.second).max())


@every_kind
@pytest.mark.parametrize("scale, offset", [(0.1, 1000.0), (1e-8, 0.0), pytest.param(1e8, 0.0, marks=pytest.mark.slow)])
def test_scale_and_offset_do_not_matter(name, scale, offset):
    """Data at 1000 +- 0.1 has the right variance in float32; tiny and huge data give the same mixture."""
    model = GMM(3, kind=KINDS[name])
    expected = dense(model, trained(model, points(), 30))[2]
    found = dense(model, trained(model, points(scale=scale, offset=offset), 30))[2]
    tolerance = 0.02 if offset else 1e-3  # float32 itself stores 1000.1 to 6e-5, a 1000th of its spread
    np.testing.assert_allclose(
        np.sort(np.linalg.det(found / scale**2)), np.sort(np.linalg.det(expected)), rtol=tolerance
    )


DEGENERATE = {
    "identical": np.ones((60, 2)),
    "two distinct": np.repeat(np.eye(2), 30, axis=0),
    "constant column": np.c_[np.arange(60.0), np.full(60, 1000.1)],
    "on a line": np.c_[np.arange(60.0), 2 * np.arange(60.0)],
    "far outlier": np.r_[np.random.default_rng(0).normal(size=(59, 2)), [[1e6, -1e6]]],
    "one point": np.zeros((1, 2)),
}


@pytest.mark.optimized
@every_kind
@pytest.mark.parametrize("x", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_data_never_gives_nan(name, x):
    model, x = GMM(3, kind=KINDS[name]), x.astype(np.float32)
    state = trained(model, x, 20)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))
    assert np.isfinite(log_prob(model, state, x)).all()
    assert np.all(np.linalg.eigvalsh(dense(model, state)[2]) >= 0)


@pytest.mark.representatives("all-full", "scale-diag")
@pytest.mark.optimized
@every_kind
@pytest.mark.parametrize("prior", [Prior(pseudo_counts=1e-3), Prior(2.0, 5.0, 0.1, 3.0)], ids=["scale", "all"])
def test_degenerate_data_with_a_prior_never_gives_nan(name, prior):
    for x in (DEGENERATE["far outlier"], DEGENERATE["constant column"]):
        model, x = GMM(3, kind=KINDS[name], prior=prior), x.astype(np.float32)
        state = trained(model, x, 20)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))


@every_kind
def test_lost_components_are_given_new_points(name):
    """A component far from all data comes back, is reported, and the likelihood ends where it should."""
    x, model = points(), GMM(3, kind=KINDS[name])
    state = begin(model, x)
    state.params["gmm"]["means"] = state.params["gmm"]["means"].at[1].set(1e4)
    for _ in range(100):
        state, _ = step(model, state, {"x": x})
    assert float(state.extra["reseeded"]) >= 1
    w, _, covariances = dense(model, state)
    assert w.min() > 0.05 and np.all(np.linalg.eigvalsh(covariances) > 0)


@every_kind
def test_missing_values_are_integrated_out(name):
    """One iteration against a double loop over examples and components."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.5], [0, 0, 1]]) + 3 * rng.integers(2, size=(60, 1))
    x[rng.uniform(size=x.shape) < 0.3] = np.nan
    x = x[~np.isnan(x).all(axis=1)]
    with jax.enable_x64(True):
        model = GMM(2, floor=0.0, kind=KINDS[name], missing=True)
        state = begin(model, x)
        w, means, covariances = dense(model, state)
        log_joint = np.array([[np.log(w[k]) + _observed(r, means[k], covariances[k]) for k in range(2)] for r in x])
        expected = np.logaddexp.reduce(log_joint, axis=1)
        np.testing.assert_allclose(log_prob(model, state, x), expected, rtol=1e-9)
        r = np.exp(log_joint - expected[:, None])
        filled = [[_completed(row, means[k], covariances[k]) for row in x] for k in range(2)]
        new_means = np.array([sum(r[n, k] * filled[k][n][0] for n in range(len(x))) / r[:, k].sum() for k in range(2)])
        scatter = lambda k, n: filled[k][n][1] + np.outer(*2 * [filled[k][n][0] - new_means[k]])
        new = np.array([sum(r[n, k] * scatter(k, n) for n in range(len(x))) / r[:, k].sum() for k in range(2)])
        if name == "tied":
            new = np.broadcast_to(np.tensordot(r.sum(axis=0) / len(x), new, axes=1), new.shape)
        after, _ = step(model, state, {"x": x})
        _, found_means, found = dense(model, after)
        np.testing.assert_allclose(found_means, new_means, rtol=1e-8)
        if name in ("full", "tied"):
            np.testing.assert_allclose(found, new, rtol=1e-7, atol=1e-9)
        else:
            variances = np.diagonal(new, axis1=1, axis2=2)
            variances = variances if name == "diag" else np.broadcast_to(variances.mean(1, keepdims=True), (2, 3))
            np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), variances, rtol=1e-7)


def test_fit_takes_missing_values_where_they_are_announced():
    x, model = points(200), GMM(3, missing=True)
    x[::7, 0] = np.nan
    state = fit(em(model), Resident({"x": x}, missing=True), 20, layout=Layout(data=2))
    assert float(log_prob(model, state, points(200)).mean()) > -3.6
    with pytest.raises(UserError, match="missing=True"):
        fit(em(model), {"x": x}, 20)


def _observed(row, mean, covariance):
    there = ~np.isnan(row)
    return multivariate_normal(mean[there], covariance[np.ix_(there, there)]).logpdf(row[there])


def _completed(row, mean, covariance):
    """E[x | what is there] and Cov[x | what is there]."""
    o, m = ~np.isnan(row), np.isnan(row)
    filled, left = row.copy(), np.zeros((len(row),) * 2)
    if m.any():
        gain = covariance[np.ix_(m, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
        filled[m] = mean[m] + gain @ (row[o] - mean[o])
        left[np.ix_(m, m)] = covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(o, m)]
    return filled, left


@pytest.mark.representatives("diag")
@every_kind
def test_weights_count_examples_more_than_once(name):
    x, times = points(200), np.random.default_rng(0).integers(0, 4, size=200)
    model = GMM(3, kind=KINDS[name])
    state = begin(model, x)
    weighted, metrics = step(model, state, {"x": x, "weight": times})
    repeated, expected = step(model, state, {"x": np.repeat(x, times, axis=0)})
    assert float(metrics["log_likelihood"].value) == pytest.approx(float(expected["log_likelihood"].value), rel=1e-5)
    for a, b in zip(dense(model, weighted), dense(model, repeated)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.representatives("diag")
@every_kind
def test_map_estimates_raise_the_posterior_and_shrink(name):
    x, prior = points(60), Prior(concentration=2.0, pseudo_counts=20.0, mode=0.5)
    model, rows = GMM(5, kind=KINDS[name], prior=prior), []
    state = begin(model, x)
    for _ in range(40):
        state, metrics = step(model, state, {"x": x})
        rows.append(float(metrics["log_posterior"].value))
    assert np.all(np.diff(rows) >= -2e-5 * abs(rows[0])) and rows[-1] > rows[0]
    plain = GMM(5, kind=KINDS[name])
    free = dense(plain, trained(plain, x, 40))[2]
    assert np.linalg.eigvalsh(dense(model, state)[2]).min() > np.linalg.eigvalsh(free).min()
    total = float(log_prob(model, state, x).sum() + model.log_prior(state))
    for name_, a in state.params["gmm"].items():  # no neighbor is better
        for sign in (-1, 1):
            noise = 0.03 * sign * jax.random.normal(jax.random.key(0), a.shape)
            moved = state._replace(params={"gmm": {**state.params["gmm"], name_: a + noise}})
            assert float(log_prob(model, moved, x).sum() + model.log_prior(moved)) < total + 0.02


@pytest.mark.representatives("full")
@two_kinds
def test_streamed_parts_and_devices_equal_one_batch(name, same):
    """Exact EM over data in several batches, in parts of a batch, and divided over devices."""
    x, model = points(512), GMM(3, kind=KINDS[name])
    start = begin(model, x)
    whole, _ = step(model, start, {"x": x})
    state, quarter = start, jax.jit(em(model, every=4).step)
    for part in np.split(x, 4):
        state, _ = quarter(state, {"x": part})
    same(state.params, whole.params, rtol=1e-4, atol=1e-5)
    copy = lambda: jax.tree.map(jnp.copy, start)
    divided = fit(em(model), {"x": x}, 1, state=copy(), layout=Layout(data=4))
    same(jax.device_get(divided.params), whole.params, rtol=1e-4, atol=1e-5)
    read = lambda index: {"x": x[index]}
    streamed = fit(em(model, every=4), Streamed(read, 512, 128, shuffle=False), 4, state=copy(), layout=Layout(data=2))
    same(jax.device_get(streamed.params), whole.params, rtol=1e-4, atol=1e-5)


def test_blocks_cover_every_example_once(monkeypatch, same):
    x, model = points(1000), GMM(3)
    start = begin(model, x)
    whole = step(model, start, {"x": x})[0]
    values = log_prob(model, start, x)
    monkeypatch.setattr("gen_jax.models.mixture.covariances.evaluation.block_size", lambda numbers: 96)
    same(begin(model, x).params, start.params, rtol=1e-4, atol=1e-5)
    same(jax.jit(em(model).step)(start, {"x": x})[0].params, whole.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.log_prob(start, {"x": x}), values, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["full", "tied", "diag", "spherical"])
def test_blocks_fit_into_memory(monkeypatch, backend, name):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    k, d = 500, 8
    kind = KINDS[name]
    unit = kind.from_dense(jnp.broadcast_to(jnp.eye(d), (k, d, d)), jnp.ones(k))
    params = {"means": jnp.zeros((k, d)), **kind.pack(unit)}
    for evaluation in (kind.gemm(params, Standardizer(jnp.zeros(d), jnp.ones(d)))[0], kind.direct(params)):
        rows = evaluation.rows or block_size()
        assert rows % 64 == 0 and 4 * k * rows <= 2**28
    assert block_size(10**9) == (512 if backend == "cpu" else 64)


def test_inverses_on_accelerators_are_those_on_cpus(monkeypatch):
    factor = jnp.linalg.cholesky(jnp.cov(jax.random.normal(jax.random.key(0), (6, 40))) + jnp.eye(6))
    expected = inverses(factor)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(inverses(factor), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_em_on_accelerators_is_that_on_cpus(d, monkeypatch, same):
    x, model = jax.random.normal(jax.random.key(0), (300, d)), GMM(3)
    start = em(model).init(jax.random.key(1), {"x": x})
    expected = em(model).step(start, {"x": x})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    same(em(model).step(start, {"x": x})[0].params, expected[0].params, rtol=1e-4, atol=1e-5)


@pytest.mark.representatives("diag")
@two_kinds
def test_stepwise_em_reaches_what_em_reaches(name):
    x, model = points(4000), GMM(3, kind=KINDS[name])
    best = trained(model, x, 50)
    algorithm = stepwise_em(model, lambda t: (t + 2.0) ** -0.7)
    online = fit(algorithm, Resident({"x": x}, batch=200), 200, state=begin(model, x))
    a, b = (float(log_prob(model, s, x).mean()) for s in (best, online))
    assert b == pytest.approx(a, abs=0.02)


@pytest.mark.representatives("random_responsibilities")
@pytest.mark.parametrize("start", [kmeans, kmeans_plus_plus, random_from_data, random_responsibilities])
def test_every_start_is_proper_and_restarts_find_the_best(start):
    x, model = points(), GMM(3, start=start)
    algorithm = until_converged(population(em(model), 8), "log_likelihood", 1e-5, 200)
    state, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0), {"x": x}), {"x": x})
    values, curve = np.asarray(metrics["log_likelihood"].value), np.asarray(state.extra["curve"])
    assert values.max() == pytest.approx(-3.147, abs=2e-3)
    assert metrics["decreases"].total.max() == 0 and metrics["converged"].total.min() == 1
    for i in range(8):  # each member stops by itself, as it would have alone
        n = int(metrics["iterations"].total[i])
        assert np.isfinite(curve[i, :n]).all() and np.isnan(curve[i, n:]).all()
        assert curve[i, n - 1] == pytest.approx(values[i], abs=1e-6)
        if n < 200:
            assert abs(curve[i, n - 1] - curve[i, n - 2]) < 1.1e-5
    one = begin(model, x, member(state, 2).key)
    for _ in range(int(metrics["iterations"].total[2])):
        one, _ = step(model, one, {"x": x})
    np.testing.assert_allclose(one.params["gmm"]["means"], member(state, 2).params["gmm"]["means"], atol=1e-3)


@pytest.mark.slow
def test_best_of_goes_on_from_the_best_start():
    x, model = points(), GMM(3, start=random_responsibilities)
    algorithm = best_restart(em(model), 6, "log_likelihood", iterations=10)
    state = algorithm.init(jax.random.key(3), {"x": x})
    ends = np.asarray(state.extra["curve"])[:, -1]
    after, metrics = algorithm.step(state, {"x": x})
    assert float(metrics["log_likelihood"].value) >= ends.max() and int(after.step) == 1
    with pytest.raises(ValueError, match="no metric"):
        best_restart(em(model), 2, "likelihood").init(jax.random.key(0), {"x": x})
    with pytest.raises(ValueError, match="restarts"):
        best_restart(em(model), 0, "log_likelihood")


@pytest.mark.representatives("full")
@every_kind
def test_marginals_and_conditionals_are_brute_force(name):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)) + 3 * rng.integers(2, size=(300, 1))).astype(np.float32)
    model = GMM(2, kind=KINDS[name])
    state = trained(model, x, 10)
    w, means, covariances = dense(model, state)
    columns = [2, 0]
    marginal = model.marginal(state, columns)
    pdf = lambda k, keep, x: multivariate_normal(means[k][keep], covariances[k][np.ix_(keep, keep)]).pdf(x)
    expected = np.log(sum(w[k] * pdf(k, columns, x[:, columns]) for k in range(2)))
    np.testing.assert_allclose(log_prob(model, marginal, x[:, columns]), expected, rtol=1e-3, atol=1e-3)
    given = model.conditional(state, columns, x[:5, columns])
    joint = np.log(sum(w[k] * pdf(k, [0, 1, 2], x[:5]) for k in range(2)))
    np.testing.assert_allclose(given.log_prob(x[:5, [1]]), joint - expected[:5], rtol=1e-3, atol=2e-3)
    for wrong in ([], [0, 0], [3], [-1], [0, 1, 2]):
        with pytest.raises(ValueError, match="columns"):
            model.conditional(state, wrong, x[:5, wrong] if wrong != [3] else x[:5, [0]])


def test_criteria_are_scikit_learns():
    x = points()
    for name, kind in KINDS.items():
        theirs = GaussianMixture(3, covariance_type=name, random_state=0).fit(x.astype(np.float64))
        model = GMM(3, kind=kind)
        shapes = model.gaussians.pack(jnp.asarray(theirs.means_), jnp.asarray(_dense(name, theirs.covariances_)))
        state = begin(model, x)
        state = state._replace(params={"gmm": {"logits": jnp.log(jnp.asarray(theirs.weights_)), **shapes}})
        found = model.criteria(state, {"x": x})
        assert float(found["bic"]) == pytest.approx(theirs.bic(x), rel=1e-4)
        assert float(found["aic"]) == pytest.approx(theirs.aic(x), rel=1e-4)
        assert float(found["icl"]) >= float(found["bic"])


def _dense(name, covariances):
    if name == "tied":
        return np.broadcast_to(covariances, (3, 2, 2))
    return covariances if name == "full" else np.reshape(covariances, (3, -1, 1)) * np.eye(2)


@pytest.mark.representatives("diag")
@every_kind
def test_descent_reaches_what_em_reaches(name):
    x, model = points(), GMM(3, kind=KINDS[name])
    by_em = trained(model, x, 100)
    by_descent = fit(descent(model, {"gmm": optax.adam(1e-2)}), {"x": x}, 500, chunk=100)
    a, b = (float(log_prob(model, s, x).mean()) for s in (by_em, by_descent))
    assert b == pytest.approx(a, abs=2e-3)


@every_kind
def test_samples_have_the_mixtures_moments(name):
    model = GMM(3, kind=KINDS[name])
    state = trained(model, points(), 30)
    drawn = model.sample(state, jax.random.key(0), 100_000)
    w, means, covariances = dense(model, state)
    for k in range(3):
        of_k = np.asarray(drawn["x"])[np.asarray(drawn["component"]) == k]
        assert len(of_k) / 100_000 == pytest.approx(w[k], abs=0.01)
        np.testing.assert_allclose(of_k.mean(axis=0), means[k], atol=0.03)
        np.testing.assert_allclose(np.cov(of_k.T), covariances[k], atol=0.04)


def test_kmeans_plus_plus_spreads_over_far_clusters():
    noise = np.random.default_rng(0).normal(size=(150, 1))
    x = jnp.asarray(np.repeat(100.0 * np.arange(5)[:, None], 30, axis=0) + noise)
    for seed in range(10):
        r = np.asarray(kmeans_plus_plus(jax.random.key(seed), x, jnp.ones(len(x)), 5)(x, None))
        np.testing.assert_allclose(np.sort((r @ x[:, 0]) / r.sum(axis=1)), 100.0 * np.arange(5), atol=5)


def test_parameters_may_be_numpy_arrays():
    state = jax.device_get(begin(GMM(3), points()))
    np.testing.assert_allclose(
        GMM(3).log_prob(state, {"x": points()}), log_prob(GMM(3), state, points()), rtol=1e-5, atol=1e-5
    )


def test_impossible_hyper_parameters_are_refused():
    for wrong in (dict(components=0), dict(components=2, floor=-1.0), dict(components=2, kind="full")):
        with pytest.raises(ValueError, match="components|floor|kind"):
            GMM(**wrong)
    with pytest.raises(ValueError, match="prior"):
        GMM(2, prior=Prior(concentration=0.5))
    with pytest.raises(ValueError, match="iterations"):
        until_converged(em(GMM(2)), "log_likelihood", 0.1, 0)
