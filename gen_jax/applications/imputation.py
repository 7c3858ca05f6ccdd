"""Imputation: samples from p(x_missing | x_observed) for mixtures, models with latent variables and flows.

Where `mask` is True, x was observed; the values elsewhere are never read. Methods by protocol: `exact` for
`core.Imputable`, `importance` or `pseudo_gibbs` for `core.Latent`, `in_order` or `latent_walk` for `core.Invertible`,
`chained` for `core.Resampling`, and `latent_search`, which is no posterior, for `core.Adversarial`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from gen_jax.core import (
    Adversarial,
    Batch,
    EncodesMissing,
    Imputable,
    Invertible,
    Latent,
    Resampling,
    State,
    fold_in,
)
from gen_jax.models.common.arrays import sum_except_batch

__all__ = [
    "Method",
    "chained",
    "check",
    "default_method",
    "exact",
    "importance",
    "impute",
    "in_order",
    "is_prefix",
    "latent_search",
    "latent_walk",
    "log_prob_observed",
    "pseudo_gibbs",
    "weighted",
]

Method = Callable[..., Array]  # (model, state, batch, mask, key, n) -> (n, B, *x)


def impute(
    model: Imputable | Latent | Invertible | Resampling | Adversarial,
    state: State,
    batch: Batch | Array,
    mask: Array,
    key: Array,
    n: int = 16,
    method: Method | None = None,
) -> Array:
    """Draws n completions (n, B, *x) of x (B, *x), which is kept where `mask` (B, *x) is True.

    batch: x, or a batch for a conditional model.
    method: by default `exact` where the model knows the posterior, `importance` for a model with latent vectors; for a
    flow `in_order` (exact) if every layer is autoregressive in the order of x and each mask observes a prefix of x,
    else `latent_walk`. `chained` for other models with latent variables, `latent_search` for a GAN: no posterior.

    Raises ValueError for a mask of another shape and, outside jit, for examples without any observed value.
    """
    batch = batch if isinstance(batch, Mapping) else {"x": batch}
    check(batch["x"], mask)
    return (method or default_method(model, mask))(model, state, batch, jnp.asarray(mask), key, n)


def default_method(model: Imputable | Latent | Invertible | Resampling | Adversarial, mask: Array) -> Method:
    """The default method of `impute` for a model and a mask."""
    if isinstance(model, Imputable):
        return exact
    if isinstance(model, Latent):
        return importance
    if isinstance(model, Invertible):
        return in_order if model.autoregressive and is_prefix(mask) else latent_walk
    if isinstance(model, Resampling):
        return chained
    if isinstance(model, Adversarial):
        return latent_search
    raise ValueError(
        f"{type(model).__name__} cannot impute: it has no exact posterior, latent variables, noise or invertible map"
    )


def check(x: Array, mask: Array) -> None:
    """Raises ValueError for masks that do not fit the data."""
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


def exact(model: Imputable, state: State, batch: Batch, mask: Array, key: Array, n: int) -> Array:
    """Draws from the exact posterior that the model knows."""
    x = batch["x"]
    flat = lambda a: a.reshape(len(a), -1)
    return model.complete(state, flat(x), flat(mask), key, n).reshape(n, *x.shape)


def pseudo_gibbs(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, n: int, sweeps: int = 50, corrected: bool = True
) -> Array:
    """Alternates z ~ q(z | x) and x_missing ~ p(x | z) (Rezende, Mohamed & Wierstra 2014, appendix F).

    Exact only if q is. `corrected` adds a Metropolis-Hastings step for each z, which makes p(x_missing | x_observed)
    the stationary distribution for any q (Mattei & Frellsen 2018, algorithm 1). Not for models of the mask.
    """
    if isinstance(model, EncodesMissing) and model.mask is not None:
        raise ValueError("pseudo_gibbs knows nothing of the model of the mask: use importance")
    tiled = _tiled(batch, n)
    x, mask = tiled["x"], jnp.tile(mask, (n, *[1] * (mask.ndim - 1)))
    prior = model.prior_of(state)

    def filled(z, key):
        return jnp.where(mask, x, model.decode(state, z, tiled).sample(seed=key).astype(x.dtype))

    def joint(z, x):
        return prior.log_prob(z) + sum_except_batch(model.decode(state, z, tiled).log_prob(x))

    def sweep(carry, i):
        z, now = carry
        posterior = model.encode(state, {**tiled, "x": now})
        new, log_new = posterior.sample_and_log_prob(seed=fold_in(key, "z", i))
        if corrected:
            ratio = joint(new, now) - log_new - joint(z, now) + posterior.log_prob(z)
            accepted = jnp.log(jax.random.uniform(fold_in(key, "accept", i), ratio.shape)) < ratio
            # The chain starts from the prior, far away; the first sweeps are burn-in.
            new = jnp.where((accepted | (i < sweeps // 4))[:, None], new, z)
        return (new, filled(new, fold_in(key, "x", i))), None

    z = prior.sample(seed=fold_in(key, "start"), sample_shape=(len(x),))
    (_, x), _ = lax.scan(sweep, (z, filled(z, fold_in(key, "x"))), jnp.arange(sweeps))
    return x.reshape(n, -1, *x.shape[1:])


def importance(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, n: int, proposals: int = 1000, sweeps: int = 10
) -> Array:
    """Resamples z by importance weights, then draws x_missing ~ p(x | z) (Mattei & Frellsen 2019, section 3.2).

    See `weighted` for the proposals; exact in the limit of many.
    """
    z, log_weights = weighted(model, state, batch, mask, fold_in(key, "proposals"), proposals, sweeps)
    if isinstance(model, EncodesMissing) and model.mask is not None:
        return _with_mask(model, state, batch, mask, key, n, z, log_weights)
    chosen = jax.random.categorical(fold_in(key, "chosen"), log_weights, axis=0, shape=(n, log_weights.shape[1]))
    z = jnp.take_along_axis(z, chosen[:, :, None], axis=0)
    x = batch["x"]
    tiled = _tiled(batch, n)
    drawn = model.decode(state, z.reshape(-1, z.shape[-1]), tiled).sample(seed=fold_in(key, "x")).astype(x.dtype)
    return jnp.where(mask, x, drawn.reshape(n, *x.shape))


def _with_mask(
    model: EncodesMissing, state: State, batch: Batch, mask: Array, key: Array, n: int, z: Array, log_weights: Array
) -> Array:
    """Resamples completions drawn for each z by weights that hold the probability of the mask given all values."""
    x = jnp.where(mask, batch["x"], 0)

    def one(given: tuple[Array, Array]) -> tuple[Array, Array]:
        i, z = given
        drawn = model.decode(state, z, batch).sample(seed=fold_in(key, "x", i)).astype(x.dtype)
        made = jnp.where(mask, x, drawn)
        return made, model.log_mask(state, made, mask)

    made, log_mask = lax.map(one, (jnp.arange(len(z)), z), batch_size=min(len(z), 64))
    weights = log_weights + log_mask
    chosen = jax.random.categorical(fold_in(key, "chosen"), weights, axis=0, shape=(n, weights.shape[1]))
    return jnp.take_along_axis(made, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 1)), axis=0)


def chained(model: Resampling, state: State, batch: Batch, mask: Array, key: Array, n: int, sweeps: int = 50) -> Array:
    """Alternates z ~ q(z | x) and x_missing ~ p(x | z), as `pseudo_gibbs`, from samples of the model.

    Exact only if q is; for models whose latent variables are no single vector.
    """
    tiled = _tiled(batch, n)
    x, mask = tiled["x"], jnp.tile(mask, (n, *[1] * (mask.ndim - 1)))
    filled = lambda drawn: jnp.where(mask, x, drawn.astype(x.dtype))

    def sweep(x: Array, i: Array) -> tuple[Array, None]:
        return filled(model.resample(state, {**tiled, "x": x}, fold_in(key, "sweep", i))), None

    start = filled(model.sample(state, fold_in(key, "start"), len(x))["x"])
    return lax.scan(sweep, start, jnp.arange(sweeps))[0].reshape(n, -1, *x.shape[1:])


def latent_search(
    model: Adversarial,
    state: State,
    batch: Batch,
    mask: Array,
    key: Array,
    n: int,
    steps: int = 500,
    rate: float = 0.05,
    pull: float = 1e-3,
) -> Array:
    """Searches noise whose images agree with what was observed, by Adam from n starts (Yeh et al. 2017).

    These are no draws from a posterior: a GAN has no likelihood, and their spread means nothing. pull: weight of the
    squared norm of the noise beside the mean squared error of observed values. arXiv:1607.07539.
    """
    tiled = _tiled(batch, n)
    x, mask = tiled["x"], jnp.tile(mask, (n, *[1] * (mask.ndim - 1)))
    condition = {name: a for name, a in tiled.items() if name != "x"} or None
    seen = jnp.maximum(sum_except_batch(mask.astype(jnp.float32)), 1)

    def cost(z: Array) -> Array:
        away = jnp.where(mask, model.generate(state, z, condition) - x, 0)
        return jnp.sum(sum_except_batch(away**2) / seen) + pull * jnp.sum(z**2)

    optimizer = optax.adam(rate)
    z = model.noise(fold_in(key, "noise"), len(x))

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        z, moments = carry
        update, moments = optimizer.update(jax.grad(cost)(z), moments)
        return (optax.apply_updates(z, update), moments), None

    (z, _), _ = lax.scan(step, (z, optimizer.init(z)), length=steps)
    found = model.generate(state, z, condition).astype(x.dtype)
    return jnp.where(mask, x, found).reshape(n, -1, *x.shape[1:])


def log_prob_observed(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, proposals: int = 1000, sweeps: int = 10
) -> Array:
    """(B,) estimates of log p(x_observed) in nats, biased downward, less so with more proposals."""
    _, log_weights = weighted(model, state, batch, mask, key, proposals, sweeps)
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(proposals)


def weighted(
    model: Any, state: State, batch: Batch, mask: Array, key: Array, proposals: int, sweeps: int
) -> tuple[Array, Array]:
    """(k, B, latent) proposals for z, and the logarithms (k, B) of their weights p(x_observed, z) / r(z).

    r is an equal mixture of the prior, which bounds the weights (Hesterberg 1995), and the posterior of x completed by
    a few pseudo-Gibbs sweeps, which finds the high-density region; or that of the observed values, of a model trained
    on incomplete examples.
    """
    if isinstance(model, EncodesMissing) and model.missing:
        completed = jnp.where(mask, batch["x"], 0)
        seen = {**batch, "x": jnp.where(mask, batch["x"], jnp.nan)}
    else:
        completed = pseudo_gibbs(model, state, batch, mask, fold_in(key, "sweeps"), 1, sweeps, corrected=False)[0]
        seen = {**batch, "x": completed}
    posterior, prior = model.encode(state, seen), model.prior_of(state)
    share = (proposals // 2) / proposals  # fraction drawn from the prior
    near = posterior.sample(seed=fold_in(key, "near"), sample_shape=(proposals - proposals // 2,))
    far = prior.sample(seed=fold_in(key, "far"), sample_shape=(proposals // 2, len(completed)))
    z = jnp.concatenate([near, far])
    log_prior = prior.log_prob(z)
    log_r = jnp.logaddexp(jnp.log(share) + log_prior, jnp.log1p(-share) + posterior.log_prob(z))

    def observed(z):
        return sum_except_batch(jnp.where(mask, model.decode(state, z, batch).log_prob(completed), 0.0))

    return z, lax.map(observed, z, batch_size=min(proposals, 64)) + log_prior - log_r


def _tiled(batch: Batch, n: int) -> Batch:
    """Every entry repeated n times: (n * B, ...)."""
    return jax.tree.map(lambda a: jnp.tile(a, (n, *[1] * (jnp.ndim(a) - 1))), dict(batch))


def is_prefix(mask: Array) -> bool:
    """Whether the mask of every example is a prefix; False for a traced mask."""
    if isinstance(mask, jax.core.Tracer):
        return False
    flat = np.asarray(mask).reshape(len(mask), -1)
    return bool(np.all(flat[:, :-1] >= flat[:, 1:]))


def in_order(model: Any, state: State, batch: Batch, mask: Array, key: Array, n: int) -> Array:
    """Exact samples from a triangular flow with independent noise where a prefix of x was observed: the noise of the
    prefix follows from it, and that of the rest is drawn."""
    tiled = _tiled(batch, n)
    x, mask = tiled["x"], jnp.tile(mask, (n, *[1] * (mask.ndim - 1)))
    distribution = model.distribution(state, tiled)
    noise = _noise(distribution, key, x)
    seen = distribution.bijector.inverse(jnp.where(mask, x, distribution.bijector.forward(noise)))
    drawn = distribution.bijector.forward(jnp.where(mask, seen, noise))
    return jnp.where(mask, x, drawn).reshape(n, -1, *x.shape[1:])


def latent_walk(
    model: Any,
    state: State,
    batch: Batch,
    mask: Array,
    key: Array,
    n: int,
    steps: int = 2000,
    width: float = 0.3,
    reach: tuple[float, float] = (0.01, 1.0),
) -> Array:
    """Metropolis steps in the noise of a flow, with step sizes in `reach` (Cannella et al. 2021, arXiv:2006.08686).

    Each chain walks over complete examples y. Its stationary distribution is p(y_missing, x_observed) times a normal
    around x_observed for y_observed, whose standard deviation is `width` times that of the model's samples: the missing
    part follows p(x_missing | x_observed) in the limit of many steps, for any width. How many are needed depends on the
    model: the default suffices in a few dimensions, not in dozens of correlated ones.
    """
    tiled = _tiled(batch, n)
    x, mask = tiled["x"], jnp.tile(mask, (n, *[1] * (mask.ndim - 1)))
    distribution = model.distribution(state, tiled)

    guess = distribution.bijector.forward(_noise(distribution, key, x))
    width = width * guess.std(axis=0) + jnp.finfo(guess.dtype).tiny

    def weigh(z: Array) -> tuple[Array, Array]:
        y, log_det = distribution.bijector.forward_and_log_det(z)
        near = jnp.where(mask, -0.5 * ((y - x) / width) ** 2, 0.0)
        log_target = distribution.log_prob(jnp.where(mask, x, y)) + sum_except_batch(near) + log_det
        return y, jnp.where(jnp.isfinite(log_target), log_target, -jnp.inf)

    def step(carry, i):
        z, y, log_target = carry
        low, high = reach
        size = low * (high / low) ** jax.random.uniform(fold_in(key, "size", i), (len(z), *[1] * (z.ndim - 1)))
        new = z + size * jax.random.normal(fold_in(key, "step", i), z.shape)
        new_y, log_new = weigh(new)
        accept = jnp.log(jax.random.uniform(fold_in(key, "accept", i), (len(z),))) < log_new - log_target
        chosen = accept.reshape(-1, *[1] * (z.ndim - 1))
        return (jnp.where(chosen, new, z), jnp.where(chosen, new_y, y), jnp.where(accept, log_new, log_target)), None

    z = distribution.bijector.inverse(jnp.where(mask, x, guess))
    (_, y, _), _ = lax.scan(step, (z, *weigh(z)), jnp.arange(steps))
    return jnp.where(mask, x, y).reshape(n, -1, *x.shape[1:])


def _noise(distribution: Any, key: Array, x: Array) -> Array:
    """Base noise of a flow for every example of x, whether or not the base is batched."""
    base = distribution.distribution
    return base.sample(seed=fold_in(key, "noise"), sample_shape=() if base.batch_shape else (len(x),))
