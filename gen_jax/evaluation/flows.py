"""Numerical invertibility of trained flows, and quality of variational fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import FittedToDensity, Invertible, State, fold_in
from gen_jax.data.transforms import Transform
from gen_jax.evaluation.likelihood import log_likelihood
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask

__all__ = ["SIDE", "in_float64", "invertibility", "log_integral"]

SIDE = 128  # maximum number of dimensions for full Jacobians


def invertibility(model: Invertible) -> Measure:
    """Numerical invertibility on up to 256 examples: round_trip, the largest difference between x and
    forward(inverse(x)), in the units of x; log_det_min and log_det_max, the extremes of log|det dz/dx| in nats; and
    for at most 128 dimensions condition, the largest condition number of dz/dx among 16 examples. Expect loss of
    precision once it nears 10^7 in float32."""
    ask(model, Invertible, "invertibility")
    find, of = jax.jit(model.latent), model.distribution

    @jax.jit
    def back(state: State, batch: Mapping[str, Array], z: Array) -> Array:
        return of(state, batch).bijector.forward(z)

    @jax.jit
    def singular(state: State, batch: Mapping[str, Array]) -> Array:
        def noise(x: Array, given: Mapping[str, Array]) -> Array:
            one = {**{name: a[None] for name, a in given.items()}, "x": x[None]}
            return of(state, one).bijector.inverse(one["x"]).reshape(-1)

        def values(one: Mapping[str, Array]) -> Array:
            jacobian = jax.jacrev(lambda x: noise(x, one))(one["x"])
            return jnp.linalg.svd(jacobian.reshape(one["x"].size, -1), compute_uv=False)

        return jax.lax.map(values, batch)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        batch = split.head(256)
        z, log_det = find(state, batch)
        error = float(jnp.abs(back(state, batch, z) - batch["x"]).max())
        n = len(batch["x"])
        found = {
            "round_trip": Estimate(error, math.nan, "units of x", "estimate", n),
            "log_det_min": Estimate(float(log_det.min()), math.nan, "nats", "estimate", n),
            "log_det_max": Estimate(float(log_det.max()), math.nan, "nats", "estimate", n),
        }
        if math.prod(batch["x"].shape[1:]) <= SIDE:
            few = {name: a[:16] for name, a in batch.items()}
            values = np.asarray(singular(state, few))
            ratio = float((values[:, 0] / values[:, -1]).max())
            found["condition"] = Estimate(ratio, math.nan, "largest / least stretch", "estimate", len(values))
        return found

    return measure


def log_integral(model: FittedToDensity) -> Measure:
    """Quality of a flow fitted to an unnormalized density, from 100,000 of its samples: log_integral, the log of the
    density's integral by importance sampling; elbo, the mean log-weight, which lies below it by the reverse KL;
    effective, the effective sample size as a fraction; and the split's log-likelihood under the flow, which drops if a
    mode is missed."""
    ask(model, FittedToDensity, "log_integral")
    batches = 1 + 100_000 // model.samples

    @jax.jit
    def weigh(state: State, key: Array) -> Array:
        params = state.params["flow"]
        return jax.lax.map(lambda i: model.log_ratios(params, fold_in(key, i)), jnp.arange(batches)).reshape(-1)

    likelihood = log_likelihood(model.flow)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        log_weights = np.asarray(weigh(state, key), np.float64)
        n, top = len(log_weights), log_weights.max()
        relative = np.exp(log_weights - top)
        integral = top + math.log(relative.mean())
        size = relative.sum() ** 2 / (relative**2).sum()
        return {
            "log_integral": Estimate(
                integral, relative.std() / relative.mean() / math.sqrt(n), "nats", "estimate", n, headline=True
            ),
            "elbo": Estimate(log_weights.mean(), log_weights.std() / math.sqrt(n), "nats", "bound", n),
            "effective": Estimate(size / n, math.nan, "share", "estimate", n),
            **likelihood(state, split, key),
        }

    return measure


def in_float64(metric: Metric) -> Metric:
    """The same metric computed in float64, its names ending in `_float64`; differences are due to rounding."""

    def named(model: Any) -> Measure:
        measure = metric(model)

        def measure_in_float64(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            with jax.enable_x64(True):
                wide = jax.tree.map(_widened, state)
                transforms = (*split.transforms, Transform(_widened_batch, lossless=True))
                found = measure(wide, split._replace(transforms=transforms), key)
            return {f"{name}_float64": estimate for name, estimate in found.items()}

        return measure_in_float64

    return named


def _widened(a: Array) -> Array:
    return a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _widened_batch(batch: Mapping[str, Array], key: Array) -> Mapping[str, Array]:
    return {name: _widened(a) for name, a in batch.items()}
