"""Emissions that depend on earlier observations or on inputs."""

from __future__ import annotations

from dataclasses import dataclass

import distrax
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, fold_in
from gen_jax.models.hmm.emissions.emission import Emission, rows
from gen_jax.models.mixture.covariances import FULL, Stats, occupied
from gen_jax.models.mixture.gaussians import Gaussians, data_moments

__all__ = ["LinearRegression"]


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

    @property
    def independent(self):
        return False

    def init(self, key, batch, seen, k):
        x = jnp.where(seen[..., None], batch["x"], jnp.nan)
        extra = {"center": jnp.nan_to_num(jnp.nanmean(x, axis=(0, 1)))}
        both = rows(self._both(extra, {**batch, "x": x}, seen))
        _, extra["variance"] = data_moments(both)
        whole = Gaussians(FULL, self.floor)
        params = {"joint": whole.start(both, k, extra["variance"])}
        r = jax.nn.softmax(2 * jax.random.normal(fold_in(key, "start"), (*seen.shape, k), x.dtype)) * seen[..., None]
        params |= {
            "weights": jnp.zeros((k, x.shape[2], both.shape[1] - x.shape[2]), x.dtype),
            "bias": jnp.zeros((k, x.shape[2]), x.dtype),
        }
        params |= FULL.pack(jnp.broadcast_to(jnp.eye(x.shape[2], dtype=x.dtype), (k, *2 * x.shape[2:])))
        extra["joint"] = params.pop("joint")
        return self.maximize(params, extra, self.stats(params, extra, {**batch, "x": jnp.nan_to_num(x)}, r)), extra

    def _both(self, extra: Extra, batch: Batch, seen: Array | None = None) -> Array:
        """(B, T, F + D) regressors and observations."""
        if self.lags and "starts" in batch:
            raise ValueError("a regression on earlier values needs one sequence per row")
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
        return Gaussians(FULL).moments(extra["joint"], rows(self._both(extra, batch)), r.reshape(-1, r.shape[-1]))

    def maximize(self, params, extra, stats: Stats):
        d = params["bias"].shape[1]
        joint = Gaussians(FULL, self.floor).maximize(extra["joint"], stats, extra["variance"])
        means, covariances = joint["means"], FULL.dense(joint)
        weights = jnp.linalg.solve(covariances[:, :-d, :-d], covariances[:, :-d, -d:]).mT
        bias = means[:, -d:] - jnp.einsum("kdf,kf->kd", weights, means[:, :-d])
        rest = covariances[:, -d:, -d:] - weights @ covariances[:, :-d, -d:]
        return FULL.where_occupied(occupied(stats.count), {"weights": weights, "bias": bias, **FULL.pack(rest)}, params)

    def free_parameters(self, params):
        k, d = params["bias"].shape
        return params["weights"].size + params["bias"].size + FULL.free(k, d)

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
