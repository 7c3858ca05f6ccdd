"""Distances between two sets of features (N, D): from moments, a kernel, and nearest neighbors.

Moments and kernels are computed block by block in float64 on the host, as accelerators lack it or are slow; neighbors,
which dominate the work and need no small differences, in float32 on the device. Results depend on the order of the
examples and on block sizes only through rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array, lax

from gen_jax.errors import UserError
from gen_jax.models.common.blocks import by_blocks
from gen_jax.models.common.linalg import matmul

__all__ = [
    "BLOCK",
    "ENOUGH",
    "FEW",
    "MOST",
    "Jackknife",
    "Manifold",
    "Moments",
    "frechet",
    "jackknifed_frechet",
    "kernel_distance",
    "manifold",
    "nearest",
    "neighbors",
]

BLOCK = 1000
FEW = 16  # up to this many dimensions, differences are as fast as a matrix product
MOST = 4096  # dimensions of features up to which their covariance is formed
ROUNDING = 32  # squared distances from a matrix product are off by at most this many units of |x|^2 + |y|^2
TIE = 1e-3  # the largest share of a squared radius by which a tie may be off: far from the origin ties are not told


class Moments(NamedTuple):
    """Moments of n vectors, in float64. `a + b` are the moments of the union of two sets."""

    n: int
    mean: np.ndarray  # (D,)
    scatter: np.ndarray  # (D, D), the sum of squared deviations

    @classmethod
    def of(cls, x: np.ndarray, block: int = BLOCK) -> Moments:
        """Moments of features (N, D)."""
        return cls.over(x[start : start + block] for start in range(0, len(x), block))

    @classmethod
    def over(cls, blocks: Iterable[np.ndarray]) -> Moments:
        """Moments of blocks of features, processed one at a time."""
        total = None
        for block in blocks:
            block = np.asarray(block, np.float64)
            if not np.isfinite(block).all():
                raise UserError("features hold NaN or infinite values")
            if (size := block.shape[1]) > MOST:
                raise UserError(f"the covariance of {size:,} features is too large: take the encoder `projected`")
            mean = block.mean(axis=0)
            apart = block - mean
            one = cls(len(block), mean, apart.T @ apart)
            total = one if total is None else total + one
        if total is None:
            raise UserError("there are no features to take moments of")
        return total

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]  # Chan, Golub & LeVeque 1983
        n, between = self.n + other.n, other.mean - self.mean
        shift = np.outer(between, between) * (self.n * other.n / n)
        return Moments(n, self.mean + between * (other.n / n), self.scatter + other.scatter + shift)

    @property
    def covariance(self) -> np.ndarray:
        if self.n < 2:
            raise UserError("one example has no covariance: give at least two")
        return self.scatter / (self.n - 1)


def frechet(a: Moments, b: Moments, root: np.ndarray | None = None) -> float:
    """The squared 2-Wasserstein distance between normals with these moments (Dowson & Landau 1982).

    |m - n|^2 + tr A + tr B - 2 sum sqrt(eigenvalues of R^T B R), A = R R^T: a symmetric matrix with real eigenvalues
    for any ranks; the square root of the nonsymmetric product A B is never formed. root: R, where it is known.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    first, second = a.covariance, b.covariance
    root = _root(first) if root is None else root
    values = scipy.linalg.eigvalsh(root.T @ second @ root, check_finite=False, overwrite_a=True)
    shared = np.sqrt(np.maximum(values, 0)).sum()
    between = np.sum((a.mean - b.mean) ** 2)
    return float(max(between + np.trace(first) + np.trace(second) - 2 * shared, 0.0))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R^T = covariance: triangular, or if singular, from eigenvectors, one column for each of the rank."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        kept = values > values[-1] * len(values) * np.finfo(values.dtype).eps
        return vectors[:, kept] * np.sqrt(values[kept])


ENOUGH = 20


class Jackknife(NamedTuple):
    """A distance, its value corrected for the bias of order 1 / n, and the standard error of either.

    NaN if there are too few samples: the remaining bias is small from ENOUGH samples per dimension on.
    """

    value: float
    unbiased: float
    error: float


def jackknifed_frechet(parts: list[Moments], reference: Moments) -> Jackknife:
    """The Frechet distance of samples, in parts of roughly equal size, to a reference.

    The distance of n samples exceeds that of infinitely many by about b / n. The jackknife over parts estimates b and
    the error (Quenouille 1956; Tukey 1958); like FID-infinity it extrapolates in 1 / n (Chong & Forsyth 2020), for the
    samples only: the reference is fixed.
    """
    total = sum(parts[1:], parts[0])
    root = _root(reference.covariance)
    value, k = frechet(reference, total, root), len(parts)
    if k < 3 or total.n - max(part.n for part in parts) < 2:
        return Jackknife(value, float("nan"), float("nan"))
    rests = (parts[:i] + parts[i + 1 :] for i in range(k))
    pseudo = np.array([k * value - (k - 1) * frechet(reference, sum(rest[1:], rest[0]), root) for rest in rests])
    unbiased = float(pseudo.mean()) if total.n >= ENOUGH * len(total.mean) else float("nan")
    return Jackknife(value, unbiased, float(pseudo.std(ddof=1) / np.sqrt(k)))


def kernel_distance(a: np.ndarray, b: np.ndarray, parts: int = 10) -> tuple[float, float]:
    """The unbiased squared MMD with the kernel (x.y / D + 1)^3 (KID, Binkowski et al. 2018), and its standard error.

    Uses all pairs, not random subsets, which are noisier; the standard error is a jackknife over parts of each set.
    """
    if min(len(a), len(b)) < 2:
        raise UserError("the kernel distance needs at least two examples of each")
    k = min(parts, len(a) // 2, len(b) // 2)
    x, y = (np.array_split(np.asarray(v, np.float64), k) for v in (a, b))
    sums = [_kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y)]
    sizes = [np.array([len(part) for part in v]) for v in (x, y)]
    own = [np.array([_kernel_sum((part**2).sum(axis=1), part) for part in v]) for v in (x, y)]

    def of(kept: np.ndarray) -> float:
        n, m = (size[kept].sum() for size in sizes)
        xx, yy, xy = (total[np.ix_(kept, kept)].sum() for total in sums)
        return (xx - own[0][kept].sum()) / (n * (n - 1)) + (yy - own[1][kept].sum()) / (m * (m - 1)) - 2 * xy / (n * m)

    every = np.arange(k)
    value = float(of(every))
    if k < 3:
        return value, float("nan")
    without = np.array([of(np.delete(every, i)) for i in every])
    return value, float(np.sqrt((k - 1) / k * np.sum((without - without.mean()) ** 2)))


def _kernel_sums(x: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    """(parts, parts) sums of the kernel between parts; within one set, only half are computed."""
    sums = np.zeros((len(x), len(y)))
    for i, j in np.ndindex(sums.shape):
        if x is not y or i <= j:
            sums[i, j] = _kernel_sum(x[i] @ y[j].T, x[i])
    return sums if x is not y else sums + np.triu(sums, 1).T


def _kernel_sum(products: np.ndarray, part: np.ndarray) -> float:
    return float(((products / part.shape[1] + 1) ** 3).sum())


class Manifold(NamedTuple):
    """Membership of two sets of features in each other's k-nearest-neighbor balls, per example."""

    covered: np.ndarray  # (M,) bool per sample: in the ball of any example (the mean is the precision)
    balls: np.ndarray  # (M,) number of examples' balls that contain it (the mean divided by k is the density)
    reached: np.ndarray  # (N,) bool per example: in the ball of any sample (recall)
    occupied: np.ndarray  # (N,) bool per example: its ball contains a sample (coverage)


def manifold(examples: np.ndarray, samples: np.ndarray, k: int = 5, block: int = 1024) -> Manifold:
    """Membership of examples (N, D) and samples (M, D) (Kynkaanniemi et al. 2019; Naeem et al. 2020).

    Ties count: what is as far away as the k-th neighbor, within rounding, is in the ball.
    block: at most block x block distances exist at a time.
    """
    if not 1 <= k < min(len(examples), len(samples)):
        raise UserError(f"of {len(examples)} examples and {len(samples)} samples none has {k} neighbors: give more")
    x, y = (jnp.asarray(a, jnp.float32) for a in (examples, samples))
    center = _center(x)
    x, y = x - center, y - center
    of_x, of_y = (_neighbors(a, k, block)[:, -1] for a in (x, y))
    balls, occupied, reached = map(np.asarray, _membership(x, y, of_x, of_y, block))
    return Manifold(balls > 0, balls, reached, occupied)


def nearest(x: np.ndarray, y: np.ndarray, k: int = 1, block: int | None = None) -> np.ndarray:
    """(N, k) distances from each of x (N, D) to its k nearest neighbors in y (M, D), nearest first."""
    x, y = (jnp.asarray(a, jnp.float32) for a in (x, y))
    center = _center(y)
    return np.sqrt(np.asarray(_nearest(x - center, y - center, k, block or _rows(len(y)))))


def neighbors(x: np.ndarray, k: int = 1, block: int = 1024) -> np.ndarray:
    """(N, k) distances from each of x (N, D) to its k nearest neighbors, nearest first."""
    x = jnp.asarray(x, jnp.float32)
    return np.sqrt(np.asarray(_neighbors(x - _center(x), k, block)))


def _center(x: Array) -> Array:
    """Medians of up to 1,024 rows: centering reduces cancellation, and single rows do not move them."""
    return jnp.median(x[:: -(-len(x) // 1024)], axis=0)


def _rows(columns: int) -> int:
    return max(1, min(1024, 2**24 // columns))


def _squares(x_ND: Array, y_MD: Array) -> Array:
    """(N, M) squared distances. The matrix product, unused in few dimensions, is inaccurate far below |x|^2."""
    if x_ND.shape[1] <= FEW:
        return ((x_ND[:, None] - y_MD) ** 2).sum(axis=-1)
    return jnp.maximum(_sizes(x_ND, y_MD) - 2 * matmul(x_ND, y_MD.T), 0)


def _sizes(x_ND: Array, y_MD: Array) -> Array:
    """(N, M) |x|^2 + |y|^2."""
    return (x_ND**2).sum(axis=1)[:, None] + (y_MD**2).sum(axis=1)


def _within(x_ND: Array, y_MD: Array, radii: Array) -> Array:
    """(N, M) whether squared distances are at most the squared radii, (N, 1) or (M,), or equal but for rounding."""
    squares = _squares(x_ND, y_MD)
    if x_ND.shape[1] <= FEW:  # equal differences are equal
        return squares <= radii
    rounding = ROUNDING * float(np.finfo(np.float32).eps) * _sizes(x_ND, y_MD)
    return squares - jnp.minimum(rounding, TIE * radii) <= radii


@partial(jax.jit, static_argnames=("k", "block"))
def _nearest(x: Array, y: Array, k: int, block: int) -> Array:
    """(N, k) squared distances."""
    return by_blocks(lambda rows: _least(_squares(rows, y), k), x, block)


def _least(a: Array, k: int) -> Array:
    """The k smallest values of each row, in ascending order."""
    return -lax.top_k(-a, k)[0]


class _Blocks(NamedTuple):
    """Rows of arrays (N, ...) in `count` blocks of `size`, the last one padded."""

    n: int
    size: int
    count: int

    @classmethod
    def of(cls, n: int, most: int) -> _Blocks:
        count = -(-n // most)
        return cls(n, -(-n // count), count)

    def filled(self, a: Array, value: float = 0) -> Array:
        extra = ((0, self.count * self.size - self.n), *[(0, 0)] * (a.ndim - 1))
        return jnp.pad(a, extra, constant_values=value)

    def part(self, a: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(a, i * self.size, self.size)

    def put(self, a: Array, part: Array, i: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(a, part, i * self.size, 0)

    def numbers(self, i: Array) -> Array:
        return i * self.size + jnp.arange(self.size)


@partial(jax.jit, static_argnames=("k", "block"))
def _neighbors(x: Array, k: int, block: int) -> Array:
    """(N, k) squared distances to the nearest neighbors. Each block of distances is used for its rows and columns."""
    blocks = _Blocks.of(len(x), block)
    x = blocks.filled(x)

    def closer(best: Array, i: Array, squares: Array) -> Array:
        found = _least(squares, min(k, blocks.size))
        return blocks.put(best, _least(jnp.concatenate([blocks.part(best, i), found], axis=1), k), i)

    def pair(i: Array, j: Array, best: Array) -> Array:
        own, other = blocks.numbers(i)[:, None], blocks.numbers(j)
        none = (own == other) | (own >= blocks.n) | (other >= blocks.n)
        squares = jnp.where(none, jnp.inf, _squares(blocks.part(x, i), blocks.part(x, j)))
        best = closer(best, i, squares)
        return lax.cond(i == j, lambda best: best, lambda best: closer(best, j, squares.T), best)

    best = jnp.full((len(x), k), jnp.inf, x.dtype)
    from_diagonal = lambda i, best: lax.fori_loop(i, blocks.count, partial(pair, i), best)
    return lax.fori_loop(0, blocks.count, from_diagonal, best)[: blocks.n]


@partial(jax.jit, static_argnames="block")
def _membership(x: Array, y: Array, of_x: Array, of_y: Array, block: int) -> tuple[Array, Array, Array]:
    """Number of balls of x around each y (M,), whether each ball holds a y (N,), whether x is in a ball of y (N,)."""
    rows, columns = _Blocks.of(len(x), block), _Blocks.of(len(y), block)
    x, y = rows.filled(x), columns.filled(y)
    of_x, of_y = rows.filled(of_x, -jnp.inf), columns.filled(of_y, -jnp.inf)  # padding balls contain nothing

    def pair(i: Array, j: Array, carry):
        balls, occupied, reached = carry
        within = partial(_within, rows.part(x, i), columns.part(y, j))
        inside = within(rows.part(of_x, i)[:, None]) & (columns.numbers(j) < columns.n)
        balls = columns.put(balls, columns.part(balls, j) + inside.sum(axis=0, dtype=balls.dtype), j)
        occupied = rows.put(occupied, rows.part(occupied, i) | inside.any(axis=1), i)
        near = within(columns.part(of_y, j)).any(axis=1)
        return balls, occupied, rows.put(reached, rows.part(reached, i) | near, i)

    none = jnp.zeros(len(x), bool)
    of_row = lambda i, carry: lax.fori_loop(0, columns.count, partial(pair, i), carry)
    balls, occupied, reached = lax.fori_loop(0, rows.count, of_row, (jnp.zeros(len(y), jnp.int32), none, none))
    return balls[: columns.n], occupied[: rows.n], reached[: rows.n]
