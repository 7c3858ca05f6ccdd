"""Mixtures and chains where data, weights or arguments are not benign, each against its right value."""

import inspect

import jax
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture as TheirMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gen_jax.algorithms import em
from gen_jax.estimators import (
    GMMHMM,
    CategoricalHMM,
    GaussianHMM,
    GaussianMixture,
    PoissonHMM,
    VariationalCategoricalHMM,
    VariationalGaussianHMM,
)
from gen_jax.estimators.packing import map_rows, pack_sequences, rounded
from gen_jax.models.hmm import HMM, emissions, left_right
from gen_jax.models.mixture import DIAGONAL, FULL, GMM, SPHERICAL, TIED, ClassConditional, Prior

hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is the reference")
hmmlearn_variational = pytest.importorskip("hmmlearn.vhmm")
KINDS = {"full": FULL, "tied": TIED, "diag": DIAGONAL, "spherical": SPHERICAL}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(n=300, d=2, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])[:, :d]
    return np.concatenate([center + rng.normal(size=(n // 3, d)) for center in centers])


def gaussian_chain(kind="diag", k=3, d=2, n=400, seed=0):
    """hmmlearn's model with known parameters, and a sequence of it."""
    rng = np.random.default_rng(seed)
    theirs = hmmlearn.GaussianHMM(k, covariance_type=kind)
    theirs.startprob_ = rng.dirichlet(np.ones(k))
    theirs.transmat_ = 0.7 * np.eye(k) + 0.3 * rng.dirichlet(np.ones(k), size=k)
    theirs.means_ = 4 * rng.normal(size=(k, d))
    root = rng.normal(size=(k, d, d)) / 2
    full = root @ root.swapaxes(1, 2) + np.eye(d)
    theirs.covars_ = {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2),
        "spherical": full[:, 0, 0],
    }[kind]
    return theirs, theirs.sample(n, random_state=seed)[0]


# --- A: free parameters


@pytest.mark.representatives("model6-*", "model9-*")
@pytest.mark.parametrize(
    "model, x, expected",
    [
        (GaussianHMM(2, "full"), (60, 3), 1 + 2 + 6 + 12),
        (GaussianHMM(2, "tied"), (60, 3), 1 + 2 + 6 + 6),
        (GaussianHMM(2, "diag"), (60, 3), 1 + 2 + 6 + 6),
        (GaussianHMM(2, "spherical"), (60, 3), 1 + 2 + 6 + 2),
        (GaussianHMM(3, "diag", transitions=left_right(3)), (60, 1), 0 + 2 + 3 + 3),
        (GaussianHMM(2, "full", params="stm", init_params="stmc"), (60, 3), 1 + 2 + 6),
        (GMMHMM(2, 3, covariance_type="full"), (90, 2), 1 + 2 + 4 + 12 + 18),
        (GMMHMM(2, 3, covariance_type="diag"), (90, 2), 1 + 2 + 4 + 12 + 12),
        (GMMHMM(2, 3, covariance_type="spherical"), (90, 2), 1 + 2 + 4 + 12 + 6),
        (CategoricalHMM(2, n_features=5), "symbols", 1 + 2 + 8),
        (PoissonHMM(2), "counts", 1 + 2 + 4),
    ],
)
def test_information_criteria_count_free_parameters(model, x, expected):
    rng = np.random.default_rng(0)
    x = {"symbols": rng.integers(5, size=(60, 1)), "counts": rng.poisson(3, size=(60, 2))}.get(
        x if isinstance(x, str) else "", rng.normal(size=x if isinstance(x, tuple) else 1)
    )
    model = model.set_params(n_iter=2, random_state=0).fit(x)
    score = model.score(x)
    assert model.aic(x) == pytest.approx(-2 * score + 2 * expected)
    assert model.bic(x) == pytest.approx(-2 * score + np.log(60 if len(x) == 60 else 90) * expected)


def test_probabilities_that_are_zero_are_not_free():
    theirs, x = gaussian_chain("full")
    model = GaussianHMM(3, "full", init_params="mc", n_iter=3, random_state=0)
    model.startprob_, model.transmat_ = np.array([1.0, 0, 0]), np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1.0]])
    model.fit(x)
    assert model.aic(x) == pytest.approx(-2 * model.score(x) + 2 * (0 + 2 + 6 + 9))


# --- B, C: weights have no unit, and what has none does not count


def fitted(model, batch, steps=8):
    """Parameters after some steps of EM."""
    algorithm = em(model)
    advance = jax.jit(algorithm.step)
    state = jax.jit(algorithm.init)(jax.random.key(0), batch)
    for _ in range(steps):
        state, metrics = advance(state, batch)
    return state.params, metrics["log_likelihood"].value


def sequences(kind, n=12, time=15):
    rng = np.random.default_rng(0)
    return {
        "gaussian": rng.normal(size=(n, time, 2)) + 4 * (np.arange(time) % 3 == 0)[:, None],
        "categorical": rng.integers(4, size=(n, time)),
        "poisson": rng.poisson(3, size=(n, time, 2)) + 6 * (np.arange(time) % 2 == 0)[:, None],
        "bernoulli": (rng.uniform(size=(n, time, 3)) < 0.3 + 0.4 * (np.arange(time) % 2)[:, None]).astype(np.int32),
    }[kind].astype({"gaussian": np.float32}.get(kind, np.int32))


WEIGHTED = {
    **{f"mixture {name}": (GMM(3, kind=kind), {"x": blobs().astype(np.float32)}) for name, kind in KINDS.items()},
    "class-conditional": (
        ClassConditional(GMM(2), 2),
        {"x": blobs().astype(np.float32), "label": np.arange(300) % 2},
    ),
    "chain gaussian": (HMM(2, emissions.Gaussian(FULL)), {"x": sequences("gaussian")}),
    "chain of mixtures": (HMM(2, emissions.GaussianMixture(DIAGONAL)), {"x": sequences("gaussian")}),
    "chain regression": (HMM(2, emissions.LinearRegression(1)), {"x": sequences("gaussian")}),
    "chain categorical": (HMM(2, emissions.Categorical(4)), {"x": sequences("categorical")}),
    "chain poisson": (HMM(2, emissions.Poisson()), {"x": sequences("poisson")}),
    "chain bernoulli": (HMM(2, emissions.Bernoulli(prior=0.0)), {"x": sequences("bernoulli")}),
}
SLOW = {"mixture tied", "mixture spherical", "chain of mixtures", "chain regression", "chain bernoulli"}
every_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in WEIGHTED]
)


@pytest.mark.representatives("class-conditional", "chain gaussian")
@every_model
def test_only_ratios_of_weights_matter(name, same):
    model, batch = WEIGHTED[name]
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(batch["x"])).astype(np.float32)
    expected = fitted(model, {**batch, "weight": weight})
    for factor in (2.0**-40, 2.0**20):  # exact in binary, so that nothing is rounded differently
        same(fitted(model, {**batch, "weight": weight * np.float32(factor)}), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.representatives("class-conditional", "mixture full")
@every_model
def test_examples_of_weight_0_are_as_removed(name, same):
    """Whatever they hold: outliers, NaN, infinities."""
    model, batch = WEIGHTED[name]
    x = batch["x"]
    start = jax.jit(em(model).init)(jax.random.key(0), batch)
    step = jax.jit(em(model).step)
    worst = (1e5, np.nan, np.inf) if x.dtype.kind == "f" else (int(x.max()),)
    expected = step(start, {**batch, "weight": np.ones(len(x), np.float32)})
    for value in worst:
        bad = np.full_like(x[:2], value)
        both = {key: np.concatenate([a, a[:2] if key != "x" else bad]) for key, a in batch.items()}
        weight = np.r_[np.ones(len(x)), 0, 0].astype(np.float32)
        found = step(start, {**both, "weight": weight})
        same((found[0].params, found[1]), (expected[0].params, expected[1]), rtol=2e-4, atol=2e-5)
    if name.startswith("mixture"):
        variance = jax.jit(em(model).init)(jax.random.key(0), {**both, "weight": weight}).extra["variance"]
        np.testing.assert_allclose(variance, x.var(axis=0), rtol=1e-4)


def test_an_outlier_of_weight_0_does_not_widen_components():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(300, 2)), rng.normal(size=(300, 2)) + 8, [[1e5, 1e5]]])
    weight = np.r_[np.ones(600), 0]
    for dtype in (np.float32, np.float64):
        model = GaussianMixture(2, random_state=0).fit(x.astype(dtype), sample_weight=weight)
        alone = GaussianMixture(2, random_state=0).fit(x[:-1].astype(dtype))
        np.testing.assert_allclose(np.sort(model.covariances_, axis=0), np.sort(alone.covariances_, axis=0), rtol=2e-3)
        assert model.covariances_.max() < 1.5
        assert model.score(x.astype(dtype), sample_weight=weight) == pytest.approx(alone.score(x[:-1]), rel=1e-4)


@pytest.mark.representatives("1e-10")
@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_tiny_and_huge_sample_weights(factor):
    x = blobs()
    expected = GaussianMixture(3, random_state=0).fit(x)
    found = GaussianMixture(3, random_state=0).fit(x, sample_weight=np.full(len(x), factor))
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-6, atol=1e-6)


def test_sequences_of_length_0_do_not_count(same):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(20, 8, 1)) + 5, np.zeros((30, 8, 1))]).astype(np.float32)
    length = np.r_[np.full(20, 8), np.zeros(30, int)].astype(np.int32)
    model = HMM(2, emissions.Gaussian(FULL))
    both, alone = {"x": x, "length": length}, {"x": x[:20], "length": length[:20]}
    same(fitted(model, both), fitted(model, alone), rtol=2e-3, atol=1e-4)
    loss = lambda batch, state: model.loss(state.params["hmm"], state, batch, jax.random.key(0))[0].value
    state = em(model).init(jax.random.key(0), alone)
    assert float(loss(both, state)) == pytest.approx(float(loss(alone, state)), rel=1e-5)
    theirs, x = gaussian_chain()
    ours = like(theirs, GaussianHMM(3))
    assert ours.score(x, [0, 100, 0, 300, 0]) == pytest.approx(theirs.score(x, [100, 300]), rel=1e-10)


# --- D: no floor with the scale of the data


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_far_component_leaves_the_others_as_they_are(dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(500, 2)), rng.normal(size=(500, 2)) + 8, [[1e5, 1e5]]]).astype(dtype)
    start = dict(means_init=[[0.0, 0.0], [8.0, 8.0], [1e5, 1e5]], precisions_init=np.tile(np.eye(2), (3, 1, 1)))
    model = GaussianMixture(3, **start, random_state=0).fit(x)
    expected = [np.cov(x[part].T, bias=True) for part in (slice(500), slice(500, 1000))]
    np.testing.assert_allclose(model.covariances_[:2], expected, rtol=5e-3, atol=5e-3)


@pytest.mark.slow
def test_narrow_directions_are_not_widened():
    """Eight clusters in 12 dimensions whose directions fall from standard deviation 1 to 0.003."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, 0.003, 12)
    x = np.concatenate([rng.normal(size=12) * 3 + rng.normal(size=(300, 12)) * scale for _ in range(8)])
    x = x.astype(np.float32).astype(np.float64)
    start = {"means_init": np.stack([x[300 * i : 300 * (i + 1)].mean(axis=0) for i in range(8)])}
    single = GaussianMixture(8, reg_covar=0, **start, random_state=0).fit(x.astype(np.float32))
    double = GaussianMixture(8, reg_covar=0, **start, random_state=0).fit(x)
    assert single.score(x.astype(np.float32)) == pytest.approx(double.score(x), abs=1e-5)


# --- E: what the user fixed stays


def test_given_zeros_stay_zero_as_in_hmmlearn():
    rng = np.random.default_rng(0)
    x = np.concatenate([level + rng.normal(size=30) for level in (0, 10, 20, 0, 10)])[:, None]
    fits = []
    for model in (
        hmmlearn.GaussianHMM(3, init_params="", n_iter=20, tol=0),
        GaussianHMM(3, init_params="", n_iter=20, tol=0),
    ):
        model.startprob_ = np.array([1.0, 0, 0])
        model.transmat_ = np.array([[0.8, 0.2, 0], [0, 0.8, 0.2], [0, 0, 1.0]])
        model.means_, model.covars_ = np.array([[0.0], [10], [20]]), np.ones((3, 1))
        fits.append(model.fit(x))
    theirs, ours = fits
    assert ours.transmat_[2, 0] == 0 and ours.transmat_[2, 1] == 0 and ours.startprob_[1] == 0
    np.testing.assert_allclose(ours.transmat_, theirs.transmat_, atol=1e-8)
    # The third state has less than a trillionth of the data, and keeps its parameters.
    np.testing.assert_allclose(ours.means_[:2], theirs.means_[:2], rtol=1e-6)


@pytest.mark.representatives("st", "mc")
@pytest.mark.parametrize("letters", ["", "s", "t", "m", "mc", "st", "stm"])
def test_params_holds_the_others_fixed_as_in_hmmlearn(letters):
    theirs, x = gaussian_chain("full")
    both = []
    for model in (hmmlearn.GaussianHMM, GaussianHMM):
        one = model(3, covariance_type="full", params=letters, init_params="", n_iter=4, tol=0)
        both.append(like(theirs, one).fit(x + 0.5, [150, 250]))
    for name in ("startprob_", "transmat_", "means_", "covars_"):
        np.testing.assert_allclose(getattr(both[1], name), getattr(both[0], name), rtol=1e-6, atol=1e-8, err_msg=name)
        if {"covars_": "c"}.get(name, name[0]) not in letters:
            np.testing.assert_allclose(getattr(both[1], name), getattr(theirs, name), rtol=1e-12)


@pytest.mark.representatives("covariances")
@pytest.mark.parametrize("fixed", ["weights", "means", "covariances"])
def test_fixed_parameters_of_a_mixture_stay_under_em_and_descent(fixed):
    model = GMM(3, fixed=(fixed,))
    x = blobs().astype(np.float32)
    state = jax.jit(em(model).init)(jax.random.key(0), {"x": x})
    step = jax.jit(em(model).step)
    before, values = model.parameters(state), []
    for _ in range(6):
        state, metrics = step(state, {"x": x})
        values.append(float(metrics["log_likelihood"].value))
    after = dict(zip(("weights", "means", "covariances"), zip(before, model.parameters(state))))
    np.testing.assert_allclose(*after.pop(fixed), rtol=1e-6)
    assert all(not np.allclose(*pair, rtol=1e-4) for pair in after.values()) and np.all(np.diff(values) > -1e-5)
    gradient = jax.grad(lambda p: model.loss(p, state, {"x": x + 1}, jax.random.key(0))[0].value)(state.params["gmm"])
    zero = {name: not np.asarray(g).any() for name, g in gradient.items()}
    assert zero == {"logits": fixed == "weights", "means": fixed == "means", "cholesky": fixed == "covariances"}


def test_params_of_a_mixture():
    x = blobs()
    model = GaussianMixture(3, params="wc", means_init=[[0.5, 0], [5, 0], [0, 5]], random_state=0).fit(x)
    np.testing.assert_array_equal(model.means_, [[0.5, 0], [5, 0], [0, 5]])
    r = model.predict_proba(x)
    about = [(r[:, k, None] * (x - model.means_[k])).T @ (x - model.means_[k]) / r[:, k].sum() for k in range(3)]
    np.testing.assert_allclose(model.covariances_, about, rtol=0.02, atol=0.02)


# --- F: one objective


@pytest.mark.representatives("GMMHMM-full", "PoissonHMM-*")
@pytest.mark.parametrize(
    "model",
    [
        GaussianHMM(3, "full", stickiness=20.0, transmat_prior=3.0, startprob_prior=2.0),
        GaussianHMM(3, "diag", means_prior=1.0, means_weight=30.0, covars_prior=5.0, covars_weight=10.0),
        GaussianHMM(3, "tied", means_prior=1.0, means_weight=30.0, covars_prior=np.eye(2), covars_weight=10.0),
        GaussianHMM(3, "spherical", means_weight=30.0, covars_prior=5.0, covars_weight=10.0),
        GMMHMM(2, 2, covariance_type="full", weights_prior=4.0, means_weight=5.0, covars_prior=np.eye(2)),
        GMMHMM(2, 2, weights_prior=4.0, means_weight=5.0, covars_prior=1.0, covars_weight=2.0),
        PoissonHMM(2, lambdas_prior=40.0, lambdas_weight=10.0),
        CategoricalHMM(2, emissionprob_prior=8.0),
    ],
    ids=lambda model: f"{type(model).__name__}-{getattr(model, 'covariance_type', '')}",
)
def test_em_climbs_the_objective_it_reports(model):
    _, x = gaussian_chain("full")
    if isinstance(model, PoissonHMM):
        x = np.floor(np.abs(x))
    if isinstance(model, CategoricalHMM):
        x = np.floor(np.abs(x[:, :1])).clip(0, 4)
    model.set_params(n_iter=25, tol=0, n_init=3, random_state=0).fit(x, lengths=[150, 250])
    assert np.all(np.diff(model.curves_, axis=1)[:, 1:] > -1e-7 * np.abs(model.curves_[:, 2:]))
    assert model.monitor_.history[-1] == pytest.approx(model.curves_[:, -1].max())
    best = int(np.argmax(model.curves_[:, -1]))
    assert model.monitor_.history == pytest.approx(model.curves_[best].tolist())


def test_a_mixture_with_a_prior_reports_and_chooses_by_the_posterior():
    x = blobs(60)
    prior = Prior(3.0, 10.0, 0.5, 5.0)
    model = GaussianMixture(4, prior=prior, n_init=5, max_iter=300, tol=1e-9, random_state=0).fit(x)
    assert model.lower_bound_ == pytest.approx(model.lower_bounds_[-1])
    last = [curve[~np.isnan(curve)][-1] for curve in model.curves_]
    assert model.lower_bound_ == pytest.approx(max(last))
    assert np.all(np.diff(model.lower_bounds_) > -1e-9)


# --- G: what has no meaning is refused, what is missing is missing


def test_masked_and_missing_values_are_nan():
    theirs, x = gaussian_chain()
    holes = np.random.default_rng(0).uniform(size=x.shape) < 0.1
    holes[holes.all(axis=1), 0] = False
    masked, nan, none = np.ma.array(x, mask=holes), np.where(holes, np.nan, x), np.where(holes, None, x.astype(object))
    chain = like(theirs, GaussianHMM(3))
    mixture = GaussianMixture(2, random_state=0).fit(nan)
    for model in (chain, mixture):
        expected = model.score(nan)
        assert model.score(masked) == pytest.approx(expected) and model.score(none) == pytest.approx(expected)
    symbols = np.array([[0.0], [1], [np.nan], [1], [0]])
    model = CategoricalHMM(2, n_features=2, n_iter=3, random_state=0).fit(symbols)
    p = [sum(model.startprob_ @ np.linalg.matrix_power(model.transmat_, 2) * model.emissionprob_[:, s]) for s in (0, 1)]
    assert sum(p) == pytest.approx(1) and np.isfinite(model.score(symbols))
    counts = np.array([[3.0], [np.nan], [4], [1]])
    assert np.isfinite(PoissonHMM(2, n_iter=3, random_state=0).fit(counts).score(counts))


def test_pandas_na_is_missing():
    pandas = pytest.importorskip("pandas", reason="data frames are pandas'")
    theirs, x = gaussian_chain()
    frame = pandas.DataFrame(x, columns=["a", "b"]).convert_dtypes()
    frame.iloc[3, 0] = pandas.NA
    nan = x.copy()
    nan[3, 0] = np.nan
    chain = like(theirs, GaussianHMM(3))
    assert chain.score(frame) == pytest.approx(chain.score(nan))


@pytest.mark.parametrize("make", [lambda: GaussianMixture(2), lambda: GaussianHMM(2), lambda: PoissonHMM(2)])
@pytest.mark.parametrize(
    "x", [np.ones((9, 1), complex), np.zeros((9, 1), "datetime64[s]"), np.full((9, 1), "a")], ids=["c", "M", "U"]
)
def test_values_without_meaning_are_refused(make, x):
    with pytest.raises(ValueError, match="numbers|Complex|numeric"):
        make().fit(x)


def test_counts_beyond_32_bits():
    x = np.array([[3e9], [3.1e9], [2.9e9], [1e3], [900], [1.1e3]] * 10)
    model = PoissonHMM(2, n_iter=50, n_init=4, random_state=0).fit(x)
    np.testing.assert_allclose(np.sort(model.lambdas_[:, 0]), [1e3, 3e9], rtol=1e-6)


# --- H: the arguments and attributes of scikit-learn and hmmlearn


def like(theirs, model):
    for name in ("startprob_", "transmat_", "means_", "covars_", "weights_", "emissionprob_", "lambdas_"):
        if hasattr(theirs, name):
            setattr(model, name, np.array(getattr(theirs, name)))
    return model


LEFT_OUT = {"GMMHMM": {"tied"}}  # a covariance type of hmmlearn's, on purpose


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (GaussianMixture, TheirMixture),
        (GaussianHMM, hmmlearn.GaussianHMM),
        (GMMHMM, hmmlearn.GMMHMM),
        (CategoricalHMM, hmmlearn.CategoricalHMM),
        (PoissonHMM, hmmlearn.PoissonHMM),
        (VariationalGaussianHMM, hmmlearn_variational.VariationalGaussianHMM),
        (VariationalCategoricalHMM, hmmlearn_variational.VariationalCategoricalHMM),
    ],
    ids=lambda c: c.__name__,
)
def test_signatures_and_methods_are_theirs(ours, theirs):
    arguments = lambda c: {n: p.default for n, p in inspect.signature(c.__init__).parameters.items() if n != "self"}
    mine, expected = arguments(ours), arguments(theirs)
    for name, default in expected.items():
        same = set(mine[name]) == set(default) if name in ("params", "init_params") else mine[name] == default
        assert same or (name == "n_components" and mine[name] == 1), name
    order = [name for name in mine if name in expected]
    assert order == [name for name in expected if name in order]
    public = {name for name in dir(theirs) if not name.startswith("_") and callable(getattr(theirs, name, None))}
    assert public <= set(dir(ours))
    for method in ("predict", "decode", "sample", "score_samples", "bic"):
        if method in public:
            parameters = list(inspect.signature(getattr(theirs, method)).parameters)
            assert list(inspect.signature(getattr(ours, method)).parameters)[: len(parameters)] == parameters, method


@pytest.mark.representatives("*full*", "*diag*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prior",
    [
        {},
        {"means_prior": 1.0, "means_weight": 5.0},
        {"covars_prior": 2.0, "covars_weight": 7.0},
        {"startprob_prior": np.array([2.0, 1, 3]), "transmat_prior": 1 + 4 * np.eye(3)},
    ],
    ids=["default", "means", "covars", "chain"],
)
def test_equal_settings_give_hmmlearns_fit(kind, prior):
    theirs, x = gaussian_chain(kind)
    both = []
    for model in (hmmlearn.GaussianHMM, GaussianHMM):
        tol = -np.inf if model is hmmlearn.GaussianHMM else 0  # theirs stops where the likelihood falls
        one = model(3, covariance_type=kind, init_params="", n_iter=5, tol=tol, min_covar=0.3, **prior)
        both.append(like_type(theirs, one).fit(x + 0.3, [150, 250]))
    for name in ("startprob_", "transmat_", "means_"):
        np.testing.assert_allclose(getattr(both[1], name), getattr(both[0], name), rtol=1e-6, atol=1e-8, err_msg=name)
    if kind == "spherical":  # their `covars_` has the wrong shape after a fit
        np.testing.assert_allclose(both[1].covars_[:, 0, 0], both[0]._covars_[:, 0], rtol=1e-6)
    else:
        np.testing.assert_allclose(both[1].covars_, both[0].covars_, rtol=1e-6, atol=1e-8)
    assert both[1].score(x) == pytest.approx(both[0].score(x), rel=1e-8)
    np.testing.assert_allclose(both[1].get_stationary_distribution(), both[0].get_stationary_distribution(), rtol=1e-8)


def like_type(theirs, model):
    """As `like`, with the covariances in the shape of their type, which is all that hmmlearn takes."""
    for name in ("startprob_", "transmat_", "means_"):
        setattr(model, name, np.array(getattr(theirs, name)))
    model.covars_ = np.array(theirs._covars_)
    return model


@pytest.mark.representatives("spherical-stmw", "full-stcw")
@pytest.mark.parametrize("letters", ["stmw", "stcw"])
@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_equal_settings_give_hmmlearns_fit_of_mixtures(kind, letters):
    """Of means and covariances apart: theirs computes covariances about the means before the M-step, which may lower
    the likelihood, ours about those after it."""
    _, x = gaussian_chain("full")
    priors = dict(weights_prior=3.0, means_prior=0.5, means_weight=4.0)
    scale = {"full": np.eye(2), "diag": 1.0, "spherical": 2.0}[kind]
    for extra in ({}, {**priors, "covars_prior": scale, "covars_weight": 1.5}):
        both = []
        for model in (hmmlearn.GMMHMM, GMMHMM):
            tol = -np.inf if model is hmmlearn.GMMHMM else 0
            one = model(2, 2, covariance_type=kind, init_params="", params=letters, n_iter=4, tol=tol, **extra)
            one.startprob_, one.transmat_ = np.array([0.4, 0.6]), np.array([[0.8, 0.2], [0.3, 0.7]])
            one.weights_ = np.array([[0.5, 0.5], [0.3, 0.7]])
            one.means_ = 3 * np.random.default_rng(1).normal(size=(2, 2, 2))
            one.covars_ = {"full": np.tile(4 * np.eye(2), (2, 2, 1, 1)), "diag": np.full((2, 2, 2), 4.0)}.get(
                kind, np.full((2, 2), 4.0)
            )
            both.append(one.fit(x))
        for name in ("startprob_", "transmat_", "weights_", "means_", "covars_"):
            a, b = (getattr(model, name) for model in both[::-1])
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["CategoricalHMM", "PoissonHMM"])
def test_equal_settings_give_hmmlearns_fit_of_counts_and_symbols(name):
    rng = np.random.default_rng(0)
    x = rng.integers(4, size=(200, 1)) if name == "CategoricalHMM" else rng.poisson(3, size=(200, 2))
    prior = {"emissionprob_prior": 2.5} if name == "CategoricalHMM" else {}
    both = []
    for module, classes in ((hmmlearn, None), (None, {"CategoricalHMM": CategoricalHMM, "PoissonHMM": PoissonHMM})):
        tol = -np.inf if module else 0
        model = (classes or vars(module))[name](2, init_params="", n_iter=6, tol=tol, transmat_prior=2.0, **prior)
        model.startprob_, model.transmat_ = np.array([0.4, 0.6]), np.array([[0.8, 0.2], [0.3, 0.7]])
        model.emissionprob_ = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
        model.lambdas_ = np.array([[1.0, 2], [4, 3]])
        both.append(model.fit(x, [80, 120]))
    for attribute in ("startprob_", "transmat_", "emissionprob_" if name == "CategoricalHMM" else "lambdas_"):
        np.testing.assert_allclose(getattr(both[1], attribute), getattr(both[0], attribute), rtol=1e-7, atol=1e-10)


def test_other_ways_to_call():
    theirs, x = gaussian_chain()
    ours = like(theirs, GaussianHMM(3))
    np.testing.assert_allclose(ours.covars_, theirs.covars_)
    x2, states = ours.sample(50, random_state=0, currstate=2)
    assert states[0] == 2 and x2.shape == (50, 2)
    piped = make_pipeline(StandardScaler(), GaussianHMM(2, n_iter=3, random_state=0))
    piped.fit(x, gaussianhmm__lengths=[150, 250])
    assert piped.predict(x, lengths=[150, 250]).shape == (400,)
    masked = GaussianHMM(3, transitions=[[1, 1, 0], [0, 1, 1], [0, 0, 1]], n_iter=2, random_state=0).fit(x)
    assert masked.transmat_[2, 0] == 0 and masked.startprob_[0] == 1
    for model, message in [
        (GaussianHMM(2.5), "n_components"),
        (GaussianHMM(True), "n_components"),
        (GaussianHMM(2, n_iter=2.5), "n_iter"),
        (GaussianHMM(2, params="xyz"), "params"),
        (GaussianHMM(2, transmat_prior=np.ones(3)), "transmat_prior"),
        (GaussianHMM(2, covars_prior=-1.0), "covars_prior"),
        (GaussianHMM(2, transitions=np.ones((3, 3))), "transitions"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(x)
    for model in (GaussianHMM(2), CategoricalHMM(2), PoissonHMM(2), GMMHMM(2)):
        for method in (model.score, model.predict, model.bic):
            with pytest.raises(NotFittedError):
                method(np.ones((3, 1)))
        with pytest.raises(NotFittedError):
            model.sample(3)
        with pytest.raises(NotFittedError):
            model.get_stationary_distribution()


def test_verbose_prints_the_history(capsys):
    _, x = gaussian_chain()
    model = GaussianHMM(2, n_iter=3, tol=0, verbose=True, random_state=0).fit(x)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and float(lines[0].split()[1]) == pytest.approx(model.monitor_.history[0])
    GaussianMixture(2, verbose=1, random_state=0).fit(x)
    assert "Iteration 1" in capsys.readouterr().out


# --- J, K, L: few programs, little padding


def test_no_method_compiles_at_a_second_call(compilations):
    x = blobs()
    mixture = GaussianMixture(3, random_state=0).fit(x)
    theirs, sequence = gaussian_chain("full")
    chain = like(theirs, GaussianHMM(3, "full", init_params="", n_iter=2))
    calls = [
        *(lambda m=m: getattr(mixture, m)(x) for m in ("predict", "predict_proba", "score_samples", "score", "icl")),
        lambda: mixture.sample(20),
        *(lambda m=m: getattr(chain, m)(sequence) for m in ("predict", "predict_proba", "score", "decode", "bic")),
        lambda: chain.sample(20),
        lambda: GaussianMixture(3, random_state=1).fit(x + 1),
        lambda: like(theirs, GaussianHMM(3, "full", init_params="", n_iter=2)).fit(sequence + 1),
    ]
    for call in calls:
        call()
        with compilations("") as seen:
            call()
        assert not seen, seen


def test_sizes_share_programs(compilations):
    theirs, sequence = gaussian_chain("full")
    chain, mixture = like(theirs, GaussianHMM(3, "full")), GaussianMixture(2, random_state=0).fit(sequence)
    with compilations("") as seen:
        for n in range(130, 400, 9):
            chain.score(sequence[:n])
            mixture.predict(sequence[:n])
            mixture.sample(n)
    assert len([m for m in seen if "log_prob" in m]) <= 16 and len([m for m in seen if "log_joint" in m]) <= 2
    assert all(n <= rounded(n) <= n + n / 8 and rounded(rounded(n)) == rounded(n) for n in range(1, 5000))


def test_short_sequences_share_rows():
    rng = np.random.default_rng(0)
    for lengths in ([2000] + [1] * 200, rng.lognormal(3, 1, 300).astype(int), [7] * 20, [5]):
        lengths = np.asarray(lengths)
        x = np.arange(lengths.sum())
        batch, placement = pack_sequences({"x": x}, lengths)
        np.testing.assert_array_equal(placement.unpacked(batch["x"]), x)
        assert batch["x"].size < 2.6 * len(x) + 32
        begins = batch["starts"].sum() if "starts" in batch else 0
        assert begins + (batch["length"] > 0).sum() == (lengths > 0).sum()


def test_ragged_sequences_score_and_fit_as_hmmlearns():
    theirs, x = gaussian_chain("diag", n=600)
    lengths = [300, *[1] * 40, *[7] * 20, 120]
    ours = like(theirs, GaussianHMM(3))
    assert ours.score(x, lengths) == pytest.approx(theirs.score(x, lengths), rel=1e-10)
    np.testing.assert_allclose(ours.predict_proba(x, lengths), theirs.predict_proba(x, lengths), atol=1e-9)
    np.testing.assert_array_equal(ours.predict(x, lengths), theirs.predict(x, lengths))
    both = [like_type(theirs, m(3, init_params="", n_iter=4, tol=0)) for m in (hmmlearn.GaussianHMM, GaussianHMM)]
    for model in both:
        model.fit(x + 0.5, lengths)
    for name in ("startprob_", "transmat_", "means_", "covars_"):
        np.testing.assert_allclose(getattr(both[1], name), getattr(both[0], name), rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.slow
def test_the_loss_is_per_sequence_however_they_share_rows():
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(36, 1)).astype(np.float32), np.array([16, 4, 6, 10])
    model, key = HMM(2, emissions.Gaussian(FULL)), jax.random.key(0)
    packed, placement = pack_sequences({"x": x}, lengths)
    apart = {"x": np.zeros((4, 16, 1), np.float32), "length": lengths}
    apart["x"][np.arange(16) < lengths[:, None]] = x
    state = em(model).init(key, apart)
    assert "starts" in packed and placement.sequences == 4
    expected = model.loss(state.params["hmm"], state, apart, key)[0]
    for batch in (packed, {**packed, "weight": np.full(len(packed["x"]), 0.5, np.float32)}):
        loss = model.loss(state.params["hmm"], state, batch, key)[0]
        assert float(loss.value) == pytest.approx(float(expected.value), rel=1e-5)
        mean = model.e_step(state, batch)[1]["log_likelihood"]
        assert float(mean.value) == pytest.approx(-float(expected.value), rel=1e-5)
    gradients = [
        jax.grad(lambda p: model.loss(p, state, batch, key)[0].value)(state.params["hmm"]) for batch in (packed, apart)
    ]
    for a, b in zip(*(jax.tree.leaves(gradient) for gradient in gradients)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_attributes_set_or_changed_in_place_are_seen_by_the_next_call():
    r = np.random.default_rng(0)
    x = r.normal(size=(300, 2))
    model = GaussianMixture(2, random_state=0).fit(x)
    before = model.score_samples(x)
    np.testing.assert_array_equal(model.score_samples(x), before)
    model.means_[0] += 1
    after = model.score_samples(x)
    assert np.abs(after - before).max() > 0.01
    model.means_ = model.means_ - np.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(model.score_samples(x), before, atol=1e-12)
    model.means_ = jax.numpy.asarray(model.means_)
    for _ in range(2):
        np.testing.assert_allclose(model.score_samples(x), before, atol=1e-5)
    assert model.score_samples(np.array([[1e200, 0.0]])) == -np.inf
    model.covariances_[0] = -np.eye(2)
    with pytest.raises(ValueError, match="covariances_ must be symmetric and positive definite"):
        model.predict(x)


@pytest.mark.parametrize("n", [1, 255, 1808, 10_000, 40_001])
def test_blocks_of_rows_are_complete_and_little_of_them_is_padding(n):
    sizes = []

    def f(block):
        sizes.append(len(block))
        return block * 2

    x = np.arange(n, dtype=np.float32)
    np.testing.assert_array_equal(map_rows(f, x), 2 * x)
    assert all(size & (size - 1) == 0 and size <= 1 << 14 for size in sizes)
    assert sum(sizes) <= max(1.25 * n, 256) + 128
