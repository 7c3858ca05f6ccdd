"""Many runs as one program: populations of seeds or hyper-parameters, runs until convergence, the best restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.algorithms import _length, _zeros_like
from gen_jax.core import (
    Algorithm,
    Batch,
    Mean,
    Metrics,
    PyTree,
    State,
    fold_in,
)


def until_converged(algorithm: Algorithm, metric: str, tolerance: float, iterations: int) -> Algorithm:
    """Whole runs as one step: goes on until a metric changes by less than `tolerance`, at most `iterations` times.

    In a `population` each member stops by itself, so that one program runs many restarts; see `member` for the best.
    The metrics are those of the last iteration, and "iterations", "converged", and "decreases": in how many the metric
    fell by more than rounding. `extra["curve"]` holds the metric of every iteration (..., iterations), NaN beyond.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    def shapes_of(state: State, batch: Batch) -> Metrics:
        shapes = jax.eval_shape(algorithm.step, state, batch)[1]
        if metric not in shapes:
            raise ValueError(f"there is no metric {metric!r} to converge: there are {sorted(shapes)}")
        return shapes

    def init(key: Array, batch: Batch) -> State:
        state = algorithm.init(key, batch)
        value = shapes_of(state, batch)[metric].total
        return _with_curve(state, jnp.full((*value.shape, iterations), jnp.nan, value.dtype))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        inner = state._replace(extra={k: v for k, v in state.extra.items() if k != "curve"})
        shapes = shapes_of(inner, batch)
        value = shapes[metric].total
        nothing = jnp.full(value.shape, jnp.nan, value.dtype)
        count = jnp.zeros(value.shape, jnp.int32)

        def unfinished(carry) -> Array:
            i, done, *_ = carry
            return (i < iterations) & ~done.all()

        def advance(carry):
            i, done, count, decreases, last, curve, old, metrics = carry
            new, more = algorithm.step(old, batch)
            value = more[metric].value
            fell = value < last - 100 * jnp.finfo(value.dtype).eps * jnp.abs(last)
            curve = curve.at[..., i].set(jnp.where(done, jnp.nan, value))
            keep = lambda new, old: jnp.where(done.reshape(done.shape + (1,) * (new.ndim - done.ndim)), old, new)
            moving = ("params", "opt", "extra")
            kept = jax.tree.map(keep, *({name: getattr(s, name) for name in moving} for s in (new, old)))
            count, decreases = count + ~done, decreases + (fell & ~done)
            ended = done | (jnp.abs(value - last) < tolerance)
            metrics = jax.tree.map(keep, more, metrics)
            return i + 1, ended, count, decreases, keep(value, last), curve, new._replace(**kept), metrics

        curve = jnp.full_like(state.extra["curve"], jnp.nan)
        start = jnp.int32(0), count > 0, count, count, nothing, curve, inner, _zeros_like(shapes)
        _, done, count, decreases, _, curve, inner, metrics = lax.while_loop(unfinished, advance, start)
        one = lambda values: Mean(values.astype(value.dtype), jnp.ones(value.shape, value.dtype))
        metrics = {**metrics, "iterations": one(count), "converged": one(done), "decreases": one(decreases)}
        return _with_curve(inner._replace(step=state.step + 1), curve), metrics

    def _with_curve(state: State, curve: Array) -> State:
        return state._replace(extra={**state.extra, "curve": curve})

    return Algorithm(init, step)


def best_restart(
    algorithm: Algorithm, restarts: int, metric: str, iterations: int = 20, tolerance: float = 0.0
) -> Algorithm:
    """The algorithm from a better start: `restarts` short runs on the first batch as one program; the best goes on.

    `extra["curve"]` (restarts, iterations) keeps the metric of every iteration of all of them.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    several = until_converged(population(algorithm, restarts), metric, tolerance, iterations)

    def init(key: Array, batch: Batch) -> State:
        state, metrics = several.step(several.init(key, batch), batch)
        value = metrics[metric].value
        best = member(state, jnp.argmax(jnp.where(jnp.isnan(value), -jnp.inf, value)))
        return State(jnp.int32(0), key, best.params, best.opt, {**best.extra, "curve": state.extra["curve"]})

    return Algorithm(init, algorithm.step)


def population(algorithm: Algorithm | Callable[[Any], Algorithm], members: int | PyTree) -> Algorithm:
    """Many runs as one program, on the same batches: one per seed, or one per value of a hyper-parameter.

    `population(algorithm, 8)` trains 8 seeds. `population(lambda lr: descent(model, {"vae": optax.adam(lr)}), rates)`
    trains one member per entry along the first axis of `rates`. Parameters, optimizer states, extras and metrics gain
    a leading axis; `member(state, i)` is an ordinary State.
    """
    seeds = isinstance(members, int)
    values = jnp.arange(members) if seeds else jax.tree.map(jnp.asarray, members)
    n = _length(values)
    make = (lambda _: algorithm) if seeds else algorithm
    axes = State(step=None, key=0, params=0, opt=0, extra=0)

    def keys(key: Array) -> Array:
        return jax.vmap(lambda i: fold_in(key, "member", i))(jnp.arange(n))

    def init(key: Array, batch: Batch) -> State:
        state = jax.vmap(lambda value, key: make(value).init(key, batch))(values, keys(key))
        return state._replace(step=jnp.int32(0), key=key)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        inner = state._replace(key=keys(state.key))
        new, metrics = jax.vmap(
            lambda value, state: make(value).step(state, batch), in_axes=(0, axes), out_axes=(axes, 0)
        )(values, inner)
        return new._replace(key=state.key), metrics

    return Algorithm(init, step)


def member(state: State, i: int) -> State:
    """One member of a population, as the State of a run of its own."""
    params, opt, extra = jax.tree.map(lambda a: a[i], (state.params, state.opt, state.extra))
    return State(state.step, fold_in(state.key, "member", i), params, opt, extra)
