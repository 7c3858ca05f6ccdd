"""Flows as models: densities, contexts, dequantization, variational use, imputation, evaluation."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal, norm, t

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.applications import imputation
from gen_jax.applications.imputation import impute
from gen_jax.core import State
from gen_jax.data.densities import banana
from gen_jax.data.source import Resident
from gen_jax.data.transforms import dequantize
from gen_jax.errors import UserError
from gen_jax.evaluation import in_float64, invertibility, log_integral, log_likelihood
from gen_jax.evaluation.metric import Split
from gen_jax.loop import fit
from gen_jax.models.bijections import (
    ActNorm,
    Chain,
    Continuous,
    Convolutional,
    Coupling,
    Dense,
    Field,
    Flattened,
    Inverse,
    Linear,
    MaskedAutoregressive,
    Planar,
    Reverse,
    Sigmoid,
    Stack,
    Standardize,
    glow,
)
from gen_jax.models.common.conditioning import ClassLabels, Images, Vector
from gen_jax.models.common.likelihoods import Gaussian
from gen_jax.models.common.networks import MLP
from gen_jax.models.flow import Dequantized, Flow, FlowMatching, Mixture, Normal, StudentT, Variational
from gen_jax.models.vae import VAE, posteriors, priors
from gen_jax.optimizers import adamw

KEY = jax.random.key(0)
NET = partial(Dense, hidden=(16,))
COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.8]])
MEAN = np.array([1.0, -2.0, 0.5])


def started(model, batch, spread=0.0):
    """A State with fresh parameters, moved by `spread` so that layers are not the identity."""
    params, extra = jax.jit(model.init)(KEY, batch)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), max(len(leaves), 1))
    params = tree.unflatten([a + spread * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)])
    return State(jnp.int32(0), KEY, params, (), extra)


def gaussian_flow():
    """A flow that is exactly N(MEAN, COVARIANCE): a linear layer and a shift."""
    model = Flow(Normal((3,)), [Linear(), ActNorm()])
    factor = np.linalg.cholesky(np.linalg.inv(COVARIANCE))  # z = (x - MEAN) factor
    lower = factor / np.diag(factor)
    params = {
        "layer_0": {
            "below": jnp.asarray(np.tril(lower, -1), jnp.float32),
            "above": jnp.zeros((3, 3)),
            "log_diagonal": jnp.asarray(np.log(np.diag(factor)), jnp.float32),
        },
        "layer_1": {"mean": jnp.asarray(MEAN, jnp.float32), "log_std": jnp.zeros(3)},
    }
    return model, State(jnp.int32(0), KEY, {"flow": {"layers": params}}, (), {})


@pytest.mark.parametrize(
    ("base", "reference"),
    [
        (Normal((2,)), lambda x: norm.logpdf(x).sum(axis=1)),
        (Normal((2,), learned=True), lambda x: norm.logpdf(x).sum(axis=1)),
        (StudentT((2,), 4.0), lambda x: t(4.0).logpdf(x).sum(axis=1)),
    ],
)
def test_bases_are_what_they_say(base, reference):
    x = np.asarray(jax.random.normal(KEY, (5, 2)))
    params = base.init(KEY)
    np.testing.assert_allclose(base(params).log_prob(x), reference(x), rtol=1e-4)
    assert base(params, (5,)).batch_shape == (5,)
    assert base(params, (5,)).sample(seed=KEY).shape == (5, 2)


def test_mixture_bases_are_mixtures():
    base = Mixture((2,), 3)
    params = base.init(KEY)
    x = np.asarray(jax.random.normal(KEY, (5, 2)))
    each = [multivariate_normal(np.asarray(m), np.eye(2)).logpdf(x) for m in params["means"]]
    np.testing.assert_allclose(base(params).log_prob(x), np.logaddexp.reduce(each) - np.log(3), rtol=1e-4)
    assert base(params, (5,)).sample(seed=KEY).shape == (5, 2)


def test_a_flow_is_a_distrax_distribution():
    model, state = gaussian_flow()
    flow = model(state.params["flow"])
    x, log_prob = flow.sample_and_log_prob(seed=KEY, sample_shape=(20_000,))
    reference = multivariate_normal(MEAN, COVARIANCE)
    np.testing.assert_allclose(log_prob, reference.logpdf(np.asarray(x)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.05)


def test_a_flow_fits_what_another_knows():
    """Maximum likelihood over linear flows is the Gaussian with the data's moments."""
    x = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 2000).astype(np.float32)
    model = Flow(Normal((3,)), [Linear(), ActNorm()])
    state = fit(descent(model, {"flow": adamw(3e-2, 500)}), Resident({"x": x}, None), 500, chunk=100)
    best = multivariate_normal(x.mean(axis=0), np.cov(x.T, bias=True)).logpdf(x).mean()
    found = float(jax.jit(model.log_prob)(state, {"x": x}).mean())
    assert best - 1e-3 < found < best + 1e-4


@pytest.mark.representatives("context0")
@pytest.mark.parametrize("context", [ClassLabels(3), Vector(2), Images(MLP([8], 4), 4, (5, 5, 1))])
def test_conditional_flows(context):
    batch = {
        "x": jax.random.normal(KEY, (6, 2)),
        "label": jnp.arange(6) % 3,
        "context": jax.random.normal(KEY, (6, 2)),
        "image": jax.random.normal(KEY, (6, 5, 5, 1)),
    }
    model = Flow(Normal((2,)), [Stack(Chain([Coupling(network=NET), Reverse()]), 2)], context)
    state = started(model, batch, 0.3)
    log_prob = model.log_prob(state, batch)
    other = model.log_prob(state, {**batch, context.entry: batch[context.entry][::-1]})
    assert log_prob.shape == (6,) and not np.allclose(log_prob, other)
    drawn = model.sample(state, KEY, 6, {context.entry: batch[context.entry]})
    np.testing.assert_allclose(model.latent(state, {**batch, "x": drawn["x"]})[0], drawn["z"], atol=1e-4)
    assert model.sample(state, KEY, 7)["x"].shape == (7, 2)
    assert model.unsupported({name: np.asarray(a) for name, a in batch.items()}) == ""
    assert "no entry" in model.unsupported({"x": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="no entry"):
        model.log_prob(state, {"x": batch["x"]})
    with pytest.raises(ValueError, match="given for 6 of 5 samples"):
        model.sample(state, KEY, 5, {context.entry: batch[context.entry]})
    assert not np.array_equal(model.sample(state, KEY, 6, batch)["x"], batch["x"])
    with pytest.raises(UserError, match="without a context"):
        plots.flow_density(model, state, Split("test", {"x": np.zeros((3, 2), np.float32)}), KEY)
    if "context" in state.params["flow"]:
        gradient = jax.grad(lambda p: model.loss(p, state, batch, KEY)[0])(state.params["flow"])["context"]
        assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


def test_temperature_scales_the_noise():
    model, state = gaussian_flow()
    np.testing.assert_allclose(model.sample(state, KEY, 4, temperature=0.0)["x"], np.tile(MEAN, (4, 1)), atol=1e-5)
    hot, cold = (np.asarray(model.sample(state, KEY, 4000, temperature=t)["x"]) for t in (1.0, 0.5))
    np.testing.assert_allclose(cold.std(axis=0), 0.5 * hot.std(axis=0), rtol=1e-3)


@pytest.mark.representatives("flow0")
@pytest.mark.parametrize("flow", [Inverse(MaskedAutoregressive(hidden=(16,))), Stack(Planar(), 2)])
def test_flows_as_posterior_and_prior_of_a_vae(flow):
    posterior = posteriors.FlowPosterior(flow, context=3)
    model = VAE(
        MLP([8], posterior.outputs(2)), MLP([8], 4), Gaussian(), 2, prior=priors.FlowPrior(flow), posterior=posterior
    )
    batch = {"x": jax.random.normal(KEY, (16, 4))}
    state = started(model, batch, 0.1)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: model.loss(p, state, batch, KEY)[0]))(state.params["vae"])
    assert np.isfinite(loss)
    for part in ("prior", "posterior"):
        assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient[part]))
    z, log_q = jax.jit(lambda b: model.encode(state, b).sample_and_log_prob(seed=KEY, sample_shape=(5,)))(batch)
    assert z.shape == (5, 16, 2) and log_q.shape == (5, 16)


def test_learned_dequantization_bounds_the_probability_of_integers():
    """Better than uniform noise does, and never above the exact log-probability."""
    model = Dequantized(Flow(Normal((2, 2, 1)), [Sigmoid(0.0)]), Convolutional(2, 4, 1), levels=4)
    batch = {"x": jnp.asarray(np.random.default_rng(0).integers(4, size=(64, 2, 2, 1)))}
    state = fit(
        descent(model, {"flow": adamw(1e-2, 300)}), Resident(jax.tree.map(np.asarray, batch), None), 300, chunk=100
    )
    bound = float(jax.jit(model.elbo)(state, batch, KEY).mean())
    v = (np.arange(4000) + 0.5) / 4000
    density = norm.pdf(np.log(v / (1 - v))) / (v * (1 - v))
    uniform = 4 * (np.log(density).mean() - np.log(4))  # what uniform noise would bound, levels being equally likely
    exact = 4 * np.log(density.reshape(4, 1000).mean(axis=1) / 4).mean()
    assert uniform + 0.1 < bound < exact + 0.05
    drawn = np.asarray(model.sample(state, KEY, 50)["x"])
    assert drawn.dtype.kind == "i" and drawn.min() >= 0 and drawn.max() <= 3


def test_variational_flows_find_the_integral_of_the_target():
    layers = [Stack(Chain([Coupling(network=partial(Dense, hidden=(32, 32))), Reverse()]), 4)]
    model = Variational(Flow(Normal((2,), learned=True), layers), banana, 256)
    data = Resident({"x": np.zeros((256, 2), np.float32)}, None)
    state = fit(descent(model, {"flow": adamw(5e-3, 1500, clip=10.0)}), data, 1500, chunk=100)
    found = log_integral(model)(state, Split("test", {"x": np.zeros((10, 2), np.float32)}), KEY)
    truth = np.log(0.6 * np.pi)
    assert found["log_integral"].value == pytest.approx(truth, abs=0.03)
    assert truth - 0.15 < found["elbo"].value < truth + 1e-3
    assert found["effective"].value > 0.5


# Missing values


@pytest.mark.representatives("seen2-None")
@pytest.mark.optimized
@pytest.mark.parametrize(
    ("seen", "method"), [([0], None), ([0, 1], imputation.in_order), ([0, 2], None), ([1], imputation.latent_walk)]
)
def test_imputation_is_the_exact_conditional(seen, method):
    model, state = gaussian_flow()
    if method is not imputation.latent_walk and seen != [0, 2]:
        model = triangular_gaussian()
        state = started(model, {"x": jnp.zeros((4, 3))})
        state = state._replace(params={"flow": {"layers": {"layer_0": triangular_params()}}})
    hidden = [i for i in range(3) if i not in seen]
    x = MEAN + np.array([0.7, -0.4, 0.3])
    mask = np.zeros((1, 3), bool)
    mask[0, seen] = True
    given = np.where(mask, x, np.nan)[0]
    drawn = jax.jit(lambda x: impute(model, state, x, mask, KEY, 4000, method))(jnp.asarray(x[None], jnp.float32))
    drawn = np.asarray(drawn)[:, 0]
    np.testing.assert_allclose(drawn[:, seen], np.tile(given[seen], (4000, 1)), rtol=1e-5)
    gain = COVARIANCE[np.ix_(hidden, seen)] @ np.linalg.inv(COVARIANCE[np.ix_(seen, seen)])
    mean = MEAN[hidden] + gain @ (x - MEAN)[seen]
    covariance = COVARIANCE[np.ix_(hidden, hidden)] - gain @ COVARIANCE[np.ix_(seen, hidden)]
    np.testing.assert_allclose(drawn[:, hidden].mean(axis=0), mean, atol=0.08)
    np.testing.assert_allclose(np.cov(drawn[:, hidden].T), covariance.squeeze(), atol=0.12)


class _Triangular(ActNorm):
    """z = L^-1 (x - MEAN), which is autoregressive in the order of x."""

    factor = np.linalg.cholesky(COVARIANCE)

    def forward(self, params, z, context=None):
        return z @ self.factor.T.astype(np.float32) + params["mean"], jnp.zeros(len(z))

    def inverse(self, params, x, context=None):
        return (x - params["mean"]) @ np.linalg.inv(self.factor).T.astype(np.float32), jnp.zeros(len(x))


def triangular_gaussian():
    return Flow(Normal((3,)), [_Triangular()])


def triangular_params():
    return {"mean": jnp.asarray(MEAN, jnp.float32), "log_std": jnp.zeros(3)}


def test_imputation_chooses_the_exact_way_where_there_is_one(monkeypatch):
    def no(*arguments):
        raise AssertionError("walked")

    monkeypatch.setattr(imputation, "latent_walk", no)
    model = Flow(Normal((3,)), [MaskedAutoregressive(hidden=(8,)), Standardize()])
    x = jax.random.normal(KEY, (4, 3))
    state = started(model, {"x": x}, 0.3)
    first = np.tile([True, False, False], (4, 1))
    drawn = impute(model, state, x, first, KEY, 5)
    assert drawn.shape == (5, 4, 3)
    with pytest.raises(AssertionError, match="walked"):
        impute(model, state, x, ~first, KEY, 5)
    with pytest.raises(ValueError, match="shape of x"):
        impute(model, state, x, first[:, :2], KEY, 5)
    with pytest.raises(ValueError, match="nothing was observed"):
        impute(model, state, x, np.zeros((4, 3), bool), KEY, 5)


# Evaluation, pictures, bad input


def test_invertibility_of_a_linear_flow_is_that_of_its_matrix():
    model, state = gaussian_flow()
    x = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 50).astype(np.float32)
    found = invertibility(model)(state, Split("test", {"x": x}), KEY)
    assert found["round_trip"].value < 1e-5
    expected = -0.5 * np.linalg.slogdet(COVARIANCE)[1]
    assert found["log_det_min"].value == pytest.approx(expected, abs=1e-4)
    assert found["log_det_max"].value == pytest.approx(expected, abs=1e-4)
    assert found["condition"].value == pytest.approx(np.sqrt(np.linalg.cond(COVARIANCE)), rel=1e-3)


def test_evaluation_in_float64():
    model, state = gaussian_flow()
    x = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 50).astype(np.float32)
    split = Split("test", {"x": x})
    wide = in_float64(log_likelihood)(model)(state, split, KEY)["log_likelihood_float64"]
    assert wide.value == pytest.approx(log_likelihood(model)(state, split, KEY)["log_likelihood"].value, abs=1e-5)
    assert in_float64(invertibility)(model)(state, split, KEY)["round_trip_float64"].value < 1e-13
    assert not jax.config.jax_enable_x64
    integers = Split("test", {"x": np.random.default_rng(0).integers(4, size=(50, 3))}, (dequantize(4),))
    wide = in_float64(log_likelihood)(model)(state, integers, KEY)["log_likelihood_float64"]  # by the same noise
    assert wide.value == pytest.approx(log_likelihood(model)(state, integers, KEY)["log_likelihood"].value, abs=1e-5)


def test_pictures():
    model = Flow(Normal((2,)), [Stack(Chain([Coupling(network=NET), Reverse()]), 3), Standardize()])
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    state, split = started(model, {"x": jnp.asarray(x)}, 0.2), Split("test", {"x": x})
    assert len(plots.flow_density(model, state, split, KEY).axes) == 4  # the density with its scale
    grid = plots.warped_grid(model, state, split, KEY)
    assert [axis.get_title() for axis in grid.axes if axis.get_title()][-1] == "after 7 of 7 layers"
    assert len(plots.latent_space(model, state, split, KEY).axes) >= 4
    images = Flow(Normal((4, 4, 1)), [glow(1, 1, partial(Convolutional, width=4, blocks=1))])
    x = np.zeros((10, 4, 4, 1), np.float32)
    state = started(images, {"x": jax.random.normal(KEY, x.shape)}, 0.05)
    assert plots.temperatures(images, state, Split("test", {"x": x}), KEY).axes


def test_data_a_flow_cannot_explain_is_refused():
    plain = Flow(Normal((2,)), [Standardize()])
    assert "add a transform such as dequantize()" in plain.unsupported({"x": np.zeros((3, 2), np.uint8)})
    squashed = Flow(Normal((2,)), [Standardize(), Sigmoid()])
    assert "in [0, 1]" in squashed.unsupported({"x": np.full((3, 2), 1.5, np.float32)})
    assert squashed.unsupported({"x": np.full((3, 2), 0.5, np.float32)}) == ""
    with pytest.raises(ValueError, match="the base has"):
        plain.init(KEY, {"x": jnp.zeros((3, 4))})
    assert "NaN or infinite" in plain.unsupported({"x": np.array([[np.nan, 1.0]])})
    with pytest.raises(ValueError, match="the network of the noise"):
        Dequantized(squashed, Dense(2), levels=4).init(KEY, {"x": jnp.zeros((3, 2), jnp.int32)})
    integers = Dequantized(Flow(Normal((2,)), [Sigmoid()]), Dense(4), levels=4)
    assert "integers from 0 to 3" in integers.unsupported({"x": np.full((3, 2), 4)})
    assert integers.unsupported({"x": np.full((3, 2), 3)}) == ""
    for make in (
        lambda: Normal(()),
        lambda: Mixture((2,), 0),
        lambda: Dequantized(squashed, Dense(4), levels=1),
        lambda: StudentT((2,), 1.0),
        lambda: Variational(plain, banana, 0),
        lambda: Variational(replace(plain, conditioning=ClassLabels(2)), banana),
    ):
        with pytest.raises(ValueError):
            make()


def test_a_likelihood_by_hutchinsons_trace_is_called_an_estimate():
    def kind(probes):
        flow = Flow(Normal((2,)), [Chain([Inverse(Continuous(Field((4,)), probes=probes))])])
        x = {"x": np.zeros((4, 2), np.float32)}
        params, extra = flow.init(jax.random.key(0), x)
        state = State(jnp.int32(0), jax.random.key(0), params, (), extra)
        return log_likelihood(flow)(state, Split("test", x), jax.random.key(0))["log_likelihood"].kind

    assert (kind(0), kind(1)) == ("exact", "estimate")


def test_flow_matching_finds_the_flow_of_a_normal():
    """Its densities come from the equation that training never solves."""
    x = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 4000).astype(np.float32)
    flow = FlowMatching(Normal((3,)), [Continuous(Field((32, 32))), Standardize()])
    state = fit(
        descent(flow, {"flow": optax.adam(optax.cosine_decay_schedule(1e-2, 1500))}),
        Resident({"x": x}, 512),
        1500,
        chunk=100,
    )
    found = flow.log_prob(state, {"x": x[:500]})
    expected = multivariate_normal(MEAN, COVARIANCE).logpdf(x[:500])
    assert np.mean(expected - found) < 0.03 and np.corrcoef(found, expected)[0, 1] > 0.97
    drawn = flow.sample(state, KEY, 4000)["x"]
    np.testing.assert_allclose(np.mean(drawn, axis=0), MEAN, atol=0.15)
    np.testing.assert_allclose(np.cov(drawn.T), COVARIANCE, atol=0.25)
    assert type(flow.unpenalized()) is Flow
    np.testing.assert_allclose(flow.unpenalized().log_prob(state, {"x": x[:9]}), flow.log_prob(state, {"x": x[:9]}))


def test_flow_matching_regresses_what_is_said():
    """With the field at zero, the loss is E|x1 - (1 - least) x0|^2 of images, here of constant ones."""
    flow = FlowMatching(Normal((2, 2, 1)), [Flattened(Continuous(Field((4,))))], least=0.5)
    x = jnp.full((4000, 2, 2, 1), 3.0)
    state = started(flow, {"x": x[:1]}, 0.0)
    loss, _ = flow.loss(state.params["flow"], state, {"x": x}, KEY)
    assert float(loss.value) == pytest.approx(4 * (9 + 0.25), rel=0.02)
    for layers, options in (([Standardize()], {}), ([Continuous()], {"least": 1.0})):
        with pytest.raises(ValueError, match="Continuous|least"):
            FlowMatching(Normal((2,)), layers, **options)
