"""GANs against definitions: losses, penalties, normalizers, remedies; and what they learn."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.core import State, averaged, fold_in
from gen_jax.data import Resident
from gen_jax.data.modes import ring
from gen_jax.data.transforms import stack_images
from gen_jax.evaluation import mode_coverage, stability
from gen_jax.evaluation.gan import duplicate_rate, largest_singular_value
from gen_jax.evaluation.metric import Split
from gen_jax.hooks import Diagnose
from gen_jax.loop import compile_steps, fit, initial_state, zero_metrics
from gen_jax.models.common import normalization
from gen_jax.models.common.arrays import pack
from gen_jax.models.common.conditioning import ClassLabels, Dropped
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import (
    GAN,
    Compose,
    DCGANDiscriminator,
    DCGANGenerator,
    MinibatchDeviation,
    MinibatchDiscrimination,
    MLPDiscriminator,
    ResNetDiscriminator,
    ResNetGenerator,
    Unrolling,
    augmentations,
    losses,
    regularizers,
)
from gen_jax.restarts import member, population

LOSSES = {
    "minimax": losses.minimax,
    "non_saturating": losses.non_saturating,
    "least_squares": losses.least_squares,
    "hinge": losses.hinge,
    "wasserstein": losses.wasserstein,
    "relativistic": losses.relativistic,
}
PENALTIES = {
    "gradient_penalty": regularizers.gradient_penalty,
    "zero_centered": regularizers.zero_centered,
    "r1": regularizers.r1,
    "r2": regularizers.r2,
    "consistency": lambda: regularizers.consistency(augmentations.translation()),
}
NORMS = ("none", "batch", "instance", "pixel", "spectral")
ARCHITECTURES = {
    "mlp": lambda norm: (MLP((8,), (8, 8, 1), norm=norm), MLPDiscriminator((8,), norm=norm)),
    "dcgan": lambda norm: (DCGANGenerator((8, 8), (8, 4), norm=norm), DCGANDiscriminator((4, 8), norm=norm)),
    "resnet": lambda norm: (
        ResNetGenerator((8, 8), (4,), norm=norm),
        ResNetDiscriminator((4, 4), halvings=1, norm=norm),
    ),
}


def gan(rates=(1e-3, 1e-3), **options):
    model = GAN(MLP((16,), 2), MLPDiscriminator((16,)), latent=2, **options)
    return model, descent(model, {"discriminator": optax.sgd(rates[0]), "generator": optax.sgd(rates[1])})


def points(n=32, seed=0):
    return {"x": jnp.asarray(np.random.default_rng(seed).normal(size=(n, 2)), jnp.float32)}


def begun(model, batch, rates=(0.1, 0.1)):
    algorithm = descent(model, {"discriminator": optax.sgd(rates[0]), "generator": optax.sgd(rates[1])})
    return algorithm, jax.jit(algorithm.init)(jax.random.key(0), batch)


# --- losses


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_definitions(name):
    r, f = np.array([0.3, -1.0, 2.0]), np.array([2.0, -0.5, -3.0])
    d = lambda v: 1 / (1 + np.exp(-v))
    log = np.log
    expected = {
        "minimax": (-log(d(r)).mean() - log(1 - d(f)).mean(), log(1 - d(f)).mean()),
        "non_saturating": (-log(d(r)).mean() - log(1 - d(f)).mean(), -log(d(f)).mean()),
        "least_squares": (((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2, ((f - 1) ** 2).mean() / 2),
        "hinge": (np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(), -f.mean()),
        "wasserstein": (f.mean() - r.mean(), -f.mean()),
        "relativistic": (-log(d(r - f)).mean(), -log(d(f - r)).mean()),
    }[name]
    loss = LOSSES[name]()
    found = [float(part(jnp.float32(r), jnp.float32(f))) for part in (loss.discriminator, loss.generator)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_label():
    r, f = jnp.array([0.3, -1.0]), jnp.array([2.0, -0.5])
    labels = optax.sigmoid_binary_cross_entropy(r, 0.9).mean() + optax.sigmoid_binary_cross_entropy(f, 0.0).mean()
    assert float(losses.non_saturating(0.1).discriminator(r, f)) == pytest.approx(float(labels), rel=1e-6)
    with pytest.raises(ValueError, match="smoothing"):
        losses.minimax(1.0)


# --- penalties, of a critic whose gradients are known: D(x) = x A x / 2 + b x


class Known:
    """Stands for a GAN whose discriminator is known."""

    packing = 1

    def __init__(self, critic, augmentation=lambda x: x):
        self.known, self.augmentation = critic, augmentation

    def critic(self, turn, x, name):
        return self.known(x)

    def augmented_critic(self, turn, x, which, name):
        return self.known(self.augmentation(x))


def turn(critic, real, fake, key):
    known = critic if isinstance(critic, Known) else Known(critic)
    return regularizers.Turn(known, "discriminator", {}, None, {}, key, None, real, fake, (real, fake))


def critic(x):
    a, b = jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.array([0.3, -0.7])
    return 0.5 * jnp.sum(x @ a * x, axis=-1) + x @ b


def gradients(x):
    return np.asarray(x) @ np.array([[2.0, 0.5], [0.5, 1.0]]) + np.array([0.3, -0.7])


def test_penalties_are_their_definitions():
    real, fake, key = points()["x"], points(seed=1)["x"], jax.random.key(3)
    squares = lambda x: np.sum(gradients(x) ** 2, axis=1)

    def middle(name):
        share = jax.random.uniform(fold_in(key, name), (32, 1))
        return squares(share * real + (1 - share) * fake)

    expected = {
        "r1": 10 * squares(real).mean() / 2,
        "r2": 10 * squares(fake).mean() / 2,
        "zero_centered": 10 * middle("zero_centered").mean(),
        "gradient_penalty": 10 * np.mean((np.sqrt(middle("gradient_penalty")) - 1) ** 2),
    }
    for name, value in expected.items():
        found, _ = PENALTIES[name]()(turn(critic, real, fake, key), {})
        assert float(found) == pytest.approx(value, rel=1e-4), name


def test_r1_is_of_the_examples_before_augmentation():
    """D(2x) has the gradient 2 D'(2x) with respect to x; and a pack's gradient is that of all its examples."""
    x, halved = points()["x"], Known(critic, lambda x: 2 * x)
    found, _ = regularizers.r1()(turn(halved, x, x, jax.random.key(0)), {})
    assert float(found) == pytest.approx(
        10 * np.sum((2 * gradients(2 * np.asarray(x))) ** 2, axis=1).mean() / 2, rel=1e-4
    )
    model, algorithm = gan(
        regularizers=(regularizers.r1(10.0, every=2),),
        packing=2,
        augmentation=Compose([lambda x, key: 2 * x]),
    )
    state = jax.jit(algorithm.init)(jax.random.key(0), points())
    (objective,) = [o for o in model.objectives if o.name == "r1"]
    value, _ = objective.loss(state.params["discriminator"], state, points(), jax.random.key(1))
    packs = pack(2 * x, 2)
    discriminate = lambda v: model.discriminator.apply({"params": state.params["discriminator"]}, v)[:, 0].sum()
    expected = 2 * 10 * np.sum((2 * np.asarray(jax.grad(discriminate)(packs))) ** 2, axis=1).mean() / 2
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


def test_consistency_is_zero_for_what_does_not_matter():
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    flipped = regularizers.consistency(lambda x, key: x[:, :, ::-1])
    value = lambda critic: float(flipped(turn(critic, x, x, jax.random.key(1)), {})[0])
    assert value(lambda x: x.sum(axis=(1, 2, 3))) == pytest.approx(0, abs=1e-6)
    assert value(lambda x: x[:, 0, 0, 0]) > 0


def test_a_lazy_penalty_has_steps_of_its_own_and_is_stronger():
    x, (lazy, always) = points(), (regularizers.r1(0.1, every=3), regularizers.r1(0.1))
    model, algorithm = gan(regularizers=(lazy,))
    state = jax.jit(algorithm.init)(jax.random.key(0), x)
    counts = []
    for _ in range(3):
        state, metrics = jax.jit(algorithm.step)(state, x)
        counts.append(float(metrics["r1_loss"].count))
    assert counts == [0, 0, 1]
    (objective,) = [o for o in model.objectives if o.name == "r1"]
    discriminate = lambda v: model.discriminator.apply({"params": state.params["discriminator"]}, v)[:, 0]
    expected = 3 * always(turn(discriminate, x["x"], x["x"], jax.random.key(0)), {})[0]
    value = objective.loss(state.params["discriminator"], state, x, jax.random.key(0))[0]
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


# --- every architecture with every normalizer; every loss with every penalty


@pytest.mark.representatives("mlp-none", "mlp-batch", "resnet-spectral")
@pytest.mark.parametrize(
    ("architecture", "norm"),
    [  # all norms in one architecture, and all architectures with one norm
        pytest.param(a, norm, marks=[pytest.mark.slow] * (a != "mlp" and norm not in ("batch", "spectral")))
        for a in ARCHITECTURES
        for norm in NORMS
    ],
)
def test_architectures_take_every_normalizer(architecture, norm):
    generator, discriminator = ARCHITECTURES[architecture](getattr(normalization, norm))
    x = {"x": jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))}
    algorithm, state = begun(GAN(generator, discriminator, 3), x)
    after, metrics = jax.jit(algorithm.step)(state, x)
    assert all(np.isfinite(m.value) for m in metrics.values())
    for player in ("generator", "discriminator"):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params[player], after.params[player])
        assert any(jax.tree.leaves(moved))


@pytest.mark.representatives("gradient_penalty")
@pytest.mark.parametrize("penalty", PENALTIES)
def test_losses_take_every_penalty(penalty):
    x = {"x": jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))}
    generator, discriminator = ARCHITECTURES["mlp"](normalization.none)

    models = [
        GAN(generator, discriminator, 3, loss(), regularizers=(PENALTIES[penalty](),)) for loss in LOSSES.values()
    ]
    _, state = begun(models[0], x)  # the loss has no part in how a model begins

    for model in models:
        algorithm = descent(model, {"discriminator": optax.sgd(0.1), "generator": optax.sgd(0.1)})
        metrics = jax.jit(algorithm.step)(state, x)[1]
        assert np.isfinite(metrics["discriminator_loss"].value) and penalty in " ".join(metrics)


def test_batch_statistics_move_in_training_and_serve_samples():
    generator, discriminator = ARCHITECTURES["dcgan"](normalization.batch)
    x = {"x": jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))}
    model = GAN(generator, discriminator, 3)
    algorithm, state = begun(model, x)
    after = jax.jit(algorithm.step)(state, x)[0]
    for player in ("generator", "discriminator"):
        before, now = (s.extra["batch_stats"][player] for s in (state, after))
        assert any(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), before, now)))
    z = model.noise(jax.random.key(1), 4)
    one_by_one = jnp.concatenate([model.generate(after, z[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(model.generate(after, z), one_by_one, rtol=1e-4, atol=1e-5)


def test_averages_have_statistics_of_their_own():
    generator, discriminator = ARCHITECTURES["dcgan"](normalization.batch)
    x = {"x": jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))}
    model = GAN(generator, discriminator, 3)
    tx = optax.sgd(0.1)
    algorithm = with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", lambda step: 0.5)
    before = jax.jit(algorithm.init)(jax.random.key(0), x)
    after = jax.jit(algorithm.step)(before, x)[0]
    middle = lambda a, b: 0.5 * a + 0.5 * b
    expected = jax.tree.map(middle, *(s.extra["batch_stats"]["generator"] for s in (before, after)))
    found = averaged(after).extra["batch_stats"]["generator"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_spectral_normalization_bounds_the_slope():
    model = MLPDiscriminator((32, 32), norm=normalization.spectral)
    x = points(256)["x"]
    variables = jax.jit(model.init)(jax.random.key(0), x)
    scaled = {**variables, "params": jax.tree.map(lambda a: 5 * a, variables["params"])}
    step = jax.jit(lambda v: model.apply(v, x, mutable=["batch_stats"])[1])
    for _ in range(30):
        scaled = {**scaled, **step(scaled)}
    slopes = jnp.linalg.norm(jax.grad(lambda x: model.apply(scaled, x).sum())(x), axis=1)
    plain = MLPDiscriminator((32, 32))
    steep = jnp.linalg.norm(
        jax.grad(lambda x: plain.apply({"params": _unwrapped(scaled["params"])}, x).sum())(x), axis=1
    )
    assert slopes.max() <= 1.001 < steep.max()


def _unwrapped(params):
    """The same layers under the names that they have without the normalizer."""
    verdict = {k: v for k, v in params["_Verdict_0"].items()}
    return {"Dense_0": params["Dense_0"], "Dense_1": params["Dense_1"], "_Verdict_0": verdict}


# --- remedies


def test_each_player_moves_only_itself(same):
    x = points()
    for rates, still in (((0.1, 0.0), "generator"), ((0.0, 0.1), "discriminator")):
        _, algorithm = gan(rates)
        state = jax.jit(algorithm.init)(jax.random.key(0), x)
        after, _ = jax.jit(algorithm.step)(state, x)
        same(after.params[still], state.params[still])
        moving = ({"generator", "discriminator"} - {still}).pop()
        assert not np.array_equal(*(jax.tree.leaves(s.params[moving])[0] for s in (state, after)))


def test_packs_hold_whole_examples():
    x = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(pack(x, 3)[0], jnp.concatenate([x[0], x[2], x[4]]))
    assert pack(jnp.zeros((6, 8, 8, 3)), 2).shape == (3, 8, 8, 6)
    with pytest.raises(ValueError, match="cannot be packed by 4"):
        pack(x, 4)


def test_the_unrolled_generator_descends_the_loss_after_the_discriminators_steps():
    """One step of plain descent, by hand; the gradient goes through it."""
    x, tx = points(), optax.sgd(0.3)
    model, _ = gan(unrolling=Unrolling(1, tx))
    _, state = begun(model, x, (0.3, 0.1))
    state = state._replace(opt={**state.opt, "discriminator": tx.init(state.params["discriminator"])})
    key = jax.random.key(5)
    apply = lambda module, params, x: module.apply({"params": params}, x)

    def by_hand(generator):
        def fake(*names):
            return apply(model.generator, generator, model.noise(fold_in(key, *names), 32))

        def judged(discriminate):
            real, made = (apply(model.discriminator, discriminate, v)[:, 0] for v in (x["x"], fake("unrolled", 0)))
            return model.adversarial.discriminator(real, made)

        discriminate = state.params["discriminator"]
        discriminate = jax.tree.map(lambda p, g: p - 0.3 * g, discriminate, jax.grad(judged)(discriminate))
        real, made = (apply(model.discriminator, discriminate, v)[:, 0] for v in (x["x"], fake("fake")))
        return -(jax.nn.softplus(-real).mean() + jax.nn.softplus(made).mean())

    loss = lambda params: model._generator_turn(params, state, x, key)[0]
    (value, grads), (expected, by_hand_grads) = (
        jax.jit(jax.value_and_grad(f))(state.params["generator"]) for f in (loss, by_hand)
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, by_hand_grads)


def test_unrolling_adam_has_gradients_where_those_of_the_discriminator_vanish():
    """The last bias of a relativistic discriminator has none at all."""
    tx = optax.adam(1e-3, b1=0.5, eps_root=1e-16)
    model = GAN(MLP((8,), 2), MLPDiscriminator((8,)), 2, losses.relativistic(), unrolling=Unrolling(2, tx))
    algorithm = descent(model, {"discriminator": tx, "generator": tx})
    state = jax.jit(algorithm.init)(jax.random.key(0), points())
    metrics = jax.jit(algorithm.step)(state, points())[1]
    assert np.isfinite(metrics["generator_grad_norm"].value)


def test_looks_at_the_batch_tell_collapsed_batches():
    same, different = jnp.ones((8, 4)), jax.random.normal(jax.random.key(0), (8, 4))
    look = MinibatchDiscrimination(3, 2)
    variables = look.init(jax.random.key(1), same)
    np.testing.assert_allclose(look.apply(variables, same)[:, 4:], 1.0)  # as close as can be to all seven others
    assert (look.apply(variables, different)[:, 4:] < 1).all()
    m = (different @ variables["params"]["Dense_0"]["kernel"]).reshape(8, 3, 2)
    close = lambda i, b: np.mean([np.exp(-np.abs(m[i, b] - m[j, b]).sum()) for j in range(8) if j != i])
    expected = [[close(i, b) for b in range(3)] for i in range(8)]
    np.testing.assert_allclose(look.apply(variables, different)[:, 4:], expected, rtol=1e-4)
    deviation = MinibatchDeviation().apply({}, different)[:, 4]
    np.testing.assert_allclose(deviation, np.asarray(different).std(axis=0).mean(), rtol=1e-4)
    assert MinibatchDeviation().apply({}, same)[0, 4] < 1e-3
    with pytest.raises(ValueError, match="groups of 3"):
        MinibatchDeviation(3).apply({}, same)
    model = GAN(MLP((4,), 2), MLPDiscriminator((4,), batchwise=(MinibatchDeviation(4),)), 2)
    begun(model, points())


def test_mode_seeking_punishes_a_generator_that_ignores_its_noise():
    x = points()
    model, _ = gan(regularizers=(regularizers.mode_seeking(),))
    _, state = begun(model, x)
    constant = jax.tree.map(jnp.zeros_like, state.params["generator"])
    collapsed, various = (
        float(model._generator_turn(p, state, x, jax.random.key(0))[0]) for p in (constant, state.params["generator"])
    )
    assert collapsed > 1e4 > various


# --- augmentations


def test_augmentations_keep_shape_and_pass_gradients():
    x = jax.random.uniform(jax.random.key(0), (16, 8, 8, 2))
    ops = (
        augmentations.brightness(),
        augmentations.contrast(),
        augmentations.translation(),
        augmentations.cutout(),
    )
    for change in ops:
        key = jax.random.key(1)
        y, back = jax.vjp(lambda x: change(x, key), x)
        assert y.shape == x.shape and not np.array_equal(x, y)
        assert np.abs(back(jnp.ones_like(y))[0]).max() > 0


def test_translation_moves_whole_pixels():
    x = np.asarray(jax.random.uniform(jax.random.key(0), (20, 8, 8, 1)) + 1)
    y = np.asarray(augmentations.translation(0.25)(x, jax.random.key(2)))

    def moved(image, up, left):
        out = np.zeros_like(image)
        rows, columns = (slice(max(0, m), 8 + min(0, m)) for m in (up, left))
        back = [slice(max(0, -m), 8 + min(0, -m)) for m in (up, left)]
        out[rows, columns] = image[back[0], back[1]]
        return out

    found = [
        [(u, v) for u in range(-2, 3) for v in range(-2, 3) if np.allclose(moved(a, u, v), b, atol=1e-6)]
        for a, b in zip(x, y)
    ]
    assert all(len(moves) == 1 for moves in found) and len({moves[0] for moves in found}) > 5


def test_adaptive_augmentation_holds_the_discriminator_at_its_target():
    ada = augmentations.Adaptive((augmentations.brightness(),), target=0.5, examples=640, every=1)
    memory = ada.init()
    for _ in range(5):
        memory = ada.adapt(memory, jnp.ones(64))  # all real examples recognized
    assert float(memory["probability"]) == pytest.approx(0.5)
    memory = ada.adapt(memory, jnp.concatenate([jnp.ones(32), -jnp.ones(32)]))
    assert float(memory["probability"]) == pytest.approx(0.4)
    state = State(jnp.int32(0), None, {}, {}, {"augmentation": {"probability": jnp.zeros(())}})
    x = jnp.ones((64, 4, 4, 1))
    np.testing.assert_array_equal(ada(x, jax.random.key(0), state), x)
    half = state._replace(extra={"augmentation": {"probability": jnp.float32(0.5)}})
    changed = np.any(np.asarray(ada(x, jax.random.key(0), half)) != 1, axis=(1, 2, 3)).mean()
    assert 0.3 < changed < 0.7


def test_instance_noise_fades():
    noise, x = augmentations.InstanceNoise(0.5, 100), jnp.zeros((1000, 2))
    at = lambda step: float(noise(x, jax.random.key(0), State(jnp.int32(step), None, {}, {}, {})).std())
    np.testing.assert_allclose([at(0), at(50), at(100), at(1000)], [0.5, 0.25, 0, 0], atol=0.03)


# --- conditions


@pytest.mark.representatives("0.0")
@pytest.mark.parametrize("auxiliary", [0.0, 1.0])
def test_conditional_gan_makes_what_it_is_told(auxiliary):
    """Two classes, bright and dark."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=512)
    x = {"x": (labels[:, None] * 2.0 - 1 + 0.1 * rng.normal(size=(512, 2))).astype(np.float32), "label": labels}
    outputs = 3 if auxiliary else 1
    model = GAN(
        _Told(MLP((32,), 2)),
        MLPDiscriminator((32,), outputs=outputs),
        2,
        regularizers=(regularizers.r1(0.1),),
        conditioning=ClassLabels(2),
        auxiliary=auxiliary,
    )
    tx = optax.adam(2e-3, b1=0.5)
    algorithm = with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", 0.98)
    state = fit(algorithm, Resident(x, 64), 800, chunk=200)
    drawn = model.sample(state, jax.random.key(0), 200, {"label": jnp.arange(200) % 2})
    means = [float(drawn["x"][drawn["label"] == c].mean()) for c in range(2)]
    np.testing.assert_allclose(means, [-1, 1], atol=0.25)
    batch = {name: jnp.asarray(a[:8]) for name, a in x.items()}
    assert not np.array_equal(model.sample(state, jax.random.key(0), 8, batch)["x"], batch["x"])  # of labels only


class _Told(nn.Module):
    network: nn.Module

    def __call__(self, z, context):
        return self.network(jnp.concatenate([z, context], axis=1))


# --- what is refused, in words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent": 0}, "latent must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"auxiliary": -1.0}, "must not be negative"),
        ({"packing": 2, "conditioning": ClassLabels(2)}, "packing=1"),
        ({"auxiliary": 1.0}, "Labels"),
        ({"conditioning": Dropped(ClassLabels(2))}, "belong to neither player"),
        ({"regularizers": (regularizers.r1(), regularizers.r1())}, "counts once"),
        ({"unrolling": Unrolling(0, optax.sgd(0.1))}, "at least 1 step"),
    ],
)
def test_wrong_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        GAN(MLP((4,), 2), MLPDiscriminator((4,)), **{"latent": 2, **options})


@pytest.mark.parametrize(
    ("generator", "discriminator", "options", "said"),
    [
        (
            MLP((4,), 2),
            MLPDiscriminator((4,), norm=normalization.batch),
            {"regularizers": (regularizers.r1(),)},
            "normalizer",
        ),
        (MLP((4,), 2), MLPDiscriminator((4,)), {"packing": 5}, "cannot be packed by 5"),
        (MLP((4,), 3), MLPDiscriminator((4,)), {}, "the generator makes examples"),
        (MLP((4,), 2), MLPDiscriminator((4,), outputs=2), {}, "must have 1 outputs"),
    ],
)
def test_parts_that_do_not_fit_are_refused(generator, discriminator, options, said):
    model = GAN(generator, discriminator, 2, **options)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(model.init, jax.random.key(0), points())


def test_sizes_out_of_reach_are_refused():
    with pytest.raises(ValueError, match="cannot reach an image of"):
        jax.eval_shape(DCGANGenerator((9, 9), (4, 4)).init, jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="cannot be halved"):
        module = ResNetDiscriminator((4, 4, 4), halvings=3)
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


# --- instruments


def test_the_hint_comes_when_the_discriminator_wins():
    model, _ = gan()
    said = []
    hook = Diagnose(model.diagnose, patience=3, say=said.append)
    accuracies = lambda v: {"real_accuracy": np.array([v]), "fake_accuracy": np.array([v])}
    for step, value in enumerate([1.0, 1.0, 0.7, 1.0, 1.0, 1.0, 1.0]):
        hook.report(step, accuracies(value))
    assert len(said) == 1 and said[0].startswith("step 5: the discriminator overpowers")
    critic = replace(model, adversarial=losses.wasserstein())  # which is to be right always
    assert critic.diagnose(accuracies(1.0)) == ""
    assert replace(model, adversarial=losses.relativistic()).diagnose(accuracies(1.0)) != ""


def test_duplicates_and_singular_values():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 2000, 3))
    assert duplicate_rate(fake, real) < 0.03
    assert duplicate_rate(np.repeat(fake[:1000], 2, axis=0), real) == 1.0
    matrix = rng.normal(size=(3, 4))
    assert largest_singular_value({"kernel": matrix, "constant": 9 * matrix}) == pytest.approx(
        np.linalg.svd(matrix)[1][0]
    )


def test_stability_reports_the_game():
    x = points(64)
    model, algorithm = gan()
    state = jax.jit(algorithm.init)(jax.random.key(0), x)
    found = stability(model)(state, Split("test", {"x": np.asarray(x["x"])}), jax.random.key(0))
    assert {"real_accuracy", "fake_accuracy", "duplicates", "loss_ratio", "spectral_norm_generator"} <= set(found)
    assert all(np.isfinite(e.value) for e in found.values())


def test_pictures_are_drawn():
    x = points(64)
    model, algorithm = gan()
    state = jax.jit(algorithm.init)(jax.random.key(0), x)
    split = Split("test", {"x": np.asarray(x["x"])})
    assert len(plots.generator_density(model, state, split, jax.random.key(0)).axes) == 4  # each with its scale
    images = {"x": np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32), "label": np.arange(8)}
    model = GAN(DCGANGenerator((8, 8), (4, 4)), DCGANDiscriminator((4,)), 2, conditioning=ClassLabels(10))
    _, state = begun(model, images)
    for draw in (plots.real_and_fake, plots.noise_interpolations):
        shown = draw(model, state, Split("test", images), jax.random.key(0)).axes[-1].images[0].get_array()
        assert np.ptp(shown) > 0.5


def test_stacked_digits_write_their_number():
    x = {"x": jnp.arange(10.0)[:, None, None, None] * jnp.ones((10, 2, 2, 1)), "label": jnp.arange(10)}
    out = stack_images(3)(x, jax.random.key(0))
    assert out["x"].shape == (10, 2, 2, 3)
    written = np.asarray(out["x"][:, 0, 0]) @ [100, 10, 1]
    np.testing.assert_array_equal(out["label"], written)
    assert len(set(written)) == 10


# --- what they learn


@pytest.mark.slow
@pytest.mark.optimized
def test_gan_learns_a_gaussian():
    x = (np.array([3.0, -1.0]) + 0.5 * np.random.default_rng(0).normal(size=(4000, 2))).astype(np.float32)
    model = GAN(MLP((32, 32), 2), MLP((32, 32), 1), latent=2)
    tx = optax.adam(1e-3, b1=0.5)
    algorithm = with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", 0.998)
    state = fit(algorithm, Resident({"x": x}, 128), 4000, chunk=500)
    drawn = np.asarray(model.sample(averaged(state), jax.random.key(0), 4000)["x"])
    np.testing.assert_allclose(drawn.mean(axis=0), [3.0, -1.0], atol=0.25)
    assert np.all((drawn.std(axis=0) > 0.15) & (drawn.std(axis=0) < 1.0))  # neither collapsed nor scattered


@pytest.mark.optimized
@pytest.mark.slow
def test_a_population_of_seeds_finds_all_eight_modes():
    rng = np.random.default_rng(0)
    x = (ring(8)[rng.integers(8, size=8000)] + 0.01 * rng.normal(size=(8000, 2))).astype(np.float32)
    model = GAN(
        MLP((64, 64), 2),
        MLPDiscriminator((64, 64)),
        2,
        losses.relativistic(),
        regularizers=(regularizers.r1(0.1), regularizers.r2(0.1)),
    )
    tx = optax.adam(1e-3, b1=0.5)
    algorithm = with_ema(descent(model, {"discriminator": tx, "generator": tx}), "generator", 0.999)
    state = fit(population(algorithm, 3), Resident({"x": x}, 256), 6000, chunk=500)
    measure = mode_coverage(ring(8), 0.05)(model)
    for i in range(3):
        found = measure(averaged(member(state, i)), Split("test", {"x": x}), jax.random.key(0))
        assert found["modes"].value == 8 and found["high_quality"].value > 0.8


@pytest.mark.optimized
def test_what_both_players_see_is_generated_once_inside_a_chunk_too():
    model = GAN(MLP((64, 64), 2), MLPDiscriminator((64,)), latent=2)
    algorithm = descent(model, {"discriminator": optax.sgd(0.1), "generator": optax.sgd(0.1)})
    source = jax.tree.map(jnp.asarray, Resident({"x": np.zeros((256, 2), np.float32)}, 64))
    state = initial_state(algorithm, source)

    def products(n, turns):
        program = compile_steps(algorithm, n).lower(state, zero_metrics(algorithm, state, source)(), source, turns)
        return program.compile().cost_analysis()["flops"]

    assert products(10, np.int32(10)) < 1.03 * products(1, 1)
