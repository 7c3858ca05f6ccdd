"""Training algorithms: `descent` and `em` make one from a model, the others wrap one and return one.

chunk(with_ema(descent(model, {"vae": optax.adam(1e-3)}), "vae", 0.999), 100)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from gen_jax.core import (
    Algorithm,
    Batch,
    Descendable,
    Extra,
    Mean,
    Metrics,
    Mixture,
    Objective,
    PyTree,
    State,
    fold_in,
)
from gen_jax.sharding import psum_over_data

Gather = Callable[[Extra, Batch, Array], tuple[PyTree, Extra, Metrics]]


def descent(model: Descendable, tx: Mapping[str, optax.GradientTransformation]) -> Algorithm:
    """Each player in turn lowers its own loss, seeing what the players before it have just become.

    One objective trains a VAE, a flow or a language model; two players make a GAN. `tx` holds one optax
    transformation per player. All losses of a step are given the same key, and fold names into it for noise of their
    own; a model's `shared(batch, key)` adds to the batch what is drawn once for all of them. Besides the metrics of the
    losses it reports each loss and the norm of its gradient, which is NaN as soon as any part of the gradient is.
    """
    objectives = tuple(model.objectives)
    players = {objective.player for objective in objectives}
    labels = [objective.name or objective.player for objective in objectives]
    prefixes = [""] if len(objectives) == 1 else [f"{label}_" for label in labels]
    if len(set(labels)) < len(labels):
        raise ValueError(f"objectives need different names, got {labels}: set Objective(name=...)")
    if any(objective.every < 1 for objective in objectives):
        raise ValueError("an objective's `every` must be at least 1")
    if set(tx) != players:
        raise ValueError(f"tx needs one entry per player: expected {sorted(players)}, got {sorted(tx)}")

    def init(key: Array, batch: Batch) -> State:
        params, extra = model.init(fold_in(key, "init"), batch)
        if set(params) != players:
            raise ValueError(f"the objectives train {sorted(players)}, but init makes parameters for {sorted(params)}")
        opt = {player: tx[player].init(params[player]) for player in params}
        return State(jnp.int32(0), key, params, opt, extra)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        metrics: dict[str, Mean] = {}
        batch, keys = _drawn(model, state, batch)
        for objective, label, prefix in zip(objectives, labels, prefixes):
            turn = _on_every(objective.every, _turn(objective, label, prefix, tx[objective.player]))
            state, new = turn(state, batch, keys)
            if clash := metrics.keys() & new.keys():
                raise ValueError(f"two objectives report {sorted(clash)}: rename one of them")
            metrics |= new
        return state._replace(step=state.step + 1), metrics

    return Algorithm(init, step)


def _turn(objective: Objective, label: str, prefix: str, tx: optax.GradientTransformation):
    """One player's part of a step."""
    player = objective.player

    def turn(state: State, batch: Batch, keys: Array) -> tuple[State, dict[str, Mean]]:
        params = state.params[player]

        def gradient(extra: Extra, batch: Batch, key: Array):
            descend = jax.value_and_grad(objective.loss, has_aux=True)
            (loss, (new, metrics)), grads = descend(params, state._replace(extra=extra), batch, key)
            return grads, {**extra, **new}, {f"{prefix}loss": Mean.of(loss), **metrics}

        grads, extra, metrics = _over_parts(gradient, state.extra, batch, keys)
        if isinstance(batch, Parts):
            grads = jax.tree.map(lambda g: g / _length(batch), grads)
        metrics = {**metrics, f"{prefix}grad_norm": Mean.of(optax.tree.norm(grads))}
        updates, opt = tx.update(grads, state.opt[player], params)
        return state._replace(
            params={**state.params, player: optax.apply_updates(params, updates)},
            opt={**state.opt, player: opt},
            extra=extra,
        ), metrics

    return turn


def _drawn(model: Descendable, state: State, batch: Batch | Parts) -> tuple[Batch | Parts, Array]:
    """The batch with what all losses of a step share, and the key of the step; of each part its own."""
    base = fold_in(state.key, state.step)
    share = getattr(model, "shared", lambda batch, key: batch)

    def draw(batch: Batch, part: Array) -> tuple[Batch, Array]:
        key = fold_in(base, part)
        return share(batch, key), key

    if not isinstance(batch, Parts):
        return draw(batch, jnp.int32(0))
    parts, keys = jax.vmap(draw)(batch.parts, jnp.arange(_length(batch), dtype=jnp.int32))
    return Parts(parts), keys


def _on_every(every: int, turn):
    """The turn on every n-th step; otherwise the state as it is, and metrics that count nothing."""
    if every == 1:
        return turn

    def skip(state: State, batch: Batch, keys: Array):
        return state, _zeros_like(jax.eval_shape(turn, state, batch, keys)[1])

    return lambda state, batch, keys: lax.cond((state.step + 1) % every == 0, turn, skip, state, batch, keys)


def em(model: Mixture, every: int = 1) -> Algorithm:
    """Expectation-maximization (Dempster, Laird & Rubin 1977).

    With `every=1` and the whole data set as the batch it is textbook EM. With `every=n` the statistics of n batches
    are summed before each M-step: exact EM over data that is n batches long. `state.opt` holds the running sum.
    """

    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        stats, metrics = _expectation(model, state, batch)
        if every == 1:
            return _maximize(model, state, stats), metrics
        first, last = state.step % every == 0, (state.step + 1) % every == 0
        stats = jax.tree.map(lambda old, new: jnp.where(first, new, old + new), state.opt, stats)
        wait = lambda: state._replace(step=state.step + 1, opt=stats)
        return lax.cond(last, lambda: _maximize(model, state, stats), wait), metrics

    return Algorithm(partial(_em_init, model), step)


def stepwise_em(model: Mixture, rate: optax.Schedule) -> Algorithm:
    """EM that updates the parameters after every batch (Cappe & Moulines 2009; Liang & Klein 2009).

    The statistics are a moving average over batches, to which the batch of step t adds with weight rate(t), for example
    `lambda t: (t + 2.0) ** -0.7`; the first batch has weight 1. The model moves them along with its parameters
    (`recenter`). Priors count against the examples of one batch.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        new, metrics = _expectation(model, state, batch)
        weight = jnp.where(state.step == 0, 1.0, rate(state.step))
        mixed = lambda old, new: ((1 - weight) * old + weight * new).astype(new.dtype)
        after = _maximize(model, state, jax.tree.map(mixed, state.opt, new))
        return after._replace(opt=model.recenter(state, after.opt, after.params)), metrics

    return Algorithm(partial(_em_init, model), step)


def _em_init(model: Mixture, key: Array, batch: Batch) -> State:
    params, extra = model.init(fold_in(key, "init"), batch)
    state = State(jnp.int32(0), key, params, (), extra)
    stats, _ = jax.eval_shape(model.e_step, state, batch)
    return state._replace(opt=_zeros_like(stats))


def _expectation(model: Mixture, state: State, batch: Batch | Parts) -> tuple[PyTree, Metrics]:
    def expect(extra: Extra, batch: Batch, key: Array):
        stats, metrics = psum_over_data(model.e_step, state, batch)
        return stats, extra, metrics

    keys = jnp.zeros(_length(batch)) if isinstance(batch, Parts) else None  # nothing is drawn
    stats, _, metrics = _over_parts(expect, state.extra, batch, keys)
    return stats, metrics


def _maximize(model: Mixture, state: State, stats: PyTree) -> State:
    params, extra = model.m_step(state, stats)
    return state._replace(step=state.step + 1, params=params, opt=stats, extra={**state.extra, **extra})


def with_ema(algorithm: Algorithm, player: str, decay: float | optax.Schedule) -> Algorithm:
    """Also keeps the exponential moving average of a player's parameters; `core.weights` then returns it.

    So it does of `extra["PLAYER_statistics"]`, which belong to the parameters; see `core.statistics`.

    `decay` may be a function of the step, e.g. `lambda step: jnp.minimum(0.999, (1 + step) / (10 + step))`.
    """

    if not callable(decay) and not 0 <= decay < 1:
        raise ValueError(f"the decay of an average must be in [0, 1), got {decay}")

    def init(key: Array, batch: Batch) -> State:
        state = algorithm.init(key, batch)
        return _with_average(state, jax.tree.map(jnp.copy, averaged(state)))

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        new, metrics = algorithm.step(state, batch)
        rate = decay(state.step) if callable(decay) else decay
        before = {name: state.extra["ema"][name] for name in averaged(new)}
        average = optax.incremental_update(averaged(new), before, 1 - rate)
        return _with_average(new, average), metrics

    def averaged(state: State) -> dict[str, PyTree]:
        name = f"{player}_statistics"
        return {player: state.params[player]} | ({name: state.extra[name]} if name in state.extra else {})

    def _with_average(state: State, average: Mapping[str, PyTree]) -> State:
        return state._replace(extra={**state.extra, "ema": {**state.extra.get("ema", {}), **average}})

    return Algorithm(init, step)


class Parts(NamedTuple):
    """A batch cut along a new leading axis into equal parts that are gathered one after the other."""

    parts: Batch


def accumulate(algorithm: Algorithm, n: int) -> Algorithm:
    """The same step with the memory of a batch n times smaller: gradients or EM statistics are summed part by part.

    The batch size must be a multiple of n. Batch statistics pass from part to part.
    """
    if n < 1:
        raise ValueError(f"a batch cannot be cut into {n} parts")
    if n == 1:
        return algorithm

    def cut(a: Array) -> Array:
        if a.shape[0] % n:
            raise ValueError(f"a batch of {a.shape[0]} cannot be cut into {n} equal parts: choose a multiple of {n}")
        # Every n-th row: a batch that is divided over devices gives parts that are.
        return a.reshape(a.shape[0] // n, n, *a.shape[1:]).swapaxes(0, 1)

    return Algorithm(algorithm.init, lambda state, batch: algorithm.step(state, Parts(jax.tree.map(cut, batch))))


def _over_parts(gather: Gather, extra: Extra, batch: Batch | Parts, keys: Array) -> tuple[PyTree, Extra, Metrics]:
    """`gather` on a batch, or its sum over the parts of one, each with its key, extras passing from part to part."""
    if not isinstance(batch, Parts):
        return gather(extra, batch, keys)

    def body(carry, item):
        total, extra, metrics = carry
        new, extra, more = gather(extra, *item)
        return (_add(total, new), extra, _add(metrics, more)), None

    one = jax.tree.map(lambda a: a[0], (batch.parts, keys))
    total, _, metrics = _zeros_like(jax.eval_shape(gather, extra, *one))
    carry, _ = lax.scan(body, (total, extra, metrics), (batch.parts, keys))
    return carry


def chunk(algorithm: Algorithm, n: int | Array) -> Algorithm:
    """n steps in one call. The batch is a source: a pytree whose `batch_at(step)` can be traced.

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
            return state, _add(metrics, new)

        return lax.fori_loop(0, n, body, (state, _zeros_like(jax.eval_shape(one, state)[1])))

    return Algorithm(algorithm.init, step)


def _length(tree: PyTree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _zeros_like(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
