"""Gaussian mixture with full covariances, trained by EM (Dempster, Laird & Rubin 1977; Bishop 2006, section 9.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold, weights


class Stats(NamedTuple):
    """Sums over examples, weighted by responsibility, of moments about the current means.

    Taken about the means rather than the origin, the second moments lose no digits to cancellation: data at
    1000 +- 0.1 has the right variance in float32.
    """

    count: Array  # (K,)
    first: Array  # (K, D)
    second: Array  # (K, D, D)


@dataclass(frozen=True)
class GMM:
    """p(x) = sum_k w_k N(x; mean_k, covariance_k) over vectors (B, D).

    components: K. floor: the least variance of any component, relative to the variance of the first batch; it is added
    to the diagonals of the covariances. Parameters are stored as logits, means and Cholesky factors with the logarithm
    of their diagonal, so that the same model can be trained by `em` and by `descent`.
    """

    components: int
    floor: float = 1e-6

    def __post_init__(self):
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """k-means++ centres (Arthur & Vassilvitskii 2007), then the moments of the points nearest to each."""
        x = batch["x"]
        variance = x.var(axis=0)
        scale = jnp.where(variance > 0, lax.rsqrt(jnp.maximum(variance, 1e-30)), 1.0)
        centres = kmeans_plus_plus(fold(key, "centres"), (x - x.mean(axis=0)) * scale, self.components)
        nearest = jnp.argmin(_squared_distances((x - x.mean(axis=0)) * scale, centres), axis=1)
        one_hot = jax.nn.one_hot(nearest, self.components)
        means = x.mean(axis=0) + centres / scale
        variance = jnp.where(variance > 0, variance, 1.0)
        extra = {"variance": variance}
        covariances = jnp.broadcast_to(jnp.diag(variance), (self.components, x.shape[1], x.shape[1]))
        start = _pack(jnp.full(self.components, 1.0 / self.components), means, covariances)
        return self._maximise(start, extra, _moments(x, one_hot, means)), extra

    def e_step(self, state: State, batch: Batch) -> tuple[Stats, Metrics]:
        params = state.params["gmm"]
        joint = _log_joint(params, batch["x"])
        log_prob = jax.nn.logsumexp(joint, axis=1)
        stats = _moments(batch["x"], jnp.exp(joint - log_prob[:, None]), params["means"])
        return stats, {"log_likelihood": Mean.of(log_prob)}

    def m_step(self, state: State, stats: Stats) -> Params:
        return self._maximise(state.params["gmm"], state.extra, stats)

    def _maximise(self, params: PyTree, extra: Extra, stats: Stats) -> Params:
        """Components that hold less than a millionth of an example keep their place and shape."""
        alive = stats.count > 1e-6
        count = jnp.where(alive, stats.count, 1.0)
        shift = stats.first / count[:, None]
        covariances = stats.second / count[:, None, None] - shift[:, :, None] * shift[:, None, :]
        covariances += self.floor * jnp.diag(extra["variance"])
        new = _pack(stats.count / stats.count.sum(), params["means"] + shift, covariances)
        kept = {**params, "logits": new["logits"]}
        return {"gmm": jax.tree.map(lambda n, o: jnp.where(alive.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, kept)}

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        log_prob = jax.nn.logsumexp(_log_joint(params, batch["x"]), axis=1)
        return -log_prob.mean(), ({}, {"log_likelihood": Mean.of(log_prob)})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("gmm", self.loss),)

    def log_prob(self, state: State, batch: Batch) -> Array:
        return jax.nn.logsumexp(_log_joint(weights(state, "gmm"), batch["x"]), axis=1)

    def responsibilities(self, state: State, batch: Batch) -> Array:
        """(B, K) p(k | x)."""
        return jax.nn.softmax(_log_joint(weights(state, "gmm"), batch["x"]), axis=1)

    def sample(self, state: State, key: Array, n: int) -> Batch:
        params = weights(state, "gmm")
        component = jax.random.categorical(fold(key, "component"), params["logits"], shape=(n,))
        noise = jax.random.normal(fold(key, "noise"), (n, params["means"].shape[1]))
        x = params["means"][component] + jnp.einsum("nij,nj->ni", _cholesky(params)[component], noise)
        return {"x": x, "component": component}

    def distribution(self, state: State) -> distrax.MixtureSameFamily:
        """The mixture as a distrax distribution."""
        params = weights(state, "gmm")
        components = distrax.MultivariateNormalTri(params["means"], _cholesky(params))
        return distrax.MixtureSameFamily(distrax.Categorical(logits=params["logits"]), components)


def _pack(proportions: Array, means: Array, covariances: Array) -> PyTree:
    factor = jnp.linalg.cholesky(covariances)
    diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
    lower = jnp.tril(factor, -1) + jax.vmap(jnp.diag)(jnp.log(diagonal))
    return {"logits": jnp.log(jnp.maximum(proportions, 1e-30)), "means": means, "cholesky": lower}


def _cholesky(params: PyTree) -> Array:
    """(K, D, D) lower triangular with a positive diagonal."""
    raw = params["cholesky"]
    return jnp.tril(raw, -1) + jax.vmap(jnp.diag)(jnp.exp(jnp.diagonal(raw, axis1=1, axis2=2)))


def _log_joint(params: PyTree, x: Array) -> Array:
    """(B, K) log w_k + log N(x; mean_k, covariance_k)."""
    d = x.shape[1]

    def component(mean: Array, factor: Array) -> Array:
        white = solve_triangular(factor, (x - mean).T, lower=True)
        return -0.5 * jnp.sum(white**2, axis=0)

    log_det = jnp.diagonal(params["cholesky"], axis1=1, axis2=2).sum(axis=1)
    quadratic = jax.vmap(component, out_axes=1)(params["means"], _cholesky(params))
    return quadratic - log_det - 0.5 * d * jnp.log(2 * jnp.pi) + jax.nn.log_softmax(params["logits"])


def _moments(x: Array, responsibilities: Array, about: Array) -> Stats:
    def component(r: Array, mean: Array) -> tuple[Array, Array, Array]:
        centred = x - mean
        weighted = r[:, None] * centred
        return r.sum(), weighted.sum(axis=0), weighted.T @ centred

    return Stats(*jax.vmap(component, in_axes=(1, 0))(responsibilities, about))


def _squared_distances(x: Array, centres: Array) -> Array:
    """(B, K)"""
    return jax.vmap(lambda centre: jnp.sum((x - centre) ** 2, axis=1), out_axes=1)(centres)


def kmeans_plus_plus(key: Array, x: Array, k: int) -> Array:
    """(k, D) rows of x, each new one drawn with probability proportional to its squared distance to those before."""

    def draw(i: Array, carry):
        centres, distance = carry
        logits = jnp.where(distance > 0, jnp.log(jnp.maximum(distance, 1e-30)), -1e9)
        centre = x[jax.random.categorical(fold(key, i), logits)]
        distance = jnp.minimum(distance, jnp.sum((x - centre) ** 2, axis=1))
        return centres.at[i].set(centre), distance

    start = jnp.zeros((k, x.shape[1]), x.dtype), jnp.ones(x.shape[0], x.dtype)
    centres, _ = lax.fori_loop(0, 1, draw, start)
    first = jnp.sum((x - centres[0]) ** 2, axis=1)
    return lax.fori_loop(1, k, draw, (centres, first))[0]
