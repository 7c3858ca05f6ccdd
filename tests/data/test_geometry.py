"""Random affine maps against scipy's, and what random changes of images must keep."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gen_jax.data.geometry import Affine, affine, contrast, cutmix, cutout, geometric, mixup

MODES = {"nearest": "nearest", "reflect": "reflect", "constant": "grid-constant"}


def by_scipy(image, rotation, shift, zoom, shear, mode):
    """The same map in double precision: zoom, shear, shift, rotation, from the output to the input."""
    center = (np.array(image.shape[:2]) - 1) / 2
    turned = np.array([[np.cos(rotation), np.sin(rotation)], [-np.sin(rotation), np.cos(rotation)]])
    sheared = np.array([[np.cos(shear), 0], [-np.sin(shear), 1]])
    matrix = turned @ sheared @ np.diag(zoom)
    offset = center + turned @ shift - matrix @ center
    channels = np.moveaxis(image.astype(np.float64), -1, 0)
    return np.stack([ndimage.affine_transform(c, matrix, offset, order=1, mode=mode) for c in channels], axis=-1)


@pytest.mark.parametrize("fill", MODES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 21, 3)])
def test_affine_maps_are_those_of_scipy(fill, shape):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, *shape)).astype(np.float32)
    rotation, shear = rng.uniform(-0.7, 0.7, 16), rng.uniform(-0.3, 0.3, 16)
    shift, zoom = rng.uniform(-5, 5, (16, 2)), rng.uniform(0.5, 1.5, (16, 2))
    maps = Affine(*(jnp.asarray(a, jnp.float32) for a in (rotation, shift, zoom, shear)))
    expected = [by_scipy(*one, MODES[fill]) for one in zip(x, rotation, shift, zoom, shear)]
    np.testing.assert_allclose(affine(jnp.asarray(x), maps, fill), expected, atol=1e-5)


def test_shifts_are_along_the_axes_they_name_and_the_center_stays():
    """Two defects of Keras' ImageDataGenerator: it swaps the axes, and takes a wrong center of oblong images."""
    x = np.zeros((1, 9, 21, 1), np.float32)
    x[0, 4, 10] = 1
    zeros, ones = jnp.zeros(1), jnp.ones((1, 2))
    moved = affine(jnp.asarray(x), Affine(zeros, jnp.array([[2.0, 0.0]]), ones, zeros))
    assert float(moved[0, 2, 10, 0]) == 1  # rows, up
    turned = affine(jnp.asarray(x), Affine(zeros + np.pi / 6, jnp.zeros((1, 2)), ones, zeros))
    assert float(turned[0, 4, 10, 0]) == 1


def test_content_turns_counter_clockwise():
    x = np.zeros((1, 9, 9, 1), np.float32)
    x[0, 4, 7] = 1  # on the right
    zeros = jnp.zeros(1)
    turned = affine(jnp.asarray(x), Affine(zeros + np.pi / 2, jnp.zeros((1, 2)), jnp.ones((1, 2)), zeros))
    np.testing.assert_allclose(float(turned[0, 1, 4, 0]), 1, atol=1e-5)  # on top


@pytest.mark.parametrize("change", [geometric(10, 0.1, 0.1, shear=5), contrast(0.2, 0.3), cutout(4)])
def test_changes_are_keyed_and_differ_between_images(change):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 12, 16, 3)).repeat(6, axis=0), jnp.float32)
    program = jax.jit(change.apply)
    a, b, c = (np.asarray(program({"x": x}, jax.random.key(i))["x"]) for i in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert len({one.tobytes() for one in a}) > 1 and change.augments


def test_draws_stay_in_their_ranges():
    points = jnp.zeros((500, 33, 33, 1)).at[:, 16, 16].set(1.0)
    moved = np.asarray(geometric(shift=(0.1, 0.0)).apply({"x": points}, jax.random.key(0))["x"])[..., 0]
    rows = (moved.sum(axis=2) * np.arange(33)).sum(axis=1) - 16
    assert 3.0 < np.abs(rows).max() <= 3.3 + 1e-4 and abs(rows.mean()) < 0.3
    assert np.allclose((moved.sum(axis=1) * np.arange(33)).sum(axis=1), 16, atol=1e-4)
    grown = np.asarray(geometric(zoom=0.2, isotropic=True).apply({"x": jnp.ones((4, 8, 8, 1))}, jax.random.key(0))["x"])
    np.testing.assert_allclose(grown, 1, atol=1e-6)
    hidden = np.asarray(cutout(4).apply({"x": jnp.ones((500, 9, 9, 1))}, jax.random.key(1))["x"])
    assert (hidden == 0).sum(axis=(1, 2, 3)).max() == 16 and (hidden == 0).sum(axis=(1, 2, 3)).min() == 4


def test_bad_ranges_are_named():
    with pytest.raises(ValueError, match="must not be negative"):
        geometric(rotation=-1)
    with pytest.raises(ValueError, match="below 1"):
        geometric(zoom=1)


def test_affine_maps_are_those_of_keras_but_for_its_swapped_axes():
    """Outputs of Keras 3.15.1, `ImageDataGenerator(rotation_range=10, width_shift_range=0.1, height_shift_range=0.1,
    zoom_range=0.1)`, for its own draws: theta in degrees, tx, ty, zx, zy. It moves columns by tx, which is drawn from
    the range of heights, and rows by ty; zx is of columns."""
    recorded = np.load(Path(__file__).with_name("keras_affine.npz"))
    theta, tx, ty, zx, zy = recorded["draws"].T.astype(np.float32)
    rows, columns = np.mgrid[:28, :28]
    x = [np.sin(0.4 * rows + 0.1 * i) * np.cos(0.3 * columns - 0.2 * i * rows / 28) for i in range(len(theta))]
    x = jnp.asarray(np.stack(x)[..., None], jnp.float32)
    shift, zoom, zeros = np.stack([ty, tx], axis=1), np.stack([zy, zx], axis=1), jnp.zeros(len(x))
    found = affine(x, Affine(jnp.radians(theta), jnp.asarray(shift), jnp.asarray(zoom), zeros))
    np.testing.assert_allclose(found, recorded["images"], atol=1e-5)
    named = affine(x, Affine(jnp.radians(theta), jnp.asarray(shift[:, ::-1]), jnp.asarray(zoom), zeros))
    assert np.abs(named - recorded["images"]).max() > 0.1


@pytest.mark.parametrize("change", [mixup(0.5), cutmix()])
def test_mixtures_hold_their_shares_of_both_examples(change):
    """Constant images, so that the mean shows the shares of both."""
    values = np.arange(1.0, 33.0, dtype=np.float32)
    batch = {"x": jnp.broadcast_to(values[:, None, None, None], (32, 12, 10, 2)), "label": jnp.arange(32)}
    made = jax.jit(change.apply)(batch, jax.random.key(3))
    share, other = np.asarray(made["share"]), values[np.asarray(made["mixed_label"])]
    assert share.std() > 0.1 and 0 <= share.min() and share.max() <= 1
    assert sorted(other) == sorted(values)
    np.testing.assert_allclose(np.asarray(made["x"]).mean(axis=(1, 2, 3)), share * values + (1 - share) * other, 1e-5)
    np.testing.assert_array_equal(made["label"], batch["label"])
