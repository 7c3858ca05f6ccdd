"""Semi-Markov, input-output and Bayesian chains against enumeration, hmmlearn and closed forms."""

import itertools
import warnings

import hmmlearn.vhmm
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import gammaln, logsumexp

from gen_jax.algorithms import descent, em
from gen_jax.estimators import VariationalCategoricalHMM, VariationalGaussianHMM
from gen_jax.models.hmm import (
    HMM,
    HSMM,
    BayesianHMM,
    CategoricalDurations,
    GeometricDurations,
    InputOutputHMM,
    NegativeBinomialDurations,
    PoissonDurations,
    left_right,
)
from gen_jax.models.hmm.emissions import (
    BayesianCategorical,
    BayesianGaussian,
    BayesianPoisson,
    Categorical,
    Gaussian,
    Poisson,
)
from gen_jax.models.mixture import DIAGONAL, FULL, SPHERICAL, TIED

DURATIONS = {
    "categorical": CategoricalDurations(3),
    "geometric": GeometricDurations(3),
    "poisson": PoissonDurations(3),
    "negative binomial": NegativeBinomialDurations(3, 2.5),
}
KINDS = {"full": FULL, "tied": TIED, "diag": DIAGONAL, "spherical": SPHERICAL}


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def symbols(sequences=2, time=6, seed=0):
    return {"x": jnp.asarray(np.random.default_rng(seed).integers(3, size=(sequences, time)))}


def history(model, batch, steps, name="log_likelihood"):
    algorithm = em(model)
    state = algorithm.init(jax.random.key(0), batch)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: algorithm.step(s, batch), state, length=steps)

    state, metrics = run(state)
    return state, np.asarray(metrics[name].value)


def segmentations(time, states, longest):
    """All (state, duration) segments whose last reaches or passes the end."""
    if time <= 0:
        yield ()
        return
    for state, duration in itertools.product(range(states), range(1, longest + 1)):
        for rest in segmentations(time - duration, states, longest):
            yield ((state, duration), *rest)


def weighed(segments, chain, log_likelihood):
    """The log-probability of one segmentation with its observations, and the state of each step."""
    initial, transition, durations = chain
    path = [state for state, duration in segments for _ in range(duration)][: len(log_likelihood)]
    total = initial[segments[0][0]] + sum(durations[state, d - 1] for state, d in segments)
    total += sum(transition[a[0], b[0]] for a, b in itertools.pairwise(segments))
    return total + sum(log_likelihood[t, z] for t, z in enumerate(path)), path


@pytest.mark.representatives("negative binomial")
@pytest.mark.parametrize("name", DURATIONS)
def test_semi_markov_inference_equals_enumeration(name):
    model = HSMM(3, Categorical(3), DURATIONS[name])
    batch = {**symbols(), "length": jnp.array([6, 4]), "observed": jnp.ones((2, 6), bool).at[0, 2].set(False)}
    state = em(model).init(jax.random.key(1), batch)
    prepared = model._prepared(state.params["hmm"], state.extra, batch)
    log_likelihood, chain = np.asarray(prepared.log_likelihood), [np.asarray(a) for a in prepared.chain]
    found, decoded = jax.jit(lambda s: (model.smooth(s, batch), model.decode(s, batch)))(state)
    for b, length in enumerate((6, 4)):
        options = [s for s in segmentations(length, 3, 3) if all(x[0] != y[0] for x, y in itertools.pairwise(s))]
        paths = {}  # those that differ in the end of the last segment alone are one
        each = [weighed(segments, chain, log_likelihood[b, :length]) for segments in options]
        total = np.array([value for value, _ in each])
        evidence = float(logsumexp(total))
        p = np.exp(total - evidence)
        marginals, durations, pairs = np.zeros((6, 3)), np.zeros((3, 3)), np.zeros((3, 3))
        for weight, segments, (_, path) in zip(p, options, each):
            marginals[np.arange(length), path] += weight
            paths[tuple(path)] = paths.get(tuple(path), 0) + weight
            for z, d in segments:
                durations[z, d - 1] += weight
            for (z, _), (after, _) in itertools.pairwise(segments):
                pairs[z, after] += weight
        np.testing.assert_allclose(found.log_evidence[b], evidence, rtol=1e-10)
        np.testing.assert_allclose(found.marginals[b], marginals, atol=1e-10)
        np.testing.assert_allclose(found.durations[b], durations, atol=1e-10)
        np.testing.assert_allclose(found.pairs[b], pairs, atol=1e-10)
        np.testing.assert_allclose(found.initial[b], marginals[0], atol=1e-10)
        best = max(paths, key=paths.get)
        np.testing.assert_allclose(decoded.log_joint[b], np.log(paths[best]) + evidence, rtol=1e-10)
        assert tuple(decoded.states[b, :length].tolist()) == best


def test_geometric_durations_make_an_ordinary_chain():
    """A chain that stays with probability p lasts d steps with probability (1 - p) p^(d - 1)."""
    batch, stay = symbols(3, 20), np.array([0.5, 0.3])
    semi = HSMM(2, Categorical(3), GeometricDurations(80))
    state = em(semi).init(jax.random.key(0), batch)
    params = state.params["hmm"] | {"durations": {"rate": jnp.log(stay)}}
    state = state._replace(params={"hmm": params})
    plain = HMM(2, Categorical(3))
    transition = jnp.log(np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]]))
    ordinary = state._replace(params={"hmm": {**params, "transition": transition}})

    def found(model, state):
        joint = model.decode(state, batch).log_joint  # of equally probable paths either may be found
        forecast = model.forecast(state, batch, 5)
        return model.log_prob(state, batch), model.filter(state, batch), model.smooth(state, batch)[1], joint, forecast

    ours, theirs = (jax.jit(found, static_argnums=0)(*of) for of in ((semi, state), (plain, ordinary)))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def renewed(rng, sequences=30, time=80):
    """Sequences of two levels that last for 2 to 4 and for 6 to 8 steps."""
    x = np.zeros((sequences, time, 1))
    for row in x:
        t, z = 0, rng.integers(2)
        while t < time:
            d = rng.integers(2, 5) if z == 0 else rng.integers(6, 9)
            row[t : t + d] = 4 * z
            t, z = t + d, 1 - z
    return x + rng.normal(size=x.shape)


@pytest.mark.representatives("categorical")
@pytest.mark.parametrize("durations", [CategoricalDurations(12), PoissonDurations(12)], ids=["categorical", "poisson"])
def test_em_of_semi_markov_chains_never_falls_and_finds_the_durations(durations):
    batch = {"x": jnp.asarray(renewed(np.random.default_rng(0)))}
    model = HSMM(2, Gaussian(DIAGONAL), durations)
    state, found = history(model, batch, 40)
    assert np.all(np.diff(found) > -1e-8) and found[-1] > found[0] + 1
    params = state.params["hmm"]
    order = np.argsort(params["emission"]["means"][:, 0])
    np.testing.assert_allclose(params["emission"]["means"][order, 0], [0, 4], atol=0.1)
    np.testing.assert_allclose(durations.mean(params["durations"])[order], [3, 7], atol=0.25)
    if isinstance(durations, CategoricalDurations):
        p = np.exp(durations.log_prob(params["durations"]))[order]
        assert p[0, 1:4].sum() > 0.95 and p[1, 5:8].sum() > 0.9
    assert model.free_parameters(state) == 1 + 0 + (2 * 11 if durations == CategoricalDurations(12) else 2) + 4


def test_semi_markov_samples_have_the_durations():
    model = HSMM(2, Poisson(), PoissonDurations(40), length=3000)
    batch = {"x": jnp.ones((1, 10, 1))}
    state = em(model).init(jax.random.key(0), batch)
    rates = {"durations": {"rate": jnp.log(jnp.array([2.0, 6.0]))}}
    state = state._replace(params={"hmm": state.params["hmm"] | rates})
    path = np.asarray(jax.jit(lambda s: model.sample(s, jax.random.key(1), 2))(state)["state"])
    for row in path:
        runs = [(z, len(list(g))) for z, g in itertools.groupby(row)][1:-1]
        for z, mean in ((0, 3.0), (1, 7.0)):
            lengths = [n for state, n in runs if state == z]
            assert abs(np.mean(lengths) - mean) < 4 * np.std(lengths) / np.sqrt(len(lengths))
    x = model.extend(state, {"x": jnp.ones((2, 10, 1))}, jax.random.key(2), 7)
    assert x["x"].shape == (2, 7, 1)


@pytest.mark.parametrize("name", ["geometric", "poisson", "negative binomial"])
def test_durations_of_one_parameter_maximize_their_likelihood(name):
    family = {"geometric": GeometricDurations, "poisson": PoissonDurations}.get(name, NegativeBinomialDurations)(15)
    count = np.random.default_rng(0).random((2, 15)) * 10
    rate = family.maximize({"rate": jnp.zeros(2)}, jnp.asarray(count))["rate"]
    likelihood = lambda rate: jnp.sum(count * family.log_prob({"rate": rate}))
    np.testing.assert_allclose(jax.grad(likelihood)(rate), 0, atol=1e-6)
    empty = family.maximize({"rate": jnp.full(2, 0.25)}, jnp.zeros((2, 15)))["rate"]
    np.testing.assert_array_equal(empty, 0.25)


def test_descent_trains_semi_markov_chains():
    batch = {"x": jnp.asarray(renewed(np.random.default_rng(0), 8, 40))}
    algorithm = descent(HSMM(2, Gaussian(DIAGONAL), CategoricalDurations(10)), {"hmm": optax.adam(0.05)})
    state = algorithm.init(jax.random.key(0), batch)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.step(s, batch), s, length=60)[1]["loss"])
    found = np.asarray(run(state).value)
    assert found[-1] < found[0] - 1


# Input-output chains


def driven(sequences=3, time=6, seed=0):
    inputs = np.random.default_rng(seed).normal(size=(sequences, time, 2))
    return {**symbols(sequences, time), "input": jnp.asarray(inputs)}


def test_input_output_inference_equals_enumeration():
    model = InputOutputHMM(3, 2, Categorical(3), transitions=((1, 1, 0), (1, 1, 1), (0, 1, 1)))
    batch = {**driven(2), "length": jnp.array([6, 4])}
    state = em(model).init(jax.random.key(1), batch)
    weights = jax.random.normal(jax.random.key(2), (3, 3, 2))
    params = state.params["hmm"]
    params = params | {"transition": params["transition"] | {"weights": weights}}
    state = state._replace(params={"hmm": params})
    prepared = model._prepared(params, state.extra, batch)
    initial, transition, _ = (np.asarray(a) for a in prepared.chain)
    log_likelihood = np.asarray(prepared.log_likelihood)
    found, decoded = model.smooth(state, batch), model.decode(state, batch)
    bias, coefficients = (np.asarray(a) for a in model.coefficients(state))
    logits = bias + np.einsum("iju,btu->btij", coefficients, np.asarray(batch["input"]))
    logits[..., [0, 2], [2, 0]] = -np.inf
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(transition)[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(model.chain(state, batch["input"][0])[1], expected[0], atol=1e-12)
    for b, length in enumerate((6, 4)):
        options = list(itertools.product(range(3), repeat=length))
        total = np.array(
            [
                initial[z[0]]
                + sum(log_likelihood[b, t, z[t]] for t in range(length))
                + sum(np.log(np.maximum(expected[b, t, z[t - 1], z[t]], 1e-300)) for t in range(1, length))
                for z in options
            ]
        )
        evidence = float(logsumexp(total))
        p = np.exp(total - evidence)
        marginals, pairs = np.zeros((6, 3)), np.zeros((3, 3))
        for weight, z in zip(p, options):
            marginals[np.arange(length), z] += weight
            np.add.at(pairs, (z[:-1], z[1:]), weight)
        np.testing.assert_allclose(found.log_evidence[b], evidence, rtol=1e-10)
        np.testing.assert_allclose(found.marginals[b], marginals, atol=1e-10)
        np.testing.assert_allclose(found.pairs[b], pairs, atol=1e-10)
        assert decoded.states[b, :length].tolist() == list(options[int(total.argmax())])
        np.testing.assert_allclose(decoded.log_joint[b], total.max(), rtol=1e-10)


def test_without_weights_inputs_have_no_effect():
    batch = driven()
    model, plain = InputOutputHMM(3, 2, Categorical(3)), HMM(3, Categorical(3))
    state = em(model).init(jax.random.key(0), batch)
    params = state.params["hmm"]
    ordinary = state._replace(params={"hmm": params | {"transition": params["transition"]["bias"]}})
    np.testing.assert_allclose(model.log_prob(state, batch), plain.log_prob(ordinary, batch), rtol=1e-10)
    np.testing.assert_allclose(model.filter(state, batch), plain.filter(ordinary, batch), atol=1e-10)


def test_em_of_input_output_chains_never_falls_and_finds_the_weights():
    """Data of a chain whose switches follow the sign of its input; the fit is where the gradient vanishes."""
    model = InputOutputHMM(2, 1, Gaussian(DIAGONAL))
    inputs = jax.random.normal(jax.random.key(0), (20, 100, 1))
    batch = {"x": jnp.zeros((20, 100, 1)), "input": inputs}
    truth = em(model).init(jax.random.key(0), {**batch, "x": jax.random.normal(jax.random.key(1), (20, 100, 1))})
    params = truth.params["hmm"]
    weights = jnp.array([[[0.0], [3.0]], [[0.0], [3.0]]])
    mean, scale = truth.extra["input"]["mean"], truth.extra["input"]["scale"]
    params["transition"] = {"weights": weights * scale, "bias": weights[..., 0] * mean}
    params["emission"] = params["emission"] | {"means": jnp.array([[0.0], [4.0]])}
    truth = truth._replace(params={"hmm": params})
    batch["x"] = model.sample(truth, jax.random.key(2), 20, {"input": inputs})["x"]
    state, found = history(model, batch, 150)
    assert np.all(np.diff(found) > -1e-9)
    assert found[-1] > float(model.log_prob(truth, batch).mean()) - 1e-6  # no worse than the truth
    fitted = state.params["hmm"]
    order = np.argsort(fitted["emission"]["means"][:, 0])
    w = np.asarray(model.coefficients(state)[1])[order][:, order, 0]
    np.testing.assert_allclose(w[:, 1] - w[:, 0], 3, atol=1.0)
    slope = jax.grad(lambda p: model.loss(p, state, batch, jax.random.key(0))[0].value)(fitted)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(slope["transition"])) < 1e-2
    assert model.free_parameters(state) == 1 + 2 * 2 * 1 + 4


def test_shifted_and_scaled_inputs_give_the_same_fit():
    batch = driven(8, 30)
    batch = {**batch, "input": batch["input"].astype(jnp.float32)}
    moved = {**batch, "input": 3 * batch["input"] + 2000}
    model = InputOutputHMM(2, 2, Categorical(3))
    (_, plain), (state, other) = (history(model, b, 20) for b in (batch, moved))
    np.testing.assert_allclose(other, plain, atol=0.02)
    assert np.isfinite(state.params["hmm"]["transition"]["weights"]).all()


def test_a_state_without_transitions_keeps_its_weights():
    batch = driven(4, 1)
    model = InputOutputHMM(3, 2, Categorical(3))
    state = em(model).init(jax.random.key(0), batch)
    before = state.params["hmm"]["transition"]
    after = em(model).step(state, batch)[0].params["hmm"]["transition"]
    np.testing.assert_array_equal(after["bias"], before["bias"])
    np.testing.assert_array_equal(after["weights"], before["weights"])


def test_inputs_that_do_not_fit_are_named():
    model = InputOutputHMM(3, 2, Categorical(3))
    with pytest.raises(ValueError, match=r'must hold "input" \(sequences, steps, 2\), got none'):
        em(model).init(jax.random.key(0), symbols())
    short = driven() | {"input": jnp.zeros((3, 5, 2))}
    with pytest.raises(ValueError, match=r'"input" must have the axes \(3, 6\) of "x", got shape \(3, 5, 2\)'):
        em(model).init(jax.random.key(0), short)
    state = em(model).init(jax.random.key(0), driven())
    with pytest.raises(ValueError, match='must hold "input" for 6 sequences'):
        model.sample(state, jax.random.key(0), 6, {"input": jnp.zeros((4, 5, 2))})


# All of them


MODELS = {  # and batches of symbols made of theirs
    "semi-Markov": (HSMM(2, Categorical(3), CategoricalDurations(4)), dict),
    "poisson durations": (HSMM(2, Categorical(3), PoissonDurations(4)), dict),
    "input-output": (InputOutputHMM(2, 2, Categorical(3)), dict),
    "bayesian": (BayesianHMM(2, BayesianCategorical(3)), dict),
    "bayesian counts": (BayesianHMM(2, BayesianPoisson()), lambda b: {**b, "x": b["x"][..., None].astype(float)}),
    "bayesian gaussian": (BayesianHMM(2, BayesianGaussian()), lambda b: {**b, "x": b["x"][..., None].astype(float)}),
}


@pytest.mark.representatives("poisson durations", "input-output", "bayesian gaussian")
@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_weight_0_and_of_length_0_are_as_removed(name):
    model, made = MODELS[name]
    batch = made(driven(3))
    rubbish = {k: jnp.full((2, *a.shape[1:]), 1e6 if k == "input" else 1, a.dtype) for k, a in batch.items()}
    rubbish["input"] = rubbish["input"].at[:].set(jnp.nan)
    both = {k: jnp.concatenate([a, rubbish[k]]) for k, a in batch.items()}
    both |= {"length": jnp.array([6, 6, 6, 0, 6]), "weight": jnp.array([1.0, 1, 1, 1, 0])}
    algorithm = em(model)

    @jax.jit
    def run(batch):
        state, metrics = algorithm.step(algorithm.init(jax.random.key(0), batch), batch)
        return state.params, metrics["log_likelihood"]

    (ours, mine), (theirs, other) = run(both), run(batch)
    assert float(mine.value) == pytest.approx(float(other.value), rel=1e-9)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_float32_stays_float32_where_float64_is_enabled(name):
    model, made = MODELS[name]
    as32 = lambda a: a.astype(jnp.float32) if a.dtype.kind == "f" else a
    batch = jax.tree.map(as32, made(driven(3)))
    state = jax.eval_shape(em(model).init, jax.random.key(0), batch)
    if batch["x"].dtype.kind != "f":  # symbols say nothing about the type of the parameters
        state = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, "float32" if a.dtype == "float64" else a.dtype), state
        )
    after = jax.eval_shape(em(model).step, state, batch)[0]
    assert {a.dtype for a in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["semi-Markov", "input-output"])
def test_impossible_sequences_have_no_likelihood_and_no_counts(name):
    model, made = MODELS[name]
    batch = made(driven(3))
    batch["x"] = jnp.minimum(batch["x"], 1).at[0, 2].set(2)
    state = em(model).init(jax.random.key(0), batch)
    params = state.params["hmm"] | {"emission": {"logits": jnp.log(jnp.array([[0.5, 0.5, 0], [0.9, 0.1, 0]]))}}
    state = state._replace(params={"hmm": params})
    found = model.log_prob(state, batch)
    assert found[0] == -jnp.inf and np.isfinite(found[1:]).all()
    stats, _ = model.e_step(state, batch)
    np.testing.assert_allclose(stats["initial"].sum(), 2, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda moves: HSMM(3, Categorical(3), PoissonDurations(4), moves),
        lambda moves: InputOutputHMM(3, 2, Categorical(3), moves),
    ],
    ids=["semi-Markov", "input-output"],
)
def test_left_right_chains_begin_in_the_first_state(make):
    model = make(left_right(3))
    state = em(model).init(jax.random.key(0), driven())
    assert model.filter(state, driven())[:, 0].tolist() == [[1, 0, 0]] * 3
    moves = model.allowed[1]
    assert not moves[1, 0] and moves[0, 1]
    assert bool(moves[0, 0]) == isinstance(model, InputOutputHMM) and bool(moves[2, 2])
    after = em(model).step(state, driven())[0]
    assert np.isfinite(model.log_prob(after, driven())).all()


def test_shapes_and_parts_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="durations must be Durations"):
        HSMM(2, Poisson(), 20)
    with pytest.raises(ValueError, match="emission must be an Emission"):
        HSMM(2, Poisson, PoissonDurations(5))
    model = HSMM(2, Gaussian(), PoissonDurations(5))
    with pytest.raises(ValueError, match=r"\(sequences, steps, ...\), got shape \(5,\)"):
        em(model).init(jax.random.key(0), {"x": jnp.zeros(5)})
    with pytest.raises(ValueError, match='"weight" must have the axes'):
        em(model).init(jax.random.key(0), {"x": jnp.zeros((2, 5, 1)), "weight": jnp.ones((2, 5))})
    state = em(model).init(jax.random.key(0), {"x": jnp.zeros((2, 5, 1))})
    with pytest.raises(ValueError, match="cut off their padding"):
        model.extend(state, {"x": jnp.zeros((2, 5, 1)), "length": jnp.array([3, 5])}, jax.random.key(0), 2)


# Bayesian chains


def levels(seed=0, n=120):
    rng = np.random.default_rng(seed)
    z = np.repeat(rng.integers(3, size=n // 6), 6)
    return np.array([[0, 0], [5, 1], [1, 6]])[z] + rng.normal(size=(n, 2)) @ np.array([[1, 0.5], [0, 0.7]])


@pytest.mark.representatives("gaussian")
@pytest.mark.parametrize("name", ["gaussian", "categorical", "poisson"])
def test_every_iteration_of_a_bayesian_chain_raises_the_bound(name):
    x = levels().reshape(4, 30, 2)
    counts = np.random.default_rng(0).poisson(np.abs(x))
    batch, emission = {
        "gaussian": ({"x": jnp.asarray(x)}, BayesianGaussian()),
        "categorical": ({"x": jnp.asarray(counts[..., 0] % 4)}, BayesianCategorical(4)),
        "poisson": ({"x": jnp.asarray(counts, jnp.float64)}, BayesianPoisson()),
    }[name]
    batch["length"] = jnp.array([30, 20, 1, 25])
    model = BayesianHMM(4, emission)
    state, found = history(model, batch, 60, "log_posterior")
    assert np.all(np.diff(found) > -1e-9) and found[-1] > found[0] + 0.5
    assert np.isfinite(model.log_prob(state, batch)).all()
    assert model.decode(state, batch).states.shape == (4, 30)
    assert model.sample(state, jax.random.key(0), 2, length=5)["x"].shape[:2] == (2, 5)


def test_the_bound_of_one_state_is_the_evidence():
    """Rates have a Gamma posterior then: their evidence is negative binomial."""
    x = np.random.default_rng(0).poisson(3.0, size=(2, 9, 1)).astype(float)
    model = BayesianHMM(1, BayesianPoisson(0.7))
    _, found = history(model, {"x": jnp.asarray(x)}, 3, "log_posterior")
    a, b, total, n = 0.7 * x.mean(), 0.7, x.sum(), x.size
    evidence = a * np.log(b) - gammaln(a) + gammaln(a + total) - (a + total) * np.log(b + n) - gammaln(x + 1).sum()
    np.testing.assert_allclose(2 * found[-1], evidence, rtol=1e-10)


def test_padding_and_packing_leave_the_bound_of_a_bayesian_chain():
    x = levels()[:40]
    model = BayesianHMM(3, BayesianGaussian())
    apart = {"x": jnp.asarray(np.stack([x[:20], np.r_[x[20:30], np.zeros((10, 2))], np.r_[x[30:], np.zeros((10, 2))]]))}
    apart["length"] = jnp.array([20, 10, 10])
    packed = {"x": jnp.asarray(x.reshape(2, 20, 2)), "starts": jnp.zeros((2, 20), bool).at[1, 10].set(True)}
    algorithm = em(model)
    state = algorithm.init(jax.random.key(0), apart)
    ours, theirs = (jax.jit(algorithm.step)(state, batch) for batch in (apart, packed))
    np.testing.assert_allclose(ours[1]["log_likelihood"].total, theirs[1]["log_likelihood"].total, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(ours[0].params), jax.tree.leaves(theirs[0].params)):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def aligned(ours, theirs, x, lengths, posteriors):
    """Both fitted from the same posteriors."""
    for model in (ours, theirs):
        for name, value in posteriors.items():
            setattr(model, f"{name}_", np.copy(value) if np.ndim(value) else value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ours.fit(x, lengths), theirs.fit(x, lengths)


@pytest.mark.representatives("full")
@pytest.mark.parametrize("kind", ["full", "tied"])
def test_variational_gaussian_chains_are_those_of_hmmlearn(kind):
    x, lengths, k = levels(), [70, 50], 3
    r = np.random.default_rng(1)
    count = np.array([50.0, 40, 30])
    shape = np.cov(x.T)
    degrees = {"full": 2 + count, "tied": 2 + count.sum()}[kind]
    scale = np.stack([shape * d for d in degrees]) if kind == "full" else shape * degrees
    whole = {"full": np.broadcast_to(1e-3 * np.eye(2), (k, 2, 2)), "tied": 1e-3 * np.eye(2)}[kind]
    start = {
        "startprob_prior": np.full(k, 1 / k), "startprob_posterior": 1 / k + np.array([1, 0.5, 0.5]),
        "transmat_prior": np.full((k, k), 1 / k), "transmat_posterior": 1 / k + 40 * r.dirichlet(np.ones(k), size=k),
        "means_prior": np.tile(x.mean(axis=0), (k, 1)), "means_posterior": x[[0, 40, 90]],
        "beta_prior": np.ones(k), "beta_posterior": 1 + count,
        "dof_prior": np.full(k, 2.0) if kind == "full" else 2.0,
        "dof_posterior": degrees if kind == "full" else float(degrees),
        "scale_prior": whole, "scale_posterior": scale,
    }  # fmt: skip
    given = dict(covariance_type=kind, n_iter=12, tol=-np.inf, init_params="")
    theirs = hmmlearn.vhmm.VariationalGaussianHMM(k, **given)
    theirs._covars_ = shape if kind == "tied" else np.stack([shape] * k)
    ours, theirs = aligned(VariationalGaussianHMM(k, **given), theirs, x, lengths, start)
    constant = -0.5 * x.size * np.log(2 * np.pi)
    np.testing.assert_allclose(ours.monitor_.history, np.array(theirs.monitor_.history) + constant, rtol=1e-8)
    for name in ("startprob", "transmat", "means", "beta", "dof", "scale"):
        mine, other = (getattr(model, f"{name}_posterior_") for model in (ours, theirs))
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-8, err_msg=name)
    theirs.startprob_, theirs.transmat_ = ours.startprob_, ours.transmat_
    np.testing.assert_allclose(ours.score(x, lengths), theirs.score(x, lengths), rtol=1e-8)
    np.testing.assert_array_equal(ours.predict(x, lengths), theirs.predict(x, lengths))


def test_variational_categorical_chains_are_those_of_hmmlearn():
    x, lengths, k = np.random.default_rng(0).integers(4, size=(90, 1)), [60, 30], 3
    r = np.random.default_rng(1)
    start = {
        "startprob_prior": np.full(k, 1 / k), "startprob_posterior": 1 / k + np.array([1, 0.5, 0.5]),
        "transmat_prior": np.full((k, k), 1 / k), "transmat_posterior": 1 / k + 40 * r.dirichlet(np.ones(k), size=k),
        "emissionprob_prior": np.full((k, 4), 0.25),
        "emissionprob_posterior": 0.25 + 30 * r.dirichlet(np.ones(4), size=k),
    }  # fmt: skip
    given = dict(n_iter=12, tol=-np.inf, init_params="", n_features=4)
    ours, theirs = aligned(
        VariationalCategoricalHMM(k, **given), hmmlearn.vhmm.VariationalCategoricalHMM(k, **given), x, lengths, start
    )
    np.testing.assert_allclose(ours.monitor_.history, theirs.monitor_.history, rtol=1e-8)
    for name in ("startprob", "transmat", "emissionprob"):
        mine, other = (getattr(model, f"{name}_posterior_") for model in (ours, theirs))
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.representatives("diag")
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_highest_for_the_states_there_are(kind):
    x = levels(n=300)
    fits = [VariationalGaussianHMM(k, kind, n_init=4, random_state=0).fit(x, [150, 150]) for k in (2, 3, 4)]
    for model in fits:
        assert np.all(np.diff(model.monitor_.history) > -1e-7)
    assert np.argmax([model.monitor_.history[-1] for model in fits]) == 1
    for center in np.array([[0, 0], [5, 1], [1, 6]]):
        assert np.linalg.norm(fits[1].means_ - center, axis=1).min() < 0.5


def test_a_chain_without_posteriors_is_refused():
    with pytest.raises(ValueError, match="needs an emission with posteriors"):
        BayesianHMM(2, Gaussian())
    with pytest.raises(ValueError, match="degrees must be above"):
        em(BayesianHMM(2, BayesianGaussian(TIED, degrees=0.5))).init(jax.random.key(0), {"x": jnp.zeros((2, 5, 2))})
    with pytest.raises(ValueError, match="scale_prior must be symmetric and positive definite"):
        VariationalGaussianHMM(2, scale_prior=-np.eye(2)).fit(levels())
    with pytest.raises(ValueError, match="only whole rows may be missing"):
        VariationalGaussianHMM(2).fit(np.where(np.eye(20)[:, :2] > 0, np.nan, 1.0))
