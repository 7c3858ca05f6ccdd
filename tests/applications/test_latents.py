"""Latent spaces: ways, mixing, projection and directions, on spaces whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.applications import latents
from gen_jax.applications.latents import Space
from gen_jax.models.mixture import GMM

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linear(width=6, pixels=16, curved=False):
    """Images that are a linear function of points."""
    matrix = normal(width, pixels, seed=3) / width**0.5
    draw = lambda keys, given: jax.vmap(lambda key: 1 + jax.random.normal(key, (width,)))(keys)
    decode = lambda points, given: (points @ matrix).reshape(len(points), 4, 4, 1)
    return Space("z", draw, decode, curved=curved), matrix


def test_the_way_on_a_sphere_keeps_the_length():
    a, b = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (normal(5, 8), normal(5, 8, seed=1)))
    np.testing.assert_allclose(latents.spherical(a, b, 0.0), a, atol=1e-5)
    np.testing.assert_allclose(latents.spherical(a, b, 1.0), b, atol=1e-5)
    middle = latents.spherical(a, b, 0.5)
    np.testing.assert_allclose(jnp.linalg.norm(middle, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(middle, (a + b) / jnp.linalg.norm(a + b, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(latents.spherical(a, a, 0.3), a, atol=1e-5)


@pytest.mark.parametrize("curved", [False, True])
def test_interpolations_pass_through_their_points(curved):
    space, points = linear(curved=curved)[0], normal(3, 6)
    way = latents.interpolate(space, points, 4)
    assert way.shape == (9, 6)
    np.testing.assert_allclose(way[::4], points, atol=1e-5)
    loop = latents.interpolate(space, points, 4, loop=True)
    assert loop.shape == (12, 6)
    np.testing.assert_allclose(loop[::4], points, atol=1e-5)
    if not curved:
        np.testing.assert_allclose(way[2], (points[0] + points[1]) / 2, atol=1e-6)


def test_mixing_takes_the_named_layers():
    rows, columns = normal(2, 4, 3), normal(5, 4, 3, seed=1)
    mixed = latents.mix(rows, columns, (1, 2))
    assert mixed.shape == (2, 5, 4, 3)
    np.testing.assert_array_equal(mixed[1, 3, 1:3], columns[3, 1:3])
    np.testing.assert_array_equal(mixed[1, 3, [0, 3]], rows[1, jnp.array([0, 3])])
    np.testing.assert_array_equal(latents.mix(rows, rows, (0, 2))[0, 0], rows[0])


def test_layers_and_seeds_are_read():
    assert [latents.layers_of(name, 8) for name in ("coarse", "middle", "fine")] == [(0, 1, 2), (3, 4), (5, 6, 7)]
    assert latents.layers_of("0-2,5", 8) == (0, 1, 2, 5) and latents.layers_of("all", 3) == (0, 1, 2)
    assert latents.numbers_of("0-3,100,2") == [0, 1, 2, 3, 100]
    for wrong in ("", "a", "3-1", "1,,2", "-4", "0-999999", str(2**32)):
        with pytest.raises(ValueError):
            latents.numbers_of(wrong)
    with pytest.raises(ValueError, match="numbers from 0 to 3"):
        latents.layers_of("4", 4)


def test_projection_finds_the_least_squares_point():
    space, matrix = linear()
    truth = 1 + normal(3, 6, seed=5)
    images = space.decode(truth, None)
    found = latents.project(space, images, None, KEY, steps=400)
    np.testing.assert_allclose(found.points, truth, atol=0.05)
    assert found.distances.shape == (400, 3) and (found.distances[-1] < 1e-3 * found.distances[0]).all()
    beyond = images + normal(*images.shape, seed=7)  # not in the range of the generator
    found = latents.project(space, beyond, None, KEY, steps=600)
    best = np.linalg.lstsq(np.asarray(matrix).T, np.asarray(beyond).reshape(3, -1).T, rcond=None)[0].T
    np.testing.assert_allclose(found.points, best, atol=0.05)


def test_one_style_for_all_layers_is_kept():
    matrix = normal(6, 16, seed=3)
    draw = lambda keys, given: jax.vmap(lambda key: jnp.broadcast_to(jax.random.normal(key, (1, 6)), (3, 6)))(keys)
    space = Space("w", draw, lambda ws, given: (ws.sum(axis=1) @ matrix).reshape(-1, 4, 4, 1), curved=False)
    found = latents.project(space, normal(2, 4, 4, 1), None, KEY, shared=True, steps=50)
    assert found.points.shape == (2, 3, 6)
    np.testing.assert_array_equal(found.points[:, 0], found.points[:, 2])


def test_principal_directions_are_those_of_the_covariance():
    points = normal(500, 3) * jnp.array([3.0, 1.0, 0.2])
    directions, deviations = latents.principal_directions(points, 2)
    np.testing.assert_allclose(np.abs(directions), [[1, 0, 0], [0, 1, 0]], atol=0.1)
    values = np.linalg.eigvalsh(np.cov(np.asarray(points).T, bias=True))[::-1]
    np.testing.assert_allclose(deviations**2, values[:2], rtol=1e-3)


def test_models_without_a_latent_vector_are_refused():
    with pytest.raises(ValueError, match="no latent vector"):
        latents.space_of(GMM(2), None)
    with pytest.raises(ValueError, match='no latent space "w"'):
        latents.space_of(GMM(2), None, "w")
