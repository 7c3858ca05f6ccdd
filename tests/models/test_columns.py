"""Columns of several kinds, VAEs and mixtures of tables with missing cells, and models of the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from gen_jax import descent, em, fit, impute, load
from gen_jax.applications.imputation import pseudo_gibbs
from gen_jax.core import EncodesMissing, Imputable
from gen_jax.data import Dataset
from gen_jax.data.source import Resident
from gen_jax.errors import UserError
from gen_jax.models.common.columns import Category, Columns, Count, Ordinal, Real, kinds_of
from gen_jax.models.common.likelihoods import Gaussian as GaussianLikelihood
from gen_jax.models.common.networks import MLP
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Categorical, Gaussian, Poisson, Product
from gen_jax.models.mixture import GMM, Mixture
from gen_jax.models.vae import VAE
from gen_jax.models.vae.bounds import iwae
from gen_jax.models.vae.masks import Dependent, SelfMasking

KINDS = (Real(), Real(4.0), Count(), Ordinal((1.0, 2.0, 5.0, 7.0)), Category(3))
ROWS = np.array([[0.3, -1.2, 0, 1, 2], [-2.0, 0.1, 7, 5, 0], [0.0, 3.0, 2, 7, 1]], np.float32)


def test_each_kind_has_the_log_probability_of_scipy():
    likelihood = Columns(KINDS)
    outputs = np.random.default_rng(0).normal(size=(3, likelihood.outputs)).astype(np.float32)
    found = np.asarray(likelihood(jnp.asarray(outputs)).log_prob(jnp.asarray(ROWS)))
    softplus = lambda a: np.log1p(np.exp(a))
    normal, student, count, ordinal, category = np.split(outputs.astype(float), [2, 4, 6, 9], axis=1)
    wanted = [
        scipy.stats.norm.logpdf(ROWS[:, 0], normal[:, 0], 0.01 + softplus(normal[:, 1])),
        scipy.stats.t.logpdf(ROWS[:, 1], 4, student[:, 0], 0.01 + softplus(student[:, 1])),
    ]
    mean, r = np.exp(count.T)
    wanted.append(scipy.stats.nbinom.logpmf(ROWS[:, 2], r, r / (r + mean)))
    cuts = np.cumsum(np.c_[ordinal[:, 0], 1e-3 + softplus(ordinal[:, 1:])], axis=1)
    below = np.c_[np.zeros(3), 1 / (1 + np.exp(-cuts)), np.ones(3)]
    code = np.searchsorted([1, 2, 5, 7], ROWS[:, 3])
    wanted.append(np.log(np.diff(below, axis=1)[np.arange(3), code]))
    wanted.append(np.log(scipy.special.softmax(category, axis=1)[np.arange(3), ROWS[:, 4].astype(int)]))
    np.testing.assert_allclose(found, np.stack(wanted, axis=1), rtol=2e-4, atol=2e-4)


def test_samples_have_the_probabilities_of_their_kind():
    kinds = KINDS[2:]
    outputs = jnp.array([[1.0, 0.5, -0.5, 0.3, 1.0, 0.2, -0.4, 0.9]])
    given_z = Columns(kinds)(outputs)
    x = np.asarray(given_z.sample(seed=jax.random.key(0), sample_shape=(20_000,)))[:, 0]
    assert x.shape == (20_000, 3) and given_z.batch_shape == (1, 3)
    for i, values in enumerate([range(8), (1, 2, 5, 7), range(3)]):
        for value in values:
            row = np.array([[0.0, 1.0, 0.0]])
            row[0, i] = value
            p = np.exp(np.asarray(given_z.log_prob(jnp.asarray(row, jnp.float32)))[0, i])
            assert abs((x[:, i] == value).mean() - p) < 4 * np.sqrt(p * (1 - p) / 20_000) + 1e-4
    np.testing.assert_allclose(x[:, 0].mean(), np.e, atol=0.15)
    np.testing.assert_allclose(np.asarray(given_z.mean())[0, [0, 2]], [np.e, 2], rtol=1e-5)


def test_encoders_see_where_values_are_known():
    x = np.array([[np.nan, 1.0, 3, 2, np.nan]], np.float32)
    seen = np.asarray(Columns(KINDS).normalize(jnp.asarray(x)))[0]
    np.testing.assert_allclose(seen[:4], [0, 1, np.log(4), -1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(seen[4:], [0, 0, 0, 0, 1, 1, 1, 0])


def test_values_outside_the_support_are_named():
    likelihood = Columns(KINDS)
    assert likelihood.unsupported(ROWS) == "" == likelihood.unsupported(np.full((2, 5), np.nan))
    for column, value, said in [(2, 1.5, "column 2 (Count)"), (3, 3, "holds 3, which"), (4, 3, "codes than 0 .. 2")]:
        wrong = ROWS.copy()
        wrong[1, column] = value
        assert said in likelihood.unsupported(wrong)
    with pytest.raises(ValueError, match="rising"):
        Ordinal((2.0, 1.0))


def test_kinds_are_read_from_a_table():
    table = load("diabetes")
    kinds = kinds_of(table, counts="age", ordinals="s4")
    assert kinds[:3] == (Count(), Category(2), Real()) and isinstance(kinds[7], Ordinal)
    for options, said in [
        ({"counts": "weight"}, "--counts weight: the columns are age, sex"),
        ({"ordinals": "sex"}, "holds categories"),
        ({"counts": "age", "ordinals": "age"}, "both name age"),
        ({"ordinals": "progression"}, "values, where 2 to 100"),
        ({"counts": "bmi"}, "--counts bmi: holds other values than whole numbers"),
    ]:
        with pytest.raises(UserError, match=said):
            kinds_of(table, **options)


def test_ordinal_values_are_those_of_all_splits():
    data = Dataset("mine", {name: {"x": np.array([[v], [2.0]])} for name, v in [("train", 1.0), ("test", 3.0)]})
    assert kinds_of(data, ordinals="0") == (Ordinal((1.0, 2.0, 3.0)),)


def gaps(x, share=0.3, seed=0):
    hidden = np.random.default_rng(seed).random(x.shape) < share
    hidden[hidden.all(axis=1), 0] = False
    return np.where(hidden, np.nan, x).astype(np.float32)


def test_missing_values_do_not_count_in_the_bound():
    """The bound of rows with gaps is that of the known columns alone, of a model that never had the others."""
    x = gaps(np.random.default_rng(0).normal(size=(6, 4)))
    model = VAE(MLP((8,), 4), MLP((8,), 4), GaussianLikelihood(), 2, bound=iwae, samples=3, missing=True)
    state = fit(descent(model, {"vae": optax.adam(1e-2)}), Resident({"x": x}, 6, missing=True), steps=3)
    found = model.terms(state.params["vae"], {"x": jnp.asarray(x)}, jax.random.key(0), 3).log_likelihood
    other = np.where(np.isnan(x), 123.0, x).astype(np.float32)
    posterior = model.encode(state, {"x": jnp.asarray(x)})
    np.testing.assert_array_equal(posterior.mean(), model.encode(state, {"x": jnp.nan_to_num(jnp.asarray(x))}).mean())
    z = posterior.sample(seed=jax.random.key(1), sample_shape=(3,))
    each = model.decode(state, z.reshape(-1, 2)).log_prob(jnp.tile(jnp.asarray(other), (3, 1)))
    assert np.isfinite(found).all() and np.isfinite(np.where(np.tile(np.isnan(x), (3, 1)), 0, each)).all()
    assert isinstance(model, EncodesMissing) and "VAE(missing=True)" in VAE(
        MLP((8,), 4), MLP((8,), 4), GaussianLikelihood(), 2
    ).unsupported({"x": x})
    masked = VAE(MLP((8,), 4), MLP((8,), 4), GaussianLikelihood(), 2, missing=True, mask=SelfMasking())
    with pytest.raises(ValueError, match="use importance"):
        impute(masked, None, x, ~np.isnan(x), jax.random.key(0), 2, pseudo_gibbs)
    with pytest.raises(ValueError, match="needs missing=True"):
        VAE(MLP((8,), 4), MLP((8,), 4), GaussianLikelihood(), 2, mask=SelfMasking())


@pytest.mark.parametrize("mask", [SelfMasking("high"), SelfMasking("low"), SelfMasking(), Dependent()])
def test_models_of_the_mask_are_probabilities(mask):
    params = jax.tree.map(lambda a: a + 0.3, mask.init(2))
    x = jnp.array([[0.5, -2.0]])
    every = [[a, b] for a in (True, False) for b in (True, False)]
    total = sum(np.exp(mask.log_prob(params, x, jnp.array([seen]))[0]) for seen in every)
    assert total == pytest.approx(1, abs=1e-5) and mask.assumption
    if isinstance(mask, SelfMasking) and mask.direction != "any":
        lost = lambda value: float(mask.log_prob(params, jnp.full((1, 2), value), jnp.zeros((1, 2), bool))[0])
        assert (lost(3.0) > lost(-3.0)) == (mask.direction == "high")


@pytest.mark.slow
@pytest.mark.optimized
def test_a_model_of_the_mask_recovers_what_high_values_hide():
    """Of two correlated columns, high values of the first are missing: their mean is recovered only with the mask."""
    rng = np.random.default_rng(0)
    b = rng.normal(size=2000)
    x = np.c_[0.9 * b + 0.4 * rng.normal(size=2000), b].astype(np.float32)
    hidden = np.c_[x[:, 0] > 0.3, np.zeros(2000, bool)]
    seen = np.where(hidden, np.nan, x)
    errors = {}
    for name, mask in {"at random": None, "high": SelfMasking("high", (0,))}.items():
        linear, likelihood = MLP((), 2), GaussianLikelihood("shared")  # identified, unlike networks (Ipsen et al. 2021)
        model = VAE(MLP((32,), 2), linear, likelihood, 1, bound=iwae, samples=10, missing=True, mask=mask)
        source = Resident({"x": seen}, 128, missing=True)
        state = fit(descent(model, {"vae": optax.adam(3e-3)}), source, steps=3000)
        some = np.flatnonzero(hidden[:, 0])[:200]
        made = impute(model, state, np.nan_to_num(seen[some]), ~hidden[some], jax.random.key(0), 50).mean(axis=0)
        errors[name] = np.sqrt(np.mean((np.asarray(made)[:, 0] - x[some, 0]) ** 2))
    assert errors["high"] < 0.8 * errors["at random"]


# --- mixtures and chains


def test_a_mixture_of_kinds_completes_rows_by_bayes_rule():
    """Completions of the category given the number, and of the number given the category, against the formula."""
    rng = np.random.default_rng(0)
    k = rng.integers(0, 2, 2000)
    x = np.c_[4 * k + rng.normal(size=2000), np.where(rng.random(2000) < 0.9, k, 2), rng.poisson(2 + 6 * k)]
    model = Mixture(2, Product((((0,), Gaussian()), ((1,), Categorical(3, 1.1)), ((2,), Poisson()))))
    state = fit(em(model), Resident({"x": gaps(x)}, missing=True), steps=40)
    assert isinstance(model, Imputable)
    row = np.array([[1.9, 0.0, 0.0]], np.float32)
    mask = np.array([[True, False, False]])
    drawn = np.asarray(impute(model, state, row, mask, jax.random.key(0), 20_000))[:, 0]
    assert (drawn[:, 0] == row[0, 0]).all()
    params = model.unpack(state.params["mixture"])
    number, category, count = params["component"]
    deviation = np.sqrt(np.asarray(number["covariances"])[:, 0, 0])
    joint = np.asarray(params["weights"]) * scipy.stats.norm.pdf(1.9, np.asarray(number["means"])[:, 0], deviation)
    posterior = joint / joint.sum()
    wanted = posterior @ np.asarray(category["probabilities"]).reshape(2, 3)
    np.testing.assert_allclose([(drawn[:, 1] == c).mean() for c in range(3)], wanted, atol=0.02)
    np.testing.assert_allclose(drawn[:, 2].mean(), posterior @ np.asarray(count["rates"])[:, 0], rtol=0.05)


def test_a_mixture_with_full_covariances_completes_as_a_gaussian_mixture():
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3))).astype(np.float32)
    plain, product = GMM(1), Mixture(1, Gaussian())
    states = [fit(em(model), {"x": x}, steps=3) for model in (plain, product)]
    mask = np.array([[True, False, True], [False, True, False]])
    images = impute(GMM(1, shape=(3, 1)), states[0], x[:2, :, None], mask[:, :, None], jax.random.key(0), 5)
    assert images.shape == (5, 2, 3, 1) and (np.asarray(images)[:, :, :, 0][:, mask] == x[:2][mask]).all()
    counts = np.rint(x[:2]).astype(np.int32)
    assert impute(Mixture(1, Gaussian()), states[1], counts, mask, jax.random.key(0), 3).shape == (3, 2, 3)
    draws = [
        np.asarray(impute(model, state, x[:2], mask, jax.random.key(0), 20_000))
        for model, state in zip((plain, product), states)
    ]
    np.testing.assert_allclose(draws[0].mean(axis=0), draws[1].mean(axis=0), atol=0.05)
    np.testing.assert_allclose(draws[0].std(axis=0), draws[1].std(axis=0), atol=0.05)


def test_training_on_gaps_ends_in_a_program_of_several_steps():
    """Two LAPACK calls of one program that do not depend on each other once waited for each other for ever."""
    x = gaps(np.random.default_rng(0).normal(size=(302, 10)))
    mixture = Mixture(5, Product(((tuple(range(10)), Gaussian(regularization=0.01, missing=True)),)))
    assert int(fit(em(mixture), Resident({"x": x}, missing=True), steps=10, chunk=5).step) == 10
    chain = HMM(4, Gaussian(regularization=0.01, missing=True))
    source = Resident({"x": x[:300].reshape(15, 20, 10)}, missing=True)
    assert int(fit(em(chain), source, steps=10, chunk=5).step) == 10


def test_a_chain_fills_coordinates_given_the_others():
    """A coordinate equal to the other one is filled by it, in the state that the whole sequence tells."""
    rng = np.random.default_rng(0)
    a = np.repeat(rng.choice([-5.0, 5.0], size=(40, 5)), 6, axis=1) + rng.normal(size=(40, 30))
    x = np.stack([a, a + 0.05 * rng.normal(size=a.shape)], axis=2).astype(np.float32)
    model = HMM(2, Gaussian(regularization=1e-3))
    state = fit(em(model), {"x": x}, steps=20)
    cut = x.copy()
    cut[:, 3::7, 1] = np.nan
    cut[:, 5::7] = np.nan
    filled = np.asarray(model.fill(state, {"x": cut}, jax.random.key(0)))
    known = ~np.isnan(cut)
    np.testing.assert_array_equal(filled[known], x[known])
    assert np.abs(filled[:, 3::7, 1] - x[:, 3::7, 1]).max() < 0.5
    assert np.mean(np.sign(filled[:, 5::7]) == np.sign(x[:, 5::7])) > 0.8


def test_a_dataset_without_names_has_numbered_columns():
    data = Dataset("mine", {"train": {"x": np.c_[np.arange(6.0), np.arange(6.0) % 3]}})
    assert kinds_of(data, counts="0", ordinals="1") == (Count(), Ordinal((0.0, 1.0, 2.0)))
