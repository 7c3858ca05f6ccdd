"""Seams of the core that no law covers: data info, unknown transforms, dropped conditions, regularizers with memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.dataset import Dataset
from gen_jax.data.transforms import dequantize
from gen_jax.evaluation import Split, log_likelihood
from gen_jax.models.common.conditioning import ClassLabels, Dropped
from gen_jax.models.common.likelihoods import DiscretizedLogistic
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN, Regularizer
from gen_jax.models.vae import VAE

KEY = jax.random.key(0)


def test_data_says_what_it_is():
    info = load("digits").info
    assert (info.shape, info.levels, info.classes, len(info.class_names)) == ((8, 8, 1), 17, 10, 10)
    own = {"train": {"x": np.zeros((4, 2), np.float32), "label": np.array([0, 1, 2, 1])}}
    first, again = Dataset("mine", own).info, Dataset("other name", own).info
    assert first == again and (first.shape, first.levels, first.classes) == ((2,), None, 3)
    moved = {"train": {**own["train"], "x": np.ones((4, 2), np.float32)}}
    assert Dataset("mine", moved).info.digest != first.digest


class Uniform:
    """Density 1 wherever x is."""

    def log_prob(self, state, batch):
        return jnp.zeros(len(batch["x"]))


@pytest.mark.parametrize("transform, bits", [(dequantize(17), True), (lambda batch, key: batch, False)])
def test_only_a_lossless_transform_gives_bits_per_dimension(transform, bits):
    split = Split("test", {"x": np.arange(34).reshape(2, 17) % 17}, (transform,))
    split = split._replace(arrays={"x": split.arrays["x"].reshape(2, 17, 1, 1)})
    found = log_likelihood(Uniform())(None, split, KEY)
    assert ("log_likelihood_bits_per_dim" in found) == bits
    if bits:
        assert found["log_likelihood_bits_per_dim"].value == pytest.approx(np.log2(17))


def test_dropped_conditions_become_the_null_in_training_only():
    conditioning = Dropped(ClassLabels(3), 0.5)
    batch = {"label": np.arange(3000) % 3}
    params = conditioning.init(KEY, batch)
    params = {**params, "null": jnp.full(3, 7.0)}
    whole = ClassLabels(3)(batch)
    np.testing.assert_array_equal(conditioning(batch, params), whole)
    trained = np.asarray(conditioning(batch, params, KEY))
    null = np.all(trained == 7, axis=1)
    assert 0.45 < null.mean() < 0.55 and np.array_equal(trained[~null], np.asarray(whole)[~null])
    asked = conditioning({**batch, "unconditional": np.ones(3000, bool)}, params)
    assert np.all(np.asarray(asked) == 7)


@pytest.mark.parametrize("player, every", [("generator", 1), ("discriminator", 2)])
def test_regularizers_remember(player, every):
    """The running count of a regularizer's own turns is kept in the State."""
    value = lambda turn, memory: (0.0 * turn.fake.mean(), {"turns": memory["turns"] + 1})
    counting = Regularizer("counting", player, 1.0, value, every, {"turns": 0.0})
    model = GAN(MLP((4,), 2), MLP((4,), 1), 2, regularizers=(counting,))
    algorithm = descent(model, {"discriminator": optax.sgd(0.1), "generator": optax.sgd(0.1)})
    batch = {"x": np.zeros((4, 2), np.float32)}
    state = algorithm.init(KEY, batch)
    step = jax.jit(algorithm.step)
    for _ in range(4):
        state, _ = step(state, batch)
    assert float(state.extra["regularizers"]["counting"]["turns"]) == 4 / every


def test_conditions_are_dropped_in_training_only():
    """Half of the conditions in the loss, none in the bound that evaluation reports."""
    digits = load("digits")["train"]
    batch = {name: jnp.asarray(a[:16]) for name, a in digits.items()}
    dropping, keeping = (
        VAE(MLP([8], 4), MLP([8], (8, 8, 2)), DiscretizedLogistic(17), 2, conditioning=Dropped(ClassLabels(10), p))
        for p in (0.5, 0.0)
    )
    algorithm = descent(dropping, {"vae": optax.sgd(0.1)})
    state = jax.jit(algorithm.init)(KEY, batch)
    null = jax.tree.map(lambda a: a + 3.0, state.params["vae"]["conditioning"])
    state = state._replace(params={"vae": {**state.params["vae"], "conditioning": null}})
    bounds = [np.asarray(jax.jit(model.elbo)(state, batch, KEY)) for model in (dropping, keeping)]
    np.testing.assert_array_equal(*bounds)
    losses = [float(jax.jit(model.loss)(state.params["vae"], state, batch, KEY)[0]) for model in (dropping, keeping)]
    assert losses[0] != losses[1]
