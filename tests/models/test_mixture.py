"""Mixtures of any distribution, products of distributions, and chains that begin in their stationary distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp
from scipy.stats import bernoulli, multivariate_normal, poisson

from gen_jax.algorithms import descent, em
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Bernoulli, Categorical, Gaussian, Poisson, Product
from gen_jax.models.mixture import Mixture

MIXED = Product((((0, 3), Poisson()), ((2,), Categorical(3)), ((1,), Bernoulli(prior=0.0))))


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def table(n: int = 400) -> np.ndarray:
    """Two groups of rows: counts, a bit, a symbol, counts."""
    r = np.random.default_rng(0)
    z = r.random(n) < 0.4
    symbols = np.where(z, r.choice(3, n, p=[0.7, 0.2, 0.1]), r.choice(3, n, p=[0.1, 0.2, 0.7]))
    counts = r.poisson(np.where(z, 2.0, 5.0)), r.poisson(np.where(z, 6.0, 1.0))
    return np.stack([counts[0], r.random(n) < np.where(z, 0.8, 0.3), symbols, counts[1]], axis=1).astype(float)


def trained(model, batch, steps: int, key: int = 0, algorithm=em):
    step, state = algorithm(model), None
    state = step.init(jax.random.key(key), batch)
    return jax.jit(lambda s: jax.lax.scan(lambda s, _: step.step(s, batch), s, length=steps))(state)


def log_table(component, rows: np.ndarray, params) -> np.ndarray:
    """(N, K) log-probabilities by scipy."""
    if isinstance(component, Product):
        parts = zip(component.parts, params)
        return sum(log_table(emission, rows[:, list(columns)], own) for (columns, emission), own in parts)
    if isinstance(component, Bernoulli):
        p = 1 / (1 + np.exp(-np.asarray(params["logits"])))
        return bernoulli.logpmf(rows[:, None], p).sum(axis=2)
    if isinstance(component, Poisson):
        return poisson.logpmf(rows[:, None], np.exp(params["log_rate"])).sum(axis=2)
    p = np.asarray(jax.nn.softmax(params["logits"]))
    p = p.reshape(len(p), -1, p.shape[-1])
    return sum(np.log(p[:, d, rows[:, d].astype(int)]).T for d in range(rows.shape[1]))


@pytest.mark.parametrize(
    "component, columns",
    [
        (Bernoulli(prior=0.0), [1]),
        (Poisson(), [0, 3]),
        (Categorical(3), [2]),
        (Categorical(3), [1, 2]),
        (MIXED, [0, 1, 2, 3]),
    ],
    ids=["bernoulli", "poisson", "categorical", "latent-class", "product"],
)
def test_em_is_the_published_recursion(component, columns):
    """Ten iterations against NumPy with scipy's probabilities; weights of 2 are rows twice."""
    x, weight = table()[:, columns], np.random.default_rng(1).integers(0, 3, 400).astype(float)
    model, batch = Mixture(2, component), {"x": jnp.asarray(x), "weight": jnp.asarray(weight)}
    start = em(model).init(jax.random.key(0), batch)
    found, metrics = trained(model, batch, 10)
    twice = np.repeat(x, weight.astype(int), axis=0)
    log_w, params, curve = np.log([0.5, 0.5]), start.params["mixture"]["component"], []
    for _ in range(10):
        joint = log_table(component, twice, params) + log_w
        r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        curve.append(logsumexp(joint, axis=1).mean())
        log_w, mean = np.log(r.mean(axis=0)), lambda a, r=r: r.T @ a / r.sum(axis=0)[:, None]

        def fitted(part, own):
            if isinstance(part, Bernoulli):
                p = mean(own)
                return {"logits": np.log(p) - np.log1p(-p)}
            if isinstance(part, Poisson):
                return {"log_rate": np.log(mean(own))}
            p = np.stack([mean(own[:, d, None] == np.arange(3)) for d in range(own.shape[1])], axis=1)
            p = np.maximum(p, 1e-30)
            return {"logits": np.log(p[:, 0] if own.shape[1] == 1 else p)}

        if isinstance(component, Product):
            params = tuple(fitted(part, twice[:, list(c)]) for c, part in component.parts)
        else:
            params = fitted(component, twice)
    np.testing.assert_allclose(metrics["log_likelihood"].value, curve, rtol=1e-10)
    np.testing.assert_allclose(model.unpack(found.params["mixture"])["weights"], np.exp(log_w), rtol=1e-9)
    for a, b in zip(jax.tree.leaves(found.params["mixture"]["component"]), jax.tree.leaves(params)):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_missing_entries_leave_the_others():
    x = table(60)
    holes = np.where(np.random.default_rng(2).random(x.shape) < 0.3, np.nan, x)
    model = Mixture(2, MIXED)
    state, _ = trained(model, {"x": jnp.asarray(x)}, 5)
    expected = np.tile(np.asarray(jnp.log(model.unpack(state.params["mixture"])["weights"])), (60, 1))
    for (columns, part), own in zip(MIXED.parts, state.params["mixture"]["component"]):
        for i, column in enumerate(columns):
            seen = ~np.isnan(holes[:, column])
            mine = own if len(columns) == 1 else {name: a[:, i : i + 1] for name, a in own.items()}
            expected[seen] += log_table(part, x[seen][:, [column]], mine)
    np.testing.assert_allclose(model.log_joint(state, {"x": jnp.asarray(holes)}), expected, rtol=1e-10)
    curve = trained(model, {"x": jnp.asarray(holes)}, 30)[1]["log_likelihood"].value
    assert np.all(np.diff(curve) > -1e-12) and curve[-1] > curve[0] + 0.1


def test_a_chain_of_products_is_the_sum_over_all_paths():
    """Log-likelihood by enumeration of 2^5 paths, with Gaussian, symbol and count columns."""
    r = np.random.default_rng(3)
    x = np.stack([r.normal(size=5), r.normal(size=5), r.integers(0, 3, 5), r.poisson(3, 5)], axis=1)[None]
    model = HMM(2, Product((((0, 1), Gaussian()), ((2,), Categorical(3)), ((3,), Poisson()))))
    batch = {"x": jnp.asarray(np.repeat(x, 4, axis=0) + np.array([[[0.1, 0.2, 0, 1]]]) * np.arange(4)[:, None, None])}
    state = jax.jit(em(model).init)(jax.random.key(1), batch)
    gaussian, symbols, counts = state.params["hmm"]["emission"]
    means, covariances = model.emission.parts[0][1].covariances(gaussian)
    each = np.stack([multivariate_normal.logpdf(x[0, :, :2], means[k], covariances[k]) for k in range(2)], axis=1)
    each += log_table(Categorical(3), x[0, :, 2:3], symbols) + log_table(Poisson(), x[0, :, 3:], counts)
    initial, transition = (np.log(a) for a in model.chain(state))
    paths = [
        initial[z[0]]
        + sum(transition[a, b] for a, b in itertools.pairwise(z))
        + sum(each[t, k] for t, k in enumerate(z))
        for z in itertools.product(range(2), repeat=5)
    ]
    found = jax.jit(model.log_prob)(state, {"x": jnp.asarray(x)})
    np.testing.assert_allclose(found[0], logsumexp(paths), rtol=1e-10)
    drawn = jax.jit(lambda state, key: model.sample(state, key, 3, length=7))(state, jax.random.key(2))["x"]
    assert drawn.shape == (3, 7, 4) and set(np.unique(drawn[..., 2])) <= {0, 1, 2}


def test_descent_and_em_reach_the_same_latent_classes():
    batch = {"x": jnp.asarray(table()[:, 1:3])}
    model = Mixture(2, Categorical(3))
    best = trained(model, batch, 300)[1]["log_likelihood"].value[-1]
    by_descent = trained(model, batch, 600, algorithm=lambda m: descent(m, {"mixture": optax.adam(0.05)}))[1]
    assert abs(float(by_descent["log_likelihood"].value[-1]) - float(best)) < 1e-3


def test_fixed_parameters_priors_and_zeros_of_a_mixture():
    batch = {"x": jnp.asarray(table()[:, :1])}
    held = Mixture(2, Poisson(), fixed=("component",))
    start = em(held).init(jax.random.key(0), batch)
    after, _ = trained(held, batch, 5)
    np.testing.assert_array_equal(
        start.params["mixture"]["component"]["log_rate"], after.params["mixture"]["component"]["log_rate"]
    )
    assert held.free_parameters(after) == 1 and Mixture(2, Poisson()).free_parameters(after) == 3
    zero = start._replace(params={"mixture": {**start.params["mixture"], "logits": jnp.asarray([0.0, -jnp.inf])}})
    moved = em(Mixture(2, Poisson())).step(zero, batch)[0]
    np.testing.assert_array_equal(Mixture(2, Poisson()).unpack(moved.params["mixture"])["weights"], [1.0, 0.0])
    prior = Mixture(2, Categorical(6, concentration=1.5), concentration=3.0)
    curve = trained(prior, {"x": jnp.minimum(batch["x"], 5)}, 40)[1]["log_posterior"].value
    assert np.all(np.diff(curve) > -1e-12)


# Annual counts of earthquakes of magnitude 7 or more, 1900 to 2006 (Zucchini & MacDonald 2009, table 1.1).
EARTHQUAKES = """13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22
24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21
21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11"""


def test_missing_symbols_of_latent_classes_leave_the_others():
    x = table(60)[:, 1:3]
    holes = np.where(np.random.default_rng(2).random(x.shape) < 0.4, np.nan, x)
    model = Mixture(2, Categorical(3, concentration=1.1))
    state, metrics = trained(model, {"x": jnp.asarray(holes)}, 30)
    expected = np.tile(np.asarray(jnp.log(model.unpack(state.params["mixture"])["weights"])), (60, 1))
    for d in range(2):
        seen = ~np.isnan(holes[:, d])
        own = {"logits": state.params["mixture"]["component"]["logits"][:, d]}
        expected[seen] += log_table(model.component, x[seen][:, [d]], own)
    np.testing.assert_allclose(model.log_joint(state, {"x": jnp.asarray(holes)}), expected, rtol=1e-10)
    assert np.all(np.diff(metrics["log_posterior"].value) > -1e-12)


@pytest.mark.representatives("2-*")
@pytest.mark.parametrize("states, published", [(2, -342.31827), (3, -329.46028)])
def test_a_stationary_start_is_fitted_with_the_chain(states, published):
    """The maxima of Zucchini & MacDonald 2009, table 3.1, by a monotone EM."""
    batch = {"x": jnp.asarray(EARTHQUAKES.split(), float).reshape(1, -1, 1)}
    model = HMM(states, Poisson(), stationary=True)
    state, metrics = trained(model, batch, 400, key=1)
    curve = np.asarray(metrics["log_likelihood"].value)
    assert np.all(np.diff(curve) > -1e-9)
    assert abs(curve[-1] - published) < 1e-4
    initial, transition = model.chain(state)
    np.testing.assert_allclose(initial @ transition, initial, rtol=1e-10)
    assert model.free_parameters(state) == states * states


@pytest.mark.slow
def test_a_stationary_start_of_many_short_sequences_is_their_maximum():
    """With as many starts as transitions the gradient of the log-likelihood vanishes all the same."""
    r = np.random.default_rng(4)
    batch = {"x": jnp.asarray(r.poisson(np.where(r.random((200, 2, 1)) < 0.3, 2.0, 9.0), (200, 2, 1)), float)}
    model = HMM(2, Poisson(), stationary=True)
    state, metrics = trained(model, batch, 500)
    assert np.all(np.diff(metrics["log_likelihood"].value) > -1e-11)
    loss = lambda params: model.loss(params, state, batch, state.key)[0].value
    for slope in jax.tree.leaves(jax.grad(loss)(state.params["hmm"])):
        np.testing.assert_allclose(slope, 0, atol=2e-5)


def test_bad_arguments_are_refused():
    for wrong in (lambda: Mixture(0, Poisson()), lambda: Mixture(2, Poisson(), concentration=0.5)):
        with pytest.raises(ValueError, match="at least 1"):
            wrong()
    with pytest.raises(ValueError, match="fixed may hold"):
        Mixture(2, Poisson(), fixed=("means",))
    with pytest.raises(ValueError, match="each column from 0 up once"):
        Product((((0, 1), Poisson()), ((1,), Bernoulli())))
    with pytest.raises(ValueError, match="fixed may hold"):
        HMM(2, Poisson(), stationary=True, fixed=("initial",))
