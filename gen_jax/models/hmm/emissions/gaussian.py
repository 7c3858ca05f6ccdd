"""Gaussian emissions, and mixtures of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, fold_in
from gen_jax.models.hmm.emissions.emission import Emission, rows
from gen_jax.models.mixture.covariances import FULL, Full
from gen_jax.models.mixture.gaussians import Gaussians, Prior, data_variance
from gen_jax.models.mixture.kmeans import Start, kmeans_plus_plus

__all__ = ["Gaussian", "GaussianMixture"]


@dataclass(frozen=True)
class Gaussian(Emission):
    """N(mean_k, covariance_k) over vectors; see `Gaussians` for the fields.

    With `missing`, NaN coordinates are marginalized individually; otherwise a step with any NaN counts as unobserved.
    """

    kind: Full = FULL
    floor: float = 1e-6
    regularization: float = 0.0
    missing: bool = False
    prior: Prior = field(default_factory=Prior)
    start: Start = kmeans_plus_plus

    def __post_init__(self):
        _ = self.gaussians

    @property
    def gaussians(self) -> Gaussians:
        return Gaussians(self.kind, self.floor, self.regularization, self.missing, self.prior)

    def init(self, key, batch, seen, k):
        x, weight = rows(batch["x"]), seen.reshape(-1).astype(batch["x"].dtype)
        middle = jnp.where(weight[:, None] > 0, x, jnp.nan)
        x = jnp.where(jnp.isnan(middle), jnp.nan_to_num(jnp.nanmean(middle, axis=0)), x)
        extra = {"variance": data_variance(x)}
        params = self.gaussians.start(x, k, extra["variance"])
        assign = self.start(fold_in(key, "start"), x, weight, k)
        plain = replace(self.gaussians, missing=False)
        r = assign(x, jnp.arange(len(x))).T * weight[:, None]
        return plain.maximize(params, plain.moments(params, x, r), extra["variance"]), extra

    def distribution(self, params):
        return self.kind.distribution(params)

    def log_prob(self, params, extra, batch):
        x = batch["x"]
        return self.gaussians.log_prob(params, rows(x)).reshape(*x.shape[:2], -1)

    def stats(self, params, extra, batch, r):
        return self.gaussians.moments(params, rows(batch["x"]), r.reshape(-1, r.shape[-1]))

    def maximize(self, params, extra, stats):
        return self.gaussians.maximize(params, stats, extra["variance"])

    def recenter(self, stats, old, new):
        return self.kind.recenter(stats, new["means"] - old["means"])

    def draw(self, params, extra, key, states, past=None):
        noise = jax.random.normal(key, (states.size, params["means"].shape[1]), params["means"].dtype)
        return self.kind.draw(params, states.reshape(-1), noise).reshape(*states.shape, -1)

    def mean(self, params):
        return params["means"]

    def covariances(self, params: PyTree) -> tuple[Array, Array]:
        """Means (K, D) and covariances (K, D, D)."""
        return params["means"], self.kind.dense(params)

    def unseen(self, x):
        return jnp.isnan(x).all(axis=2) if self.missing else jnp.isnan(x).any(axis=2)


@dataclass(frozen=True)
class GaussianMixture(Gaussian):
    """A Gaussian mixture of `components` in each state."""

    components: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")

    def init(self, key, batch, seen, k):
        """Initializes the states as single Gaussians, and their components around them."""
        single = Gaussian(self.kind, self.floor, self.regularization, self.missing, self.prior, self.start)
        gaussian, extra = single.init(key, batch, seen, k)
        spreads = jnp.sqrt(self.kind.variances(gaussian))
        noise = jax.random.normal(fold_in(key, "components"), (k, self.components, spreads.shape[1]), spreads.dtype)
        shapes = self.kind.gather(gaussian, jnp.repeat(jnp.arange(k), self.components))
        means = gaussian["means"][:, None] + 0.5 * spreads[:, None] * noise
        shapes["means"] = means.reshape(k * self.components, -1)
        return {"logits": jnp.zeros((k, self.components), means.dtype), **shapes}, extra

    def distribution(self, params):
        shapes, (k, m) = _without(params, "logits"), params["logits"].shape
        factor = jnp.linalg.cholesky(self.kind.dense(shapes))
        components = distrax.MultivariateNormalTri(
            shapes["means"].reshape(k, m, -1), factor.reshape(k, m, *factor.shape[1:])
        )
        return distrax.MixtureSameFamily(distrax.Categorical(logits=params["logits"]), components)

    def _joint(self, params: PyTree, x: Array) -> Array:
        """(N, K, components) joint log-densities in nats."""
        each = self.gaussians.log_prob(_without(params, "logits"), x).reshape(len(x), *params["logits"].shape)
        return jnp.maximum(each + jax.nn.log_softmax(params["logits"]), -1e30)

    def log_prob(self, params, extra, batch):
        x = batch["x"]
        return jax.nn.logsumexp(self._joint(params, rows(x)), axis=2).reshape(*x.shape[:2], -1)

    def stats(self, params, extra, batch, r):
        x = rows(batch["x"])
        each = jax.nn.softmax(self._joint(params, x), axis=2) * r.reshape(len(x), -1, 1)
        return self.gaussians.moments(_without(params, "logits"), x, each.reshape(len(x), -1))

    def maximize(self, params, extra, stats):
        count = stats.count.reshape(params["logits"].shape) + self.prior.concentration - 1
        share = count / jnp.maximum(count.sum(axis=1, keepdims=True), 1e-30)
        new = self.gaussians.maximize(_without(params, "logits"), stats, extra["variance"])
        return {"logits": jnp.log(jnp.maximum(share, 1e-30)), **new}

    def draw(self, params, extra, key, states, past=None):
        m = params["logits"].shape[1]
        component = jax.random.categorical(fold_in(key, "component"), params["logits"][states])
        return super().draw(_without(params, "logits"), extra, fold_in(key, "noise"), states * m + component)

    def covariances(self, params):
        return super().covariances(_without(params, "logits"))

    def mean(self, params):
        k, m = params["logits"].shape
        return jnp.einsum("km,kmd->kd", jax.nn.softmax(params["logits"]), params["means"].reshape(k, m, -1))


def _without(params: PyTree, name: str) -> PyTree:
    return {key: a for key, a in params.items() if key != name}
