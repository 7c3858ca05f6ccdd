"""Emissions of symbols, counts and bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import fold_in
from gen_jax.models.common.linalg import matmul
from gen_jax.models.hmm.emissions.emission import Emission, rows
from gen_jax.models.mixture.covariances import occupied, ratio

__all__ = ["Bernoulli", "Categorical", "Poisson"]


@dataclass(frozen=True)
class Categorical(Emission):
    """Symbols from 0 to symbols - 1: one per step, x (B, T), or D independent ones, x (B, T, D); -1 is a missing one.

    concentration: of a Dirichlet prior, 1 is flat.
    """

    symbols: int
    concentration: float = 1.0

    def __post_init__(self):
        if self.symbols < 1 or self.concentration < 1:
            raise ValueError(f"symbols and concentration must be at least 1, got {self.symbols}, {self.concentration}")

    def read(self, x):
        x = jnp.where(jnp.isnan(x), -1, x).astype(jnp.int32) if x.dtype.kind == "f" else x.astype(jnp.int32)
        return x[..., 0] if x.shape[-1] == 1 else x

    def unseen(self, x):
        missing = jnp.isnan(x) | (x < 0) if x.dtype.kind == "f" else x < 0
        return missing if x.ndim == 2 else missing.all(axis=2)

    def init(self, key, batch, seen, k):
        count = self._counted(batch["x"], seen[..., None].astype(jnp.float32)) + 1
        jitter = jax.random.gamma(fold_in(key, "start"), 5.0, (k, *count.shape[1:]))
        logits = jnp.log(count / count.sum(axis=-1, keepdims=True) * jitter)
        return {"logits": logits}, {} if self.concentration == 1 else {
            "prior": jnp.full(logits.shape, self.concentration - 1)
        }

    def _counted(self, x: Array, r: Array) -> Array:
        """(K, S) or (K, D, S) sums of r (B, T, K) over the steps with each symbol."""
        k, r = r.shape[-1], r.reshape(-1, r.shape[-1])
        last = self.symbols  # where missing ones are counted
        count = lambda x: jnp.zeros((last + 1, k), r.dtype).at[jnp.where(x < 0, last, x).reshape(-1)].add(r)[:-1].T
        return count(x) if x.ndim == 2 else jax.vmap(count, in_axes=2, out_axes=1)(x)

    def distribution(self, params):
        each = distrax.Categorical(logits=params["logits"])
        return each if params["logits"].ndim == 2 else distrax.Independent(each, 1)

    def log_prob(self, params, extra, batch):
        log_p, x = jax.nn.log_softmax(params["logits"]), batch["x"]
        if x.ndim == 2:
            return log_p.T[x]
        each = (jnp.where(x[..., d, None] < 0, 0, log_p[:, d].T[x[..., d]]) for d in range(x.shape[2]))
        return sum(each)

    def stats(self, params, extra, batch, r):
        return self._counted(batch["x"], r)

    def pack(self, given, params):
        return {"logits": jnp.log(given["probabilities"])} if given else params

    def unpack(self, params):
        return {"probabilities": jax.nn.softmax(params["logits"])}

    def maximize(self, params, extra, stats):
        count = jnp.maximum(stats + extra.get("prior", 0), 0)
        total, old = count.sum(axis=-1, keepdims=True), params["logits"]
        there = occupied(total.max(axis=tuple(range(1, total.ndim)))).reshape(-1, *[1] * (total.ndim - 1))
        new = jnp.where(old > -jnp.inf, jnp.log(jnp.maximum(ratio(count, total), 1e-30)), old)  # 0 stays 0
        return {"logits": jnp.where(there, new, old)}

    def log_prior(self, params, extra):
        if "prior" not in extra:
            return None
        log_p = jax.nn.log_softmax(params["logits"])
        return jnp.sum(jnp.where(log_p > -jnp.inf, extra["prior"] * log_p, 0))

    def free_parameters(self, params):
        return params["logits"].size - params["logits"].size // self.symbols

    def mean(self, params):
        return jax.nn.softmax(params["logits"])


@dataclass(frozen=True)
class Poisson(Emission):
    """Independent counts (B, T, D) with rates (K, D); NaN marks a missing one.

    prior: pseudo-observations of the data's mean rate (Gamma).
    """

    prior: float = 0.0

    def __post_init__(self):
        if self.prior < 0:
            raise ValueError(f"prior must be 0 or more, got {self.prior}")

    def init(self, key, batch, seen, k):
        mean = jnp.maximum(_mean(batch["x"], seen), 1e-3)
        jitter = jax.random.gamma(fold_in(key, "start"), 4.0, (k, len(mean)), mean.dtype) / 4
        prior = {"total": jnp.broadcast_to(self.prior * mean, jitter.shape), "count": jnp.float32(self.prior)}
        return {"log_rate": jnp.log(mean * jitter + 1e-6)}, {"prior": prior} if self.prior else {}

    def distribution(self, params):
        return distrax.Independent(distrax.as_distribution(_poisson(jnp.exp(params["log_rate"]))), 1)

    def log_prob(self, params, extra, batch):
        x, there = _filled(batch["x"], params["log_rate"].dtype)
        base = lax.lgamma(x + 1).sum(axis=-1, keepdims=True)  # 0 where missing
        return matmul(x, params["log_rate"].T) - _total(there, jnp.exp(params["log_rate"])) - base

    def unseen(self, x):
        return _all_missing(x)

    def stats(self, params, extra, batch, r):
        return _counts(batch["x"], r)

    def pack(self, given, params):
        return {"log_rate": jnp.log(jnp.maximum(given["rates"], 1e-8))} if given else params

    def unpack(self, params):
        return {"rates": jnp.exp(params["log_rate"])}

    def maximize(self, params, extra, stats):
        count, total = stats
        prior = extra.get("prior", {"total": 0, "count": 0})
        rate = ratio(total + prior["total"], count + prior["count"])
        return {"log_rate": jnp.where(occupied(count), jnp.log(jnp.maximum(rate, 1e-8)), params["log_rate"])}

    def log_prior(self, params, extra):
        if "prior" not in extra:
            return None
        rate, prior = params["log_rate"], extra["prior"]
        return jnp.sum(prior["total"] * rate - prior["count"] * jnp.exp(rate))

    def mean(self, params):
        return jnp.exp(params["log_rate"])

    def draw(self, params, extra, key, states, past=None):
        return jax.random.poisson(key, jnp.exp(params["log_rate"])[states])


@dataclass(frozen=True)
class Bernoulli(Emission):
    """Independent bits (B, T, D) with probabilities (K, D); NaN marks a missing one.

    prior: pseudo-observations of either value (Beta prior).
    """

    prior: float = 0.1

    def __post_init__(self):
        if self.prior < 0:
            raise ValueError(f"prior must be 0 or more, got {self.prior}")

    def init(self, key, batch, seen, k):
        mean = jnp.clip(_mean(batch["x"], seen), 0.01, 0.99)
        noise = jax.random.normal(fold_in(key, "start"), (k, len(mean)), mean.dtype)
        return {"logits": jnp.log(mean / (1 - mean)) + noise}, {}

    def distribution(self, params):
        return distrax.Independent(distrax.Bernoulli(logits=params["logits"]), 1)

    def log_prob(self, params, extra, batch):
        x, there = _filled(batch["x"], params["logits"].dtype)
        return matmul(x, params["logits"].T) - _total(there, jax.nn.softplus(params["logits"]))

    def unseen(self, x):
        return _all_missing(x)

    def stats(self, params, extra, batch, r):
        return _counts(batch["x"], r)

    def pack(self, given, params):
        return {"logits": _logit(given["probabilities"])} if given else params

    def unpack(self, params):
        return {"probabilities": jax.nn.sigmoid(params["logits"])}

    def maximize(self, params, extra, stats):
        count, total = stats
        logits = _logit(ratio(total + self.prior, count + 2 * self.prior))
        return {"logits": jnp.where(occupied(count), logits, params["logits"])}

    def log_prior(self, params, extra):
        logits = params["logits"]
        return -self.prior * jnp.sum(jax.nn.softplus(logits) + jax.nn.softplus(-logits)) if self.prior else None

    def mean(self, params):
        return jax.nn.sigmoid(params["logits"])

    def draw(self, params, extra, key, states, past=None):
        return jax.random.bernoulli(key, self.mean(params)[states]).astype(jnp.int32)


def _logit(p: Array) -> Array:
    """Finite logits of probabilities."""
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    return jnp.log(p) - jnp.log1p(-p)


def _filled(x: Array, dtype: Any) -> tuple[Array, Array | None]:
    """x with 0 for NaN, and 1 where it was observed; None for integers, of which none is missing."""
    if x.dtype.kind != "f":
        return x.astype(dtype), None
    there = ~jnp.isnan(x)
    return jnp.where(there, x, 0).astype(dtype), there.astype(dtype)


def _total(there: Array | None, a: Array) -> Array:
    """(..., K) sums of a (K, D) over the observed coordinates."""
    return a.sum(axis=1) if there is None else matmul(there, a.T)


def _mean(x: Array, seen: Array) -> Array:
    """(D,) means of what was observed."""
    x, there = _filled(x, x.dtype if x.dtype.kind == "f" else jnp.result_type(float))
    there = seen[..., None] if there is None else there * seen[..., None]
    return jnp.sum(x * there, axis=(0, 1)) / jnp.maximum(there.sum(axis=(0, 1)), 1)


def _all_missing(x: Array) -> Array:
    return jnp.isnan(x).all(axis=2) if x.dtype.kind == "f" else jnp.zeros(x.shape[:2], bool)


def _counts(x: Array, r: Array) -> tuple[Array, Array]:
    """Sums over steps of r and of r x for each coordinate, (K, 1) or (K, D) and (K, D), without what is missing."""
    r = r.reshape(-1, r.shape[-1])
    x, there = _filled(rows(x), r.dtype)
    return r.sum(axis=0)[:, None] if there is None else matmul(r.T, there), matmul(r.T, x)


def _poisson(rate: Array) -> Any:
    from tensorflow_probability.substrates import jax as tfp

    return tfp.distributions.Poisson(rate)
