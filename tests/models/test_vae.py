"""The VAE family: its parts against definitions and closed forms, the whole against a model that is known exactly."""

import itertools
from dataclasses import replace
from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import logistic, multivariate_normal, norm

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.applications import imputation
from gen_jax.applications.imputation import impute
from gen_jax.configs import load
from gen_jax.core import State
from gen_jax.data import Resident
from gen_jax.data.transforms import binarize
from gen_jax.errors import UserError
from gen_jax.evaluation import (
    active_units,
    importance_weighted,
    kl_per_dimension,
    latent_accuracy,
    reconstruction_error,
)
from gen_jax.evaluation.metric import Split
from gen_jax.loop import fit
from gen_jax.models.common.conditioning import ClassLabels, Vector
from gen_jax.models.common.likelihoods import (
    Bernoulli,
    BinnedLogistic,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
)
from gen_jax.models.common.networks import MLP, ConvDecoder, ConvEncoder, ResidualDecoder, ResidualEncoder
from gen_jax.models.vae import HVAE, VAE, VQVAE, bounds, posteriors, priors
from gen_jax.run import Run

KEY = jax.random.key(0)


def started(model, batch, extra=None):
    """A state of a model as it begins."""
    params, made = jax.jit(model.init)(KEY, batch)
    return State(jnp.int32(0), KEY, params, {}, made if extra is None else extra)


# Likelihoods


@pytest.mark.parametrize("location, log_scale", [(0.0, -1.0), (-3.0, 0.5), (1.0, -6.0), (0.3, -20.0)])
def test_binned_logistic_sums_to_one_and_is_scipys(location, log_scale):
    levels = 17
    k = jnp.arange(levels)
    p = np.exp(
        np.asarray(BinnedLogistic(jnp.float32(location), jnp.float32(log_scale), levels).log_prob(k), np.float64)
    )
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    edges = np.concatenate([[-np.inf], (2 * np.arange(levels - 1) + 1) / (levels - 1) - 1, [np.inf]])
    expected = np.diff(logistic(location, np.exp(max(log_scale, -7.0))).cdf(edges))
    np.testing.assert_allclose(p, expected, atol=1e-6)


def test_binned_logistic_keeps_its_digits_and_gradients_in_the_tails():
    far = lambda location: BinnedLogistic(location, jnp.float32(-6.0), 256).log_prob(jnp.int32(255 // 2))
    value, gradient = jax.value_and_grad(far)(jnp.float32(40.0))
    assert np.isfinite(value) and value < -1e4 and np.isfinite(gradient) and gradient != 0


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [DiscretizedLogistic(9), DiscretizedLogistic(9, components=3), Categorical(9)])
def test_integers_have_probabilities_that_samples_follow(likelihood):
    outputs = jax.random.normal(KEY, (1, 2, 1, 2 * likelihood.channels))  # two channels of two pixels
    d = likelihood(outputs)
    p = np.exp(np.stack([d.log_prob(jnp.full((1, 2, 1, 2), k)) for k in range(9)]))
    np.testing.assert_allclose(p.sum(axis=0), 1.0, atol=1e-5)
    drawn = d.sample(seed=KEY, sample_shape=(20_000,))
    assert drawn.dtype == jnp.int32 and d.mean().shape == (1, 2, 1, 2) and d.mean().dtype == jnp.int32
    np.testing.assert_allclose((drawn[None] == jnp.arange(9).reshape(9, 1, 1, 1, 1, 1)).mean(axis=1), p, atol=0.02)


def test_gaussians_are_scipys_and_a_shared_scale_is_learned():
    outputs, x = jnp.array([[0.3, -0.5]]), jnp.array([[1.0]])
    learned = Gaussian("learned")(outputs)
    assert float(learned.log_prob(x)[0, 0]) == pytest.approx(norm(0.3, np.exp(-0.5)).logpdf(1.0), rel=1e-5)
    fixed = Gaussian(0.2)(outputs)
    np.testing.assert_allclose(fixed.log_prob(outputs + 0.1), norm(0, 0.2).logpdf(0.1), rtol=1e-4)
    data = {"x": (3.0 + 0.5 * np.random.default_rng(0).normal(size=(2000, 2))).astype(np.float32)}
    model = VAE(MLP((), 2), MLP((), 2), Gaussian("shared"), latent=1, beta=20.0)  # z is too dear to be used
    state = fit(descent(model, {"vae": optax.adam(0.02)}), Resident(data, 500), 400, chunk=100)
    assert np.exp(state.params["vae"]["likelihood"]["log_scale"]) == pytest.approx(0.5, rel=0.05)


def test_bernoulli_likelihood():
    x = jnp.ones((2, 8, 8, 1))
    np.testing.assert_allclose(Bernoulli()(x).log_prob(x).sum((1, 2, 3)), 64 * np.log(1 / (1 + np.exp(-1))), rtol=1e-5)


@pytest.mark.parametrize(
    "likelihood, x, reason",
    [
        (Bernoulli(), np.array([0.0, 255.0]), "from 0 to 1; the data goes from 0.0 to 255.0"),
        (DiscretizedLogistic(16), np.array([0, 16], np.uint8), "as many levels as the data has"),
        (Categorical(3), np.array([0.5, 1.0]), "the data has fractions"),
        (Bernoulli(), np.array([0.0, 0.3, 1.0]), ""),
        (DiscretizedLogistic(17), np.array([0, 16], np.uint8), ""),
    ],
)
def test_data_outside_the_support_is_named(likelihood, x, reason):
    found = likelihood.unsupported(x)
    assert (reason in found) if reason else found == ""


def test_impossible_likelihoods_are_refused():
    for make in (lambda: Gaussian("wide"), lambda: Gaussian(-1.0), lambda: DiscretizedLogistic(1)):
        with pytest.raises(ValueError):
            make()


# Posteriors and priors


class Shift:
    """A flow: z -> z + shift, and the context's first number."""

    def init(self, key, x, context=None):
        return jnp.full(x.shape[1:], 2.0)

    def __call__(self, params, context=None):
        return distrax.Block(distrax.ScalarAffine(shift=params if context is None else params + context[..., :1]), 1)


def test_full_covariance_is_the_normal_its_outputs_say():
    q = posteriors.FullCovariance()
    outputs = jnp.array([[1.0, -1.0, np.log(2.0), np.log(0.5), 0.7]])
    assert outputs.shape[1] == q.outputs(2)
    factor = np.array([[2.0, 0.0], [0.7, 0.5]])
    expected = multivariate_normal([1.0, -1.0], factor @ factor.T).logpdf([0.3, 0.2])
    assert float(q(outputs).log_prob(jnp.array([[0.3, 0.2]]))[0]) == pytest.approx(expected, rel=1e-5)


def test_no_solve_of_lapack_is_in_the_program():
    """Two of them side by side have been seen to wait for each other's threads for ever on a CPU."""
    q = posteriors.FullCovariance()
    model = VAE(MLP((), q.outputs(3)), MLP((), 3), Gaussian(), 3, prior=priors.VampPrior(4), posterior=q)
    batch = {"x": jnp.zeros((4, 3))}
    state = started(model, batch)
    program = jax.make_jaxpr(jax.grad(lambda p: model.loss(p, state, batch, KEY)[0]))(state.params["vae"])
    assert "triangular_solve" not in str(program)


@pytest.mark.parametrize("q", [posteriors.Diagonal(), posteriors.Diagonal(True), posteriors.FullCovariance()])
def test_kl_in_closed_form_is_what_samples_say(q):
    distribution = q(0.3 * jax.random.normal(KEY, (3, q.outputs(4))))
    prior = distrax.MultivariateNormalDiag(jnp.zeros(4), jnp.ones(4))
    z, log_q = posteriors.draw(distribution, KEY, 50_000)
    closed = posteriors.kl_by_dimension(distribution, prior).sum(axis=1)
    np.testing.assert_allclose((log_q - prior.log_prob(z)).mean(axis=0), closed, atol=0.05)


def test_flows_move_posteriors_and_priors():
    q = posteriors.FlowPosterior(Shift())
    outputs = jnp.zeros((1, 6))
    params = q.init(KEY, 3)
    z, log_q = posteriors.draw(q(outputs, params), KEY, 4)
    np.testing.assert_allclose(
        log_q, distrax.MultivariateNormalDiag(jnp.full(3, 2.0), jnp.ones(3)).log_prob(z), rtol=1e-5
    )
    np.testing.assert_allclose(posteriors.mean(q(outputs, params)), 2.0)
    batch = {"x": jnp.zeros((4, 2))}
    model = VAE(
        MLP((), 4),
        MLP((), 2),
        Gaussian(),
        2,
        prior=priors.FlowPrior(Shift()),
        posterior=posteriors.FlowPosterior(Shift()),
    )
    state = started(model, batch)
    assert {"prior", "posterior"} <= set(state.params["vae"])
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, state, batch, KEY)[0]))(state.params["vae"])
    assert np.all(np.asarray(gradient["prior"]["flow"]) != 0)


@pytest.mark.slow
def test_mixture_priors_are_what_they_say():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    model = VAE(MLP((), 4), MLP((), 3), Gaussian(), 2, prior=priors.VampPrior(6))
    state = started(model, {"x": x})
    z = jnp.array([[0.3, -0.2]])
    each = model._posterior(state.params["vae"], state.params["vae"]["prior"]["inputs"]).log_prob(z)
    assert float(model.prior_of(state).log_prob(z)[0]) == pytest.approx(
        float(jax.nn.logsumexp(each) - np.log(6)), rel=1e-5
    )
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, state, {"x": x}, KEY)[0]))(state.params["vae"])
    assert np.any(np.asarray(gradient["prior"]["inputs"]) != 0)  # pseudo-inputs are learned
    mixed = replace(model, prior=priors.GaussianMixture(3))
    assert mixed.sample(started(mixed, {"x": x}), KEY, 7)["z"].shape == (7, 2)


# Bounds


def terms_of(log_weights, kl=None):
    zero = jnp.zeros_like(log_weights)
    return bounds.BoundTerms(log_weights, zero, zero, kl)


def test_bounds_are_their_definitions():
    ll, lp, lq = (jax.random.normal(jax.random.key(i), (4, 3)) for i in range(3))
    kl = jnp.array([[0.0, 0.5], [0.2, 0.7], [0.1, 0.9]])
    terms = bounds.BoundTerms(ll, lp, lq, kl)
    np.testing.assert_allclose(bounds.elbo(terms, 2.0), ll.mean(0) - 2.0 * kl.sum(1), rtol=1e-5)
    np.testing.assert_allclose(bounds.elbo(terms, analytic=False), (ll + lp - lq).mean(0), rtol=1e-5)
    expected = np.log(np.exp(np.asarray(ll + lp - lq, np.float64)).mean(0))
    np.testing.assert_allclose(bounds.iwae(terms), expected, rtol=1e-5)
    one = bounds.BoundTerms(ll[:1], lp[:1], lq[:1], kl)
    np.testing.assert_allclose(bounds.iwae(one), bounds.elbo(one, analytic=False), rtol=1e-5)
    # means by dimension are 0.1 and 0.7: the first costs the free 0.3, the second what it is
    np.testing.assert_allclose(bounds.elbo(terms, free_bits=0.3), ll.mean(0) - 0.3 - kl[:, 1], rtol=1e-5)
    sized = ll.mean(0) - 0.5 * (kl * jnp.array([0.101, 0.17525]) / 0.138125).sum(1)
    with_sizes = bounds.elbo(terms._replace(sizes=jnp.array([1, 4])), 0.5, balanced=True)
    np.testing.assert_allclose(with_sizes, sized, rtol=1e-5)
    balanced = ll.mean(0) - 0.5 * (kl * jnp.array([0.101, 0.701]) / 0.401).sum(1)
    np.testing.assert_allclose(bounds.elbo(terms, 0.5, balanced=True), balanced, rtol=1e-5)
    np.testing.assert_allclose(bounds.elbo(terms, 1.0, balanced=True), bounds.elbo(terms), rtol=1e-6)


def test_annealing():
    steps = jnp.arange(0, 40, 5)
    np.testing.assert_allclose(jax.vmap(bounds.linear(4.0, 20))(steps), [0, 1, 2, 3, 4, 4, 4, 4])
    np.testing.assert_allclose(jax.vmap(bounds.cyclical(2.0, 20))(steps), [0, 1, 2, 2, 0, 1, 2, 2])
    for wrong in (lambda: bounds.linear(1.0, 0), lambda: bounds.cyclical(1.0, 10, 0.0)):
        with pytest.raises(ValueError):
            wrong()


def test_beta_weighs_the_kl_and_may_follow_the_step():
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)}
    model = VAE(MLP((), 4), MLP((), 3), Gaussian(), 2)
    state = started(model, batch)
    terms = model.terms(state.params["vae"], batch, KEY)
    for step, beta, expected in [(0, 4.0, 4.0), (5, lambda step: step / 10, 0.5)]:
        now = state._replace(step=jnp.int32(step))
        loss, _ = replace(model, beta=beta).loss(state.params["vae"], now, batch, KEY)
        assert float(loss) == pytest.approx(
            float((expected * terms.kl.sum(1) - terms.log_likelihood[0]).mean()), rel=1e-5
        )


# Against a model known exactly: probabilistic PCA


def exact_model(latent=2, dimensions=5, widened=0.0):
    """A linear VAE, a state with the exact q(z | x) (its log scale `widened`), data, their mean and covariance."""
    rng = np.random.default_rng(1)
    loading, offset, noise = rng.normal(size=(latent, dimensions)), rng.normal(size=dimensions), 0.4
    covariance = loading.T @ loading + noise**2 * np.eye(dimensions)
    posterior = np.linalg.inv(np.eye(latent) + loading @ loading.T / noise**2)
    gain = loading.T @ posterior / noise**2
    q = posteriors.FullCovariance()
    factor = np.linalg.cholesky(posterior)
    spread = [*np.log(np.diag(factor)) + widened, *(np.exp(widened) * factor[np.tril_indices(latent, -1)])]
    encoder = {
        "kernel": np.concatenate([gain, np.zeros((dimensions, len(spread)))], axis=1),
        "bias": np.concatenate([-offset @ gain, spread]),
    }
    decoder = {"kernel": loading, "bias": offset}
    networks = {name: {"Dense_0": layer} for name, layer in (("encoder", encoder), ("decoder", decoder))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), networks)
    model = VAE(MLP((), q.outputs(latent)), MLP((), dimensions), Gaussian(noise), latent, posterior=q)
    state = State(jnp.int32(0), KEY, {"vae": params}, {}, {})
    x = rng.multivariate_normal(offset, covariance, size=200).astype(np.float32)
    return model, state, x, offset, covariance


def test_bounds_tighten_with_samples_and_stay_below_the_exact_likelihood():
    model, state, x, mean, covariance = exact_model()
    exact = multivariate_normal(mean, covariance).logpdf(x)
    tight = jax.jit(model.elbo)(state, {"x": x}, KEY)
    np.testing.assert_allclose(tight.mean(), exact.mean(), atol=0.15)  # where q is the posterior
    loose_model, loose, *_ = exact_model(widened=0.7)
    bound = lambda k: bounds.iwae(loose_model.terms(loose.params["vae"], {"x": jnp.tile(x, (5, 1))}, KEY, k)).mean()
    found = [float(jax.jit(bound, static_argnums=0)(k)) for k in (1, 5, 50, 1000)]
    assert all(b > a + 0.01 for a, b in zip(found, found[1:])), found
    assert found[-1] <= exact.mean() + 0.005 and found[-1] == pytest.approx(exact.mean(), abs=0.02)


def test_a_linear_vae_reaches_the_optimum_of_probabilistic_pca():
    """The best likelihood in closed form (Tipping & Bishop 1999, eq. 3.8), within half a per cent."""
    rng = np.random.default_rng(0)
    x = 0.5 * rng.normal(size=(2000, 2)) @ rng.normal(size=(2, 6)) + 0.2 * rng.normal(size=(2000, 6))
    x = x.astype(np.float32)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    rest = values[2:].mean()
    best = -0.5 * (6 * np.log(2 * np.pi) + np.log(values[:2]).sum() + 4 * np.log(rest) + 6)
    model = VAE(MLP((), 4), MLP((), 6), Gaussian("shared"), latent=2)
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, 3000))
    state = fit(descent(model, {"vae": tx}), Resident({"x": x}, 500), 3000, chunk=500)
    params = jax.tree.map(np.asarray, state.params["vae"])
    decoder, noise = params["decoder"]["Dense_0"], np.exp(params["likelihood"]["log_scale"])
    covariance = decoder["kernel"].T @ decoder["kernel"] + noise**2 * np.eye(6)
    reached = multivariate_normal(decoder["bias"], covariance).logpdf(x).mean()
    assert reached == pytest.approx(best, rel=0.005)
    bound = float(np.mean([model.elbo(state, {"x": x}, jax.random.key(i)).mean() for i in range(10)]))
    assert bound <= reached + 0.01 and bound == pytest.approx(reached, abs=0.1)


@pytest.mark.representatives("0.5-importance")
@pytest.mark.parametrize("widened, method", [(0.5, imputation.importance), (-0.5, imputation.pseudo_gibbs)])
def test_imputation_follows_the_exact_conditional(widened, method):
    """Even with a posterior that is not exact."""
    model, state, x, mean, covariance = exact_model(widened=widened)
    mask = np.zeros((2, 5), bool)
    mask[0, [0, 3]] = mask[1, [1, 2, 4]] = True
    x = x[:2]
    drawn = np.asarray(jax.jit(lambda: impute(model, state, {"x": x}, mask, KEY, 4000, method=method))())
    assert drawn.shape == (4000, 2, 5)
    for b, seen in enumerate(mask):
        np.testing.assert_array_equal(drawn[:, b, seen], np.broadcast_to(x[b, seen], (4000, seen.sum())))
        gain = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        expected = mean[~seen] + gain @ (x[b, seen] - mean[seen])
        spread = covariance[np.ix_(~seen, ~seen)] - gain @ covariance[np.ix_(seen, ~seen)]
        scale = np.sqrt(np.diag(spread))
        np.testing.assert_allclose((drawn[:, b, ~seen].mean(0) - expected) / scale, 0, atol=0.15)
        np.testing.assert_allclose(
            np.cov(drawn[:, b, ~seen].T) / np.outer(scale, scale), spread / np.outer(scale, scale), atol=0.15
        )


@pytest.mark.slow
def test_pseudo_gibbs_without_correction_is_biased_where_q_is_wrong():
    """So that the test above can tell: the spread is too wide by far."""
    model, state, x, mean, covariance = exact_model(widened=0.9)
    mask = np.array([[True, False, False, True, False]])
    drawn = {
        corrected: impute(
            model, state, {"x": x[:1]}, mask, KEY, 2000, partial(imputation.pseudo_gibbs, corrected=corrected)
        )
        for corrected in (False, True)
    }
    assert float(drawn[False][:, 0, 1].std()) > 1.2 * float(drawn[True][:, 0, 1].std())


def test_likelihood_of_what_was_observed():
    model, state, x, mean, covariance = exact_model(widened=0.3)
    mask = np.tile([True, False, True, True, False], (20, 1))
    seen = mask[0]
    exact = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(x[:20, seen])
    found = jax.jit(lambda: imputation.log_prob_observed(model, state, {"x": x[:20]}, mask, KEY, 4000))()
    np.testing.assert_allclose(found, exact, atol=0.15)


def test_masks_that_do_not_fit_are_refused():
    model, state, x, *_ = exact_model()
    batch = {"x": x[:3]}
    for mask, reason in [
        (np.ones((3, 4), bool), "shape of x"),
        (np.ones((3, 5)), "booleans"),
        (np.arange(3)[:, None] * np.ones(5) > 0, "nothing was observed of example 0"),
    ]:
        with pytest.raises(ValueError, match=reason):
            impute(model, state, batch, mask, KEY)


# Networks and shapes


def image_vae(dtype=jnp.float32, **more):
    likelihood = DiscretizedLogistic(17)
    encoder = ConvEncoder((8, 8), 16, 8, dtype=dtype)
    return VAE(encoder, ConvDecoder((8, 8), (8, 8), likelihood.channels, dtype=dtype), likelihood, 4, **more)


def images(n=16):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 17, size=(n, 8, 8, 1)), jnp.uint8)
    return {"x": x, "label": jnp.arange(n) % 10}


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = image_vae(jnp.bfloat16)
    state = started(model, images())
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(lambda p: model.terms(p, images(), KEY))(state.params["vae"])
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert products and all(e.outvars[0].aval.dtype == jnp.bfloat16 for e in products)
    full, half = (jax.jit(m.terms)(state.params["vae"], images(), KEY) for m in (image_vae(), model))
    np.testing.assert_allclose(half.log_likelihood, full.log_likelihood, rtol=0.02)


def test_residual_networks_with_any_context():
    likelihood = Categorical(17)
    encoder, decoder = ResidualEncoder((4,), 6), ResidualDecoder((8, 8), (4,), likelihood.channels)
    model = VAE(encoder, decoder, likelihood, 3, conditioning=Vector(5, "where"))
    batch = {**images(4), "where": jnp.ones((4, 5))}
    state = started(model, batch)
    elbo = jax.jit(model.elbo)
    assert elbo(state, batch, KEY).shape == (4,)
    other = {**batch, "where": jnp.zeros((4, 5))}
    assert not np.allclose(elbo(state, batch, KEY), elbo(state, other, KEY))
    drawn = jax.jit(model.sample, static_argnums=2)(state, KEY, 3, {"where": jnp.ones((3, 5))})
    assert drawn["x"].shape == (3, 8, 8, 1)


@pytest.mark.slow
def test_a_conditional_vae_draws_what_it_is_told():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, size=1000)
    x = (5.0 * label[:, None] + rng.normal(size=(1000, 2))).astype(np.float32)
    model = VAE(MLP([16], 2), MLP([16], 2), Gaussian(1.0), 1, conditioning=ClassLabels(3))
    source = Resident({"x": x, "label": label}, 250)
    state = fit(descent(model, {"vae": optax.adam(1e-2)}), source, 500, chunk=100)
    for k in range(3):
        drawn = model.sample(state, KEY, 500, {"label": jnp.full(500, k)})
        np.testing.assert_allclose(drawn["x"].mean(axis=0), 5.0 * k, atol=0.5)
    assert model.sample(state, KEY, 4)["label"].tolist() == [0, 1, 2, 0]


def test_contexts_that_do_not_fit_are_named():
    assert ClassLabels(10).unsupported({"label": np.arange(10)}) == ""
    assert "from 0 to 9, but the model has 5 classes" in ClassLabels(5).unsupported({"label": np.arange(10)})
    assert 'no entry "label"' in ClassLabels(5).unsupported({"x": np.zeros(3)})
    assert "has shape (3,), but the model takes (5,)" in Vector(5).unsupported({"context": np.zeros((2, 3))})


def test_networks_that_do_not_fit_are_named():
    batch = {"x": jnp.zeros((2, 3))}
    with pytest.raises(ValueError, match="Diagonal in 2 dimensions needs 4 outputs"):
        VAE(MLP((), 3), MLP((), 3), Gaussian(), 2).init(KEY, batch)
    with pytest.raises(ValueError, match="needs a decoder that makes"):
        VAE(MLP((), 4), MLP((), 7), Gaussian(), 2).init(KEY, batch)
    vamp = {"latent": 2, "conditioning": ClassLabels(3), "prior": priors.VampPrior(3)}
    for wrong in ({"latent": 0}, {"latent": 2, "samples": 0}, {"latent": 2, "beta": -1.0}, vamp):
        with pytest.raises(ValueError):
            VAE(MLP((), 4), MLP((), 3), Gaussian(), **wrong)


# The hierarchical VAE


def ladder(**more):
    return HVAE((8, 8, 1), DiscretizedLogistic(17), **{"groups": 3, "depth": 2, "width": 4, "channels": 2, **more})


@pytest.mark.slow
def test_a_ladder_begins_with_posteriors_that_are_priors_and_uses_every_group():
    model = ladder()
    state = started(model, images())
    terms = jax.jit(model.terms, static_argnums=3)(state.params["vae"], images(), KEY, 2)
    assert terms.kl.shape == (16, 3) and terms.log_prior.shape == (2, 16)
    np.testing.assert_allclose(terms.kl, 0, atol=1e-5)
    np.testing.assert_allclose(terms.log_prior, terms.log_posterior, rtol=1e-5)
    # standard normals: 2 latents of 2 channels in each of 2x2, 4x4 and 8x8 pixels
    dimensions = 2 * 2 * (4 + 16 + 64)
    assert float(terms.log_prior.mean()) == pytest.approx(-0.5 * dimensions * (1 + np.log(2 * np.pi)), rel=0.05)
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, state, images(), KEY)[0]))(state.params["vae"])
    for level in range(3):
        block = gradient["ladder"][f"down{level}"]
        assert block["posterior"]["kernel"].shape[0] == 2  # stacked in depth
        assert np.all(np.abs(np.asarray(block["posterior"]["kernel"])).max(axis=(1, 2, 3, 4)) > 0)


def test_more_groups_than_resolutions_are_refused():
    assert ladder(groups=4).groups == 4
    with pytest.raises(ValueError, match="5 latent groups need as many resolutions; 8x8 has 4: 8x8 4x4 2x2 1x1"):
        ladder(groups=5)
    with pytest.raises(ValueError, match="for data of shape"):
        ladder().init(KEY, {"x": jnp.zeros((1, 4, 4, 1), jnp.uint8)})


# The vector-quantized VAE


def test_log_densities_of_a_ladder_are_those_of_its_divergence():
    """Away from the start, where posteriors are not priors: E[log q - log p] is the KL in closed form."""
    model = ladder(groups=2, depth=1)
    state = started(model, images())
    params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(KEY, a.shape), state.params["vae"])
    terms = jax.jit(model.terms, static_argnums=3)(params, {"x": images()["x"][:4]}, KEY, 400)
    sampled = terms.log_posterior - terms.log_prior
    assert terms.kl.sum(axis=1).min() > 1
    # its own KL differs from sample to sample too, as the finer group's does
    error = np.asarray(sampled.std(axis=0)) / 20 * 2
    np.testing.assert_array_less(np.abs(sampled.mean(axis=0) - terms.kl.sum(axis=1)), 4 * error)


def quantized(codes=5, **more):
    encoder, decoder = ResidualEncoder((4,), (4, 4, 3)), ResidualDecoder((8, 8), (4,), 2)
    return VQVAE(encoder, decoder, DiscretizedLogistic(17), (4, 4), codes, prior_width=8, **more)


def test_codes_are_the_nearest_and_the_codebook_follows_them():
    model = quantized(decay=0.9, least=1e-6)
    state = started(model, images())
    z, codes = jax.jit(model._encode)(state.params["vqvae"], state.extra["codebook"], images()["x"])
    distance = np.linalg.norm(np.asarray(z)[..., None, :] - np.asarray(state.extra["codebook"]), axis=-1)
    np.testing.assert_array_equal(codes, distance.argmin(axis=-1))
    _, (extra, metrics) = jax.jit(model.loss)(state.params["vqvae"], state, images(), KEY)
    flat, of = np.asarray(z).reshape(-1, 3), np.asarray(codes).reshape(-1)
    counts = 0.9 + 0.1 * np.bincount(of, minlength=5)
    sums = 0.9 * np.asarray(state.extra["sums"]) + 0.1 * np.stack([flat[of == k].sum(axis=0) for k in range(5)])
    np.testing.assert_allclose(extra["codebook"], sums / counts[:, None], rtol=1e-4, atol=1e-6)
    share = np.bincount(of, minlength=5) / len(of)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)))
    assert float(metrics["perplexity"].value) == pytest.approx(np.exp(entropy), rel=1e-4)


def test_codes_that_nobody_uses_begin_again():
    model = quantized(least=0.1)
    state = started(model, images())
    far = state.extra["codebook"].at[2].set(1e3)
    extra = {**state.extra, "codebook": far, "sums": far, "counts": state.extra["counts"].at[2].set(1e-3)}
    _, (extra, _) = jax.jit(model.loss)(state.params["vqvae"], state._replace(extra=extra), images(), KEY)
    z, _ = jax.jit(model._encode)(state.params["vqvae"], far, images()["x"])
    assert np.abs(np.asarray(z).reshape(-1, 3) - np.asarray(extra["codebook"][2])).sum(axis=1).min() < 1e-4


@pytest.mark.slow
def test_the_prior_over_codes_is_one_and_bounds_add_up():
    model = quantized(codes=2)
    state = started(model, images())
    params = state.params["vqvae"]
    every = jnp.array(list(itertools.product(range(2), repeat=4))).reshape(16, 2, 2)
    assert float(jax.nn.logsumexp(model._log_prior(params, every))) == pytest.approx(0.0, abs=1e-5)
    codes = jax.jit(model.encode)(state, images())
    pixels = jax.jit(lambda e: model._decode(params, e).log_prob(images()["x"]))(state.extra["codebook"][codes])
    expected = pixels.sum(axis=(1, 2, 3)) + model._log_prior(params, codes)
    np.testing.assert_allclose(jax.jit(model.elbo)(state, images()), expected, rtol=1e-5)
    for wrong in ({"codes": 1}, {"decay": 1.0}):
        with pytest.raises(ValueError):
            quantized(**wrong)
    with pytest.raises(ValueError, match="codes on a grid"):
        replace(quantized(), grid=(2, 2)).init(KEY, images())


# Evaluation and pictures


def test_evaluation_of_latents_on_the_exact_model():
    model, state, x, mean, covariance = exact_model(widened=0.5)
    split = Split("test", {"x": x, "label": (x[:, 0] > mean[0]).astype(np.int64)}, batch=128)
    exact = multivariate_normal(mean, covariance).logpdf(x).mean()
    found = importance_weighted(2000)(model)(state, split, KEY)["iwae_2000"]
    assert found.value == pytest.approx(exact, abs=0.02) and found.how == "2000 samples" and found.n == 200
    uneven = importance_weighted(701, examples=50)(model)(state, split, KEY)["iwae_701"]  # whole parts and a rest
    assert uneven.value == pytest.approx(multivariate_normal(mean, covariance).logpdf(x[:50]).mean(), abs=0.05)
    assert uneven.n == 50
    used = active_units(model)(state, split, KEY)["active_units"]
    assert used.value == 2 and used.unit == "of 2"
    # reconstruction is linear: x -> mean + (x - mean) gain loading
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), state.params["vae"])
    loading, gain = p["decoder"]["Dense_0"]["kernel"], p["encoder"]["Dense_0"]["kernel"][:, :2]
    back = mean + (x - mean) @ gain @ loading
    error = reconstruction_error(model)(state, split, KEY)["reconstruction_rmse"].value
    assert error == pytest.approx(np.sqrt(np.mean((x - back) ** 2)), rel=1e-4)
    assert latent_accuracy(model)(state, split, KEY)["latent_accuracy"].value > 0.8


def test_collapse_is_seen():
    """A dimension that the encoder ignores has no KL and is not active."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)}
    model = VAE(MLP((), 4), MLP((), 3), Gaussian(), 2)
    state = started(model, batch)
    layer = state.params["vae"]["encoder"]["Dense_0"]
    layer["kernel"] = layer["kernel"].at[:, [1, 3]].set(0.0)
    split = Split("test", {name: np.asarray(a) for name, a in batch.items()})
    found = active_units(model)(state, split, KEY)
    assert found["active_units"].value == 1 and found["kl_min"].value == 0 < found["kl_max"].value
    of_each = kl_per_dimension(model)(state, split, KEY)
    assert of_each["kl_1"].value == 0 and of_each["kl_0"].value == pytest.approx(found["kl_max"].value)


def test_protocols_are_recorded_and_binarized_data_has_no_bits_per_dimension():
    model = VAE(MLP((), 4), MLP((), (2, 2, 1)), Bernoulli(), 2)
    x = np.random.default_rng(0).integers(0, 256, size=(20, 2, 2, 1)).astype(np.uint8)
    split = Split("test", {"x": x}, (binarize(),))
    found = importance_weighted(3)(model)(started(model, split.head(2)), split, KEY)
    assert set(found) == {"iwae_3"} and found["iwae_3"].how == "3 samples, stochastically binarized"


def test_pictures_of_latent_spaces(tmp_path):
    model = VAE(MLP([8], 6), MLP([8], (8, 8, 2)), DiscretizedLogistic(17), 3, conditioning=ClassLabels(10))
    state = started(model, images(12))
    split = Split("test", {name: np.asarray(a) for name, a in images(12).items()})
    pictures = [
        plots.manifold,
        plots.latent_scatter,
        plots.latent_usage,
        partial(plots.interpolations, rows=3),
        partial(plots.traversals, steps=3),
        partial(plots.imputations, rows=2, n=2),
    ]
    for picture in pictures:
        figure = picture(model, state, split, KEY)
        assert figure.axes and all(axis.get_title() for axis in figure.axes)


def test_data_a_model_cannot_explain_is_refused_before_training(tmp_path):
    config = tmp_path / "raw.py"
    config.write_text(
        "import optax\n"
        "from gen_jax.algorithms import descent\n"
        "from gen_jax.experiment import Experiment\n"
        "from gen_jax.models.common.likelihoods import Bernoulli\n"
        "from gen_jax.models.common.networks import MLP\n"
        "from gen_jax.models.vae import VAE\n"
        "def config(steps: int = 1, smoke: bool = False):\n"
        "    model = VAE(MLP([], 4), MLP([], (8, 8, 1)), Bernoulli(), 2)\n"
        "    return Experiment(model, descent(model, {'vae': optax.sgd(0.1)}), 'digits', steps, 128)\n"
    )
    with pytest.raises(
        UserError, match=r"digits \[train\]: Bernoulli explains values from 0 to 1; the data goes .* 16"
    ):
        Run.prepare(load(config), tmp_path / "w")
    assert not (tmp_path / "w").exists()
