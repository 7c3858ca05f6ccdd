"""The VAE and the GAN: their parts against definitions and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import logistic

from gen_jax.algorithms import descent, with_ema
from gen_jax.data import Resident
from gen_jax.loop import fit
from gen_jax.models.gan import GAN, non_saturating
from gen_jax.models.likelihoods import Bernoulli, BinnedLogistic, DiscretizedLogistic
from gen_jax.models.nets import MLP, ConvDecoder, ConvEncoder, doubled
from gen_jax.models.vae import VAE


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


def test_binned_logistic_samples_follow_it():
    d = BinnedLogistic(jnp.float32(0.2), jnp.float32(-1.5), 9)
    drawn = np.bincount(np.asarray(d.sample(seed=jax.random.key(0), sample_shape=(50_000,))), minlength=9) / 50_000
    np.testing.assert_allclose(drawn, np.exp(d.log_prob(jnp.arange(9))), atol=0.01)


class LinearGaussian:
    """A likelihood N(x; decoder output, noise^2), for which everything is known in closed form."""

    noise = 0.3
    channels = 1

    def normalise(self, x):
        return x

    def __call__(self, outputs):
        import distrax

        return distrax.MultivariateNormalDiag(outputs, jnp.full(outputs.shape[-1], self.noise))


def test_elbo_is_below_the_exact_likelihood_and_reaches_it():
    """A linear VAE is probabilistic PCA: its ELBO with the exact posterior is the marginal likelihood."""
    rng = np.random.default_rng(0)
    loading = np.array([[1.0], [0.5], [-0.7]])
    x = (rng.normal(size=(2000, 1)) @ loading.T + 0.3 * rng.normal(size=(2000, 3))).astype(np.float32)
    model = VAE(MLP((), 2), MLP((), 3), LinearGaussian(), latent=1)
    source = Resident({"x": x}, batch=500)
    state = fit(descent(model, {"vae": optax.adam(1e-2)}), source, 2000, chunk=500)
    decoder = state.params["vae"]["decoder"]["Dense_0"]
    covariance = np.asarray(decoder["kernel"]).T @ np.asarray(decoder["kernel"]) + 0.09 * np.eye(3)
    from scipy.stats import multivariate_normal

    exact = multivariate_normal(np.asarray(decoder["bias"]), covariance).logpdf(x).mean()
    bound = float(np.mean([model.elbo(state, {"x": x}, jax.random.key(i)).mean() for i in range(20)]))
    assert bound <= exact + 0.01
    assert bound == pytest.approx(exact, abs=0.03)
    sample_covariance = np.cov(x.T)
    best = multivariate_normal(x.mean(axis=0), sample_covariance).logpdf(x).mean()
    assert exact == pytest.approx(best, abs=0.02)


def image_vae(dtype=jnp.float32, likelihood=DiscretizedLogistic(17), beta=1.0):
    encoder = ConvEncoder((8, 8), 16, 8, dtype=dtype)
    return VAE(encoder, ConvDecoder((8, 8), (8, 8), likelihood.channels, dtype=dtype), likelihood, 4, beta)


def images(n=16):
    return {"x": jnp.asarray(np.random.default_rng(0).integers(0, 17, size=(n, 8, 8, 1)), jnp.uint8)}


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = image_vae(jnp.bfloat16)
    params, _ = model.init(jax.random.key(0), images())
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(lambda p: model.terms(p, images()["x"], jax.random.key(0)))(params["vae"])
    convolutions = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
    assert convolutions and all(e.outvars[0].aval.dtype == jnp.bfloat16 for e in convolutions)
    full = image_vae().terms(params["vae"], images()["x"], jax.random.key(0))
    half = model.terms(params["vae"], images()["x"], jax.random.key(0))
    np.testing.assert_allclose(half[0], full[0], rtol=0.02)


def test_beta_weighs_the_kl_and_may_follow_the_step():
    state = descent(image_vae(), {"vae": optax.sgd(0.1)}).init(jax.random.key(0), images())
    key = jax.random.key(1)
    log_likelihood, kl = image_vae().terms(state.params["vae"], images()["x"], key)
    for step, beta, expected in [(0, 4.0, 4.0), (5, lambda step: step / 10, 0.5)]:
        loss, _ = image_vae(beta=beta).loss(state.params["vae"], state._replace(step=jnp.int32(step)), images(), key)
        assert float(loss) == pytest.approx(float((expected * kl - log_likelihood).mean()), rel=1e-5)


def test_bernoulli_likelihood():
    logits = jnp.zeros((2, 8, 8, 1)) + 1.0
    x = jnp.ones((2, 8, 8, 1))
    np.testing.assert_allclose(Bernoulli()(logits).log_prob(x), 64 * np.log(1 / (1 + np.exp(-1))), rtol=1e-5)


def test_doubled_puts_channels_into_pixels():
    x = jnp.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    y = doubled(x)
    assert y.shape == (1, 4, 6, 1)
    assert y[0, 2:4, 4:6, 0].ravel().tolist() == x[0, 1, 2].tolist()


def test_decoder_refuses_sizes_it_cannot_make():
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        ConvDecoder((10, 8), (8, 8), 1).init(jax.random.key(0), jnp.zeros((1, 4)))


def test_non_saturating_loss_is_its_definition():
    real, fake = jnp.array([0.3, -1.0]), jnp.array([2.0, -0.5])
    sigmoid = lambda v: 1 / (1 + np.exp(-np.asarray(v, np.float64)))
    expected = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    assert float(non_saturating.discriminator(real, fake)) == pytest.approx(expected, rel=1e-6)
    assert float(non_saturating.generator(fake)) == pytest.approx(-np.log(sigmoid(fake)).mean(), rel=1e-6)


def gan(lr=(1e-3, 1e-3)):
    model = GAN(MLP((16,), 2), MLP((16,), 1), latent=2)
    return model, descent(model, {"discriminator": optax.sgd(lr[0]), "generator": optax.sgd(lr[1])})


def test_each_player_moves_only_itself(same):
    x = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(32, 2)), jnp.float32)}
    for lr, still in (((0.1, 0.0), "generator"), ((0.0, 0.1), "discriminator")):
        _, algorithm = gan(lr)
        state = algorithm.init(jax.random.key(0), x)
        after, _ = algorithm.step(state, x)
        same(after.params[still], state.params[still])
        moving = ({"generator", "discriminator"} - {still}).pop()
        assert not np.array_equal(*(jax.tree.leaves(s.params[moving])[0] for s in (state, after)))


def test_gan_learns_a_gaussian():
    x = (np.array([3.0, -1.0]) + 0.5 * np.random.default_rng(0).normal(size=(4000, 2))).astype(np.float32)
    model = GAN(MLP((32, 32), 2), MLP((32, 32), 1), latent=2)
    tx = optax.adam(1e-3, b1=0.5)
    algorithm = with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", 0.998)
    state = fit(algorithm, Resident({"x": x}, 128), 4000, chunk=500)
    drawn = np.asarray(model.sample(state, jax.random.key(0), 4000)["x"])
    np.testing.assert_allclose(drawn.mean(axis=0), [3.0, -1.0], atol=0.25)
    assert np.all((drawn.std(axis=0) > 0.15) & (drawn.std(axis=0) < 1.0))  # neither collapsed nor scattered
