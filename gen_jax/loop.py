"""`fit`: the one training loop.

It dispatches compiled steps and does not wait for the device except where a hook asks for the State. Metrics are summed
on the device, inside the compiled step, and read one step late. The hooks themselves are in `gen_jax.hooks`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.algorithms import chunk as in_chunks
from gen_jax.core import Algorithm, Metrics, State
from gen_jax.data.source import Resident, check_arrays
from gen_jax.errors import UserError
from gen_jax.sharding import Layout, over_data

Values = Mapping[str, Any]  # metric name -> float, or one float per member of a population
AHEAD = 2  # calls of the compiled step that may be under way: enough to keep the device busy, few enough to stop soon


class Hook:
    """Something that watches a run. Every method may be left out; one that returns True stops the run.

    `visit` is called every `every` steps (0 is never), at the steps `at`, and at the last step. When `poll` stops the
    run there is no time to lose: then only `urgent` hooks visit the last step.
    """

    every: int = 0
    at: Sequence[int] = ()
    urgent: bool = False

    def __enter__(self):
        return self

    def __exit__(self, *error: Any) -> None: ...

    def begin(self, step: int, names: Sequence[str]) -> None:
        """Before the first step of this process; `names` are the metrics that reports can hold."""

    def poll(self, step: int) -> bool | None:
        """After each call of the compiled step, which may still be running."""

    def report(self, step: int, values: Values) -> bool | None:
        """The metrics, averaged over the steps since the last report."""

    def resume(self, step: int) -> None:
        """After the visits of a step, when the loop goes on."""

    def visit(self, step: int, state: State) -> bool | None:
        """The State. It must not be kept: the next step donates its memory."""


def fit(
    algorithm: Algorithm,
    data: Any,
    steps: int,
    *,
    state: State | None = None,
    seed: int = 0,
    chunk: int = 1,
    report_every: int = 100,
    hooks: Sequence[Hook] = (),
    layout: Layout = Layout(data=1),
) -> State:
    """Runs an algorithm until `steps` steps are completed, and returns the State.

    data: a source (`Resident`, `Streamed`), or a dict of arrays with an entry "x", all of it then one batch.
    state: where to go on from, by default a new State from `seed`. Its memory is reused.
    chunk: steps per call of the compiled program; more is faster for small models. Hooks keep their steps.
    layout: how the run lies on the devices, by default on one.
    Raises UserError for arguments or data that cannot work, before anything is compiled.
    """
    if min(steps, chunk, report_every) < 1:
        raise UserError(f"steps, chunk and report_every must be at least 1, got {steps}, {chunk}, {report_every}")
    ready = program(algorithm, data, chunk, layout, state, seed)
    with ExitStack() as stack:
        stack.callback(ready.source.close)
        for hook in hooks:
            stack.enter_context(hook)
        return _run(ready, steps, chunk, report_every, hooks)


class Program(NamedTuple):
    """What the loop runs, and what it begins with."""

    advance: Callable[..., Any]  # see `compile_steps`
    zeros: Callable[[], Metrics]  # see `zero_metrics`
    source: Any
    state: State


def program(
    algorithm: Algorithm,
    data: Any,
    chunk: int = 1,
    layout: Layout = Layout(data=1),
    state: State | None = None,
    seed: int = 0,
) -> Program:
    """The algorithm, its data and its State, laid out on the devices; the step is traced, not yet compiled.

    The arguments are those of `fit`. Raises UserError for data that cannot work, before anything is compiled.
    """
    source = data if hasattr(data, "batch_at") else Resident(data)
    if isinstance(source, Resident):
        check_arrays(source.arrays, source.batch, missing=source.missing)
    mesh = layout.mesh()
    if source.batch_size % mesh.shape["data"]:
        raise UserError(
            f"a batch of {source.batch_size} cannot be divided over {mesh.shape['data']} devices: choose a multiple"
        )
    source = source.place(mesh)
    if mesh.size > 1:
        algorithm = over_data(algorithm, mesh)
    algorithm = Algorithm(jax.jit(algorithm.init), jax.jit(algorithm.step))  # traced once, however often used below
    shardings = layout.shardings(abstract_state(algorithm, source), mesh)
    if state is None:
        state = initial_state(algorithm, source, seed, shardings)
    else:
        state = jax.device_put(state, shardings)
    advance = compile_steps(algorithm, chunk, shardings)
    return Program(advance, zero_metrics(algorithm, state, source, shardings), source, state)


def abstract_state(algorithm: Algorithm, source: Any) -> State:
    """The shapes and dtypes of a run's State; nothing is computed or allocated."""
    return jax.eval_shape(lambda view: algorithm.init(jax.random.key(0), view.batch_at(0)), source.example())


def initial_state(algorithm: Algorithm, source: Any, seed: int = 0, shardings: Any = None) -> State:
    """A new State, made in place on its devices."""

    def init(key: jax.Array, view: Any) -> State:
        return algorithm.init(key, view.batch_at(0))

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed), source.example())


def compile_steps(algorithm: Algorithm, chunk: int = 1, shardings: Any = None) -> Callable[..., Any]:
    """The program of the loop: (state, totals, source, n) -> (state n steps on, totals, a token that it is done).

    `totals` are the metrics so far, from `zero_metrics`. The state and the totals are donated. With `chunk=1`, n is a
    constant of the program.
    """

    def advance(state: State, totals: Metrics, source: Any, n: Any):
        state, metrics = in_chunks(algorithm, n).step(state, source)
        return state, jax.tree.map(jnp.add, totals, metrics), state.step + 0

    static = ("n",) if chunk == 1 else ()
    out = None if shardings is None else (shardings, shardings.step, shardings.step)
    return jax.jit(advance, donate_argnums=(0, 1), static_argnames=static, out_shardings=out)


def zero_metrics(algorithm: Algorithm, state: State, source: Any, shardings: Any = None) -> Callable[[], Metrics]:
    """Makes metrics that have counted nothing yet."""
    shapes = jax.eval_shape(in_chunks(algorithm, 1).step, state, source.example())[1]
    out = None if shardings is None else shardings.step
    return jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), out_shardings=out)


def read(totals: Metrics) -> dict[str, Any]:
    """Metrics as floats (lists of floats for a population), without those that counted nothing."""
    values = {}
    for name, mean in jax.device_get(dict(totals)).items():
        if np.any(mean.count > 0):
            with np.errstate(invalid="ignore", divide="ignore"):
                values[name] = np.asarray(mean.total / mean.count, float).tolist()
    return values


def _run(ready: Program, steps: int, chunk: int, report_every: int, hooks: Sequence[Hook]) -> State:
    """Calls the compiled step until the end, and the hooks at their steps."""
    advance, zeros, source, state = ready
    step, totals, unread, running = int(state.step), zeros(), None, deque()
    for hook in hooks:
        hook.begin(step, list(totals))
    visiting = [hook for hook in hooks if hook.every or hook.at]
    stop = False
    while step < steps and not stop:
        n = min(chunk, _next_event(step, steps, report_every, visiting) - step)
        state, totals, token = advance(state, totals, source.window(step, n), n if chunk == 1 else np.int32(n))
        step += n
        running.append(token)
        if len(running) > AHEAD:
            running.popleft().block_until_ready()
        stop = interrupted = _any(hook.poll(step) for hook in hooks)
        if unread:  # the report of an earlier step, which by now is finished
            stop |= _report(hooks, *unread)
            unread = None
        if step % report_every == 0 or step == steps or stop:
            unread, totals = (step, totals), zeros()
        due = [hook for hook in visiting if _is_due(hook, step)]
        if unread and (due or step == steps or stop):
            stop |= _report(hooks, *unread)
            unread = None
        if step == steps or stop:
            due = [hook for hook in visiting if hook.urgent or not interrupted]
        asked = _any(hook.visit(step, state) for hook in due)
        if asked and not stop:  # the others see the last state too
            _any(hook.visit(step, state) for hook in visiting if hook not in due)
        stop |= asked
        if due and not stop:
            for hook in hooks:
                hook.resume(step)
    return state


def _next_event(step: int, steps: int, report_every: int, hooks: Sequence[Hook]) -> int:
    """The next step at which a call of the compiled program must end."""
    cadences = [report_every, *(hook.every for hook in hooks if hook.every)]
    marks = [mark for hook in hooks for mark in hook.at if mark > step]
    return min(steps, *(step - step % every + every for every in cadences), *marks)


def _is_due(hook: Hook, step: int) -> bool:
    return bool(hook.every and step % hook.every == 0) or step in hook.at


def _report(hooks: Sequence[Hook], step: int, totals: Metrics) -> bool:
    values = read(totals)
    return _any(hook.report(step, values) for hook in hooks)


def _any(answers) -> bool:
    """Whether any answer is true, all being asked."""
    return any([bool(answer) for answer in answers])
