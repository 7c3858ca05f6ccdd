"""The GAN against definitions, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent, with_ema
from gen_jax.data import Resident
from gen_jax.loop import fit
from gen_jax.models.gan import GAN, non_saturating
from gen_jax.models.nets import MLP


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
