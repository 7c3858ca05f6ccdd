"""Progressive growing: continuity at every switch, stages, schedules, architectures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent, reset_moments, staged
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.common.resampling import doubled, halved
from gen_jax.models.gan import ada, gradient_penalty, r1, wasserstein
from gen_jax.models.gan.progressive import (
    GrowingDiscriminator,
    GrowingGenerator,
    ProgressiveGAN,
    Schedule,
    schedule_of,
)
from gen_jax.models.gan.style_networks import StyleDiscriminator, StyleGenerator
from gen_jax.models.gan.stylegan import ProgressiveStyleGAN, path_length

KEY = jax.random.key(0)
SCHEDULE = Schedule((3, 9), (4, 4))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def growing(architecture="progressive", schedule=SCHEDULE, size=(16, 16), **options):
    networks = (
        GrowingGenerator(size, 1, 32, 8, architecture),
        GrowingDiscriminator(size, 32, 8, architecture=architecture),
    )
    return ProgressiveGAN(*networks, 5, wasserstein(), schedule=schedule, **options)


def growing_styles(schedule=SCHEDULE, size=(16, 16), low=0, **options):
    networks = (
        StyleGenerator(size, 1, 6, 2, 32, 8, low),
        StyleDiscriminator(32, 8, layers=2, low=low, size=size),
    )
    return ProgressiveStyleGAN(*networks, 5, schedule=schedule, **options)


def lively(model):
    params, extra = jax.jit(model.init)(KEY, {"x": normal(4, 16, 16, 1)})
    moved = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(KEY, a.shape), params)
    algorithm = descent(model.stages()[-1], {player: optax.sgd(0.1) for player in params})
    state = jax.jit(algorithm.init)(KEY, {"x": normal(4, 16, 16, 1)})
    return state._replace(params=moved, extra=extra)


@pytest.fixture(scope="module", params=["progressive", "skip", "styles"])
def model_and_state(request):
    model = growing_styles() if request.param == "styles" else growing(request.param)
    return model, lively(model)


def test_images_and_logits_do_not_jump(model_and_state):
    """Just before and after a level starts, and when it has faded in, both networks are the same function."""
    model, state = model_and_state
    at = lambda step: state._replace(step=jnp.int32(step))
    z, x = normal(4, 5), {"x": normal(4, 16, 16, 1)}
    generate, discriminate = jax.jit(model.generate), jax.jit(model.discriminate)
    for start, fade in zip(SCHEDULE.starts, SCHEDULE.fades):
        for f, given in ((generate, z), (discriminate, x)):
            np.testing.assert_allclose(f(at(start - 1), given), f(at(start), given), atol=2e-5)
            assert not np.allclose(f(at(start), given), f(at(start + fade // 2), given), atol=1e-3)
            np.testing.assert_allclose(f(at(start + fade), given), f(at(start + fade + 1), given), atol=2e-5)


def test_real_images_are_faded_as_generated_ones_are(model_and_state):
    model, _ = model_and_state
    x = normal(2, 16, 16, 1)
    np.testing.assert_allclose(model.at_level(x, 2, 1.0), x, atol=1e-6)
    np.testing.assert_allclose(model.at_level(x, 2, 0.0), doubled(halved(x)), atol=1e-6)
    np.testing.assert_allclose(
        model.at_level(x, 1, 0.25), 0.25 * halved(x) + 0.75 * doubled(halved(halved(x))), atol=1e-6
    )


def test_a_stage_trains_its_levels_only(model_and_state):
    model, state = model_and_state
    tx = {player: optax.adam(0.01) for player in state.params}
    stage = model.stages()[0]
    algorithm = descent(stage, tx)
    batch = {"x": normal(4, 16, 16, 1)}
    before = jax.jit(algorithm.init)(KEY, batch)._replace(params=state.params)
    after, _ = jax.jit(algorithm.step)(before, batch)
    for player in state.params:
        for name, value in state.params[player].items():
            same = jax.tree.map(np.array_equal, value, after.params[player][name])
            later = name[-1] in "1234" if name.startswith("convolutions") else name[-1] in "12"
            assert all(jax.tree.leaves(same)) == later, name


def test_a_run_passes_through_all_stages():
    model = growing(regularizers=(gradient_penalty(),))
    tx = {player: optax.adam(0.01, b1=0.0) for player in ("discriminator", "generator")}
    algorithm = staged([descent(stage, tx) for stage in model.stages()], SCHEDULE.starts)
    algorithm = reset_moments(algorithm, SCHEDULE.switches)
    batch = {"x": normal(4, 16, 16, 1)}
    state, step = jax.jit(algorithm.init)(KEY, batch), jax.jit(algorithm.step)
    counts = []
    for _ in range(14):
        state, metrics = step(state, batch)
        counts.append(int(state.opt["generator"][0].count))
        assert all(np.isfinite(float(value.value)) for value in metrics.values())
    assert counts == [1, 2, 3, 1, 2, 3, 4, 1, 2, 1, 2, 3, 4, 1]  # forgotten before steps 3, 7, 9 and 13
    assert model.sample(state, KEY, 3)["x"].shape == (3, 16, 16, 1)


EVERYTHING = {
    "regularizers": (r1(1.0, 2), path_length(2.0, 2)),
    "augmentation": ada.ADA(operations=("xflip", "xint", "brightness")),
    "conditioning": ClassLabels(3),
}


@pytest.mark.representatives("mixing")
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["mixing", "everything"])
def test_style_networks_pass_through_all_stages(options):
    model = growing_styles(Schedule((3,), (4,)), (8, 8), mixing=1.0, **options)
    tx = {player: optax.adam(0.01, b1=0.0) for player in ("discriminator", "generator")}
    algorithm = staged([descent(stage, tx) for stage in model.stages()], model.schedule.starts)
    batch = {"x": normal(4, 8, 8, 1), "label": jnp.arange(4) % 3}
    state, step = jax.jit(algorithm.init)(KEY, batch), jax.jit(algorithm.step)
    condition = {"label": batch["label"]} if options else None
    sample, coarse = jax.jit(lambda state: model.sample(state, KEY, 4, condition)["x"]), []
    for i in range(8):
        state, metrics = step(state, batch)
        lazy = {name for name, value in metrics.items() if np.isnan(float(value.value))}
        expected = ("r1_loss", "r1_grad_norm", "path_length_loss", "path_length_grad_norm")
        assert lazy == (set(expected) if options and i % 2 == 0 else set())
        x = sample(state)
        coarse.append(np.allclose(x, doubled(halved(x)), atol=1e-6))
    assert coarse == [True] * 3 + [False] * 5  # at step 3 the new level has a share of 0


def test_styles_of_higher_levels_do_not_count_before_them():
    model = growing_styles()
    state, ws = lively(model), normal(3, 6, 6)
    early = state._replace(step=jnp.int32(5))
    high = ws.at[:, 4:].add(1.0)
    np.testing.assert_array_equal(model.synthesize(early, ws), model.synthesize(early, high))
    assert not np.allclose(model.synthesize(early, ws), model.synthesize(early, ws.at[:, 3].add(1.0)))
    late = state._replace(step=jnp.int32(13))
    assert not np.allclose(model.synthesize(late, ws), model.synthesize(late, high))


@pytest.mark.representatives("residual")
@pytest.mark.parametrize("architecture", ["progressive", "skip", "residual", "msg"])
def test_every_architecture_trains_at_full_size(architecture):
    model = growing(architecture, Schedule(), conditioning=ClassLabels(3))
    tx = {player: optax.adam(0.01) for player in ("discriminator", "generator")}
    batch = {"x": normal(6, 16, 16, 1), "label": jnp.arange(6) % 3}
    algorithm = descent(model, tx)
    state, metrics = jax.jit(algorithm.step)(jax.jit(algorithm.init)(KEY, batch), batch)
    assert all(np.isfinite(float(value.value)) for value in metrics.values())
    assert model.generate(state, normal(6, 5), batch).shape == (6, 16, 16, 1)
    assert model.discriminate(state, batch).shape == (6,)


def test_msg_discriminators_see_every_size_exactly():
    model, x = growing("msg", Schedule()), normal(2, 16, 16, 1)
    stacked = model.at_level(x, 2, 1.0)
    assert stacked.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(stacked[:, ::4, ::4, 0], halved(halved(x))[..., 0])
    np.testing.assert_array_equal(stacked[:, ::2, ::2, 1], halved(x)[..., 0])
    np.testing.assert_array_equal(stacked[..., 2], x[..., 0])


def test_schedules_count_images():
    schedule = schedule_of(1000, [100, 50, 25])
    assert schedule == Schedule((10, 50), (20, 40)) and schedule.switches == (10, 30, 50, 90)
    assert schedule_of(1000, [100]) == Schedule()
    assert [int(schedule.level(jnp.int32(step))) for step in (0, 9, 10, 49, 50, 1000)] == [0, 0, 1, 1, 2, 2]
    fades = [float(schedule.fade(1, jnp.int32(step))) for step in (10, 20, 30, 45)]
    assert fades == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: growing("msg"), "do not grow"),
        (lambda: growing(schedule=Schedule((3,), (4,))), "3 levels need 2 starts"),
        (lambda: Schedule((3, 4), (1,)), "each level needs"),
        (lambda: growing(packing=2), "packing=1"),
        (lambda: growing(size=(20, 31)), "power of two"),
        (lambda: growing_styles(size=(8, 8)), "2 levels need 1 starts"),
        (
            lambda: ProgressiveStyleGAN(StyleGenerator((8, 8)), StyleDiscriminator(), 5),
            "same architecture and size",
        ),
    ],
)
def test_models_that_cannot_grow_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
