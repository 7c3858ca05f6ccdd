"""Metrics of style-based and growing GANs, on small untrained models whose answers are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import plots
from gen_jax.algorithms import descent
from gen_jax.evaluation import path_smoothness, stability, style_state, truncation_curve
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.features import raw
from gen_jax.models.common.resampling import halved
from gen_jax.models.gan.progressive import GrowingDiscriminator, GrowingGenerator, ProgressiveGAN, Schedule
from gen_jax.models.gan.style_networks import StyleDiscriminator, StyleGenerator
from gen_jax.models.gan.stylegan import StyleGAN

KEY = jax.random.key(0)


def uniform(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def split():
    return Split("test", {"x": uniform(70)}, (), training={"x": uniform(200, 1)})


@pytest.fixture(scope="module")
def styled():
    model = StyleGAN(StyleGenerator((8, 8), 1, 6, 2, 32, 8), StyleDiscriminator(32, 8), 5)
    return model, begun(model)


def begun(model):
    algorithm = descent(model, {player: optax.sgd(0.1) for player in ("discriminator", "generator")})
    return jax.jit(algorithm.init)(KEY, {"x": jnp.asarray(uniform(8))})


def test_small_psi_loses_kinds_of_images(styled, split):
    model, state = styled
    found = truncation_curve(raw, 200, (0.0, 1.0))(model)(state, split, KEY)
    assert found["recall_psi_0@raw"].value == 0
    assert set(found) == {
        f"{what}_psi_{psi}@raw" for what in ("frechet_distance", "precision", "recall") for psi in "01"
    }
    assert not any(estimate.headline for estimate in found.values())


def test_path_lengths_are_of_the_generator_without_truncation(styled, split):
    """A generator whose images do not depend on w has paths of length 0."""
    model, state = styled
    length = lambda model, state: path_smoothness(raw, 100)(model)(state, split, KEY)["path_length@raw"].value
    usual = length(model, state)
    assert usual > 0 and length(replace(model, psi=0.0), state) == pytest.approx(usual, rel=1e-4)
    still = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.zeros_like(a) if "style" in jax.tree_util.keystr(path) and a.ndim == 2 else a, state.params
    )
    assert length(model, state._replace(params=still)) == 0


def test_the_state_of_styles_is_reported(styled, split):
    model, state = styled
    w = np.asarray(model.map(state, model.noise(KEY, 1000)))[:, 0]
    at = lambda mean: state._replace(
        extra={**state.extra, "batch_stats": {"discriminator": {}, "generator": {"mean": mean}}}
    )
    found = style_state(model)(at(jnp.asarray(w.mean(axis=0))), split, KEY)
    assert found["style_deviation"].value == pytest.approx(float(np.sqrt(w.var(axis=0).mean())), rel=1e-3)
    assert found["style_bias"].value == pytest.approx(0, abs=1e-4) and found["noise_strength"].value == 0
    assert style_state(model)(at(jnp.full(6, 9.0)), split, KEY)["style_bias"].value > 0.5


def test_logits_of_the_training_examples_are_compared(styled, split):
    model, state = styled
    found = stability(model)(state, split, KEY)
    logits = lambda x: np.asarray(model.discriminate(state, {"x": jnp.asarray(x[:64])}))
    own, other = logits(split.training["x"]), logits(split.arrays["x"])  # 64: whole groups of minibatch deviation
    assert found["logit_gap"].value == pytest.approx((own.mean() - other.mean()) / own.std(), rel=1e-3)
    assert found["real_accuracy"].n == 64


@pytest.mark.parametrize("architecture, schedule", [("msg", Schedule()), ("progressive", Schedule((4,), (8,)))])
def test_samples_are_judged_as_the_discriminator_was_trained(architecture, schedule):
    """Also while a level fades in, and where the discriminator sees the generator's own smaller images."""
    networks = (
        GrowingGenerator((8, 8), 1, 32, 8, architecture),
        GrowingDiscriminator((8, 8), 32, 8, architecture=architecture),
    )
    model = ProgressiveGAN(*networks, 5, schedule=schedule)
    state = begun(model.stages()[-1])._replace(step=jnp.int32(8))  # halfway
    stage = model.stages()[-1]
    fake, _ = stage.forward(state.params["generator"], state, {}, stage.noise(KEY, 8), KEY)
    key = {"dropout": KEY}
    fade = {} if architecture == "msg" else {"fade": 0.5}
    expected = stage.discriminator.apply({"params": state.params["discriminator"]}, fake, rngs=key, **fade)[:, 0]
    np.testing.assert_allclose(model.sample_logits(state, KEY, 8), expected, atol=1e-5)
    sampled = model.sample(state, KEY, 8)["x"]
    if architecture == "msg":
        assert not np.allclose(fake[:, ::2, ::2, 0], halved(sampled)[..., 0], atol=1e-3)
    else:
        np.testing.assert_allclose(sampled, fake, atol=1e-6)


def test_pictures_of_styles_are_drawn(styled, split):
    model, state = styled
    for plot in (plots.style_mixing, plots.truncations):
        assert plot(model, state, split, KEY).axes
