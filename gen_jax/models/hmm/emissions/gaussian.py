"""Gaussian emissions, and mixtures of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, fold_in
from gen_jax.models.hmm.emissions.emission import Emission, rows
from gen_jax.models.mixture.covariances import FULL, Full, ratio
from gen_jax.models.mixture.gaussians import Gaussians, Prior, check_fixed, condition, data_moments
from gen_jax.models.mixture.kmeans import Start, kmeans_plus_plus

__all__ = ["Gaussian", "GaussianMixture"]


@dataclass(frozen=True)
class Gaussian(Emission):
    """N(mean_k, covariance_k) over vectors; see `Gaussians` for the fields, `fixed` among them.

    With `missing`, NaN coordinates are marginalized individually; otherwise a step with any NaN counts as unobserved.
    """

    kind: Full = FULL
    floor: float = 1e-6
    regularization: float = 0.0
    missing: bool = False
    prior: Prior = field(default_factory=Prior)
    start: Start = kmeans_plus_plus
    fixed: tuple[str, ...] = ()

    def __post_init__(self):
        _ = self.gaussians

    @property
    def gaussians(self) -> Gaussians:
        return Gaussians(self.kind, self.floor, self.regularization, self.missing, self.prior, self.fixed)

    def init(self, key, batch, seen, k):
        x, weight = rows(batch["x"]), seen.reshape(-1).astype(batch["x"].dtype)
        mean, variance = data_moments(x, weight)
        x = jnp.where((weight[:, None] > 0) & ~jnp.isnan(x), x, mean)
        extra = {"variance": variance}
        if (prior := self.gaussians.conjugate(mean, variance, k)) is not None:
            extra["prior"] = prior
        params = self.gaussians.start(x, k, variance)
        assign = self.start(fold_in(key, "start"), x, weight, k)
        plain = replace(self.gaussians, missing=False, fixed=())
        r = assign(x, jnp.arange(len(x))).T * weight[:, None]
        return plain.maximize(params, plain.moments(params, x, r), variance, extra.get("prior")), extra

    def distribution(self, params):
        return self.kind.distribution(params)

    def log_prob(self, params, extra, batch):
        x = batch["x"]
        return self.gaussians.log_prob(params, rows(x)).reshape(*x.shape[:2], -1)

    def stats(self, params, extra, batch, r):
        return self.gaussians.moments(params, rows(batch["x"]), r.reshape(-1, r.shape[-1]))

    def maximize(self, params, extra, stats):
        return self.gaussians.maximize(params, stats, extra["variance"], extra.get("prior"))

    def pack(self, given, params):
        """Given "covariances" are dense (K, D, D)."""
        new = {name: a for name, a in given.items() if name != "covariances"}
        if "covariances" in given:
            dense = given["covariances"]
            new |= self.kind.pack(self.kind.from_dense(dense, jnp.ones(len(dense), dense.dtype)))
        return {**params, **new}

    def unpack(self, params):
        """Means (K, D), and covariances in the shape of their type."""
        return {"means": params["means"], "covariances": self.kind.covariances(params)}

    def held(self, params):
        return self.gaussians.held(params)

    def log_prior(self, params, extra):
        return self.kind.log_prior(params, extra["prior"]) if "prior" in extra else None

    def free_parameters(self, params):
        k, d = params["means"].shape
        free = {"means": k * d, "covariances": self.kind.free(k, d)}
        return sum(n for name, n in free.items() if name not in self.fixed)

    def recenter(self, stats, old, new):
        return self.kind.recenter(stats, new["means"] - old["means"])

    def draw(self, params, extra, key, states, past=None):
        noise = jax.random.normal(key, (states.size, params["means"].shape[1]), params["means"].dtype)
        return self.kind.draw(params, states.reshape(-1), noise).reshape(*states.shape, -1)

    def with_missing(self):
        return replace(self, missing=True)

    def complete(self, params, extra, key, states, x, seen):
        drawn = self.draw(params, extra, key, states[:, None])[:, 0]
        covariances = self.kind.dense(params)
        known = jnp.where(seen, x, 0).astype(drawn.dtype)
        return jax.vmap(lambda x, seen, y, k: condition(x, seen, y, covariances[k]))(known, seen, drawn, states)

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
        check_fixed(self.fixed, ("weights", "means", "covariances"))
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")

    def init(self, key, batch, seen, k):
        """Initializes the states as single Gaussians, and their components around them."""
        single = Gaussian(self.kind, self.floor, self.regularization, self.missing, self.prior, self.start)
        gaussian, extra = single.init(key, batch, seen, k)
        if "prior" in extra:
            each = lambda a: jnp.repeat(a, self.components, axis=0)
            old = extra["prior"]
            extra["prior"] = old._replace(mean=each(old.mean), mean_count=each(old.mean_count))
        if self.prior.concentration != 1:
            extra["weights_prior"] = jnp.full((k, self.components), self.prior.concentration - 1, batch["x"].dtype)
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
        count = stats.count.reshape(params["logits"].shape)
        count = jnp.maximum(count + extra.get("weights_prior", 0), 0)
        total = count.sum(axis=1, keepdims=True)
        logits = jnp.where(total > 0, jnp.log(jnp.maximum(ratio(count, total), 1e-30)), params["logits"])
        new = self.gaussians.maximize(_without(params, "logits"), stats, extra["variance"], extra.get("prior"))
        return {"logits": params["logits"] if "weights" in self.fixed else logits, **new}

    @property
    def gaussians(self) -> Gaussians:
        fixed = tuple(name for name in self.fixed if name != "weights")
        return Gaussians(self.kind, self.floor, self.regularization, self.missing, self.prior, fixed)

    def pack(self, given, params):
        logits = {"logits": jnp.log(jnp.maximum(given["weights"], 1e-30))} if "weights" in given else {}
        return super().pack(_without(given, "weights") | logits, params)

    def unpack(self, params):
        return {"weights": jax.nn.softmax(params["logits"]), **super().unpack(_without(params, "logits"))}

    def held(self, params):
        logits = jax.lax.stop_gradient(params["logits"]) if "weights" in self.fixed else params["logits"]
        return {"logits": logits, **super().held(_without(params, "logits"))}

    def log_prior(self, params, extra):
        terms = [super().log_prior(_without(params, "logits"), extra)]
        if "weights_prior" in extra:
            terms.append(jnp.sum(extra["weights_prior"] * jax.nn.log_softmax(params["logits"])))
        terms = [term for term in terms if term is not None]
        return sum(terms) if terms else None

    def free_parameters(self, params):
        k, m = params["logits"].shape
        return super().free_parameters(_without(params, "logits")) + (0 if "weights" in self.fixed else k * (m - 1))

    def draw(self, params, extra, key, states, past=None):
        m = params["logits"].shape[1]
        component = jax.random.categorical(fold_in(key, "component"), params["logits"][states])
        return super().draw(_without(params, "logits"), extra, fold_in(key, "noise"), states * m + component)

    def complete(self, params, extra, key, states, x, seen):
        m = params["logits"].shape[1]
        known = replace(self, missing=True)._joint(params, jnp.where(seen, x, jnp.nan))
        joint = jnp.take_along_axis(known, states[:, None, None], axis=1)[:, 0]
        component = jax.random.categorical(fold_in(key, "component"), joint)
        single = Gaussian(self.kind, self.floor, self.regularization, self.missing, self.prior, self.start)
        return single.complete(
            _without(params, "logits"), extra, fold_in(key, "noise"), states * m + component, x, seen
        )

    def covariances(self, params):
        return super().covariances(_without(params, "logits"))

    def mean(self, params):
        k, m = params["logits"].shape
        return jnp.einsum("km,kmd->kd", jax.nn.softmax(params["logits"]), params["means"].reshape(k, m, -1))


def _without(params: PyTree, name: str) -> PyTree:
    return {key: a for key, a in params.items() if key != name}
