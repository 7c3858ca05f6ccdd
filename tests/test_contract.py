"""The laws every config obeys, shrunk by `smoke=True`. A new config is tested by being there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import CONFIGS, Case, at_start, kind_of, representatives, without_dropout

from gen_jax.algorithms import chunk, descent, em
from gen_jax.checkpoint import Checkpoints
from gen_jax.configs import load
from gen_jax.core import (
    Bound,
    ClosedForm,
    Density,
    ExpectationMaximization,
    Penalized,
    PreparesBatch,
    Trainable,
    as_mean,
    averaged,
)
from gen_jax.loop import Hook

FULL = representatives()


def params(paths, slow=lambda path: False):
    return [pytest.param(p, marks=[pytest.mark.slow] * slow(p), id=p.stem) for p in paths]


@pytest.fixture(scope="module", params=params(CONFIGS, slow=lambda path: path not in FULL))
def case(request) -> Case:
    return Case(request.param)


class See(Hook):
    """Keeps every report."""

    def __init__(self):
        self.rows = []

    def report(self, step, values):
        self.rows.append(values)


def test_the_representatives_cover_what_must_be_covered():
    """Every family; a conditional model, a convolutional GAN with batch statistics, and an average."""
    kinds = [kind_of(path) for path in FULL]
    assert {family for family, *_ in kinds} == {path.parent.name for path in CONFIGS}
    assert any(conditional for *_, conditional, _ in kinds)
    assert any(family == "gan" and batch_stats and "with_ema" in used for family, used, _, batch_stats in kinds)
    assert len(FULL) <= 14


@pytest.mark.parametrize(
    "path", params([p for p in CONFIGS if p not in FULL], slow=lambda p: "mnist" in p.stem or "ffjord" in p.stem)
)
def test_the_others_are_traced(path):
    """Laws 1, 2 and 10 without compiling: the State keeps its structure, samples have the shape of the data."""
    case = Case(path)
    check_structure(case)
    draw = lambda state, key: case.model.sample(state, key, 7, case.condition)[case.drawn]
    x = jax.eval_shape(draw, averaged_shapes(case.program.shapes), jax.random.key(0))
    assert x.shape == (7, *case.drawn_shape)


def averaged_shapes(shapes):
    return jax.eval_shape(averaged, shapes)


def check_structure(case):
    shapes = case.program.shapes
    after, _ = jax.eval_shape(case.program.algorithm.step, shapes, case.trained_on)
    describe = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert jax.tree.structure(shapes) == jax.tree.structure(after)
    assert describe(shapes) == describe(after)


def test_law_01_init_is_abstract(case):
    """`init` can be traced: shapes without values."""
    shapes = case.program.shapes
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert shapes.step.dtype == jnp.int32 and shapes.step.shape == ()


def test_law_02_step_keeps_structure_shapes_and_dtypes(case):
    check_structure(case)


@pytest.mark.representatives("cgan_digits", "gmm_blobs")
def test_law_03_every_players_parameters_move(case):
    before = case.program.initial_state()
    after = case.run(case.cycle + 1)
    for player, params in before.params.items():
        moved = [
            not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(after.params[player]))
        ]
        assert any(moved), player


def test_law_04_metrics_are_finite(case):
    see = See()
    case.run(case.cycle + 2, report_every=1, hooks=[see])
    seen = {name: value for row in see.rows for name, value in row.items()}
    assert seen and all(np.all(np.isfinite(v)) for v in seen.values()), seen


def test_law_05_step_compiles_once(case):
    case.run(4, report_every=2)
    case.run(6, report_every=3)
    assert case.program.advance._cache_size() == 1


def test_law_06_stop_and_resume_equals_never_having_stopped(case, same, tmp_path):
    straight = case.run(6)
    half = case.run(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, half)
    del half
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(_like(straight))
    same(case.run(6, restored), straight)


@pytest.mark.representatives("cgan_digits", "conditional_nsf_digits", "gmm_blobs")
def test_law_07_chunk_equals_step_by_step(case, same):
    source = jax.tree.map(jnp.asarray, case.source)
    state = case.run(5, case.start)
    chunked, _ = jax.jit(chunk(case.algorithm, 4).step)(case.first, source)
    same(chunked._replace(opt=()), state._replace(opt=()), rtol=2e-4, atol=2e-5)
    for a, b in zip(jax.tree.leaves(chunked.opt), jax.tree.leaves(state.opt), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1, np.abs(b).max(initial=0)))  # may be sums


@pytest.mark.representatives("hmm_gaussian", "cgan_digits")
def test_law_08_two_devices_equal_one(case, same):
    """From the same State: the first step of Adam divides gradients by themselves, so that where they are 0 but for
    rounding it moves by the learning rate to either side."""
    if case.whole:
        pytest.skip("one stream is not divided")
    divided = case.divided(2)
    one, two = case.run(2, case.start), divided.run(2, state=case.start)
    same(jax.device_get(two.opt), jax.device_get(one.opt), rtol=5e-3, atol=1e-4)  # sums of gradients, or of statistics
    one, two = case.run(4, case.start), divided.run(4, state=case.start)
    assert len(jax.tree.leaves(two.params)[0].sharding.device_set) == 2
    same(jax.device_get(two.params), jax.device_get(one.params), rtol=2e-3, atol=2e-4)
    first = divided.run(1)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(case.first.params)):
        np.testing.assert_allclose(np.linalg.norm(a), np.linalg.norm(b), rtol=2e-2, atol=2e-2)


def test_law_09_checkpoint_round_trips(case, same, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, case.first)
        checkpoints.wait()
        same(checkpoints.restore(_like(case.first)), case.first)


def test_law_10_samples_look_like_data(case):
    draw = jax.jit(case.model.sample, static_argnums=2)
    state, condition = averaged(case.first), case.condition
    first, second = (np.asarray(draw(state, jax.random.key(i), 7, condition)[case.drawn]) for i in (0, 1))
    x = np.asarray(case.trained_on[case.drawn] if case.translates else case.split.head(64)[case.drawn])
    assert first.shape == (7, *x.shape[1:])
    assert first.dtype.kind == x.dtype.kind or {first.dtype.kind, x.dtype.kind} == {"i", "u"}
    if case.data.info.tokenizer:
        assert first.min() >= 0 and first.max() < case.data.info.levels
    elif x.dtype.kind in "iu":
        assert first.min() >= x.min() and first.max() <= x.max()
    assert np.isfinite(first).all() and (case.translates or not np.array_equal(first, second))


def test_law_10_a_translation_depends_on_its_image_alone(case):
    """In each direction, whatever its batch; with a key too; and differs between images."""
    if not case.translates:
        pytest.skip("translates no images")
    state = averaged(case.first)
    for side in case.model.directions:
        x = case.trained_on["x" if side == "a2b" else "y"][:3]
        for options in ({}, {"key": jax.random.key(0)}, {"own": True}):
            whole = case.model.translate(state, x, side, **options)
            one = case.model.translate(state, x[:1], side, **options)
            np.testing.assert_allclose(one[0], whole[0], atol=1e-5)
            assert not np.array_equal(whole[0], whole[1])


def test_law_11_likelihoods_are_per_example_in_nats_and_agree_with_the_loss(case):
    key, state = jax.random.key(0), case.first
    if isinstance(case.model, Density):
        values = jax.jit(case.model.log_prob)(state, case.batch)
    elif isinstance(case.model, Bound):
        values = jax.jit(case.model.elbo)(state, case.batch, key)
    else:
        pytest.skip("a model without a likelihood")
    assert values.shape == (len(case.batch["x"]),)
    if isinstance(case.model, ClosedForm):
        return
    if case.data.info.tokenizer:  # whose loss is per token
        check_token_loss(case, values)
        return
    if not isinstance(case.model, Trainable):
        return
    (objective,) = bare(case.model).objectives
    loss, _ = jax.jit(objective.loss)(state.params[objective.player], state, case.batch, key)
    hint = "a model whose loss is not its likelihood has `unpenalized` (gen_jax.core.Penalized)"
    np.testing.assert_allclose(-values.mean(), as_mean(loss).value, rtol=1e-4, err_msg=hint)


def bare(model):
    """The model whose loss is its likelihood or bound, without what training adds."""
    return model.unpenalized() if isinstance(model, Penalized) else model


def check_token_loss(case, values):
    if isinstance(case.model, ExpectationMaximization):
        return
    (objective,) = bare(case.model).objectives
    loss, _ = jax.jit(objective.loss)(case.first.params[objective.player], case.first, case.batch, None)
    np.testing.assert_allclose(-values.sum(), as_mean(loss).total, rtol=1e-4)


def test_law_12_training_improves(case):
    """EM never goes down; a single loss goes down; an adversary does better against the opponents it met."""
    see = See()
    if isinstance(case.model, ClosedForm):
        before, after = (
            case.model.log_prob(state, case.batch).mean() for state in (case.program.initial_state(), case.first)
        )
        assert after > before
    elif case.climbs:
        case.run(20, report_every=1, hooks=[see])
        curve = np.array([row.get("log_posterior", row["log_likelihood"]) for row in see.rows])
        assert np.all(np.diff(curve) >= -1e-5 * abs(curve[0])) or not case.by_em
        assert curve[-1] > curve[0]
    elif len(case.model.objectives) == 1:
        case.run(40, report_every=1, hooks=[see])
        assert np.mean([r["loss"] for r in see.rows[-10:]]) < np.mean([r["loss"] for r in see.rows[:10]])
    else:
        model, start = at_start(case.model), case.program.initial_state()
        after, batch = case.run(5 * case.cycle), case.batch
        if isinstance(model, PreparesBatch):
            batch = model.prepare(start, batch, jax.random.key(1))
        for objective in model.objectives:
            loss = jax.jit(lambda p: objective.loss(p, start, batch, jax.random.key(1))[0])
            player = objective.player
            assert loss(after.params[player]) < loss(start.params[player]), objective.player


def test_law_13_microbatches_equal_the_whole_batch(case, same):
    """With weights too. Of models that draw random numbers parts draw others, so only EM and densities are compared."""
    n = len(case.batch["x"]) // 2 * 2
    batch = {name: a[:n] for name, a in case.batch.items()}
    if isinstance(case.model, ExpectationMaximization):
        batch["weight"] = np.linspace(0, 4, n, dtype=np.float32) ** 2
        algorithms = [em(case.model, microbatches=parts) for parts in (1, 2)]
        pairs = [jax.jit(algorithm.step)(case.first, batch) for algorithm in algorithms]
        tolerance = {"rtol": 2e-3, "atol": 2e-4}
    elif isinstance(case.model, Density) and isinstance(case.model, Trainable) and "ema" not in case.first.extra:
        tx = {player: optax.sgd(1e-3) for player in case.first.params}
        model = without_dropout(case.model) if case.data.info.tokenizer else case.model
        algorithms = [descent(model, tx, microbatches=parts) for parts in (1, 2)]
        state = case.first._replace(opt={player: tx[player].init(p) for player, p in case.first.params.items()})
        pairs = [jax.jit(algorithm.step)(state, batch) for algorithm in algorithms]
        tolerance = {"rtol": 1e-3, "atol": 1e-5}
    else:
        pytest.skip("its parts draw other random numbers than the whole, or another config of its kind is compared")
    (whole, _), (parts, _) = pairs
    same(parts.params, whole.params, **tolerance)


def test_law_14_the_average_is_what_is_sampled(case):
    if "ema" not in case.first.extra:
        pytest.skip("keeps no average")
    draw = jax.jit(lambda state: case.model.sample(averaged(state), jax.random.key(0), 7, case.condition)[case.drawn])
    state, average = case.first, case.first.extra["ema"]["params"]
    nudge = lambda tree: jax.tree.map(lambda a: a + 0.1 + 0.3 * jnp.sin(jnp.arange(a.size).reshape(a.shape)), tree)
    ema = {**state.extra["ema"], "params": nudge(average)}
    assert not np.array_equal(draw(state), draw(state._replace(extra={**state.extra, "ema": ema})))
    current = {player: nudge(p) if player in average else p for player, p in state.params.items()}
    np.testing.assert_array_equal(draw(state), draw(state._replace(params=current)))


def test_law_15_examples_of_no_weight_might_as_well_not_be_there(case, same):
    if not isinstance(case.model, ExpectationMaximization):
        pytest.skip("takes no weights")
    step = jax.jit(em(case.model).step)
    n = len(case.batch["x"]) // 2
    weight = np.where(np.arange(2 * n) < n, 1.0, 0.0).astype(np.float32)
    masked, _ = step(case.first, {**{name: a[: 2 * n] for name, a in case.batch.items()}, "weight": weight})
    alone, _ = step(case.first, {**{name: a[:n] for name, a in case.batch.items()}, "weight": weight[:n]})
    same(masked.params, alone.params, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("path", params(CONFIGS))
def test_law_16_recorded_knobs_rebuild_the_same_run(path):
    config = load(path)
    assert config.with_recorded(config.recorded()).knobs == config.knobs


@pytest.mark.representatives("cgan_digits")
@pytest.mark.parametrize("path", params(CONFIGS, slow=lambda path: path not in FULL))
def test_law_17_float64_enabled_changes_no_dtype(path):
    """Under JAX_ENABLE_X64 data of float32 is still trained on and sampled in float32."""
    expected = jax.tree.map(lambda a: a.dtype, Case(path).program.shapes)
    with jax.enable_x64(True):
        case = Case(path)
        check_structure(case)
        if case.batch["x"].dtype.kind == "f":  # integers say nothing about the type of parameters
            assert jax.tree.map(lambda a: a.dtype, case.program.shapes) == expected
        draw = lambda state, key: case.model.sample(state, key, 7, case.condition)[case.drawn]
        x = jax.eval_shape(draw, averaged_shapes(case.program.shapes), jax.random.key(0))
        assert (x.dtype.kind != "f") or x.dtype == jnp.float32


def _like(state):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), state)
