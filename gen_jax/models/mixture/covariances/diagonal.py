"""Variances of independent coordinates, one per coordinate or one for all."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import PyTree
from gen_jax.models.common.blocks import block_size
from gen_jax.models.common.linalg import LOG_2PI, matmul
from gen_jax.models.mixture.covariances.evaluation import Evaluation, Stats, by_products, ratio
from gen_jax.models.mixture.covariances.full import Full

__all__ = ["Diagonal", "Spherical"]


class Diagonal(Full):
    """Every component has its own variances (K, D), with independent coordinates."""

    whitens = False

    def pack(self, covariances):
        return {"log_scale": 0.5 * jnp.log(covariances)}

    def scale(self, params: PyTree) -> Array:
        """(K, D) standard deviations."""
        log_scale = params["log_scale"].reshape(len(params["means"]), -1)
        return jnp.broadcast_to(jnp.exp(log_scale), params["means"].shape)

    def factor(self, params):
        return jax.vmap(jnp.diag)(self.scale(params))

    def log_det(self, params):
        return jnp.log(self.scale(params)).sum(axis=1)

    def dense(self, params):
        return jax.vmap(jnp.diag)(self.scale(params) ** 2)

    def covariances(self, params):
        return jnp.exp(2 * params["log_scale"])

    def variances(self, params):
        return self.scale(params) ** 2

    def from_dense(self, covariances, weights):
        return jnp.diagonal(covariances, axis1=1, axis2=2)

    def select(self, params, columns):
        return {name: a[:, columns] for name, a in params.items()}

    def draw(self, params, component, noise):
        return params["means"][component] + self.scale(params)[component] * noise

    def distribution(self, params):
        return distrax.MultivariateNormalDiag(params["means"], self.scale(params))

    def free(self, k, d):
        return k * d

    def features(self, d):
        return 2 * d + 1

    def diagonal(self, variances):
        return variances

    def maximize(self, stats, shift, prior, distance):
        own, apart = stats.around(shift)
        within = stats.second + stats.count[:, None] * (apart**2 - own**2)
        if prior is None:
            return ratio(within, stats.count[:, None])
        within += prior.mean_count[:, None] * distance**2 + prior.scale
        return ratio(within, stats.count[:, None] + prior.count)

    def with_floor(self, covariances, floor):
        return jnp.maximum(covariances, 0) + floor

    def recenter(self, stats, shift):
        second = stats.second - 2 * shift * stats.first + stats.count[:, None] * shift**2
        return Stats(stats.count, stats.first - stats.count[:, None] * shift, second)

    def log_prior(self, params, prior):
        variances, distance = self.variances(params), params["means"] - prior.mean
        each = prior.count * jnp.log(variances) + prior.scale / variances
        return -0.5 * jnp.sum(each + prior.mean_count[:, None] * distance**2 / variances)

    def direct(self, params):
        means, scale = params["means"], self.scale(params)
        constant = self.log_det(params) + 0.5 * means.shape[1] * LOG_2PI

        def log_prob(x: Array) -> Array:
            white = jax.vmap(lambda mean, scale: jnp.sum(((x - mean) / scale) ** 2, axis=1))(means, scale)
            return -0.5 * white - constant[:, None]

        def sums(x: Array, r: Array) -> Stats:
            def component(mean: Array, r: Array) -> tuple[Array, Array, Array]:
                centered = x - mean
                return r.sum(), matmul(r, centered), matmul(r, centered**2)

            return Stats(*jax.vmap(component)(means, r))

        return Evaluation(lambda x: x, log_prob, sums, lambda sums: sums, block_size(means.size))

    def missing(self, params):
        means, scale = params["means"], self.scale(params)

        def log_prob(x: Array) -> Array:
            def component(mean: Array, scale: Array) -> Array:
                each = -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * LOG_2PI
                return jnp.sum(jnp.where(jnp.isnan(x), 0, each), axis=1)

            return jax.vmap(component)(means, scale)

        def sums(x: Array, r: Array) -> Stats:
            absent = jnp.isnan(x)

            def component(mean: Array, scale: Array, r: Array) -> tuple[Array, Array, Array]:
                centered = jnp.where(absent, 0, x - mean)
                return r.sum(), matmul(r, centered), matmul(r, jnp.where(absent, scale**2, centered**2))

            return Stats(*jax.vmap(component)(means, scale, r))

        return Evaluation(lambda x: x, log_prob, sums, lambda sums: sums, block_size(means.size))

    def gemm(self, params, standardizer):
        d = params["means"].shape[1]
        means, scale = standardizer.into(params["means"]), self.scale(params) / standardizer.scale
        precision = scale**-2
        constant = -0.5 * jnp.sum(precision * means**2, axis=1) - self.log_det(params) - 0.5 * d * LOG_2PI
        natural = jnp.concatenate([-0.5 * precision, precision * means, constant[:, None]], axis=1)

        def stats(raw: Array) -> Stats:
            about = self.recenter(Stats(raw[-1], raw[d : 2 * d].T, raw[:d].T), means)
            return Stats(about.count, about.first * standardizer.scale, about.second * standardizer.scale**2)

        each = np.arange(d)
        pairs = np.concatenate([each, each, [d]]), np.concatenate([each, np.full(d + 1, d)])
        return by_products(natural, pairs, standardizer, stats), jnp.sqrt(jnp.sum(precision**2, axis=1).max())


class Spherical(Diagonal):
    """Every component has a single variance (K,), isotropic."""

    def from_dense(self, covariances, weights):
        return jnp.diagonal(covariances, axis1=1, axis2=2).mean(axis=1)

    def select(self, params, columns):
        return {**params, "means": params["means"][:, columns]}

    def free(self, k, d):
        return k

    def features(self, d):
        return d + 2

    def maximize(self, stats, shift, prior, distance):
        return super().maximize(stats, shift, prior, distance).mean(axis=1)

    def with_floor(self, covariances, floor):
        return jnp.maximum(covariances, 0) + floor.mean(axis=1)
