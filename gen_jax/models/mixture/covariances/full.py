"""Covariance matrices, one per component or one for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import PyTree
from gen_jax.models.common.blocks import block_size, jointly
from gen_jax.models.common.linalg import LOG_2PI, Triangular, einsum, inverses, matmul
from gen_jax.models.mixture.covariances.evaluation import (
    ConjugatePrior,
    Evaluation,
    Standardizer,
    Stats,
    by_products,
    ratio,
    weighted_sums,
)

__all__ = ["Full", "Tied"]


class Full:
    """Every component has its own covariance matrix (K, D, D)."""

    def pack(self, covariances: Array) -> PyTree:
        """Unconstrained parameters: Cholesky factors with log diagonals."""
        return {"cholesky": _with_diagonal(_cholesky(covariances), jnp.log)}

    def factor(self, params: PyTree) -> Array:
        """Lower Cholesky factors of the covariances."""
        return _with_diagonal(params["cholesky"], jnp.exp)

    def log_det(self, params: PyTree) -> Array:
        """Half the log-determinants of the covariances."""
        return jnp.diagonal(params["cholesky"], axis1=-2, axis2=-1).sum(axis=-1)

    def dense(self, params: PyTree) -> Array:
        """(K, D, D) covariances."""
        factor = self.factor(params)
        covariances = matmul(factor, factor.mT)
        return jnp.broadcast_to(covariances, (len(params["means"]), *covariances.shape[-2:]))

    def covariances(self, params: PyTree) -> Array:
        return self.dense(params)

    def variances(self, params: PyTree) -> Array:
        """(K, D) marginal variances."""
        return jnp.diagonal(self.dense(params), axis1=1, axis2=2)

    def from_dense(self, covariances: Array, weights: Array) -> Array:
        """Covariances of this type from full ones (K, D, D) of components with these weights (K,)."""
        return covariances

    def gather(self, params: PyTree, components: Array) -> PyTree:
        """The parameters of these components."""
        return jax.tree.map(lambda a: a[components], params)

    def select(self, params: PyTree, columns: Any) -> PyTree:
        """Parameters of the marginal over some coordinates."""
        covariances = self.covariances(params)[..., columns, :][..., columns]
        return {"means": params["means"][:, columns], **self.pack(covariances)}

    def draw(self, params: PyTree, component: Array, noise: Array) -> Array:
        """Samples (N, D) from the given components (N,), from standard normal noise (N, D)."""
        return params["means"][component] + einsum("nij,nj->ni", self._factors(params)[component], noise)

    def distribution(self, params: PyTree) -> distrax.Distribution:
        return Triangular(params["means"], self._factors(params))

    def _factors(self, params: PyTree) -> Array:
        """(K, D, D) Cholesky factors, also if all components share one."""
        factor = self.factor(params)
        return jnp.broadcast_to(factor, (len(params["means"]), *factor.shape[-2:]))

    def free(self, k: int, d: int) -> int:
        """Number of free parameters of the covariances."""
        return k * d * (d + 1) // 2

    def features(self, d: int) -> int:
        """Number of sufficient-statistic features (the log-density is linear in them)."""
        return d * (d + 1) // 2 + d + 1

    def diagonal(self, variances: Array) -> Array:
        """The covariance of one component with these variances (D,)."""
        return jnp.diag(variances)

    def maximize(self, stats: Stats, shift: Array, prior: ConjugatePrior | None, distance: Array | None) -> Array:
        """New covariances about means shifted by `shift` (K, D), `distance` (K, D) away from those of the prior."""
        own, apart = stats.around(shift)
        within = stats.second + stats.count[:, None, None] * (
            apart[:, :, None] * apart[:, None, :] - own[:, :, None] * own[:, None, :]
        )
        if prior is None:
            return ratio(within, stats.count[:, None, None])
        within += prior.mean_count[:, None, None] * distance[:, :, None] * distance[:, None, :] + prior.scale
        return ratio(within, stats.count[:, None, None] + prior.count)

    def with_floor(self, covariances: Array, floor: Array) -> Array:
        """Adds `floor` (K, D) to the variances, after clipping those that rounding left below 0."""
        below = jnp.minimum(jnp.diagonal(covariances, axis1=-2, axis2=-1), 0)
        return covariances + (floor - below)[..., None] * jnp.eye(floor.shape[-1], dtype=floor.dtype)

    def recenter(self, stats: Stats, shift: Array) -> Stats:
        """The statistics about means shifted by `shift` (K, D)."""
        moved = shift[:, :, None] * stats.first[:, None, :]
        second = stats.second - moved - moved.mT
        second += stats.count[:, None, None] * shift[:, :, None] * shift[:, None, :]
        return Stats(stats.count, stats.first - stats.count[:, None] * shift, second)

    def where_occupied(self, occupied: Array, new: PyTree, old: PyTree) -> PyTree:
        """New parameters where `occupied` (K,), old ones elsewhere."""
        return jax.tree.map(lambda n, o: jnp.where(occupied.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)

    def log_prior(self, params: PyTree, prior: ConjugatePrior) -> Array:
        """Log-density of the prior up to a constant."""
        inverse = inverses(self.factor(params))
        trace = jnp.sum(matmul(inverse, jnp.broadcast_to(prior.scale, inverse.shape)) * inverse, axis=(-2, -1))
        distance = einsum("kij,kj->ki", inverse, params["means"] - prior.mean)
        count = jnp.broadcast_to(prior.count, (len(inverse), 1, 1))[:, 0, 0]
        covariances = count * 2 * self.log_det(params) + trace
        return -0.5 * (covariances.sum() + jnp.sum(prior.mean_count[:, None] * distance**2))

    def direct(self, params: PyTree) -> Evaluation:
        means, whiten = jnp.asarray(params["means"]), inverses(self.factor(params))
        constant = self.log_det(params) + 0.5 * means.shape[1] * LOG_2PI

        def each(f: Callable[[Any], PyTree], of: PyTree, x: Array) -> PyTree:
            """f of every component: one after the other if the differences of all do not fit into the cache."""
            return jax.vmap(f)(of) if means.size * len(x) < 1 << 16 else lax.map(f, of)

        def log_prob(x: Array) -> Array:
            def component(k: Array) -> Array:
                return -0.5 * jnp.sum(matmul(whiten[k] if whiten.ndim == 3 else whiten, (x - means[k]).T) ** 2, axis=0)

            return each(component, jnp.arange(len(means)), x) - constant.reshape(-1, 1)

        def sums(x: Array, r: Array) -> Stats:
            def component(of: tuple[Array, Array]) -> tuple[Array, Array, Array]:
                mean, r = of
                centered = (x - mean).T
                weighted = r * centered
                return r.sum(), weighted.sum(axis=1), matmul(weighted, centered.T)

            return self._gathered(each(component, (means, r), x))

        return Evaluation(lambda x: x, log_prob, sums, lambda sums: sums)

    def _gathered(self, moments: tuple[Array, Array, Array]) -> Stats:
        return Stats(*moments)

    def missing(self, params: PyTree) -> Evaluation:
        """Exact evaluation with NaN for missing coordinates: marginal densities of observed ones, expected moments of
        missing ones (Ghahramani & Jordan 1994)."""
        means = params["means"]
        covariances = self.dense(params)
        identity = jnp.eye(means.shape[1], dtype=means.dtype)

        def observed(x: Array, mean: Array, covariance: Array):
            """Log-density, precision, weighted residual of the observed coordinates, for one example and component."""
            there = ~jnp.isnan(x)
            residual = jnp.where(there, x - mean, 0)
            masked = jnp.where(there[:, None] & there[None, :], covariance, identity)
            factor = jnp.linalg.cholesky(masked)
            inverse = inverses(factor)
            white = matmul(inverse, residual)
            log_det = jnp.log(jnp.diagonal(factor)).sum()
            log_prob = -0.5 * jnp.sum(white**2) - log_det - 0.5 * there.sum() * LOG_2PI
            precision = jnp.where(there[:, None] & there[None, :], matmul(inverse.T, inverse), 0)
            return log_prob, precision, matmul(precision, residual)

        every = jax.vmap(jax.vmap(observed, in_axes=(0, None, None)), in_axes=(None, 0, 0))

        def sums(each, r: Array):
            _, precision, weighted = each
            completed = einsum("kij,kbj->kbi", covariances, weighted)  # E[x | observed] - mean
            outer = einsum("kb,kbi,kbj->kij", r, completed, completed)
            return (
                r.sum(axis=1),
                einsum("kb,kbi->ki", r, completed),
                outer,
                einsum("kb,kbij->kij", r, precision),
            )

        def stats(sums) -> Stats:
            count, first, outer, precision = sums
            left = count[:, None, None] * covariances - matmul(matmul(covariances, precision), covariances)
            return self._gathered((count, first, outer + left))

        rows = max(1, (1 << 22) // covariances.size)
        return Evaluation(lambda x: every(x, means, covariances), lambda each: each[0], sums, stats, rows)

    whitens: bool = True  # whether there is an evaluation by whitened data

    def whitened(self, params: PyTree, standardizer: Standardizer) -> Evaluation:
        """Evaluation by two matrix products with the data whitened by each component."""
        k, d = params["means"].shape
        means, factor = standardizer.into(params["means"]), self.factor(params)
        inverse = inverses(factor / standardizer.scale[:, None])
        affine = jnp.concatenate([inverse, -einsum("kij,kj->ki", inverse, means)[:, :, None]], axis=2)
        constant = self.log_det(params) + 0.5 * d * LOG_2PI

        def prepare(x: Array) -> tuple[Array, Array]:
            x = standardizer.into(x).T
            x = jnp.concatenate([x, jnp.ones_like(x[:1])])
            return x, matmul(affine.reshape(k * d, d + 1), x).reshape(k, d, -1)

        def log_prob(prepared: tuple[Array, Array]) -> Array:
            return -0.5 * jnp.sum(prepared[1] ** 2, axis=1) - constant[:, None]

        def sums(prepared: tuple[Array, Array], r: Array) -> tuple[Array, Array]:
            x, white = prepared
            return r.sum(axis=1), matmul((r[:, None] * white).reshape(k * d, -1), x.T).reshape(k, d, d + 1)

        def stats(raw: tuple[Array, Array]) -> Stats:
            count, across = raw
            first = across[:, :, d]
            across = (across[:, :, :d] - first[:, :, None] * means[:, None, :]) * standardizer.scale
            second = matmul(factor, across)
            return Stats(count, einsum("kij,kj->ki", factor, first), (second + second.mT) / 2)

        rows = max(block_size(2 * k * d), 1024)
        return Evaluation(prepare, log_prob, sums, stats, rows)

    def gemm(self, params: PyTree, standardizer: Standardizer) -> tuple[Evaluation, Array]:
        d = params["means"].shape[1]
        row, column = np.triu_indices(d + 1)  # the last is the product 1 x 1
        pack = np.zeros((d + 1, d + 1), int)
        pack[row, column] = pack[column, row] = np.arange(len(row))
        means, factor = standardizer.into(params["means"]), self.factor(params) / standardizer.scale[:, None]
        inverse = inverses(factor)
        precision = matmul(inverse.mT, inverse)
        linear = einsum("kij,kj->ki", precision, means)
        constant = -0.5 * jnp.sum(linear * means, axis=1) - self.log_det(params) - 0.5 * d * LOG_2PI
        quadratic = -precision * (1 - 0.5 * jnp.eye(d, dtype=means.dtype))  # each pair of coordinates appears once
        upper = jnp.concatenate([quadratic, linear[:, :, None]], axis=2)[:, row[:-1], column[:-1]]
        # GPUs need multiples of eight: XLA would copy all features to append zeros.
        spare = 0 if jax.default_backend() == "cpu" else -len(row) % 8
        natural = jnp.concatenate([upper, constant[:, None], jnp.zeros((len(means), spare), means.dtype)], axis=1)

        def stats(raw: Array) -> Stats:
            moments = raw.T[:, pack]  # (K, D + 1, D + 1) sums of y y^T
            about = self.recenter(Stats(moments[:, d, d], moments[:, :d, d], moments[:, :d, :d]), means)
            return Stats(
                about.count,
                about.first * standardizer.scale,
                about.second * standardizer.scale * standardizer.scale[:, None],
            )

        pairs = np.pad(row, (0, spare), "edge"), np.pad(column, (0, spare), "edge")
        return by_products(natural, pairs, standardizer, stats), jnp.sqrt(jnp.sum(precision**2, axis=(1, 2)).max())


class Tied(Full):
    """All components share one covariance matrix (D, D)."""

    whitens = False

    def covariances(self, params):
        factor = self.factor(params)
        return matmul(factor, factor.T)

    def from_dense(self, covariances, weights):
        return einsum("k,kij->ij", weights / weights.sum(), covariances)

    def gather(self, params, components):
        return {**params, "means": params["means"][components]}

    def free(self, k, d):
        return d * (d + 1) // 2

    def features(self, d):
        return d + 1

    def maximize(self, stats, shift, prior, distance):
        own, apart = stats.around(shift)
        within = stats.second + einsum("k,ki,kj->ij", stats.count, apart, apart)
        within -= einsum("k,ki,kj->ij", stats.count, own, own)
        if prior is None:
            return ratio(within, stats.count.sum())
        within += matmul(distance.T, prior.mean_count[:, None] * distance) + prior.scale
        return ratio(within, stats.count.sum() + prior.count)

    def with_floor(self, covariances, floor):
        return super().with_floor(covariances, floor.max(axis=0))

    def log_prior(self, params, prior):
        inverse = inverses(self.factor(params))
        trace = jnp.sum(matmul(inverse, jnp.broadcast_to(prior.scale, inverse.shape)) * inverse)
        distance = matmul(params["means"] - prior.mean, inverse.T)
        return -0.5 * (
            prior.count * 2 * self.log_det(params) + trace + jnp.sum(prior.mean_count[:, None] * distance**2)
        )

    def recenter(self, stats, shift):
        moved = matmul(shift.T, stats.first)
        second = stats.second - moved - moved.T + matmul(shift.T, stats.count[:, None] * shift)
        return Stats(stats.count, stats.first - stats.count[:, None] * shift, second)

    def where_occupied(self, occupied, new, old):
        return {**new, "means": jnp.where(occupied[:, None], new["means"], old["means"])}

    def _gathered(self, moments):
        count, first, second = moments
        return Stats(count, first, second.sum(axis=0))

    def gemm(self, params, standardizer):
        d = params["means"].shape[1]
        means, factor = standardizer.into(params["means"]), self.factor(params) / standardizer.scale[:, None]
        inverse = inverses(factor)
        precision = matmul(inverse.T, inverse)
        linear = matmul(means, precision)
        constant = -0.5 * jnp.sum(linear * means, axis=1) - self.log_det(params) - 0.5 * d * LOG_2PI
        natural = jnp.concatenate([linear, constant[:, None]], axis=1)

        def prepare(x: Array) -> Array:
            x = standardizer.into(x).T
            return jnp.concatenate([x, jnp.ones_like(x[:1])])

        def log_prob(f: Array) -> Array:
            return matmul(natural, f) - 0.5 * jnp.sum(matmul(inverse, f[:-1]) ** 2, axis=0)

        def sums(f: Array, r: Array):
            return weighted_sums(f, r), matmul(f[:-1] * r.sum(axis=0), f[:-1].T)

        def stats(raw) -> Stats:
            about = self.recenter(Stats(raw[0][-1], raw[0][:-1].T, raw[1]), means)
            return Stats(
                about.count,
                about.first * standardizer.scale,
                about.second * standardizer.scale * standardizer.scale[:, None],
            )

        return Evaluation(prepare, log_prob, sums, stats, block_size(2 * d + len(means))), jnp.sqrt(
            jnp.sum(precision**2)
        )


def _cholesky(covariances: Array) -> Array:
    """Lower Cholesky factors (..., D, D); a matrix made indefinite by rounding is first projected to a positive one."""

    def repaired() -> Array:
        scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariances, axis1=-2, axis2=-1), jnp.finfo(covariances.dtype).tiny))
        correlations = jnp.clip(covariances / scale[..., None] / scale[..., None, :], -1, 1)
        values, vectors = jnp.linalg.eigh(correlations)
        values = jnp.maximum(values, 16 * values.shape[-1] * jnp.finfo(values.dtype).eps)
        return jnp.linalg.cholesky(
            (vectors * values[..., None, :]) @ vectors.mT * scale[..., None] * scale[..., None, :]
        )

    factor = jnp.linalg.cholesky(covariances)
    return lax.cond(jointly(jnp.isfinite(lax.stop_gradient(factor)).all()), lambda: factor, repaired)


def _with_diagonal(factor: Array, f: Callable[[Array], Array]) -> Array:
    """Lower triangular matrices with `f` applied to their diagonal."""
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    return jnp.tril(factor, -1) + f(diagonal)[..., None] * jnp.eye(factor.shape[-1], dtype=factor.dtype)
