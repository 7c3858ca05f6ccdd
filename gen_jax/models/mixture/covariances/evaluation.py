"""Sufficient statistics of weighted Gaussians, and the ways to evaluate them block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import PyTree
from gen_jax.models.common.blocks import block_size
from gen_jax.models.common.linalg import matmul

__all__ = ["Evaluation", "Standardizer", "Stats", "by_products", "counts_and_shifts", "occupied", "weighted_sums"]


class Stats(NamedTuple):
    """Responsibility-weighted sums over examples of moments about the current means.

    About the means rather than the origin, second moments lose no precision to cancellation: data at 1000 +- 0.1 has
    the right variance in float32.
    """

    count: Array  # (K,)
    first: Array  # (K, D)
    second: Array  # full (K, D, D), tied (D, D), diagonal and spherical (K, D)


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
    def of(cls, x: Array) -> Standardizer:
        """Estimated from about a thousand evenly spaced rows."""
        some = x[:: max(len(x) // 1024, 1)]
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


def occupied(stats: Stats) -> Array:
    """(K,) mask of components with a total responsibility of at least 1e-6."""
    return stats.count > 1e-6


def counts_and_shifts(stats: Stats) -> tuple[Array, Array]:
    """Counts, and shifts of the means, 0 for components without points."""
    there = occupied(stats)
    return stats.count, jnp.where(there[:, None], stats.first / jnp.where(there, stats.count, 1)[:, None], 0)
