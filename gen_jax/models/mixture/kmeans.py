"""Initialization of EM for mixtures: k-means++, k-means, random points and random responsibilities."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import fold_in
from gen_jax.models.common.blocks import block_size, by_blocks, over_blocks
from gen_jax.models.common.linalg import matmul
from gen_jax.models.mixture.covariances import Standardizer, ratio

__all__ = ["Assign", "Start", "kmeans", "kmeans_plus_plus", "random_from_data", "random_responsibilities"]

Assign = Callable[[Array, Array], Array]  # (rows (B, D), their indices (B,)) -> initial responsibilities (K, B)


Start = Callable[[Array, Array, Array, int], Assign]  # (key, x (N, D), weights (N,), K)


def kmeans_plus_plus(key: Array, x: Array, weight: Array, k: int) -> Assign:
    """k-means++: assigns each point to the nearest of spread-out centers (Arthur & Vassilvitskii 2007)."""
    return _nearest(_spread_centers(key, x, weight, k), _euclidean(x, weight))


def kmeans(key: Array, x: Array, weight: Array, k: int, iterations: int = 20) -> Assign:
    """k-means++ followed by Lloyd iterations."""
    standardizer = _euclidean(x, weight)

    def lloyd(_, centers: Array) -> Array:
        assign = _nearest(centers, standardizer)

        def block(x: Array, weight: Array) -> tuple[Array, Array]:
            r = assign(x, None) * weight
            return matmul(r, standardizer.into(x)), r.sum(axis=1)

        first, count = over_blocks(block, x, weight, rows=block_size(x.shape[1] + 2 * k))
        return jnp.where(count[:, None] > 0, ratio(first, count[:, None]), centers)

    return _nearest(lax.fori_loop(0, iterations, lloyd, _spread_centers(key, x, weight, k)), standardizer)


def random_from_data(key: Array, x: Array, weight: Array, k: int) -> Assign:
    """Assigns each point to the nearest of K random data points."""
    standardizer = _euclidean(x, weight)
    gumbel = jax.random.gumbel(key, weight.shape, weight.dtype)
    _, rows = lax.top_k(jnp.log(weight) + gumbel, min(k, len(x)))
    return _nearest(standardizer.into(x[jnp.resize(rows, k)]), standardizer)


def random_responsibilities(key: Array, x: Array, weight: Array, k: int) -> Assign:
    """Random responsibilities, uniform and normalized: all components start near the mean of the data."""

    def assign(rows: Array, index: Array) -> Array:
        r = jax.vmap(lambda i: jax.random.uniform(fold_in(key, i), (k,), rows.dtype, 1e-6))(index)
        return (r / r.sum(axis=1, keepdims=True)).T

    return assign


def _nearest(centers: Array, standardizer: Standardizer) -> Assign:
    """One-hot responsibilities by distance to centers (K, D) in standardized coordinates."""

    def assign(rows: Array, index: Array) -> Array:
        distance = 0.5 * jnp.sum(centers**2, axis=1)[:, None] - matmul(centers, standardizer.into(rows).T)
        return jax.nn.one_hot(jnp.argmin(distance, axis=0), len(centers), axis=0, dtype=rows.dtype)

    return assign


def _spread_centers(key: Array, x: Array, weight: Array, k: int) -> Array:
    """(k, D) rows of x in standardized coordinates, each drawn with probability proportional to the squared distance to
    the previous ones; among several candidates, the one that minimizes the remaining distance."""
    standardizer, trials = _euclidean(x, weight), 2 + int(np.log(k))

    def draw(i: Array, carry):
        centers, distance = carry
        mass = jnp.cumsum(distance * weight)
        at = mass[-1] * jax.random.uniform(fold_in(key, i), (trials,), x.dtype)
        rows = jnp.minimum(jnp.searchsorted(mass, at, side="right"), len(x) - 1)
        drawn = standardizer.into(x[rows])

        def left(x: Array) -> Array:  # squared distances (B, trials)
            x = standardizer.into(x)
            cross = matmul(x, drawn.T)
            return jnp.maximum(jnp.sum(x**2, axis=1)[:, None] - 2 * cross + jnp.sum(drawn**2, axis=1), 0)

        left = by_blocks(left, x)
        left = jnp.where(i == 0, left, jnp.minimum(distance[:, None], left))
        best = jnp.argmin(weight @ left)
        return centers.at[i].set(drawn[best]), left[:, best]

    return lax.fori_loop(0, k, draw, (jnp.zeros((k, x.shape[1]), x.dtype), jnp.ones_like(weight)))[0]


def _euclidean(x: Array, weight: Array) -> Standardizer:
    """Coordinates for distances: centered, with a common scale, so that distances are Euclidean."""
    standardizer = Standardizer.of(x, weight)
    return standardizer._replace(scale=jnp.broadcast_to(standardizer.scale.mean(), standardizer.scale.shape))
