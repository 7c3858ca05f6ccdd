"""StyleGAN2-ADA: resampling, modulation, styles, path lengths, augmentations, against definitions written in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent
from gen_jax.core import fold_in
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.common.resampling import BINOMIAL, SYM6, downsample, upsample
from gen_jax.models.gan import Augmentation, ada, r1
from gen_jax.models.gan.style_networks import (
    EqualConv,
    EqualDense,
    Mapping,
    ModulatedConv,
    StyleDiscriminator,
    StyleGenerator,
    minibatch_deviation,
    sizes,
)
from gen_jax.models.gan.stylegan import StyleGAN, path_length
from gen_jax.optimizers import half_life, lazy_adam

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def style_gan(size=(8, 8), colors=1, base=16, most=4, low=0, **options):
    generator = StyleGenerator(size, colors, 6, 2, base, most, low)
    return StyleGAN(generator, StyleDiscriminator(base, most, layers=2, low=low), 5, **options)


def begun(model, batch):
    params, extra = jax.jit(model.init)(KEY, batch)
    algorithm = descent(model, {player: optax.sgd(0.0) for player in params})
    return algorithm, jax.jit(algorithm.init)(KEY, batch)


@pytest.fixture(scope="module")
def trained():
    """A model whose noise strengths and mean w are not zero, and its state."""
    model = style_gan()
    _, state = begun(model, {"x": normal(4, 8, 8, 1)})
    lively = lambda a: a + 0.3 * jax.random.normal(KEY, a.shape)
    state = state._replace(params=jax.tree.map(lively, state.params))
    extra = {**state.extra, "batch_stats": jax.tree.map(lively, state.extra["batch_stats"])}
    return model, state._replace(extra=extra)


# --- resampling


def correlated(x, taps):
    """Every full overlap of the image with the outer product of the taps."""
    n = len(taps)
    rows, columns = x.shape[1] - n + 1, x.shape[2] - n + 1
    parts = [taps[i] * taps[j] * x[:, i : i + rows, j : j + columns] for i in range(n) for j in range(n)]
    return sum(parts)


@pytest.mark.parametrize("taps", [BINOMIAL, SYM6], ids=["binomial", "sym6"])
def test_resampling_is_filtering_between_zeros(taps):
    x, n = np.asarray(normal(2, 8, 6, 3)), len(taps)
    between = np.zeros((2, 16, 12, 3))
    between[:, ::2, ::2] = x
    edges = lambda low, high: ((0, 0), (low, high), (low, high), (0, 0))
    doubled = 4 * correlated(np.pad(between, edges(n // 2, n // 2 - 1)), taps)
    np.testing.assert_allclose(upsample(jnp.asarray(x), taps), doubled, atol=1e-5)
    halved = correlated(np.pad(x, edges(n // 2 - 1, n // 2 - 1)), taps)[:, ::2, ::2]
    np.testing.assert_allclose(downsample(jnp.asarray(x), taps), halved, atol=1e-5)


def test_a_constant_image_stays_constant_inside():
    ones = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(upsample(ones)[:, 1:-1, 1:-1], 1, rtol=1e-6)
    np.testing.assert_allclose(upsample(ones)[0, 0, 4], 0.75, rtol=1e-6)  # zeros lie outside
    np.testing.assert_allclose(downsample(ones)[:, 1:-1, 1:-1], 1, rtol=1e-6)


def test_the_filters_are_a_partition_and_orthogonal():
    assert sum(BINOMIAL) == pytest.approx(1)
    taps = np.array(SYM6)
    overlaps = [taps[2 * k :] @ taps[: len(taps) - 2 * k] for k in range(6)]
    np.testing.assert_allclose(overlaps, [0.5, 0, 0, 0, 0, 0], atol=1e-7)
    alternating = [np.sum(taps[::-1] * (-1) ** np.arange(12) * np.arange(12.0) ** k) for k in range(6)]
    np.testing.assert_allclose(alternating, 0, atol=1e-4)  # six vanishing moments


# --- layers


def modulated(x, kernel, style, up):
    """Every example with a kernel of its own, zeros between the pixels, taps one by one (section 2.2 of the paper)."""
    found = []
    for image, scales in zip(np.asarray(x, np.float64), np.asarray(style, np.float64)):
        own = np.asarray(kernel, np.float64) * scales[:, None]
        own = own / np.sqrt(np.sum(own**2, axis=(0, 1, 2)) + 1e-8)
        if up:
            between = np.zeros((2 * image.shape[0] - 1, 2 * image.shape[1] - 1, image.shape[2]))
            between[::2, ::2] = image
            image, room = between, 2
        else:
            room = 1
        padded = np.pad(image, ((room, room), (room, room), (0, 0)))
        rows, columns = padded.shape[0] - 2, padded.shape[1] - 2
        y = sum(padded[i : i + rows, j : j + columns] @ own[i, j] for i in range(3) for j in range(3))
        found.append(4 * correlated(np.pad(y, ((1, 1), (1, 1), (0, 0)))[None], BINOMIAL)[0] if up else y)
    return np.stack(found)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_modulated_convolution_is_that_of_a_kernel_per_example(up, size):
    layer, x, w = ModulatedConv(6, up=up), normal(3, *size, 4), normal(3, 5, seed=1)
    params = layer.init(KEY, x, w)
    style = EqualDense(4).apply({"params": params["params"]["style"]}, w)
    np.testing.assert_allclose(
        layer.apply(params, x, w), modulated(x, params["params"]["kernel"], style, up), atol=2e-5
    )


def test_demodulation_keeps_the_variance():
    layer, x, w = ModulatedConv(64), normal(16, 16, 16, 32), 5 * normal(16, 8, seed=1)
    y = layer.apply(layer.init(KEY, x, w), x, w)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(y.std(axis=(1, 2)).mean(), 1, atol=0.03)


def test_equalized_layers_keep_the_variance():
    x = normal(256, 50)
    for layer in (EqualDense(400), EqualDense(400, rate=0.01)):
        assert float(layer.apply(layer.init(KEY, x), x).std()) == pytest.approx(1, abs=0.05)
    image = normal(8, 16, 16, 20)
    layer = EqualConv(40)
    y = layer.apply(layer.init(KEY, image), image)[:, 1:-1, 1:-1]
    assert float(y.std()) == pytest.approx(1, abs=0.05)
    assert EqualConv(3, down=True).init_with_output(KEY, image)[0].shape == (8, 8, 8, 3)


def test_the_mapping_forgets_the_length_of_the_noise():
    z, net = normal(4, 5), Mapping(6, 3)
    params = net.init(KEY, z)
    np.testing.assert_allclose(net.apply(params, z), net.apply(params, 7 * z), rtol=1e-4)


def test_minibatch_deviation_is_of_every_second_example():
    x = normal(8, 4, 4, 3)
    maps = minibatch_deviation(x, 4)[..., -1]
    for group in ([0, 2, 4, 6], [1, 3, 5, 7]):
        expected = np.sqrt(np.var(np.asarray(x[np.array(group)]), axis=0) + 1e-8).mean()
        np.testing.assert_allclose(maps[np.array(group)], expected, rtol=1e-5)
    assert minibatch_deviation(x[:6], 4).shape == (6, 4, 4, 4)  # in groups of three


def test_sizes_double_from_a_small_constant():
    assert sizes((32, 32)) == ((4, 4), (8, 8), (16, 16), (32, 32))
    assert sizes((28, 28)) == ((7, 7), (14, 14), (28, 28))
    assert sizes((64, 48)) == ((4, 3), (8, 6), (16, 12), (32, 24), (64, 48))
    for wrong in ((100, 100), (31, 31), (2, 2)):
        with pytest.raises(ValueError, match="power of two"):
            sizes(wrong)


# --- styles


def test_seeds_and_layers_have_noise_and_weights_of_their_own(trained):
    model, state = trained
    x = {"x": normal(4, 8, 8, 1)}
    first, second = (model.init(jax.random.key(seed), x)[0]["generator"] for seed in (0, 1))
    assert not np.allclose(first["constant"], second["constant"])
    ws = model.map(state, normal(1, 5))
    one, two, fixed, again = (model.synthesize(state, ws, key) for key in (KEY, jax.random.key(1), None, None))
    assert not np.allclose(one, two) and not np.allclose(one, fixed)
    np.testing.assert_array_equal(fixed, again)
    assert model.styles == 4  # three convolutions, and the style of the last image


def test_every_style_counts(trained):
    model, state = trained
    ws = model.map(state, normal(1, 5))
    images = [model.synthesize(state, ws.at[:, layer].add(0.5)) for layer in range(model.styles)]
    assert all(not np.allclose(image, model.synthesize(state, ws)) for image in images)


def test_truncation_leads_to_one_image(trained):
    model, state = trained
    z = normal(4, 5)
    alike = replace(model, psi=0.0).generate(state, z)
    np.testing.assert_allclose(alike, jnp.broadcast_to(alike[:1], alike.shape), atol=1e-5)
    assert not np.allclose(model.generate(state, z)[0], model.generate(state, z)[1])
    mean = state.extra["batch_stats"]["generator"]["mean"]
    halfway = replace(model, psi=0.5, cutoff=2).map(state, z)
    np.testing.assert_allclose(halfway[:, :2], (model.map(state, z)[:, :2] + mean) / 2, atol=1e-5)
    np.testing.assert_allclose(halfway[:, 2:], model.map(state, z)[:, 2:], atol=1e-6)


def test_mixing_of_equal_noise_changes_nothing(trained, monkeypatch):
    model, state = trained
    batch, z = {"x": normal(4, 8, 8, 1)}, normal(4, 5)
    made = lambda mixing: replace(model, mixing=mixing).forward(state.params["generator"], state, batch, z, KEY)[0]
    assert not np.allclose(made(1.0), made(0.0))
    monkeypatch.setattr(StyleGAN, "noise", lambda self, key, n: z)
    np.testing.assert_allclose(made(1.0), made(0.0), atol=1e-6)


def test_the_mean_style_follows_the_batch(trained):
    model, state = trained
    z = normal(64, 5)
    _, new = model.forward(state.params["generator"], state, {"x": normal(64, 8, 8, 1)}, z, KEY)
    before = state.extra["batch_stats"]["generator"]["mean"]
    expected = 0.995 * before + 0.005 * model.map(state, z)[:, 0].mean(axis=0)
    np.testing.assert_allclose(new["mean"], expected, rtol=1e-4)


def test_paths_are_as_long_as_their_jacobian_says(trained):
    model, state = trained
    model = replace(model, mixing=0.0)
    batch, key = {"x": normal(3, 8, 8, 1)}, fold_in(KEY, "paths")
    ws = model.map(state, model.noise(key, 3))
    y = jax.random.normal(fold_in(key, "y"), (3, 8, 8, 1))
    image = lambda ws: model.synthesize(state, ws, fold_in(key, "noise"))
    jacobian = np.asarray(jax.jit(jax.jacfwd(image))(ws))  # (3, 8, 8, 1, 3, styles, width)
    expected = []
    for i in range(3):
        product = np.tensordot(np.asarray(y[i]), jacobian[i, ..., i, :, :], 3) / 8
        expected.append(np.sqrt(np.sum(product**2) / model.styles))
    found = model.path_lengths(state.params["generator"], state, batch, key)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_path_penalty_is_about_a_running_mean(trained):
    model, state = trained
    penalty = path_length(2.0, every=4)
    model = replace(model, regularizers=(penalty,))
    state = state._replace(extra={**state.extra, "regularizers": {"path_length": {"mean": jnp.float32(0.2)}}})
    (objective,) = [objective for objective in model.objectives if objective.name == "path_length"]
    batch = {"x": normal(6, 8, 8, 1)}
    loss, (extra, _) = objective.loss(state.params["generator"], state, batch, KEY)
    few = {"x": batch["x"][:3]}
    lengths = np.asarray(model.path_lengths(state.params["generator"], state, few, fold_in(KEY, "path_length")))
    mean = 0.2 + 0.01 * (lengths.mean() - 0.2)
    assert float(extra["regularizers"]["path_length"]["mean"]) == pytest.approx(mean, rel=1e-4)
    assert float(loss) == pytest.approx(4 * 2 * np.mean((lengths - mean) ** 2), rel=1e-3)


@pytest.mark.representatives("bfloat16")
@pytest.mark.parametrize("low", [0, 2], ids=["float32", "bfloat16"])
def test_gradients_of_gradients_are_finite(low):
    model = style_gan((6, 6), 3, low=low, regularizers=(r1(1.0), path_length(2.0, 1)), conditioning=ClassLabels(3))
    batch = {"x": normal(4, 6, 6, 3), "label": jnp.arange(4) % 3}
    algorithm, state = begun(model, batch)
    state, metrics = jax.jit(algorithm.step)(state, batch)
    assert all(np.isfinite(float(value.value)) for value in metrics.values()), metrics
    assert all(float(metrics[name].value) > 0 for name in ("r1", "path_length"))
    images = model.sample(state, KEY, 6)["x"]
    assert images.shape == (6, 6, 6, 3) and images.dtype == jnp.float32


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="StyleGenerator"):
        StyleGAN(StyleDiscriminator(), StyleDiscriminator(), 4)
    with pytest.raises(ValueError, match="cutoff must be between 0 and 4"):
        style_gan(cutoff=5)
    with pytest.raises(ValueError, match="probability"):
        style_gan(mixing=2.0)


# --- rates and averages


def test_lazy_adam_moves_as_far_in_the_same_number_of_steps():
    """Under constant gradients n + 1 lazy updates equal n usual ones, in distance and in memory."""
    params, gradient = jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])
    lazy, usual = lazy_adam(0.1, 4, 0.5, 0.9), optax.adam(0.1, b1=0.5, b2=0.9)

    def after(tx, n):
        state, at = tx.init(params), params
        for _ in range(n):
            updates, state = tx.update(gradient, state, at)
            at = optax.apply_updates(at, updates)
        return at, state[0].nu

    for one, other in zip(after(lazy, 5), after(usual, 4)):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert lazy_adam(0.1, 0).init(params)[0].count == 0


def test_averages_have_a_half_life_in_images():
    decay = half_life(10_000, 32)
    assert float(decay(jnp.int32(10**6))) == pytest.approx(0.99778, abs=1e-5)
    assert float(decay(jnp.int32(0))) == pytest.approx(0.5**20)  # a twentieth of the first batch


# --- augmentation


def changed(x, *operations, probability=1.0):
    return jax.jit(ada.ADA(operations=operations).change)(x, KEY, probability)


def test_augmentation_of_probability_zero_is_none():
    for shape in ((2, 4, 4, 1), (2, 12, 7, 3)):
        x = jnp.tanh(normal(*shape))
        np.testing.assert_allclose(changed(x, *ada.BGC, *ada.CORRUPT, probability=0.0), x, atol=2e-6)


@pytest.mark.representatives("xflip", "xfrac", "hue", "imgfilter")
@pytest.mark.parametrize("name", (*ada.BGC, *ada.CORRUPT))
def test_every_operation_changes_images_and_passes_gradients(name):
    x = jnp.tanh(normal(8, 8, 8, 3))
    change = lambda x: changed(x, name)
    y, gradient = jax.jit(lambda x: (change(x), jax.grad(lambda x: change(x).sum())(x)))(x)
    assert not np.allclose(x, y) and np.isfinite(y).all()
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_quarter_turns_and_shifts_by_whole_pixels():
    x = upsample(upsample(jnp.tanh(normal(64, 4, 4, 1))))
    middle = slice(4, 12)  # not at the edges
    turned = np.asarray(changed(x, "rotate90"))
    seen = set()
    for before, after in zip(np.asarray(x), turned):
        errors = [np.abs(np.rot90(before, k)[middle, middle] - after[middle, middle]).max() for k in range(4)]
        assert min(errors) < 0.6 * sorted(errors)[1]  # not 0: the wavelet is not quite symmetric
        seen.add(int(np.argmin(errors)))
    assert seen == {0, 1, 2, 3}
    shifted = np.asarray(changed(x, "xint"))
    for before, after in zip(np.asarray(x), shifted):
        moves = [np.roll(before, (i, j), (0, 1))[2:-2, 2:-2] for i in range(-2, 3) for j in range(-2, 3)]
        assert min(np.abs(moved - after[2:-2, 2:-2]).max() for moved in moves) < 1e-5


def test_colors_are_turned_about_gray():
    gray = jnp.broadcast_to(jnp.tanh(normal(4, 8, 8, 1)), (4, 8, 8, 3))
    color = jnp.tanh(normal(4, 8, 8, 3, seed=1))
    for name in ("hue", "saturation"):
        np.testing.assert_allclose(changed(gray, name), gray, atol=1e-5)
        np.testing.assert_allclose(changed(color, name).mean(axis=-1), color.mean(axis=-1), atol=1e-5)
    lengths = lambda x: np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(lengths(changed(color, "hue")), lengths(color), atol=1e-5)


def test_below_its_limit_an_augmentation_can_be_told_from_the_data():
    """At the limit an upright image is still the most frequent one: the operations are invertible in distribution."""
    x = jnp.broadcast_to(jnp.tanh(normal(1, 8, 8, 1)), (2000, 8, 8, 1))
    pipe = ada.ADA(operations=("rotate90",))
    turned = np.asarray(changed(x, "rotate90", probability=pipe.limit))
    errors = [np.abs(np.rot90(x[0], k)[None] - turned).mean(axis=(1, 2, 3)) for k in range(4)]
    share = np.bincount(np.argmin(errors, axis=0), minlength=4) / 2000
    np.testing.assert_allclose(share, [0.4, 0.2, 0.2, 0.2], atol=0.04)


def test_augmentation_keeps_the_type_under_float64():
    with jax.enable_x64(True):
        pipe = ada.ADA(operations=(*ada.BGC, *ada.CORRUPT))
        x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        assert jax.eval_shape(pipe.change, x, jax.random.key(0), jnp.float32(0.5)).dtype == jnp.float32


def test_the_frequency_bands_sum_to_an_impulse():
    total = ada._BANDS.sum(axis=0)
    assert total[len(total) // 2] == pytest.approx(1)
    np.testing.assert_allclose(np.delete(total, len(total) // 2), 0, atol=1e-12)


def test_the_probability_moves_every_few_batches_and_stays_below_its_limit():
    pipe = ada.ADA(operations=("xflip",), examples=100, every=2, limit=0.3)
    memory, seen = pipe.init(), []
    for _ in range(8):
        memory = pipe.adapt(memory, jnp.ones(10))
        seen.append(round(float(memory["probability"]), 3))
    assert seen == [0.0, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3]
    for _ in range(4):
        memory = pipe.adapt(memory, -jnp.ones(10))
    assert float(memory["probability"]) == 0
    fixed = ada.ADA(target=None, start=0.5)
    assert float(fixed.adapt(fixed.init(), jnp.ones(3))["probability"]) == 0.5


def test_a_saturated_probability_is_reported():
    model = style_gan(augmentation=ada.ADA())
    said = model.diagnose({"augmentation_probability": np.array([0.8])})
    assert "limit of 0.8" in said and "r1" in said
    assert replace(model, augmentation=Augmentation()).diagnose({"real_accuracy": np.ones(1)}) == ""


@pytest.mark.parametrize(
    "options, said",
    [
        ({"operations": ("flip",)}, "no operations"),
        ({"target": 2.0}, "target"),
        ({"start": 0.9}, "start <= limit"),
        ({"every": 0}, "positive"),
    ],
)
def test_wrong_augmentations_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ada.ADA(**options)
