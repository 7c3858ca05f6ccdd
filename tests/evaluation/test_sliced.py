"""Sliced Wasserstein distances of patches, against known distances."""

import numpy as np
import pytest

from gen_jax.evaluation.samples.sliced import laplacian_pyramid, patches_of, sliced_distance


def images(n=200, side=32, seed=0):
    return np.random.default_rng(seed).normal(size=(n, side, side, 1)).astype(np.float32)


def test_pyramids_have_a_level_per_halving():
    x = images(3)
    levels = laplacian_pyramid(x)
    assert [level.shape[1] for level in levels] == [32, 16, 8]
    flat = laplacian_pyramid(np.full((2, 32, 32, 1), 0.3, np.float32))
    np.testing.assert_allclose(flat[0][:, 4:-4, 4:-4], 0, atol=1e-6)  # no details
    np.testing.assert_allclose(flat[-1], 0.3, rtol=1e-5)
    assert len(laplacian_pyramid(images(2, 28))) == 2  # 28 and 14


def test_patches_are_normalized_by_channel():
    x = np.concatenate([images(50) * 3 + 1, images(50, seed=1)], axis=-1)
    patches = patches_of(x, np.random.default_rng(0), 20).reshape(-1, 7, 7, 2)
    np.testing.assert_allclose(patches.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(patches.std(axis=(0, 1, 2)), 1, rtol=1e-3)


def test_distances_of_shifted_points_are_the_shift():
    """W1 between points and the same ones moved by t along a random direction u is |t u|, on average over u."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 1)).astype(np.float32)
    np.testing.assert_allclose(sliced_distance(points, points + 0.7, rng), 0.7, rtol=1e-4)
    assert sliced_distance(points, points, rng).max() == 0


def test_blurred_images_are_apart_in_details_only():
    x, rng = images(), np.random.default_rng(0)
    blurred = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4
    apart = lambda a, b: sliced_distance(patches_of(a, rng), patches_of(b, rng), rng).mean()
    same = apart(laplacian_pyramid(x)[0], laplacian_pyramid(images(seed=1))[0])
    assert apart(laplacian_pyramid(x)[0], laplacian_pyramid(blurred)[0]) > 4 * same
    assert same == pytest.approx(0, abs=0.02)
