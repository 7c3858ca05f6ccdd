"""Hidden Markov models against hmmlearn, enumeration, simulation and known truths."""

import itertools
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent, em, stepwise_em
from gen_jax.core import State, as_mean
from gen_jax.data import Resident
from gen_jax.loop import Hook, fit
from gen_jax.models.hmm import HMM, left_right
from gen_jax.models.hmm.emissions import (
    Bernoulli,
    Categorical,
    Emission,
    Gaussian,
    GaussianMixture,
    LinearRegression,
    Poisson,
)
from gen_jax.models.mixture import DIAGONAL, FULL, SPHERICAL, TIED, ClassConditional
from gen_jax.sharding import Layout

hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is the reference")
KINDS = {"full": FULL, "tied": TIED, "diag": DIAGONAL, "spherical": SPHERICAL}
LENGTHS = np.array([40, 33, 40, 20, 5, 1], np.int32)


@partial(jax.jit, static_argnums=(0, 2))
def trained(model, batch, steps, seed=0):
    """Baum-Welch from the start, compiled once per model and shape however many tests use it."""
    algorithm = em(model)
    state = algorithm.init(jax.random.key(seed), batch)
    return jax.lax.fori_loop(0, steps, lambda _, s: algorithm.step(s, batch)[0], state)


def paths(rng, k=3, batch=6, time=40):
    transition, initial = rng.dirichlet(np.ones(k), size=k) * 0.5 + 0.5 * np.eye(k), rng.dirichlet(np.ones(k))
    z = np.zeros((batch, time), int)
    for b, t in itertools.product(range(batch), range(time)):
        z[b, t] = rng.choice(k, p=transition[z[b, t - 1]] if t else initial)
    return z


def gaussian_data(seed=0, dtype=np.float32, d=2):
    rng = np.random.default_rng(seed)
    z = paths(rng)
    return (3 * rng.normal(size=(3, d))[z] + rng.normal(size=(*z.shape, d))).astype(dtype)


def ragged(x, lengths=LENGTHS):
    return {"x": jnp.asarray(x), "length": jnp.asarray(lengths)}


def joined(x, lengths=LENGTHS):
    return np.concatenate([s[:n] for s, n in zip(x, lengths)]).astype(np.float64)


def copied(model, state, theirs):
    """Gives the other library our parameters."""
    initial, transition = (np.asarray(a, np.float64) for a in model.chain(state))
    theirs.startprob_, theirs.transmat_ = initial / initial.sum(), transition / transition.sum(axis=1, keepdims=True)
    emission = state.params["hmm"]["emission"]
    if "means" in emission:
        theirs.means_ = np.asarray(emission["means"], np.float64)
        theirs.covars_ = np.asarray(model.emission.kind.covariances(emission), np.float64)
    elif "log_rate" in emission:
        theirs.lambdas_ = np.exp(np.asarray(emission["log_rate"], np.float64))
    else:
        p = np.asarray(jax.nn.softmax(emission["logits"]), np.float64)
        theirs.emissionprob_ = p / p.sum(axis=1, keepdims=True)
    return theirs


def reference(name):
    """(model, data, hmmlearn's model)"""
    rng = np.random.default_rng(1)
    z = paths(rng)
    plain = dict(n_iter=1, init_params="", tol=0)
    if name in KINDS:
        flat = dict(min_covar=0, covars_prior=0, covars_weight=0, means_weight=0)
        theirs = hmmlearn.GaussianHMM(3, covariance_type=name, **flat, **plain)
        return HMM(3, Gaussian(KINDS[name], floor=0.0)), gaussian_data(dtype=np.float64), theirs
    if name == "categorical":
        x = (z + rng.integers(3, size=z.shape)).astype(np.int32)
        return HMM(3, Categorical(5)), x, hmmlearn.CategoricalHMM(3, n_features=5, **plain)
    x = rng.poisson(np.array([[1, 9], [4, 4], [8, 2]])[z]).astype(np.int32)
    return HMM(3, Poisson()), x, hmmlearn.PoissonHMM(3, **plain)


@pytest.mark.representatives("full-float64*")
@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [
        pytest.param(name, np.float64, 1e-9, marks=[pytest.mark.slow] * (name in ("tied", "spherical")))
        for name in (*KINDS, "categorical", "poisson")
    ]
    + [
        pytest.param(name, np.float32, 1e-4, marks=[pytest.mark.slow] * (name != "full"))
        for name in ("full", "diag", "categorical")
    ],
)
def test_each_iteration_is_hmmlearns(name, dtype, tolerance, caplog):
    """From the same parameters, the same log-likelihood of ragged sequences after every one of 20 iterations."""
    caplog.set_level(logging.CRITICAL)
    with jax.enable_x64(dtype == np.float64):
        model, x, theirs = reference(name)
        batch = ragged(x.astype(dtype) if x.dtype.kind == "f" else x)
        algorithm = em(model)
        state = jax.jit(algorithm.init)(jax.random.key(0), batch)
        copied(model, state, theirs)
        step = jax.jit(algorithm.step)
        rows = joined(x) if x.dtype.kind == "f" else joined(x).astype(int).reshape(LENGTHS.sum(), -1)
        for _ in range(20):
            expected = theirs.score(rows, LENGTHS)
            state, metrics = step(state, batch)
            assert float(metrics["log_likelihood"].total) == pytest.approx(expected, rel=tolerance)
            theirs.fit(rows, LENGTHS)
        found = jax.jit(model.smooth)(state, batch).marginals
        np.testing.assert_allclose(joined(found), theirs.predict_proba(rows, LENGTHS), atol=30 * tolerance)
        best = jax.jit(model.decode)(state, batch)
        assert float(best.log_joint.sum()) == pytest.approx(theirs.decode(rows, LENGTHS)[0], rel=tolerance)


EMISSIONS = {
    "gaussian": (Gaussian(), gaussian_data),
    "missing": (
        Gaussian(missing=True),
        lambda: np.where(np.random.default_rng(0).uniform(size=(6, 40, 2)) < 0.2, np.nan, gaussian_data()),
    ),
    "unobserved": (
        Gaussian(TIED),
        lambda: np.where(np.random.default_rng(0).uniform(size=(6, 40, 1)) < 0.2, np.nan, gaussian_data()),
    ),
    "mixture": (GaussianMixture(DIAGONAL, components=2), gaussian_data),
    "regression": (LinearRegression(2), gaussian_data),
    "categorical": (Categorical(5), lambda: reference("categorical")[1]),
    "poisson": (Poisson(), lambda: reference("poisson")[1]),
    "bernoulli": (Bernoulli(prior=0.0), lambda: (reference("poisson")[1] > 3).astype(np.int32)),
}


@pytest.mark.representatives("bernoulli", "categorical")
@pytest.mark.parametrize(
    "emission, data",
    [
        pytest.param(
            *parts, id=name, marks=[pytest.mark.slow] * (name in ("mixture", "unobserved", "poisson", "regression"))
        )
        for name, parts in EMISSIONS.items()
    ],
)
def test_every_emission(emission, data):
    """EM is monotone, gradients are finite, samples look like data, sampling agrees with the density."""
    model, x = HMM(3, emission), data()
    batch, rows = ragged(x.astype(np.float32) if x.dtype.kind == "f" else x), []

    class See(Hook):
        def report(self, step, values):
            rows.append(values["log_likelihood"])

    algorithm = em(model)
    state = jax.jit(algorithm.init)(jax.random.key(0), batch)
    step = jax.jit(algorithm.step)
    for _ in range(15):
        state, metrics = step(state, batch)
        rows.append(float(metrics["log_likelihood"].value))
    assert np.all(np.diff(rows) >= -2e-5 * abs(rows[0])) and rows[-1] > rows[0]
    grads = jax.jit(jax.grad(lambda p: as_mean(model.loss(p, state, batch, None)[0]).value))(state.params["hmm"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    drawn = jax.jit(lambda key: model.sample(state, key, 300, length=30))(jax.random.key(0))
    log_prob = jax.jit(model.log_prob)
    assert drawn["x"].shape == (300, 30, *x.shape[2:]) and drawn["x"].dtype.kind == x.dtype.kind
    values = np.asarray(log_prob(state, {"x": drawn["x"]}))
    wrong = state._replace(
        params={
            "hmm": {
                **state.params["hmm"],
                "emission": emission.init(
                    jax.random.key(9), batch, ~np.isnan(x.reshape(6, 40, -1).astype(float)).any(axis=2), 3
                )[0],
            }
        }
    )
    assert values.mean() > np.asarray(log_prob(wrong, {"x": drawn["x"]})).mean()  # Gibbs' inequality
    if not isinstance(emission, LinearRegression):
        clean = {"x": jnp.nan_to_num(jnp.asarray(batch["x"]))}
        ours = emission.log_prob(state.params["hmm"]["emission"], state.extra["emission"], clean)
        by_distrax = Emission.log_prob(emission, state.params["hmm"]["emission"], {}, clean)
        np.testing.assert_allclose(ours, by_distrax, rtol=1e-4, atol=1e-3)


def test_each_step_of_a_regression_is_what_it_says():
    """log p(x_t | z_t, before) by hand."""
    x = gaussian_data()
    emission = LinearRegression(2)
    state = em(HMM(3, emission)).init(jax.random.key(0), {"x": x})
    p, extra = state.params["hmm"]["emission"], state.extra["emission"]
    found = emission.log_prob(p, extra, {"x": x})
    from scipy.stats import multivariate_normal

    covariances = np.asarray(FULL.dense({**p, "means": p["bias"]}), np.float64)
    for k, t in itertools.product(range(3), (0, 1, 5)):
        lagged = [x[0, t - lag] if t >= lag else extra["center"] for lag in (1, 2)]
        mean = np.asarray(p["weights"][k]) @ np.concatenate(lagged) + np.asarray(p["bias"][k])
        assert float(found[0, t, k]) == pytest.approx(
            multivariate_normal(mean, covariances[k]).logpdf(x[0, t]), abs=2e-3
        )


@pytest.mark.slow
def test_a_regression_recovers_what_made_the_data():
    """Two regimes, one that turns and one that decays."""
    rng = np.random.default_rng(0)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    truth, x = [0.98 * turn, 0.6 * np.eye(2)], np.zeros((20, 200, 2))
    state = np.cumsum(rng.uniform(size=(20, 200)) < 0.03, axis=1) % 2
    for t in range(1, 200):
        move = np.stack([truth[s] @ row for s, row in zip(state[:, t], x[:, t - 1])])
        x[:, t] = move + 0.1 * rng.normal(size=(20, 2))
    model = HMM(2, LinearRegression(1), stickiness=10.0)
    fitted = max(
        (trained(model, {"x": x.astype(np.float32)}, 60, seed) for seed in range(3)),
        key=lambda s: float(model.log_prob(s, {"x": x.astype(np.float32)}).mean()),
    )
    weights = np.asarray(fitted.params["hmm"]["emission"]["weights"])
    order = np.argsort(-np.abs(weights[:, 0, 1]))
    np.testing.assert_allclose(weights[order], truth, atol=0.05)
    found = np.asarray(model.decode(fitted, {"x": x.astype(np.float32)}).states)
    assert max(np.mean(found == state), np.mean(found != state)) > 0.9  # where x is near 0, both say the same


@pytest.mark.slow
def test_known_parameters_are_recovered():
    from gen_jax.data import load

    data = load("gaussian_hmm")["train"]
    model = HMM(3, Gaussian())
    state = trained(model, {"x": np.asarray(data["x"])}, 60)
    means = np.asarray(state.params["hmm"]["emission"]["means"])
    order = [int(np.argmin(np.sum((means - m) ** 2, axis=1))) for m in ([0, 0], [3, -3], [-3, 3])]
    initial, transition = (np.asarray(a) for a in model.chain(state))
    np.testing.assert_allclose(means[order], [[0, 0], [3, -3], [-3, 3]], atol=0.1)
    np.testing.assert_allclose(
        transition[np.ix_(order, order)], [[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.2, 0.2, 0.6]], atol=0.03
    )
    np.testing.assert_allclose(initial[order], [0.6, 0.3, 0.1], atol=0.12)
    path = np.asarray(model.decode(state, {"x": data["x"]}).states)
    assert np.mean(np.array(order)[data["state"]] == path) > 0.97


def test_784_dimensions_give_the_exact_value():
    """Where a product of probabilities would be 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 784)).astype(np.float32)
    model = HMM(2, Gaussian(DIAGONAL), transitions=left_right(2))
    means = jnp.stack([jnp.zeros(784), jnp.full(784, 0.3)])
    emission = {"means": means, "log_scale": jnp.zeros((2, 784))}
    params = {"initial": jnp.zeros(2), "transition": jnp.zeros((2, 2)), "emission": emission}
    state = State(jnp.int32(0), jax.random.key(0), {"hmm": params}, (), {"emission": {}})
    log_likelihood = -0.5 * ((x[0, :, None].astype(np.float64) - np.asarray(means)) ** 2).sum(-1) - 392 * np.log(
        2 * np.pi
    )
    log_a = np.log(np.array([[0.5, 0.5], [1e-300, 1.0]]))
    total = []
    for path in itertools.product(range(2), repeat=5):
        if path[0] == 0 and all(j >= i for i, j in zip(path, path[1:])):
            total.append(log_likelihood[range(5), path].sum() + sum(log_a[i, j] for i, j in zip(path, path[1:])))
    assert float(model.log_prob(state, {"x": x})[0]) == pytest.approx(np.logaddexp.reduce(total), rel=1e-5)
    assert np.isfinite(
        jax.grad(lambda p: as_mean(model.loss(p, state, {"x": x}, None)[0]).value)(params)["emission"]["means"]
    ).all()


def test_structure_and_priors_hold():
    x = gaussian_data()
    chain = HMM(3, Gaussian(), transitions=left_right(3))
    state = trained(chain, {"x": x}, 10)
    initial, transition = (np.asarray(a) for a in chain.chain(state))
    np.testing.assert_array_equal(initial, [1, 0, 0])
    assert np.all(transition[~np.asarray(left_right(3))] == 0) and np.allclose(transition.sum(axis=1), 1)
    path = np.asarray(chain.decode(state, {"x": x}).states)
    assert np.all(np.diff(path, axis=1) >= 0) and np.all(np.diff(path, axis=1) <= 1)
    assert np.all(np.diff(np.asarray(chain.sample(state, jax.random.key(0), 20, 30)["state"]), axis=1) >= 0)
    loose, sticky = (trained(HMM(3, Gaussian(), stickiness=s), {"x": x}, 10) for s in (0.0, 200.0))
    stay = lambda s: np.diag(HMM(3, Gaussian()).chain(s)[1]).min()
    assert stay(sticky) > stay(loose) and stay(sticky) > 0.7


def test_missing_steps_are_as_if_never_observed():
    """A step in the middle that is NaN, or marked, or written differently; enumeration does not see it either."""
    x = gaussian_data()[:2, :6]
    model = HMM(3, Gaussian())
    state = trained(model, {"x": gaussian_data()}, 5)
    log_initial, log_transition = (np.log(np.asarray(a, np.float64)) for a in model.chain(state))
    full = np.asarray(model.emission.log_prob(state.params["hmm"]["emission"], {}, {"x": x}), np.float64)
    full[0, 2] = 0
    expected = np.logaddexp.reduce(
        [
            log_initial[p[0]] + sum(log_transition[i, j] for i, j in zip(p, p[1:])) + full[0, range(6), p].sum()
            for p in itertools.product(range(3), repeat=6)
        ]
    )
    hidden, absent = x.copy(), np.ones((2, 6), bool)
    hidden[0, 2], absent[0, 2] = np.nan, False
    for batch in ({"x": hidden}, {"x": x, "observed": absent}):
        assert float(model.log_prob(state, batch)[0]) == pytest.approx(expected, rel=1e-5)


def test_forecasts_and_continuations():
    model = HMM(3, Gaussian())
    x = gaussian_data()
    state = trained(model, ragged(x), 20)
    forecast, extend = (jax.jit(f, static_argnums=n) for f, n in ((model.forecast, 2), (model.extend, 3)))
    filtered = jax.jit(lambda x: model.filter(state, {"x": x}))
    short = forecast(state, ragged(x), 4)
    _, transition = (np.asarray(a) for a in model.chain(state))
    for b, n in enumerate(LENGTHS):
        now = np.asarray(filtered(x[b : b + 1, :n]))[0, -1]
        for h in range(4):
            now = now @ transition
            np.testing.assert_allclose(short.states[b, h], now, atol=1e-4)
    means = np.asarray(state.params["hmm"]["emission"]["means"])
    np.testing.assert_allclose(short.mean, np.asarray(short.states) @ means, atol=1e-3)
    many = {"x": jnp.repeat(jnp.asarray(x[:1]), 4000, axis=0)}
    drawn = extend(state, many, jax.random.key(0), 4)
    np.testing.assert_allclose(drawn["x"].mean(axis=0), short.mean[0], atol=0.15)
    regression = HMM(2, LinearRegression(1))
    state = trained(regression, {"x": x}, 5)
    more = jax.jit(regression.extend, static_argnums=3)(state, {"x": x}, jax.random.key(0), 3)
    assert more["x"].shape == (6, 3, 2) and np.isfinite(more["x"]).all()
    with pytest.raises(ValueError, match="extend"):
        regression.forecast(state, {"x": x}, 3)


def test_posterior_samples_are_drawn_from_the_posterior():
    model = HMM(3, Gaussian())
    state = trained(model, ragged(gaussian_data()), 5)
    draw = jax.jit(model.posterior_sample, static_argnums=3)
    drawn = np.asarray(draw(state, ragged(gaussian_data()), jax.random.key(0), 3000))
    marginals = np.asarray(model.smooth(state, ragged(gaussian_data())).marginals)
    frequencies = np.stack([(drawn == k).mean(axis=0) for k in range(3)], axis=-1)
    np.testing.assert_allclose(frequencies, marginals, atol=0.05)


@pytest.mark.slow
def test_streamed_divided_and_stepwise_training(same):
    rng = np.random.default_rng(0)
    x = gaussian_data()[rng.integers(6, size=32)] + 0.1 * rng.normal(size=(32, 1, 1)).astype(np.float32)
    model = HMM(3, Gaussian())
    start = em(model).init(jax.random.key(0), {"x": x})
    whole, _ = em(model).step(start, {"x": x})
    state = em(model, every=4).init(jax.random.key(0), {"x": x})
    for part in np.split(x, 4):
        state, _ = em(model, every=4).step(state, {"x": part})
    same(state.params, whole.params, rtol=2e-3, atol=2e-4)
    copy = jax.tree.map(jnp.copy, start)
    divided = fit(em(model), {"x": x}, 1, state=copy, layout=Layout(data=4))
    same(jax.device_get(divided.params), whole.params, rtol=2e-3, atol=2e-4)
    best = trained(model, {"x": x}, 30)
    online = fit(stepwise_em(model, lambda t: (t + 2.0) ** -0.7), Resident({"x": x}, batch=8), 120)
    a, b = (float(model.log_prob(s, {"x": x}).mean()) for s in (best, online))
    assert b == pytest.approx(a, rel=0.02)


@pytest.mark.slow
def test_descent_reaches_what_em_reaches():
    x = gaussian_data()
    model = HMM(3, Gaussian(DIAGONAL))
    by_em = trained(model, ragged(x), 60)
    by_descent = fit(descent(model, {"hmm": optax.adam(2e-2)}), ragged(x), 400, chunk=100)
    a, b = (float(model.log_prob(s, ragged(x)).mean()) for s in (by_em, by_descent))
    assert b == pytest.approx(a, abs=0.5)


@pytest.mark.slow
def test_classes_are_told_apart_by_models_of_their_own():
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    x = gaussian_data(d=2)[rng.integers(6, size=40)] + 4.0 * label[:, None, None]
    model = ClassConditional(HMM(2, Gaussian(DIAGONAL)), 2)
    batch = {"x": x.astype(np.float32), "label": label}
    state = trained(model, batch, 10)
    assert np.mean(np.asarray(model.predict(state, batch)) == label) > 0.95
    alone = HMM(2, Gaussian(DIAGONAL))
    mine = jax.tree.map(lambda a: a[1], (state.params["hmm"], state.extra["classes"]))
    of_one = State(state.step, state.key, {"hmm": mine[0]}, (), mine[1])
    expected = np.asarray(alone.log_prob(of_one, {"x": batch["x"]})) + np.log(0.5)
    np.testing.assert_allclose(model.log_joint(state, batch)[:, 1], expected, rtol=1e-5)


def test_impossible_hyper_parameters_are_refused():
    for wrong in (
        dict(states=0),
        dict(states=2, transitions=left_right(3)),
        dict(states=2, transitions=((True, True), (False, False))),
        dict(states=2, concentration=0.0),
        dict(states=2, stickiness=-1.0),
        dict(states=2, length=0),
    ):
        with pytest.raises(ValueError, match="states|transitions|concentration|length"):
            HMM(**{"emission": Gaussian(), **wrong})
    for emission in (
        lambda: Categorical(0),
        lambda: Bernoulli(-1.0),
        lambda: GaussianMixture(components=0),
        lambda: LinearRegression(0),
    ):
        with pytest.raises(ValueError, match="symbols|prior|components|lags"):
            emission()
