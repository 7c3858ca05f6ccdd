"""Convolutions written as matrix products are the ones of Flax, gradients included."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gen_jax.models.common import convolutions
from gen_jax.models.common.arrays import depth_to_space
from gen_jax.models.common.convolutions import Conv, ConvTranspose, UpsampleConv, convolve
from gen_jax.models.common.networks import ConvDecoder
from gen_jax.sharding import Layout


@pytest.mark.representatives("*-Conv-*", "*2-ConvTranspose*")
@pytest.mark.parametrize("ours, theirs", [(Conv, nn.Conv), (ConvTranspose, nn.ConvTranspose)])
@pytest.mark.parametrize(
    "kernel, strides, size", [((3, 3), 2, (7, 8)), ((4, 5), 2, (6, 9)), ((2, 3), 3, (5, 6)), ((3, 3), 1, (4, 5))]
)
def test_maps_and_gradients_are_flaxs(ours, theirs, kernel, strides, size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    mine, other = ours(4, kernel, strides), theirs(4, kernel, (strides, strides))
    params = other.init(jax.random.key(0), x)
    params = jax.tree.map(lambda a: a + 0.1, params)  # a bias that counts

    def value(module, params, x):
        y = module.apply(params, x)
        return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y), y

    found, expected = (
        jax.jit(jax.value_and_grad(lambda p, x: value(m, p, x), (0, 1), has_aux=True))(params, x) for m in (mine, other)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "size, kernel, strides, channels, features",
    [((9, 8), 3, 1, 16, 16), ((8, 9), 4, 1, 8, 1), ((9, 10), 4, 2, 3, 8), ((7, 8), 7, 1, 3, 4), ((9, 9), 3, 2, 5, 6)],
)
def test_convolutions_without_padding_are_flaxs(backend, size, kernel, strides, channels, features, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jax.random.normal(jax.random.key(0), (2, *size, channels))
    theirs = nn.Conv(features, (kernel, kernel), (strides, strides), padding="VALID")
    ours = Conv(features, (kernel, kernel), strides, padding="VALID")
    params = theirs.init(jax.random.key(1), x)
    value = lambda module: jax.value_and_grad(lambda p, x: jnp.sin(module.apply(p, x)).sum(), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), value(ours), value(theirs))
    if backend == "cpu":
        with pytest.raises(ValueError, match="does not fit"):
            convolve(x[:, :2], jnp.zeros((3, 3, channels, 1)), (1, 1), "VALID")


@pytest.mark.parametrize("ours, theirs", [(Conv, nn.Conv), (ConvTranspose, nn.ConvTranspose)])
def test_accelerators_take_xlas_own(ours, theirs, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
    params = theirs(4, (4, 3), (2, 2)).init(jax.random.key(1), x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = jax.make_jaxpr(ours(4, (4, 3), 2).apply)(params, x)
    assert "conv_general_dilated" in str(program)
    np.testing.assert_allclose(
        ours(4, (4, 3), 2).apply(params, x), theirs(4, (4, 3), (2, 2)).apply(params, x), atol=1e-6
    )


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("size, features", [((4, 5), 2), ((3, 3), 5), ((1, 2), 3)])
def test_doubled_convolutions_are_those_of_repeated_pixels(backend, size, features, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    params = nn.Conv(features, (3, 3)).init(jax.random.key(1), x)
    repeated = lambda x: jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    weigh = lambda y: jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y)
    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(params, x)
        for f in (
            lambda p, x: weigh(UpsampleConv(features).apply(p, x)),
            lambda p, x: weigh(nn.Conv(features, (3, 3)).apply(p, repeated(x))),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.representatives("kernel0-*", "kernel4-*")
@pytest.mark.parametrize(
    "kernel, size, channels",
    [((3, 3), (12, 11), 16), ((3, 5), (5, 17), 33), ((3, 1), (4, 3), 16), ((3, 3), (28, 28), 34)]
    + [((5, 3), (8, 17), 16), ((1, 3), (16, 8), 16)],
)
def test_wide_convolutions_are_flaxs_with_gradients_of_gradients(kernel, size, channels, monkeypatch):
    monkeypatch.setattr(convolutions, "BLOCK", 1 << 17)  # which divides the largest of these batches
    x = jax.random.normal(jax.random.key(0), (6, *size, channels))
    params = nn.Conv(17, kernel).init(jax.random.key(1), x)
    assert ("_filtered" in str(jax.make_jaxpr(Conv(17, kernel).apply)(params, x))) == (kernel[0] == 3)
    weigh = lambda y: jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y**2)

    def penalty(module, params, x):
        value, gradients = jax.value_and_grad(lambda p, x: weigh(module.apply(p, x)), (0, 1))(params, x)
        return value + sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))

    found, expected = (
        jax.jit(jax.value_and_grad(partial(penalty, module), (0, 1)))(params, x)
        for module in (Conv(17, kernel), nn.Conv(17, kernel))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.representatives("Conv-2")
@pytest.mark.parametrize("features", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("module", [Conv, ConvTranspose, UpsampleConv, partial(Conv, strides=2)])
def test_convolutions_of_a_few_images_at_a_time_are_those_of_all(module, features, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (6, 5, 7, 16))
    params = module(features).init(jax.random.key(1), x)
    loss = lambda params, x: jnp.sum(jnp.sin(module(features).apply(params, x)))

    def twice(params, x):
        value, gradients = jax.value_and_grad(loss, (0, 1))(params, x)
        return value + sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))

    whole = jax.value_and_grad(twice, (0, 1))(params, x)
    monkeypatch.setattr(convolutions, "BLOCK", 2 * 5 * 7 * 16)
    assert "dynamic_update_slice" in str(jax.make_jaxpr(loss)(params, x))
    found = jax.value_and_grad(twice, (0, 1))(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.optimized
def test_filtered_convolutions_of_a_divided_batch_are_not_gathered(monkeypatch):
    monkeypatch.setattr(convolutions, "BLOCK", 1 << 14)  # so that they would walk through the batch if it were whole
    mesh = Layout(data=2).mesh()
    cut, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jax.device_put(jnp.ones((32, 32, 32, 64)), cut)
    kernel = jax.device_put(jnp.ones((3, 3, 64, 64)), everywhere)

    def gradient(x, kernel):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(lambda k: jnp.sum(jnp.sin(convolve(x, k))))(kernel)

    program = jax.jit(gradient, out_shardings=everywhere).lower(x, kernel).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program


@pytest.mark.slow
def test_filtered_convolutions_of_a_population():
    xs = jax.random.normal(jax.random.key(0), (3, 2, 12, 11, 16))
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 16, 16))
    loss = lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel)))
    found = jax.vmap(jax.grad(loss, (0, 1)))(xs, kernels)
    for i in range(3):
        for a, b in zip(found, jax.grad(loss, (0, 1))(xs[i], kernels[i])):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.representatives("16-16-Conv")
@pytest.mark.parametrize("module", [Conv, ConvTranspose, UpsampleConv, partial(Conv, strides=2)])
@pytest.mark.parametrize(
    "channels, features", [(16, 16), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((3, 5), (5, 2)))]
)
def test_convolutions_of_no_images(module, channels, features):
    x = jnp.zeros((0, 8, 8, channels))
    params = module(features).init(jax.random.key(0), x)
    gradient = jax.grad(lambda p: jnp.sum(module(features).apply(p, x)))(params)
    assert all(not a.any() for a in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, channels, features",
    [((8, 32, 32), 64, 64), pytest.param((16, 32, 32), 16, 128, marks=pytest.mark.slow), ((1, 100, 31), 64, 64)],
)
def test_kernel_gradients_of_many_rows_are_flaxs(size, channels, features):
    x = jax.random.normal(jax.random.key(0), (*size, channels))
    params = nn.Conv(features, (3, 3)).init(jax.random.key(1), x)
    loss = lambda module: lambda p: jnp.mean(jnp.sin(module(features, (3, 3)).apply(p, x)))
    for a, b in zip(*(jax.tree.leaves(jax.grad(loss(module))(params)) for module in (Conv, nn.Conv))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_kernel_gradients_of_a_few_images_at_a_time_are_summed_in_float32(monkeypatch):
    x, kernel = jnp.ones((1024, 4, 4, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    monkeypatch.setattr(convolutions, "BLOCK", 16)
    gradient = jax.grad(lambda k: jnp.sum(convolve(x, k).astype(jnp.float32)))(kernel)
    assert float(gradient[0, 0, 0, 0]) == x.size


def test_narrowing_convolutions_are_flaxs():
    """Fewer features than channels: every pixel is multiplied by all taps first."""
    for kernel in ((3, 3), (4, 2), (1, 1)):
        x = jax.random.normal(jax.random.key(0), (2, 5, 6, 7))
        params = nn.Conv(2, kernel).init(jax.random.key(1), x)
        np.testing.assert_allclose(Conv(2, kernel).apply(params, x), nn.Conv(2, kernel).apply(params, x), atol=1e-5)


def test_doubled_convolutions_refuse_strides():
    with pytest.raises(ValueError, match="without strides"):
        UpsampleConv(2, strides=2).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_doubled_puts_channels_into_pixels():
    x = jnp.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    y = depth_to_space(x)
    assert y.shape == (1, 4, 6, 1)
    assert y[0, 2:4, 4:6, 0].ravel().tolist() == x[0, 1, 2].tolist()


def test_decoder_refuses_sizes_it_cannot_make():
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        ConvDecoder((10, 8), (8, 8), 1).init(jax.random.key(0), jnp.zeros((1, 4)))
