"""Sufficient statistics of weighted Gaussians, and the ways to evaluate them block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, export, lax

from gen_jax.core import PyTree
from gen_jax.models.common.blocks import block_size
from gen_jax.models.common.linalg import matmul

__all__ = ["ConjugatePrior", "Evaluation", "Standardizer", "Stats", "by_products", "occupied", "ratio", "weighted_sums"]


class Stats(NamedTuple):
    """Responsibility-weighted sums over examples of moments about the current means.

    About the means rather than the origin, second moments lose no precision to cancellation: data at 1000 +- 0.1 has
    the right variance in float32.
    """

    count: Array  # (K,)
    first: Array  # (K, D)
    second: Array  # full (K, D, D), tied (D, D), diagonal and spherical (K, D)

    def around(self, shift: Array) -> tuple[Array, Array]:
        """(K, D) the mean of each component's points, and how far from it the current means are after a shift.

        The scatter about the shifted means is that about the own ones plus count * distance^2, which loses less to
        rounding than `recenter`: both terms are positive, however far the points are from the current means.
        """
        own = ratio(self.first, self.count[:, None])
        return own, shift - own


class ConjugatePrior(NamedTuple):
    """Normal-inverse-Wishart priors of Gaussians, in the units of the data, for maximum a posteriori estimates."""

    scale: Array  # added to the scatter about each mean: (D, D), (K, D, D); of independent coordinates (D,), (K, D)
    count: Array  # added to the number of points that the scatter is divided by: (), or the axes of `scale`
    mean: Array  # (K, D)
    mean_count: Array  # (K,), the points that the prior of each mean is worth


export.register_namedtuple_serialization(ConjugatePrior, serialized_name="gen_jax.ConjugatePrior")


class Evaluation(NamedTuple):
    """A way to evaluate a block: `prepare` x (B, D), then compute its densities and weighted sums."""

    prepare: Callable[[Array], PyTree]
    log_prob: Callable[[PyTree], Array]  # -> (K, B)
    sums: Callable[[PyTree, Array], PyTree]  # with responsibilities (K, B) -> sums that add over blocks
    stats: Callable[[PyTree], Stats]
    rows: int | None = None  # rows per block, None for the default


class Standardizer(NamedTuple):
    """Roughly standardized coordinates: any approximate center and scale suffices."""

    center: Array  # (D,)
    scale: Array  # (D,)

    @classmethod
    def of(cls, x: Array, weight: Array | None = None) -> Standardizer:
        """Estimated from about a thousand evenly spaced rows, without those of weight 0."""
        every = max(len(x) // 1024, 1)
        some = x[::every]
        if weight is not None:
            some = jnp.where(weight[::every, None] > 0, some, jnp.nan)
        center = jnp.nan_to_num(jnp.nanmean(some, axis=0))
        scale = jnp.nan_to_num(jnp.nanstd(some, axis=0))
        return lax.stop_gradient(cls(center, jnp.where(scale > 0, scale, 1)))

    def into(self, x: Array) -> Array:
        return (x - self.center) / self.scale


def by_products(
    natural: Array, pairs: tuple[np.ndarray, np.ndarray], standardizer: Standardizer, stats: Callable
) -> Evaluation:
    """Evaluation linear in the products y_i y_j of y = (x, 1), one for each of the `pairs` (F,); natural: (K, F)."""

    def prepare(x: Array) -> Array:
        x = standardizer.into(x).T
        y = jnp.concatenate([x, jnp.ones_like(x[:1])])
        return y[pairs[0]] * y[pairs[1]]  # gathers: concatenated products take three times as long on CPUs

    rows = block_size(sum(natural.shape))  # features per example, and its density under each component
    return Evaluation(prepare, lambda features: matmul(natural, features), weighted_sums, stats, rows)


def weighted_sums(features: Array, r: Array) -> Array:
    """(F, K) sums of features (F, B) weighted by r (K, B); their transpose takes up to twice as long on CPUs."""
    return matmul(features, r.T)


def occupied(count: Array) -> Array:
    """(K,) mask of the components with more than a trillionth of all responsibility: independent of the unit of the
    weights."""
    return count > 1e-12 * count.sum()


def ratio(a: Array, b: Array) -> Array:
    """a / b where b is positive, else 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
