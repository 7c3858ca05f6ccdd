"""Conditional samples p(x_missing | x_observed) from a model that encodes and decodes.

The model has `encode(state, batch)`, `decode(state, z, batch)` by single values, and `prior_of(state)`. Where `mask` is
True, x was observed; what x holds elsewhere is never looked at. Both methods are used as
`model.impute(state, batch, mask, key, n, method=pseudo_gibbs)`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, State, fold
from gen_jax.models.likelihoods import of_each_example


def check(x: Array, mask: Array) -> None:
    """Refuses masks that do not fit the data."""
    if jnp.shape(mask) != x.shape:
        raise ValueError(f"mask must have the shape of x, {x.shape}, got {jnp.shape(mask)}")
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be of booleans, True where x was observed, got {mask.dtype}")
    if isinstance(mask, jax.core.Tracer):
        return
    empty = ~np.asarray(mask).reshape(len(mask), -1).any(axis=1)
    if empty.any():
        raise ValueError(
            f"nothing was observed of example {int(np.flatnonzero(empty)[0])} ({int(empty.sum())} such in all): draw "
            "from model.sample instead"
        )


def pseudo_gibbs(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, n: int, sweeps: int = 50, corrected: bool = True
) -> Array:
    """Alternates z ~ q(z | x) and x_missing ~ p(x | z) (Rezende, Mohamed & Wierstra 2014, appendix F).

    That is exact only as far as q is. `corrected` accepts each z as Metropolis and Hastings would, which makes
    p(x_missing | x_observed) the stationary distribution whatever q is (Mattei & Frellsen 2018, algorithm 1).
    """
    tiled = _tiled(batch, n)
    x, mask = tiled["x"], jnp.tile(mask, (n, *[1] * (mask.ndim - 1)))
    prior = model.prior_of(state)

    def filled(z, key):
        return jnp.where(mask, x, model.decode(state, z, tiled).sample(seed=key).astype(x.dtype))

    def joint(z, x):
        return prior.log_prob(z) + of_each_example(model.decode(state, z, tiled).log_prob(x))

    def sweep(carry, i):
        z, now = carry
        posterior = model.encode(state, {**tiled, "x": now})
        new, log_new = posterior.sample_and_log_prob(seed=fold(key, "z", i))
        if corrected:
            ratio = joint(new, now) - log_new - joint(z, now) + posterior.log_prob(z)
            accepted = jnp.log(jax.random.uniform(fold(key, "accept", i), ratio.shape)) < ratio
            # The start is from the prior, far away; the first sweeps find the region.
            new = jnp.where((accepted | (i < sweeps // 4))[:, None], new, z)
        return (new, filled(new, fold(key, "x", i))), None

    z = prior.sample(seed=fold(key, "start"), sample_shape=(len(x),))
    (_, x), _ = lax.scan(sweep, (z, filled(z, fold(key, "x"))), jnp.arange(sweeps))
    return x.reshape(n, -1, *x.shape[1:])


def importance(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, n: int, proposals: int = 1000, sweeps: int = 10
) -> Array:
    """Resamples z by importance, then draws x_missing ~ p(x | z) (Mattei & Frellsen 2019, section 3.2).

    See `weighted` for the proposals; exact as their number grows.
    """
    z, log_weights = weighted(model, state, batch, mask, fold(key, "proposals"), proposals, sweeps)
    chosen = jax.random.categorical(fold(key, "chosen"), log_weights, axis=0, shape=(n, log_weights.shape[1]))
    z = jnp.take_along_axis(z, chosen[:, :, None], axis=0)
    x = batch["x"]
    tiled = _tiled(batch, n)
    drawn = model.decode(state, z.reshape(-1, z.shape[-1]), tiled).sample(seed=fold(key, "x")).astype(x.dtype)
    return jnp.where(mask, x, drawn.reshape(n, *x.shape))


def log_prob_observed(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, proposals: int = 1000, sweeps: int = 10
) -> Array:
    """(B,) estimates of log p(x_observed) in nats, low on average, less so with more proposals."""
    _, log_weights = weighted(model, state, batch, mask, key, proposals, sweeps)
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(proposals)


def weighted(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, proposals: int, sweeps: int
) -> tuple[Array, Array]:
    """(k, B, latent) proposals for z, and the logarithms (k, B) of their weights p(x_observed, z) / r(z).

    r is half the prior and half the posterior of x completed by a few sweeps of pseudo-Gibbs: the second finds the
    region, the first bounds the weights (Hesterberg 1995).
    """
    completed = pseudo_gibbs(model, state, batch, mask, fold(key, "sweeps"), 1, sweeps, corrected=False)[0]
    posterior, prior = model.encode(state, {**batch, "x": completed}), model.prior_of(state)
    share = (proposals // 2) / proposals  # of the prior
    near = posterior.sample(seed=fold(key, "near"), sample_shape=(proposals - proposals // 2,))
    far = prior.sample(seed=fold(key, "far"), sample_shape=(proposals // 2, len(completed)))
    z = jnp.concatenate([near, far])
    log_prior = prior.log_prob(z)
    log_r = jnp.logaddexp(jnp.log(share) + log_prior, jnp.log1p(-share) + posterior.log_prob(z))

    def observed(z):
        return of_each_example(jnp.where(mask, model.decode(state, z, batch).log_prob(completed), 0.0))

    return z, lax.map(observed, z, batch_size=min(proposals, 64)) + log_prior - log_r


def _tiled(batch: Batch, n: int) -> Batch:
    """Every entry n times over: (n * B, ...)."""
    return jax.tree.map(lambda a: jnp.tile(a, (n, *[1] * (jnp.ndim(a) - 1))), dict(batch))
