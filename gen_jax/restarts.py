"""Many runs as one program: populations of seeds or hyper-parameters, runs until convergence, the best restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.algorithms import zeros_like
from gen_jax.core import (
    Algorithm,
    Batch,
    Mean,
    Metrics,
    PyTree,
    State,
    fold_in,
)

__all__ = ["Progress", "best_restart", "member", "population", "until_converged"]


class Progress(NamedTuple):
    """The carry of `until_converged`; all but `iteration` have the shape of the metric, () or (members,)."""

    iteration: Array
    done: Array
    count: Array  # iterations until convergence
    decreases: Array  # iterations in which the metric fell
    last: Array  # the metric's last value
    curve: Array  # (..., iterations)
    state: State
    metrics: Metrics


def until_converged(algorithm: Algorithm, metric: str, tolerance: float, iterations: int) -> Algorithm:
    """Whole runs as one step: iterates until a metric changes by less than `tolerance`, at most `iterations` times.

    In a `population` each member stops by itself, so that one program runs many restarts; see `member` for the best.
    The metrics are those of the last iteration, and "iterations", "converged", and "decreases": the iterations in
    which the metric fell by more than rounding. `extra["curve"]` holds the metric of every iteration
    (..., iterations), NaN beyond.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    known: dict[Any, Metrics] = {}  # tracing a step takes a good part of a second

    def shapes_of(state: State, batch: Batch) -> Metrics:
        leaves, structure = jax.tree.flatten((state, batch))
        signature = structure, tuple((a.shape, a.dtype) for a in leaves)
        if signature not in known:
            known[signature] = jax.eval_shape(algorithm.step, state, batch)[1]
        if metric not in known[signature]:
            raise ValueError(f"there is no metric {metric!r} to converge: there are {sorted(known[signature])}")
        return known[signature]

    def init(key: Array, batch: Batch) -> State:
        state = algorithm.init(key, batch)
        value = shapes_of(state, batch)[metric].total
        return _with_extra(state, curve=jnp.full((*value.shape, iterations), jnp.nan, value.dtype))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        inner = state._replace(extra={k: v for k, v in state.extra.items() if k != "curve"})
        shapes = shapes_of(inner, batch)
        value = shapes[metric].total
        count, never = jnp.zeros(value.shape, jnp.int32), jnp.zeros(value.shape, bool)
        nothing, curve = jnp.full(value.shape, jnp.nan, value.dtype), jnp.full_like(state.extra["curve"], jnp.nan)

        def unfinished(at: Progress) -> Array:
            return (at.iteration < iterations) & ~at.done.all()

        def advance(at: Progress) -> Progress:
            new, metrics = algorithm.step(at.state, batch)
            value = metrics[metric].value
            fell = value < at.last - 100 * jnp.finfo(value.dtype).eps * jnp.abs(at.last)
            keep = lambda new, old: jnp.where(
                at.done.reshape(at.done.shape + (1,) * (new.ndim - at.done.ndim)), old, new
            )
            params, opt, extra = jax.tree.map(keep, (new.params, new.opt, new.extra), at.state[2:])
            return Progress(
                at.iteration + 1,
                at.done | (jnp.abs(value - at.last) < tolerance),
                at.count + ~at.done,
                at.decreases + (fell & ~at.done),
                keep(value, at.last),
                at.curve.at[..., at.iteration].set(jnp.where(at.done, jnp.nan, value)),
                State(new.step, new.key, params, opt, extra),
                jax.tree.map(keep, metrics, at.metrics),
            )

        start = Progress(jnp.int32(0), never, count, count, nothing, curve, inner, zeros_like(shapes))
        end = lax.while_loop(unfinished, advance, start)
        one = lambda values: Mean(values.astype(value.dtype), jnp.ones(value.shape, value.dtype))
        found = {"iterations": one(end.count), "converged": one(end.done), "decreases": one(end.decreases)}
        return _with_extra(end.state._replace(step=state.step + 1), curve=end.curve), {**end.metrics, **found}

    return algorithm._replace(init=init, step=step)


def _with_extra(state: State, **more: Array) -> State:
    return state._replace(extra={**state.extra, **more})


def best_restart(
    algorithm: Algorithm, restarts: int, metric: str, iterations: int = 20, tolerance: float = 0.0
) -> Algorithm:
    """Starts the algorithm from the best of `restarts` short runs on the first batch, run as one program.

    `extra["curve"]` (restarts, iterations) holds the metric of every iteration of each.
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


def population(
    algorithm: Algorithm | Callable[[Any], Algorithm], members: int | PyTree, alike: bool = False
) -> Algorithm:
    """Executes many runs as one program, on the same batches: one per seed, or one per value of a hyper-parameter.

    `population(algorithm, 8)` trains 8 seeds. `population(lambda lr: descent(model, {"vae": optax.adam(lr)}), rates)`
    trains one member per entry along the first axis of `rates`. Parameters, optimizer states, extras and metrics gain
    a leading axis; `member(state, i)` is an ordinary State. alike: members draw the same random numbers, those of a run
    of its own; then `member(state, i, alike=True)`.
    """
    seeds = isinstance(members, int)
    values = jnp.arange(members) if seeds else jax.tree.map(jnp.asarray, members)
    n = len(jax.tree.leaves(values)[0])
    if not seeds and not callable(algorithm):
        raise ValueError("values of a hyper-parameter need a function from a value to an Algorithm")
    make: Callable[[Any], Algorithm] = algorithm if callable(algorithm) else lambda _: algorithm
    axes = State(step=None, key=None if alike else 0, params=0, opt=0, extra=0)

    def keys(key: Array) -> Array:
        return key if alike else jax.vmap(lambda i: fold_in(key, "member", i))(jnp.arange(n))

    def init(key: Array, batch: Batch) -> State:
        begin = lambda value, key: make(value).init(key, batch)
        state = jax.vmap(begin, in_axes=(0, axes.key), out_axes=axes)(values, keys(key))
        return state._replace(step=jnp.int32(0), key=key)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        inner = state._replace(key=keys(state.key))
        new, metrics = jax.vmap(
            lambda value, state: make(value).step(state, batch), in_axes=(0, axes), out_axes=(axes, 0)
        )(values, inner)
        same = lambda new, old: new.astype(old.dtype) if new.dtype != old.dtype else new  # values are float32
        return jax.tree.map(same, new._replace(key=state.key), state), metrics

    return Algorithm(init, step, n)


def member(state: State, i: int, alike: bool = False) -> State:
    """One member of a population, as an ordinary State. alike: as in `population`."""
    params, opt, extra = jax.tree.map(lambda a: a[i], (state.params, state.opt, state.extra))
    return State(state.step, state.key if alike else fold_in(state.key, "member", i), params, opt, extra)
