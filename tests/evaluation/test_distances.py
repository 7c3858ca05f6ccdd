"""Distances between sets of features, against closed forms, other libraries and brute force."""

import jax
import numpy as np
import pytest
from scipy.linalg import sqrtm

from gen_jax.errors import UserError
from gen_jax.evaluation.samples.distances import (
    Moments,
    frechet,
    jackknifed_frechet,
    kernel_distance,
    manifold,
    nearest,
    neighbors,
)
from gen_jax.evaluation.samples.quality import inception_score


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def distance(a, b):
    return frechet(Moments.of(a), Moments.of(b))


# --- moments and the Frechet distance


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_moments_are_those_of_numpy_in_blocks_of_any_size_and_order(block):
    x = (1e3 + normal(100, 4) @ normal(4, 4, 1)).astype(np.float32)
    for a in (x, x[::-1]):
        found = Moments.of(a, block)
        np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-12)
    halves = Moments.of(x[:30]) + Moments.of(x[30:])
    np.testing.assert_allclose(halves.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-12)


def test_frechet_distance_of_normals_is_its_closed_form():
    a = normal(4000, 3) * [1.0, 2.0, 0.5]
    b = normal(4000, 3, 1) @ normal(3, 3, 2) + 1
    first, second = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert distance(b, a) == pytest.approx(expected, rel=1e-8)
    known = [Moments(2, np.full(8, m), np.eye(8) * v) for m, v in ((0.0, 4.0), (1.0, 9.0))]
    assert frechet(*known) == pytest.approx(16, rel=1e-12)


@pytest.mark.parametrize("n", [20, 4000])
def test_frechet_distance_to_itself_is_zero_also_of_singular_covariances(n):
    a = normal(n, 50)
    assert distance(a, a) == pytest.approx(0, abs=1e-5)
    flat = np.concatenate([normal(n, 3), np.zeros((n, 2))], axis=1)
    assert distance(flat, flat + 1) == pytest.approx(5, rel=1e-6)
    constant = np.ones((n, 4))
    assert distance(constant, constant + 2) == pytest.approx(16)


def test_frechet_distance_of_halves_falls_as_one_over_n():
    sizes = np.array([250, 500, 1000, 2000, 4000])
    found = [np.mean([distance(normal(n, 8, s), normal(n, 8, s + 100)) for s in range(8)]) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)


def test_jackknife_removes_the_bias_and_knows_the_error():
    """Of normals 1.2 times as wide as the reference in D = 8 dimensions: the distance is 0.04 D."""
    reference = Moments(10**9, np.zeros(8), np.eye(8) * (10**9 - 1))
    runs = []
    for seed in range(60):
        x = 1.2 * normal(200, 8, seed)
        runs.append(jackknifed_frechet([Moments.of(part) for part in np.array_split(x, 10)], reference))
    values, unbiased, errors = (np.array(a) for a in zip(*runs))
    spread = unbiased.std() / np.sqrt(60)
    assert values.mean() - 0.32 > 4 * spread
    assert abs(unbiased.mean() - 0.32) < 3 * spread
    assert errors.mean() == pytest.approx(unbiased.std(), rel=0.3)


def test_moments_refuse_what_has_none():
    with pytest.raises(UserError, match="at least two"):
        distance(normal(1, 3), normal(5, 3))
    with pytest.raises(UserError, match="NaN or infinite"):
        Moments.of(np.array([[1.0], [np.nan]]))
    with pytest.raises(UserError, match="3 and of 4 dimensions"):
        distance(normal(9, 3), normal(9, 4))


# --- the kernel distance


def test_kernel_distance_is_its_definition():
    a, b = normal(23, 5), normal(31, 5, 1) + 0.3
    kernel = lambda x, y: (x @ y / 5 + 1) ** 3
    within = lambda x: np.mean([kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j])
    expected = within(a) + within(b) - 2 * np.mean([kernel(p, q) for p in a for q in b])
    for parts in (1, 4, 10):
        assert kernel_distance(a, b, parts)[0] == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_has_no_bias_and_knows_its_error():
    same = [kernel_distance(normal(60, 6, s), normal(60, 6, s + 50))[0] for s in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(40)
    values, errors = zip(*(kernel_distance(normal(100, 6, s), normal(100, 6, s + 50) + 0.5) for s in range(40)))
    assert np.mean(values) > 3 * np.mean(errors) and np.mean(errors) == pytest.approx(np.std(values), rel=0.35)


# --- neighbors


def brute(real, fake, k):
    """Precision, recall, density and coverage, written out."""
    far = lambda a, b: np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)
    of_real, of_fake = (np.sort(far(a, a) + np.diag(np.full(len(a), np.inf)), axis=1)[:, k - 1] for a in (real, fake))
    between = far(real, fake)
    inside = between <= of_real[:, None]
    return (
        inside.any(axis=0).mean(),
        (between <= of_fake).any(axis=1).mean(),
        inside.sum() / k / len(fake),
        inside.any(axis=1).mean(),
    )


@pytest.mark.parametrize("n, m, block", [(97, 60, 16), (97, 60, 1000), (64, 64, 32), (30, 80, 7)])
@pytest.mark.parametrize("k", [1, 3])
def test_manifold_is_what_brute_force_finds(n, m, block, k):
    real, fake = normal(n, 4).astype(np.float32), (1.2 * normal(m, 4, 1)).astype(np.float32)
    found = manifold(real, fake, k, block)
    got = found.covered.mean(), found.reached.mean(), found.balls.mean() / k, found.occupied.mean()
    np.testing.assert_allclose(got, brute(real, fake, k), rtol=1e-6)


@pytest.mark.parametrize("block", [64, 100, 1024])
def test_ties_count_in_any_number_of_dimensions(block):
    """Binary vectors, most of whose distances are equal; one row far away, whose ball holds all, changes no other."""
    draw = lambda n, seed: (np.random.default_rng(seed).random((n, 64)) < 0.1).astype(np.float32)
    real, fake = draw(301, 0), draw(200, 1)
    found = manifold(real, fake, 5, block)
    got = found.covered.mean(), found.reached.mean(), found.balls.mean() / 5, found.occupied.mean()
    np.testing.assert_allclose(got, brute(real.astype(np.float64), fake, 5), rtol=1e-6)
    beside = manifold(np.concatenate([real, np.full((1, 64), 1e6, np.float32)]), fake, 5, block)
    np.testing.assert_array_equal(beside.reached, [*found.reached, False])
    np.testing.assert_array_equal(beside.occupied[:-1], found.occupied)
    assert np.all((beside.balls - found.balls >= 0) & (beside.balls - found.balls <= 1))


@pytest.mark.parametrize("far, allowed", [(10.0, 0.02), (30.0, 0.03)])
def test_points_far_from_the_origin_are_no_ties(far, allowed):
    """Two clusters, whose coordinates are far larger than distances within them: rounding must not count all."""
    sign = np.where(np.arange(200) % 2, 1, -1)[:, None] * np.float32(far)
    real, fake = (sign + s * normal(200, 32, i) for i, s in enumerate((0.1, 0.14)))
    found = manifold(real.astype(np.float32), fake.astype(np.float32), 5)
    got = found.covered.mean(), found.reached.mean(), found.balls.mean() / 5, found.occupied.mean()
    np.testing.assert_allclose(got, brute(real.astype(np.float32), fake.astype(np.float32), 5), atol=allowed)


def test_covariances_of_very_many_features_are_refused():
    with pytest.raises(UserError, match="10,304 features is too large: take the encoder `projected`"):
        Moments.of(np.zeros((3, 10_304)))


def test_float64_enabled_changes_nothing():
    real, fake = normal(60, 20).astype(np.float32), normal(50, 20, 1).astype(np.float32)
    found = manifold(real, fake, 3, 16), nearest(real, fake, 2), neighbors(real, 3, 16)
    with jax.enable_x64(True):
        wide = manifold(real, fake, 3, 16), nearest(real, fake, 2), neighbors(real, 3, 16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wide)
    assert {a.dtype for a in jax.tree.leaves(wide[1:])} == {np.dtype("float32")}


def test_manifold_of_identical_disjoint_and_constant_sets():
    x = normal(50, 3).astype(np.float32)
    for found in (manifold(x, x), manifold(np.ones((9, 2)), np.ones((9, 2)))):  # ties count as within
        assert found.covered.all() and found.reached.all() and found.occupied.all()
    apart = manifold(x, x + 100)
    assert not (apart.covered.any() or apart.reached.any() or apart.occupied.any() or apart.balls.any())
    with pytest.raises(UserError, match="none has 5 neighbors"):
        manifold(x[:5], x)


@pytest.mark.parametrize("block", [8, None])
def test_nearest_is_what_brute_force_finds(block):
    x, y = normal(21, 3), normal(40, 3, 1)
    expected = np.sort(np.linalg.norm(x[:, None] - y[None], axis=-1), axis=1)[:, :4]
    np.testing.assert_allclose(nearest(x, y, 4, block), expected, rtol=1e-4, atol=1e-5)


def test_neighbors_within_tight_clusters_far_apart():
    """Distances of a thousandth, ten from the origin: what a product in float32 would lose."""
    centers = 10 * normal(5, 2)[np.random.default_rng(1).integers(5, size=400)]
    x = (centers + 1e-3 * normal(400, 2, 2)).astype(np.float32)
    far = np.linalg.norm(x[:, None].astype(np.float64) - x[None], axis=-1) + np.diag(np.full(400, np.inf))
    np.testing.assert_allclose(neighbors(x, 3), np.sort(far, axis=1)[:, :3], rtol=0.02, atol=2e-6)
    np.testing.assert_allclose(nearest(x[:50], x[50:])[:, 0], far[:50, 50:].min(axis=1), rtol=0.02, atol=2e-6)


# --- the Inception Score


def test_inception_score_by_its_definition():
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=40)
    expected = np.exp(np.mean([np.sum(q * np.log(q / p.mean(axis=0))) for q in p]))
    assert inception_score(p) == pytest.approx(expected)
    assert inception_score(np.eye(7)[np.arange(70) % 7]) == pytest.approx(7)
    assert inception_score(np.tile(p[:1], (9, 1))) == pytest.approx(1)
