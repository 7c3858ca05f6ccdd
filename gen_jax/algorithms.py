"""Training algorithms: `descent` and `em` build one from a model; combinators take an Algorithm and return one.

fit(with_ema(descent(model, {"vae": optax.adam(1e-3)}), "vae", 0.999), data, steps=1000, chunk=100)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from gen_jax.core import (
    Algorithm,
    Batch,
    ClosedForm,
    ExpectationMaximization,
    Extra,
    MaximumAPosteriori,
    Mean,
    Metrics,
    Objective,
    PreparesBatch,
    PyTree,
    Recentered,
    State,
    Trainable,
    as_mean,
    fold_in,
    initial,
)
from gen_jax.errors import check_takes, place_of
from gen_jax.sharding import psum_over_data

__all__ = [
    "Gather",
    "add",
    "chunk",
    "closed_form",
    "descent",
    "em",
    "first_examples",
    "reset_moments",
    "staged",
    "stepwise_em",
    "with_ema",
    "zeros_like",
]

Gather = Callable[[Extra, Batch, Array], tuple[PyTree, Extra, Metrics]]


def descent(
    model: Trainable,
    tx: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    microbatches: int = 1,
) -> Algorithm:
    """Gradient descent: each player in turn minimizes its own losses, given the already updated players before it.

    One objective trains a VAE, a flow or a language model; two players make a GAN. `tx` holds one optax transformation
    per player; of one player, it may be the transformation itself. All losses of a step receive the same key and fold
    names into it for their own noise; a model that `PreparesBatch` computes once what they share. Reports the metrics
    of the losses, each loss, and the norm of its gradient, which is NaN if any entry of the gradient is.

    microbatches: gradients are accumulated over this many parts of the batch, sequentially, with the memory of one
    part. The batch size must be a multiple of it; batch statistics are carried from part to part.
    """
    objectives = tuple(model.objectives)
    players = {objective.player for objective in objectives}
    labels = [objective.name or objective.player for objective in objectives]
    prefixes = [""] if len(objectives) == 1 else [f"{label}_" for label in labels]
    _check_microbatches(microbatches)
    _check_objectives(objectives, labels)
    if isinstance(tx, optax.GradientTransformation):
        if len(players) > 1:
            raise ValueError(f"tx needs one entry per player: {{{', '.join(f'{p!r}: ...' for p in sorted(players))}}}")
        tx = dict.fromkeys(players, tx)
    if set(tx) != players:
        raise ValueError(f"tx needs one entry per player: expected {sorted(players)}, got {sorted(tx)}")

    def init(key: Array, batch: Batch) -> State:
        params, extra = initial(model, fold_in(key, "init"), batch)
        if set(params) != players:
            raise ValueError(f"the objectives train {sorted(players)}, but init makes parameters for {sorted(params)}")
        opt = {player: tx[player].init(params[player]) for player in params}
        return State(jnp.int32(0), key, params, opt, extra)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        metrics: dict[str, Mean] = {}
        batch, key = _split(batch, microbatches), fold_in(state.key, state.step)
        batch, keys = _over(microbatches, partial(_draw, model, state, key), batch)
        for objective, label, prefix in zip(objectives, labels, prefixes):
            turn = _on_every(objective.every, _turn(objective, label, prefix, tx[objective.player], microbatches))
            state, new = turn(state, batch, keys)
            if clash := metrics.keys() & new.keys():
                raise ValueError(f"two objectives report {sorted(clash)}: rename one of them")
            metrics |= new
        return state._replace(step=state.step + 1), metrics

    return Algorithm(init, step)


def _check_objectives(objectives: Sequence[Objective], labels: Sequence[str]) -> None:
    if len(set(labels)) < len(labels):
        raise ValueError(f"objectives need different names, got {labels}: set Objective(name=...)")
    if any(objective.every < 1 for objective in objectives):
        raise ValueError("an objective's `every` must be at least 1")
    for objective, label in zip(objectives, labels):
        check_takes(objective.loss, ("params", "state", "batch", "key"), f"the loss of {label!r}")


def _turn(objective: Objective, label: str, prefix: str, tx: optax.GradientTransformation, parts: int):
    """The update of one player by one of its objectives."""
    player = objective.player

    def turn(state: State, batch: Batch, keys: Array) -> tuple[State, dict[str, Mean]]:
        params = state.params[player]

        def total(params: PyTree, extra: Extra, batch: Batch, key: Array):
            found = objective.loss(params, state._replace(extra=extra), batch, key)
            if reason := _not_a_loss(found, extra):
                raise ValueError(f"the loss of {label!r}, at {place_of(objective.loss)}, {reason}")
            loss, (new, metrics) = found
            loss = as_mean(loss)
            return loss.total, (loss, {**extra, **new}, metrics)

        def gradient(extra: Extra, batch: Batch, key: Array):
            grads, (loss, extra, metrics) = jax.grad(total, has_aux=True)(params, extra, batch, key)
            return grads, extra, {f"{prefix}loss": loss, **metrics}

        grads, extra, metrics = _sum(gradient, state.extra, batch, keys, parts)
        count = metrics[f"{prefix}loss"].count
        grads = jax.tree.map(lambda g: (g / jnp.where(count > 0, count, 1)).astype(g.dtype), grads)
        metrics = {**metrics, f"{prefix}grad_norm": Mean.of(optax.tree.norm(grads))}
        updates, opt = tx.update(grads, state.opt[player], params)
        return state._replace(
            params={**state.params, player: optax.apply_updates(params, updates)},
            opt={**state.opt, player: opt},
            extra=extra,
        ), metrics

    return turn


def _not_a_loss(found: Any, extra: Extra) -> str:
    """The fault of a loss that returns something else than (loss, (extra, metrics)); "" if there is none."""
    pair = lambda value: isinstance(value, tuple) and len(value) == 2
    if not pair(found) or not pair(found[1]) or not all(isinstance(part, Mapping) for part in found[1]):
        return f"must return (loss, (extra, metrics)), with two dicts; it returned {_outline(found)}"
    new, metrics = found[1]
    if unknown := sorted(new.keys() - extra.keys()):
        there = ", ".join(sorted(extra)) or "nothing"
        return f"returned the extra {unknown[0]!r}, which `init` does not make; there is {there}"
    if odd := [name for name, value in metrics.items() if not isinstance(value, Mean)]:
        return f"must return metrics as Mean.of(values); {odd[0]!r} is {_outline(metrics[odd[0]])}"
    return ""


def _outline(value: Any) -> str:
    """The nesting of a value, with types in place of arrays."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_outline, value))})"
    return f"an array {tuple(value.shape)}" if isinstance(value, jax.Array) else f"a {type(value).__name__}"


def _draw(model: Trainable, state: State, key: Array, batch: Batch, part: Array) -> tuple[Batch, Array]:
    """A microbatch with what all losses share, and its key."""
    key = fold_in(key, part)
    return (model.prepare(state, batch, key) if isinstance(model, PreparesBatch) else batch), key


def _on_every(every: int, turn):
    """Takes the turn on every n-th step; otherwise returns the state unchanged and metrics with count 0."""
    if every == 1:
        return turn

    def skip(state: State, batch: Batch, keys: Array):
        return state, zeros_like(jax.eval_shape(turn, state, batch, keys)[1])

    return lambda state, batch, keys: lax.cond((state.step + 1) % every == 0, turn, skip, state, batch, keys)


def em(model: ExpectationMaximization, every: int = 1, microbatches: int = 1) -> Algorithm:
    """Expectation-maximization (Dempster, Laird & Rubin 1977).

    With `every=1` and the whole data set as the batch it is textbook EM. With `every=n` the statistics of n batches
    are summed before each M-step: exact EM over data that is n batches long. `state.opt` holds the running sum.

    microbatches: statistics are summed over this many parts of a batch, with the memory of one part.
    """
    _check_microbatches(microbatches)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        stats, metrics = _expectation(model, state, batch, microbatches)
        if every == 1:
            return _maximize(model, state, stats), metrics
        first, last = state.step % every == 0, (state.step + 1) % every == 0
        stats = jax.tree.map(lambda old, new: jnp.where(first, new, old + new), state.opt, stats)
        wait = lambda: state._replace(step=state.step + 1, opt=stats)
        return lax.cond(last, lambda: _maximize(model, state, stats), wait), metrics

    return Algorithm(partial(_em_init, model), step)


def closed_form(model: ClosedForm) -> Algorithm:
    """Parameters in closed form from each batch; one step is enough where the batch is all data."""

    def init(key: Array, batch: Batch) -> State:
        params, extra = initial(model, fold_in(key, "init"), batch)
        return State(jnp.int32(0), key, params, (), extra)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params, extra, metrics = model.solve(state, batch)
        return state._replace(step=state.step + 1, params=params, extra={**state.extra, **extra}), metrics

    return Algorithm(init, step)


def stepwise_em(model: Recentered, rate: optax.Schedule, microbatches: int = 1) -> Algorithm:
    """EM that updates the parameters after every batch (Cappe & Moulines 2009; Liang & Klein 2009).

    The statistics are a moving average over batches, in which the batch of step t has weight rate(t), for example
    `lambda t: (t + 2.0) ** -0.7`; the first batch has weight 1. The model recenters them when its parameters move
    (`recenter`). Priors are weighed against the examples of one batch.
    """
    _check_microbatches(microbatches)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        new, metrics = _expectation(model, state, batch, microbatches)
        weight = jnp.where(state.step == 0, 1.0, rate(state.step))
        mixed = lambda old, new: ((1 - weight) * old + weight * new).astype(new.dtype)
        after = _maximize(model, state, jax.tree.map(mixed, state.opt, new))
        return after._replace(opt=model.recenter(state, after.opt, after.params)), metrics

    return Algorithm(partial(_em_init, model), step)


def _em_init(model: ExpectationMaximization, key: Array, batch: Batch) -> State:
    params, extra = initial(model, fold_in(key, "init"), batch)
    state = State(jnp.int32(0), key, params, (), extra)
    stats, _ = jax.eval_shape(model.e_step, state, batch)
    return state._replace(opt=zeros_like(stats))


def _expectation(model: ExpectationMaximization, state: State, batch: Batch, parts: int) -> tuple[PyTree, Metrics]:
    def expect(extra: Extra, batch: Batch, _: Array):
        stats, metrics = psum_over_data(model.e_step, state, batch)
        return stats, extra, metrics

    stats, _, metrics = _sum(expect, state.extra, _split(batch, parts), jnp.arange(parts), parts)
    prior = model.log_prior(state) if isinstance(model, MaximumAPosteriori) else None
    if prior is not None:  # once, however the batch was divided
        total, count = metrics["log_likelihood"]
        metrics = {**metrics, "log_posterior": Mean(total + prior, count)}
    return stats, metrics


def _maximize(model: ExpectationMaximization, state: State, stats: PyTree) -> State:
    params, extra = model.m_step(state, stats)
    return state._replace(step=state.step + 1, params=params, opt=stats, extra={**state.extra, **extra})


def _check_microbatches(n: int) -> None:
    if n < 1:
        raise ValueError(f"microbatches must be at least 1, got {n}")


def _split(batch: Batch, parts: int) -> Batch:
    """Splits a batch along a new leading axis into equal parts; unchanged for a single part."""
    if parts == 1:
        return batch

    def cut(a: Array) -> Array:
        if a.shape[0] % parts:
            raise ValueError(f"a batch of {a.shape[0]} cannot be cut into {parts} microbatches: choose a multiple")
        # Every n-th row: if the batch is sharded over devices, so are its parts.
        return a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def _over(parts: int, f: Callable[[Batch, Array], PyTree], batch: Batch) -> PyTree:
    """f(batch, 0), or f(part, index) for all parts."""
    if parts == 1:
        return f(batch, jnp.int32(0))
    return lax.map(lambda item: f(*item), (batch, jnp.arange(parts, dtype=jnp.int32)))  # with the memory of one part


def _sum(gather: Gather, extra: Extra, batch: Batch, keys: Array, parts: int) -> tuple[PyTree, Extra, Metrics]:
    """`gather` of a batch, or its sum over microbatches, each with its key; extras are carried from part to part."""
    if parts == 1:
        return gather(extra, batch, keys)

    def body(carry, item):
        total, extra, metrics = carry
        new, extra, more = gather(extra, *item)
        return (add(total, new), extra, add(metrics, more)), None

    one = jax.tree.map(lambda a: a[0], (batch, keys))
    total, _, metrics = zeros_like(jax.eval_shape(gather, extra, *one))
    carry, _ = lax.scan(body, (total, extra, metrics), (batch, keys))
    return carry


def with_ema(algorithm: Algorithm, player: str, decay: float | optax.Schedule) -> Algorithm:
    """Also keeps an exponential moving average of a player's parameters; `core.averaged` swaps it in.

    The player's batch statistics in `extra["batch_stats"]`, which belong to the parameters, are averaged too.

    A constant decay is approached from below, as (1 + step) / (10 + step), so that the first parameters do not stay in
    the average of a short run; for another course, `decay` may be a function of the step.
    """

    if not callable(decay) and not 0 <= decay < 1:
        raise ValueError(f"the decay of an average must be in [0, 1), got {decay}")

    def init(key: Array, batch: Batch) -> State:
        state = algorithm.init(key, batch)
        return _with_average(state, jax.tree.map(jnp.copy, current(state)))

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        new, metrics = algorithm.step(state, batch)
        rate = decay(state.step) if callable(decay) else jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        values = current(new)
        before = {kind: {player: state.extra["ema"][kind][player]} for kind in values}
        return _with_average(new, optax.incremental_update(values, before, 1 - rate)), metrics

    def current(state: State) -> dict[str, PyTree]:
        stats = state.extra.get("batch_stats", {})
        kept = {"batch_stats": {player: stats[player]}} if player in stats else {}
        return {"params": {player: state.params[player]}, **kept}

    def _with_average(state: State, average: Mapping[str, PyTree]) -> State:
        before = state.extra.get("ema", {})
        ema = {**before, **{kind: {**before.get(kind, {}), **value} for kind, value in average.items()}}
        return state._replace(extra={**state.extra, "ema": ema})

    return algorithm._replace(init=init, step=step)


def chunk(algorithm: Algorithm, n: int | Array) -> Algorithm:
    """Runs n steps per call. The batch is a source: a pytree whose `batch_at(step)` is traceable.

    n may be traced, so that one program serves every n. A constant n = 1 is the plain step on the source, without a
    loop: on CPU, XLA runs convolutions inside loops more slowly.
    """

    def step(state: State, source: Any) -> tuple[State, Metrics]:
        def one(state: State) -> tuple[State, Metrics]:
            return algorithm.step(state, source.batch_at(state.step))

        if isinstance(n, int) and n == 1:
            return one(state)

        def body(_, carry):
            state, metrics = carry
            state, new = one(state)
            return state, add(metrics, new)

        return lax.fori_loop(0, n, body, (state, zeros_like(jax.eval_shape(one, state)[1])))

    return algorithm._replace(step=step)


def staged(stages: Sequence[Algorithm], boundaries: Sequence[int]) -> Algorithm:
    """Runs several algorithms on one State in sequence: stage i runs until step `boundaries[i]`.

    All stages share the State, initialized by the last: parameters of later stages exist from the start, and each
    stage chooses which of them it uses (progressive growing, Karras et al. 2018). A stage with a smaller batch slices
    it, see `first_examples`. Metrics missing from a stage have count 0. All stages are compiled into one program.
    """
    if len(boundaries) != len(stages) - 1 or list(boundaries) != sorted({*boundaries}) or min([1, *boundaries]) < 1:
        raise ValueError(
            f"{len(stages)} stages need {len(stages) - 1} increasing boundaries of at least 1, got {list(boundaries)}"
        )

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        shapes = [jax.eval_shape(stage.step, state, batch)[1] for stage in stages]
        nothing = {name: zero for found in shapes for name, zero in zeros_like(dict(found)).items()}

        def branch(stage: Algorithm, state: State, batch: Batch) -> tuple[State, Metrics]:
            state, metrics = stage.step(state, batch)
            return state, {**nothing, **metrics}

        number = jnp.searchsorted(jnp.asarray(boundaries, jnp.int32), state.step, side="right")
        return lax.switch(number, [partial(branch, stage) for stage in stages], state, batch)

    return stages[-1]._replace(step=step)


def first_examples(algorithm: Algorithm, n: int) -> Algorithm:
    """The algorithm on the first n examples of every batch."""
    return algorithm._replace(step=lambda state, batch: algorithm.step(state, jax.tree.map(lambda a: a[:n], batch)))


def reset_moments(algorithm: Algorithm, steps: Sequence[int]) -> Algorithm:
    """Sets the states of the optimizers to zero, where Adam begins, before these steps."""
    at = jnp.asarray(sorted(steps), jnp.int32)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        due = jnp.any(state.step == at)
        opt = jax.tree.map(lambda a: jnp.where(due, jnp.zeros_like(a), a), state.opt)
        return algorithm.step(state._replace(opt=opt), batch)

    return algorithm._replace(step=step)


def add(a: PyTree, b: PyTree) -> PyTree:
    """The sum of two pytrees, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def zeros_like(shapes: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes of a (possibly abstract) pytree."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
