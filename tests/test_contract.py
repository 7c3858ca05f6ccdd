"""The twelve laws every config obeys, shrunk by `smoke=True`. A new config is tested by being there."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.algorithms import chunk
from gen_jax.checkpoint import Checkpoints
from gen_jax.configs import load
from gen_jax.data import load as load_data
from gen_jax.loop import Hook, abstract_state, fit, initial_state
from gen_jax.models.vae.bounds import elbo
from gen_jax.sharding import Layout

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*/*.py"))
# Their models and algorithms are much like those of other configs, or take long to compile: all laws for them by
# `make test-all`, one step by `make test`.
TWINS = (
    "beta_vae_mnist",
    "cgan_digits",
    "cgan_mnist",
    "conditional_nsf_digits",
    "cvae_digits",
    "dcgan_digits",
    "dcgan_mnist",
    "ffjord_moons",
    "gan_grid25",
    "glow_digits",
    "glow_mnist",
    "gmm_digits",
    "hmm_chorales",
    "hmm_vowels",
    "hvae_digits",
    "hvae_mnist",
    "iwae_mnist",
    "maf_moons",
    "minibatch_grid25",
    "nsf_checkerboard",
    "nsf_digits",
    "pacgan_grid25",
    "planar_rings",
    "radial_moons",
    "realnvp_mnist",
    "sngan_mnist",
    "stacked_digits",
    "unrolled_grid25",
    "vae_flax_example",
    "vae_mnist",
    "wgan_gp_digits",
)


class Case:
    """A shrunken experiment with its data on the device."""

    def __init__(self, path: Path):
        self.experiment = load(path, {"smoke": True}).build()
        self.model, self.algorithm = self.experiment.model, self.experiment.algorithm
        data = load_data(self.experiment.data)
        self.source = self.experiment.source(data)
        self.split = self.experiment.split(data, "test")
        self.batch = self.source.batch_at(0)
        self.start = fit(self.algorithm, self.source, 1)
        # players may move only on every n-th step
        self.cycle = max([1, *(o.every for o in getattr(self.model, "objectives", ()))])

    def fit(self, steps, state=None, **options):
        return fit(self.algorithm, self.source, steps, state=state, **options)


@lru_cache(maxsize=2)
def case_of(path: Path) -> Case:
    return Case(path)


@pytest.fixture(params=[pytest.param(p, marks=[pytest.mark.slow] * (p.stem in TWINS), id=p.stem) for p in CONFIGS])
def case(request) -> Case:
    return case_of(request.param)


@pytest.mark.parametrize("name", TWINS)
def test_twins_take_a_step(name):
    (path,) = [p for p in CONFIGS if p.stem == name]
    assert int(Case(path).start.step) == 1


def copy(state):
    """fit reuses the memory of the state it is given."""
    return jax.tree.map(jnp.copy, state)


def test_law_01_init_is_abstract(case):
    """`init` can be traced: shapes without values."""
    shapes = abstract_state(case.algorithm, case.source)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert shapes.step.dtype == jnp.int32 and shapes.step.shape == ()


def test_law_02_step_keeps_structure_shapes_and_dtypes(case):
    shapes = abstract_state(case.algorithm, case.source)
    after, _ = jax.eval_shape(case.algorithm.step, shapes, case.batch)
    describe = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert jax.tree.structure(shapes) == jax.tree.structure(after)
    assert describe(shapes) == describe(after)


def test_law_03_every_players_parameters_move(case):
    before = initial_state(case.algorithm, case.source)
    after = case.fit(case.cycle + 1)
    for player, params in before.params.items():
        moved = [
            not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(after.params[player]))
        ]
        assert any(moved), player


def test_law_04_metrics_are_finite(case):
    seen = {}

    class See(Hook):
        def report(self, step, values):
            seen.update(values)

    case.fit(case.cycle + 2, report_every=1, hooks=[See()])
    assert seen and all(np.all(np.isfinite(v)) for v in seen.values()), seen


def test_law_05_step_compiles_once(case, compilations):
    with compilations("advance") as seen:
        case.fit(4, report_every=2)
    assert len(seen) == 1


def test_law_06_stop_and_resume_equals_never_having_stopped(case, same, tmp_path):
    straight = case.fit(6)
    half = case.fit(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, half)
    del half
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(_like(straight))
    same(case.fit(6, restored), straight)


def test_law_07_chunk_equals_step_by_step(case, same):
    source = jax.tree.map(jnp.asarray, case.source)
    state = case.start
    step = jax.jit(lambda state: case.algorithm.step(state, source.batch_at(state.step)))
    for _ in range(4):
        state, _ = step(state)
    in_chunks, _ = jax.jit(chunk(case.algorithm, 4).step)(case.start, source)
    same(in_chunks, state, rtol=2e-4, atol=2e-5)


def test_law_08_two_devices_equal_one(case, same):
    """From the same State: the first step of Adam divides gradients by themselves, so that where they are 0 but for
    rounding it moves by the learning rate to either side."""
    one = case.fit(4, copy(case.start), layout=Layout(data=1))
    two = case.fit(4, copy(case.start), layout=Layout(data=2))
    assert len(jax.tree.leaves(two.params)[0].sharding.device_set) == 2
    same(jax.device_get(two.params), jax.device_get(one.params), rtol=2e-3, atol=2e-4)
    first = case.fit(1, layout=Layout(data=2))
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(case.start.params)):
        np.testing.assert_allclose(np.linalg.norm(a), np.linalg.norm(b), rtol=2e-2, atol=2e-2)


def test_law_09_checkpoint_round_trips(case, same, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, case.start)
        checkpoints.wait()
        same(checkpoints.restore(_like(case.start)), case.start)


def test_law_10_samples_look_like_data(case):
    draw = jax.jit(case.model.sample, static_argnums=2)
    first, second = (np.asarray(draw(case.start, jax.random.key(i), 7)["x"]) for i in (0, 1))
    x = np.asarray(case.batch["x"])
    assert first.shape == (7, *x.shape[1:])
    assert first.dtype.kind == x.dtype.kind or {first.dtype.kind, x.dtype.kind} == {"i", "u"}
    if x.dtype.kind in "iu":
        assert first.min() >= x.min() and first.max() <= x.max()
    assert np.isfinite(first).all() and not np.array_equal(first, second)


def test_law_11_likelihoods_are_per_example_in_nats_and_agree_with_the_loss(case):
    key = jax.random.key(0)
    plain = case.start._replace(extra={k: v for k, v in case.start.extra.items() if k != "ema"})
    if hasattr(case.model, "log_prob"):
        values = case.model.log_prob(plain, case.batch)
    elif hasattr(case.model, "elbo"):
        values = jax.jit(case.model.elbo)(plain, case.batch, key)
    else:
        pytest.skip("a model without a likelihood")
    assert values.shape == (len(case.batch["x"]),)
    bare = {"beta": 1.0, "bound": elbo, "samples": 1, "commitment": 0.0}  # without what training adds to the bound
    model = replace(case.model, **{name: value for name, value in bare.items() if hasattr(case.model, name)})
    (objective,) = model.objectives
    loss, _ = jax.jit(objective.loss)(plain.params[objective.player], plain, case.batch, key)
    np.testing.assert_allclose(-values.mean(), loss, rtol=1e-4)


def test_law_12_training_improves(case):
    """EM never goes down; a single loss goes down; an adversary does better against the opponents it met."""
    rows = []

    class See(Hook):
        def report(self, step, values):
            rows.append(values)

    if hasattr(case.model, "e_step"):
        case.fit(20, report_every=1, hooks=[See()])
        curve = np.array([row.get("log_posterior", row["log_likelihood"]) for row in rows])
        assert np.all(np.diff(curve) >= -1e-5 * abs(curve[0]))
        assert curve[-1] > curve[0]
    elif len(case.model.objectives) == 1:
        case.fit(40, report_every=1, hooks=[See()])
        assert np.mean([r["loss"] for r in rows[-10:]]) < np.mean([r["loss"] for r in rows[:10]])
    else:
        start = initial_state(case.algorithm, case.source)
        after = case.fit(5 * case.cycle)
        for objective in case.model.objectives:
            loss = lambda s: objective.loss(s.params[objective.player], start, case.batch, jax.random.key(1))[0]
            assert loss(after) < loss(start), objective.player


def _like(state):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), state)
