"""Emission distributions of hidden Markov models.

An emission is a frozen dataclass. `init` and `distribution` suffice for sampling, inference and training by
`descent`; `stats` and `maximize` make it trainable by `em`. Batches hold "x" (B, T, ...); `seen` (B, T) is the mask of
observed steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, PyTree, fold_in
from gen_jax.models.common.linalg import matmul
from gen_jax.models.mixture.covariances import FULL, Full, Stats, occupied
from gen_jax.models.mixture.gaussians import Gaussians, Prior, data_variance
from gen_jax.models.mixture.kmeans import Start, kmeans_plus_plus

__all__ = ["Bernoulli", "Categorical", "Emission", "Gaussian", "GaussianMixture", "LinearRegression", "Poisson"]


class Emission:
    """K emission distributions, one per state, over one step of a sequence."""

    def init(self, key: Array, batch: Batch, seen: Array, k: int) -> tuple[PyTree, Extra]:
        """Unconstrained parameters, and extras not trained by gradients."""
        raise NotImplementedError

    def distribution(self, params: PyTree) -> distrax.Distribution:
        """The emission distributions, with batch shape (K,)."""
        raise NotImplementedError

    def stats(self, params: PyTree, extra: Extra, batch: Batch, r: Array) -> PyTree:
        """Sufficient statistics for state probabilities r (B, T, K); they add over batches."""
        raise NotImplementedError(f"{type(self).__name__} has no EM: train it by descent")

    def maximize(self, params: PyTree, extra: Extra, stats: PyTree) -> PyTree:
        raise NotImplementedError(f"{type(self).__name__} has no EM: train it by descent")

    def recenter(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        """Statistics recentered from old to new parameters."""
        return stats

    def log_prob(self, params: PyTree, extra: Extra, batch: Batch) -> Array:
        """(B, T, K) log p(x_t | z_t = k) in nats."""
        distribution = self.distribution(params)
        events = len(distribution.event_shape)
        return distribution.log_prob(jnp.expand_dims(batch["x"], -1 - events))

    def draw(self, params: PyTree, extra: Extra, key: Array, states: Array, past: Array | None = None) -> Array:
        """Samples x (B, T, ...) given states (B, T) and past observations `past` (B, T', ...)."""
        of_each = jax.vmap(lambda i: self.distribution(params).sample(seed=fold_in(key, i)))(jnp.arange(states.size))
        return jax.vmap(lambda x, k: x[k])(of_each, states.reshape(-1)).reshape(*states.shape, *of_each.shape[2:])

    def mean(self, params: PyTree) -> Array:
        """(K, ...) means of the emissions."""
        return self.distribution(params).mean()

    def unseen(self, x: Array) -> Array:
        """(B, T) mask of steps without an observation: any coordinate is NaN."""
        return jnp.isnan(x).any(axis=tuple(range(2, x.ndim))) if x.dtype.kind == "f" else jnp.zeros(x.shape[:2], bool)


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
        x, weight = _rows(batch["x"]), seen.reshape(-1).astype(batch["x"].dtype)
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
        return self.gaussians.log_prob(params, _rows(x)).reshape(*x.shape[:2], -1)

    def stats(self, params, extra, batch, r):
        return self.gaussians.moments(params, _rows(batch["x"]), r.reshape(-1, r.shape[-1]))

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
        return jax.nn.logsumexp(self._joint(params, _rows(x)), axis=2).reshape(*x.shape[:2], -1)

    def stats(self, params, extra, batch, r):
        x = _rows(batch["x"])
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


@dataclass(frozen=True)
class Categorical(Emission):
    """One of 0 .. symbols - 1 per step; x is (B, T). concentration: of a Dirichlet prior, 1 is flat."""

    symbols: int
    concentration: float = 1.0

    def __post_init__(self):
        if self.symbols < 1 or self.concentration < 1:
            raise ValueError(f"symbols and concentration must be at least 1, got {self.symbols}, {self.concentration}")

    def init(self, key, batch, seen, k):
        count = jnp.zeros(self.symbols).at[batch["x"]].add(seen.astype(jnp.float32)) + 1
        jitter = jax.random.gamma(fold_in(key, "start"), 5.0, (k, self.symbols))
        return {"logits": jnp.log(count / count.sum() * jitter)}, {}

    def distribution(self, params):
        return distrax.Categorical(logits=params["logits"])

    def log_prob(self, params, extra, batch):
        return jax.nn.log_softmax(params["logits"]).T[batch["x"]]

    def stats(self, params, extra, batch, r):
        k = r.shape[-1]
        return jnp.zeros((self.symbols, k), r.dtype).at[batch["x"].reshape(-1)].add(r.reshape(-1, k)).T

    def maximize(self, params, extra, stats):
        count = stats + self.concentration - 1
        total = count.sum(axis=1, keepdims=True)
        return {"logits": jnp.where(total > 1e-6, jnp.log(jnp.maximum(count / total, 1e-30)), params["logits"])}

    def mean(self, params):
        return jax.nn.softmax(params["logits"])


@dataclass(frozen=True)
class Poisson(Emission):
    """Independent counts (B, T, D) with rates (K, D). prior: pseudo-observations at the data's mean rate."""

    prior: float = 0.0

    def init(self, key, batch, seen, k):
        mean = jnp.maximum(_mean(batch["x"], seen), 1e-3)
        jitter = jax.random.gamma(fold_in(key, "start"), 4.0, (k, len(mean))) / 4
        return {"log_rate": jnp.log(mean * jitter + 1e-6)}, {"rate": mean}

    def distribution(self, params):
        return distrax.Independent(distrax.as_distribution(_poisson(jnp.exp(params["log_rate"]))), 1)

    def log_prob(self, params, extra, batch):
        x = batch["x"].astype(params["log_rate"].dtype)
        base = lax.lgamma(x + 1).sum(axis=-1, keepdims=True)
        linear = matmul(x, params["log_rate"].T)
        return linear - jnp.exp(params["log_rate"]).sum(axis=1) - base

    def stats(self, params, extra, batch, r):
        return _counts(batch["x"], r)

    def maximize(self, params, extra, stats):
        count, total = stats
        rate = (total + self.prior * extra["rate"]) / jnp.maximum(count + self.prior, 1e-6)[:, None]
        return {"log_rate": jnp.where(count[:, None] > 1e-6, jnp.log(jnp.maximum(rate, 1e-8)), params["log_rate"])}

    def mean(self, params):
        return jnp.exp(params["log_rate"])

    def draw(self, params, extra, key, states, past=None):
        return jax.random.poisson(key, jnp.exp(params["log_rate"])[states])


@dataclass(frozen=True)
class Bernoulli(Emission):
    """Independent bits (B, T, D) with probabilities (K, D). prior: pseudo-observations of either value (Beta prior)."""

    prior: float = 0.1

    def __post_init__(self):
        if self.prior < 0:
            raise ValueError(f"prior must be 0 or more, got {self.prior}")

    def init(self, key, batch, seen, k):
        mean = jnp.clip(_mean(batch["x"], seen), 0.01, 0.99)
        noise = jax.random.normal(fold_in(key, "start"), (k, len(mean)))
        return {"logits": jnp.log(mean / (1 - mean)) + noise}, {}

    def distribution(self, params):
        return distrax.Independent(distrax.Bernoulli(logits=params["logits"]), 1)

    def log_prob(self, params, extra, batch):
        x = batch["x"].astype(params["logits"].dtype)
        linear = matmul(x, params["logits"].T)
        return linear - jax.nn.softplus(params["logits"]).sum(axis=1)

    def stats(self, params, extra, batch, r):
        return _counts(batch["x"], r)

    def maximize(self, params, extra, stats):
        count, total = stats
        p = jnp.clip((total + self.prior) / jnp.maximum(count + 2 * self.prior, 1e-6)[:, None], 1e-6, 1 - 1e-6)
        return {"logits": jnp.where(count[:, None] > 1e-6, jnp.log(p) - jnp.log1p(-p), params["logits"])}

    def mean(self, params):
        return jax.nn.sigmoid(params["logits"])

    def draw(self, params, extra, key, states, past=None):
        return jax.random.bernoulli(key, self.mean(params)[states]).astype(jnp.int32)


@dataclass(frozen=True)
class LinearRegression(Emission):
    """x_t ~ N(W_k [x_t-1, ..., x_t-lags, input_t, 1], covariance_k).

    Autoregressive (Hamilton 1989), or driven by an "input" (B, T, U) of the batch, or both. Values before the first
    step, and missing ones, are replaced by the data's mean.
    """

    lags: int = 1
    inputs: int = 0
    floor: float = 1e-6

    def __post_init__(self):
        if min(self.lags, self.inputs) < 0 or self.lags + self.inputs < 1:
            raise ValueError(f"a regression needs lags or inputs, got {self.lags} and {self.inputs}")

    def init(self, key, batch, seen, k):
        x = jnp.where(seen[..., None], batch["x"], jnp.nan)
        extra = {"center": jnp.nan_to_num(jnp.nanmean(x, axis=(0, 1)))}
        both = _rows(self._both(extra, {**batch, "x": x}, seen))
        extra["variance"] = data_variance(both)
        whole = Gaussians(FULL, self.floor)
        params = {"joint": whole.start(both, k, extra["variance"])}
        r = jax.nn.softmax(2 * jax.random.normal(fold_in(key, "start"), (*seen.shape, k), x.dtype)) * seen[..., None]
        params |= {
            "weights": jnp.zeros((k, x.shape[2], both.shape[1] - x.shape[2])),
            "bias": jnp.zeros((k, x.shape[2])),
        }
        params |= FULL.pack(jnp.broadcast_to(jnp.eye(x.shape[2], dtype=x.dtype), (k, *2 * x.shape[2:])))
        extra["joint"] = params.pop("joint")
        return self.maximize(params, extra, self.stats(params, extra, {**batch, "x": jnp.nan_to_num(x)}, r)), extra

    def _both(self, extra: Extra, batch: Batch, seen: Array | None = None) -> Array:
        """(B, T, F + D) regressors and observations."""
        x = batch["x"]
        known = jnp.where(jnp.isnan(x), extra["center"], x)
        before = jnp.broadcast_to(extra["center"], (len(x), self.lags, x.shape[2]))
        padded = jnp.concatenate([before, known], axis=1)
        lagged = [padded[:, self.lags - lag : padded.shape[1] - lag] for lag in range(1, self.lags + 1)]
        given = [batch["input"]] if self.inputs else []
        return jnp.concatenate([*lagged, *given, known], axis=2)

    def distribution(self, params):
        """The distribution with all regressors 0."""
        return distrax.MultivariateNormalTri(params["bias"], FULL.factor(params))

    def log_prob(self, params, extra, batch):
        both, d = self._both(extra, batch), params["bias"].shape[1]
        regressors, x = both[..., :-d], both[..., -d:]
        mean = jnp.einsum("kdf,btf->btkd", params["weights"], regressors) + params["bias"]
        return distrax.MultivariateNormalTri(mean, FULL.factor(params)).log_prob(x[:, :, None])

    def stats(self, params, extra, batch, r):
        return Gaussians(FULL).moments(extra["joint"], _rows(self._both(extra, batch)), r.reshape(-1, r.shape[-1]))

    def maximize(self, params, extra, stats: Stats):
        d = params["bias"].shape[1]
        joint = Gaussians(FULL, self.floor).maximize(extra["joint"], stats, extra["variance"])
        means, covariances = joint["means"], FULL.dense(joint)
        weights = jnp.linalg.solve(covariances[:, :-d, :-d], covariances[:, :-d, -d:]).mT
        bias = means[:, -d:] - jnp.einsum("kdf,kf->kd", weights, means[:, :-d])
        rest = covariances[:, -d:, -d:] - weights @ covariances[:, :-d, -d:]
        return FULL.where_occupied(occupied(stats), {"weights": weights, "bias": bias, **FULL.pack(rest)}, params)

    def draw(self, params, extra, key, states, past=None):
        if self.inputs:
            raise ValueError("a regression on inputs cannot draw without them")
        d, factor = params["bias"].shape[1], FULL.factor(params)
        before = jnp.broadcast_to(extra["center"], (len(states), self.lags, d))
        if past is not None:
            before = jnp.concatenate([before, past], axis=1)[:, -self.lags :]
        noise = jax.random.normal(key, (states.shape[1], states.shape[0], d), params["bias"].dtype)

        def step(recent: Array, inputs):
            state, noise = inputs
            regressors = recent[:, ::-1].reshape(len(recent), -1)
            x = jnp.einsum("bdf,bf->bd", params["weights"][state], regressors) + params["bias"][state]
            x += jnp.einsum("bij,bj->bi", factor[state], noise)
            return jnp.concatenate([recent[:, 1:], x[:, None]], axis=1), x

        return jnp.swapaxes(lax.scan(step, before, (states.T, noise))[1], 0, 1)

    def mean(self, params):
        raise ValueError("the mean of a regression depends on what came before: draw continuations with `extend`")


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _without(params: PyTree, name: str) -> PyTree:
    return {key: a for key, a in params.items() if key != name}


def _mean(x: Array, seen: Array) -> Array:
    """(D,) mean over observed steps."""
    observed = jnp.where(seen[..., None], x, 0).astype(jnp.float32)
    return observed.sum(axis=(0, 1)) / jnp.maximum(seen.sum(), 1)


def _counts(x: Array, r: Array) -> tuple[Array, Array]:
    """Sums over steps of r (K,) and r x (K, D)."""
    r = r.reshape(-1, r.shape[-1])
    return r.sum(axis=0), matmul(r.T, _rows(x).astype(r.dtype))


def _poisson(rate: Array) -> Any:
    from tensorflow_probability.substrates import jax as tfp

    return tfp.distributions.Poisson(rate)
