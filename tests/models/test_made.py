"""MADE: exact probabilities of whole numbers, in an order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import MADE, Resident, descent, fit
from gen_jax.core import State
from gen_jax.models.common.conditioning import ClassLabels


def every_value(levels, dimensions):
    return np.array(list(itertools.product(range(levels), repeat=dimensions)), np.int32)


def with_random_params(model, batch):
    """A State whose output layer is not 0, as it is at the start."""
    params, extra = model.init(jax.random.key(0), batch)
    moved = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(1), a.shape), params)
    return State(jnp.int32(0), jax.random.key(0), moved, (), extra)


@pytest.mark.parametrize("levels, dimensions", [(2, 6), (3, 4)])
def test_probabilities_of_all_values_add_to_one(levels, dimensions):
    model, x = MADE(levels, (32, 32)), every_value(levels, dimensions)
    log_probs = model.log_prob(with_random_params(model, {"x": x}), {"x": x})
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-5) and np.std(log_probs) > 0.1


def test_samples_have_the_probabilities_and_the_form_of_the_data():
    model, x = MADE(2, (16,)), every_value(2, 4).astype(np.uint8).reshape(-1, 2, 2, 1)
    state = with_random_params(model, {"x": x})
    drawn = np.asarray(model.sample(state, jax.random.key(2), 40_000)["x"])
    assert drawn.shape == (40_000, 2, 2, 1) and drawn.dtype == np.uint8
    counts = np.bincount(drawn.reshape(-1, 4) @ [8, 4, 2, 1], minlength=16) / len(drawn)
    np.testing.assert_allclose(counts, np.exp(model.log_prob(state, {"x": x})), atol=0.01)


def test_a_value_depends_on_those_before_it_alone():
    model = MADE(3, (24, 24))
    x = np.random.default_rng(0).integers(0, 3, (5, 6)).astype(np.int32)
    state = with_random_params(model, {"x": x})
    logits = lambda v: model._logits(state.params["made"], v, None)
    jacobian = jax.vmap(jax.jacobian(lambda v: logits(v[None])[0]))(model._inputs(x))  # (B, levels, D, D)
    reach = np.abs(jacobian).max(axis=(0, 1))
    assert np.all(reach[np.triu_indices(6)] == 0) and np.all(reach[np.tril_indices(6, -1)] > 0)


def test_the_first_parameters_give_the_frequencies_of_the_batch():
    x = np.array([[0, 2], [0, 1], [0, 2], [0, 2]], np.int32)
    model = MADE(3, (8,))
    params, extra = model.init(jax.random.key(0), {"x": x})
    found = model.log_prob(State(jnp.int32(0), jax.random.key(0), params, (), extra), {"x": x[:2]})
    share = lambda count: (count + 1 / 3) / 5
    np.testing.assert_allclose(np.exp(found), [share(4) * share(3), share(4) * share(1)], rtol=1e-5)


def test_it_learns_what_depends_on_the_class():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 512)
    x = np.where(label[:, None] == 1, rng.integers(0, 2, (512, 1)).repeat(4, axis=1), [[0, 1, 0, 1]]).astype(np.float32)
    model = MADE(2, (32,), conditioning=ClassLabels(2))
    source = Resident({"x": x, "label": label}, batch=128)
    state = fit(descent(model, {"made": optax.adam(0.02)}), source, 300, chunk=50)
    found = model.log_prob(state, {"x": x, "label": label})
    np.testing.assert_allclose(found[label == 0], 0, atol=0.1)
    np.testing.assert_allclose(np.mean(found[label == 1]), -np.log(2), atol=0.05)


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="levels must be at least 2"):
        MADE(1)
    assert "where whole numbers 0 .. 1" in MADE().unsupported({"x": np.array([[0.5, 1.0]])})
    assert not MADE().unsupported({"x": np.array([[0.0, 1.0]])})
