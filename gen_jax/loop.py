"""`fit`: the one training loop.

It dispatches compiled steps and waits for the device only when a hook needs the State. Metrics are summed on the
device, inside the compiled step, and read one step late. The hooks are in `gen_jax.hooks`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax.algorithms import add, zeros_like
from gen_jax.algorithms import chunk as in_chunks
from gen_jax.core import Algorithm, Metrics, Source, State
from gen_jax.data.source import Resident
from gen_jax.errors import UserError
from gen_jax.sharding import Layout, over_data

__all__ = [
    "AHEAD",
    "Calendar",
    "Hook",
    "Program",
    "Reports",
    "Values",
    "abstract_state",
    "compile_steps",
    "fit",
    "initial_state",
    "program",
    "read",
    "same_step",
    "zero_metrics",
]

Values = Mapping[str, Any]  # metric name -> float, or one float per member of a population
AHEAD = 2  # calls of the compiled step in flight: enough to keep the device busy, few enough to stop soon


class Hook:
    """A callback of a run. Every method is optional; `poll`, `report` and `visit` may return True to stop the run.

    `visit` is called every `every` steps (0: never), at the steps `at`, and at the last step. It may return
    measurements, {name: value}, which later hooks receive; hooks of lower `rank` come first, whatever their position in
    the list. When `poll` stops the run, only `urgent` hooks visit the last step, to stop quickly. `reason` says why a
    hook has stopped the run.
    """

    every: int = 0
    at: Sequence[int] = ()
    urgent: bool = False
    rank: int = 2
    reason: str = ""

    def __enter__(self):
        return self

    def __exit__(self, *error: Any) -> None: ...

    def begin(self, step: int, names: Sequence[str]) -> None:
        """Called before the first step of this process; `names` are the metrics that reports may contain."""

    def replay(self, step: int, values: Values) -> None:
        """Receives, before the first step of a resumed run, each report of before the resume."""

    def poll(self, step: int) -> bool | None:
        """Called after each call of the compiled step, which may still be running."""

    def report(self, step: int, values: Values) -> bool | None:
        """Receives the metrics, averaged over the steps since the last report."""

    def resume(self, step: int) -> None:
        """Called after the visits of a step, when the loop continues."""

    def visit(self, step: int, state: State, measured: Values) -> Values | bool | None:
        """Receives the State, which must not be kept: the next step donates its memory."""


def fit(
    algorithm: Algorithm,
    data: Source | Mapping[str, Any],
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

    data: a source (`Resident`, `Streamed`), or a dict of arrays with an entry "x", used as one batch.
    state: the State to continue from, by default a new one from `seed`. Its memory is reused.
    chunk: steps per call of the compiled program; more is faster for small models. Hooks run at the same steps.
    layout: how the run is distributed over devices, by default on one.
    Raises UserError for invalid arguments or data, before anything is compiled.

        >>> from gen_jax import GMM, em, fit, load
        >>> state = fit(em(GMM(3)), load("blobs")["train"], steps=20)
    """
    ready = program(algorithm, data, chunk, layout)
    return ready.run(steps, state=state, seed=seed, report_every=report_every, hooks=hooks)


class Program(NamedTuple):
    """An algorithm and its data laid out on the devices; the step is traced, not yet compiled."""

    algorithm: Algorithm
    chunk: int
    advance: Callable[..., Any]  # see `compile_steps`
    zeros: Callable[[], Metrics]  # see `zero_metrics`
    source: Source
    shardings: State
    shapes: State  # shapes and dtypes of the State

    @property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the State."""
        return _with_shardings(self.shapes, self.shardings)

    def initial_state(self, seed: int = 0) -> State:
        """A new State, created in place on its devices."""
        return initial_state(self.algorithm, self.source, seed, self.shardings)

    def run(
        self,
        steps: int,
        *,
        state: State | None = None,
        seed: int = 0,
        report_every: int = 100,
        hooks: Sequence[Hook] = (),
    ) -> State:
        """Runs until `steps` steps are completed; the arguments are those of `fit`."""
        if min(steps, report_every) < 1:
            raise UserError(f"steps and report_every must be at least 1, got {steps} and {report_every}")
        state = self.initial_state(seed) if state is None else jax.device_put(state, self.shardings)
        with ExitStack() as stack:
            stack.callback(self.source.close)
            for hook in hooks:
                stack.enter_context(hook)
            return _run(self, state, steps, report_every, hooks)


def program(
    algorithm: Algorithm,
    data: Source | Mapping[str, Any],
    chunk: int = 1,
    layout: Layout = Layout(data=1),
) -> Program:
    """Lays an algorithm and its data out on the devices and traces the step; the arguments are those of `fit`.

    Raises UserError for invalid data, and the ValueErrors of models and algorithms.
    """
    if chunk < 1:
        raise UserError(f"chunk must be at least 1, got {chunk}")
    source = data if isinstance(data, Source) else Resident(data)
    source.check()
    mesh = layout.mesh()
    source = source.place(mesh)
    if mesh.size > 1:
        algorithm = over_data(algorithm, mesh)
    algorithm = Algorithm(jax.jit(algorithm.init), jax.jit(algorithm.step))  # traced once, however often used below
    shapes = abstract_state(algorithm, source)
    shardings = layout.shardings(shapes, mesh)
    advance, zeros = compile_steps(algorithm, chunk, shardings), zero_metrics(algorithm, shapes, source, shardings)
    return Program(algorithm, chunk, advance, zeros, source, shardings, shapes)


def abstract_state(algorithm: Algorithm, source: Source, layout: Layout | None = None) -> State:
    """The shapes and dtypes of a run's State, with shardings if a layout is given; nothing is computed or allocated."""
    shapes = jax.eval_shape(lambda view: algorithm.init(jax.random.key(0), view.batch_at(0)), source.example())
    return shapes if layout is None else _with_shardings(shapes, layout.shardings(shapes, layout.mesh()))


def _with_shardings(shapes: State, shardings: State) -> State:
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def same_step(first: Program, second: Program) -> bool:
    """Whether two programs compute the same function of state and data in a step."""
    return _described(first) == _described(second)


def _described(ready: Program) -> tuple[str, list[bytes]]:
    """The traced step as text, and the arrays that are constants of it."""
    traced = jax.make_jaxpr(in_chunks(ready.algorithm, 1).step)(ready.shapes, ready.source.example())
    return str(traced), [
        np.asarray(a).tobytes() for a in traced.consts if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.extended)
    ]


def initial_state(algorithm: Algorithm, source: Any, seed: int = 0, shardings: Any = None) -> State:
    """A new State, created in place on its devices."""

    def init(key: jax.Array, view: Any) -> State:
        return algorithm.init(key, view.batch_at(0))

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed), source.example())


def compile_steps(algorithm: Algorithm, chunk: int = 1, shardings: Any = None) -> Callable[..., Any]:
    """The program of the loop: (state, totals, source, n) -> (state after n steps, totals, completion token).

    `totals` are the metrics so far, from `zero_metrics`. The state and the totals are donated. With `chunk=1`, n is a
    constant of the program.
    """

    def advance(state: State, totals: Metrics, source: Any, n: Any):
        state, metrics = in_chunks(algorithm, n).step(state, source)
        return state, add(totals, metrics), state.step + 0

    static = ("n",) if chunk == 1 else ()
    out = None if shardings is None else (shardings, shardings.step, shardings.step)
    return jax.jit(advance, donate_argnums=(0, 1), static_argnames=static, out_shardings=out)


def zero_metrics(algorithm: Algorithm, state: State, source: Any, shardings: Any = None) -> Callable[[], Metrics]:
    """Makes metrics with count 0."""
    shapes = jax.eval_shape(in_chunks(algorithm, 1).step, state, source.example())[1]
    out = None if shardings is None else shardings.step
    return jax.jit(lambda: zeros_like(shapes), out_shardings=out)


def read(totals: Metrics) -> dict[str, Any]:
    """Metrics as floats (lists of floats for a population), without those of count 0."""
    values = {}
    for name, mean in jax.device_get(dict(totals)).items():
        if np.any(mean.count > 0):
            with np.errstate(invalid="ignore", divide="ignore"):
                values[name] = np.asarray(mean.total / mean.count, float).tolist()
    return values


class Calendar(NamedTuple):
    """The steps at which calls of the compiled program must end: reports, visits, and the last step."""

    steps: int
    report_every: int
    hooks: Sequence[Hook]

    def next_event(self, step: int) -> int:
        cadences = [self.report_every, *(hook.every for hook in self.hooks if hook.every)]
        marks = [mark for hook in self.hooks for mark in hook.at if mark > step]
        return min(self.steps, *(step - step % every + every for every in cadences), *marks)

    def visiting(self) -> list[Hook]:
        """The hooks that visit, by rank."""
        return sorted((hook for hook in self.hooks if hook.every or hook.at), key=lambda hook: hook.rank)

    def due(self, step: int) -> list[Hook]:
        return [h for h in self.visiting() if (h.every and step % h.every == 0) or step in h.at]


class Reports:
    """Metrics summed on the device, read once the device has long finished with them."""

    def __init__(self, zeros: Callable[[], Metrics], every: int, hooks: Sequence[Hook]):
        self.zeros, self.every, self.hooks = zeros, every, hooks
        self.totals: Metrics = zeros()
        self.unread: tuple[int, Metrics] | None = None

    def flush(self) -> bool:
        """Reads the report of an earlier step, if any; True if a hook asks to stop."""
        if self.unread is None:
            return False
        (step, totals), self.unread = self.unread, None
        values = read(totals)
        return _any(hook.report(step, values) for hook in self.hooks)

    def close(self, step: int) -> None:
        """Ends the reporting interval at this step."""
        self.unread, self.totals = (step, self.totals), self.zeros()


def _run(ready: Program, state: State, steps: int, report_every: int, hooks: Sequence[Hook]) -> State:
    """Runs the compiled step until the end, and the hooks at their steps."""
    step, running = int(state.step), deque()
    reports, calendar = Reports(ready.zeros, report_every, hooks), Calendar(steps, report_every, hooks)
    for hook in hooks:
        hook.begin(step, list(reports.totals))
    while step < steps:
        n = min(ready.chunk, calendar.next_event(step) - step)
        window = ready.source.window(step, n)
        state, reports.totals, token = ready.advance(
            state, reports.totals, window, n if ready.chunk == 1 else np.int32(n)
        )
        step += n
        running.append(token)
        if len(running) > AHEAD:
            running.popleft().block_until_ready()
        interrupted = _any(hook.poll(step) for hook in hooks)
        stop = reports.flush() or interrupted
        due = calendar.due(step)
        if step % report_every == 0 or step == steps or stop:
            reports.close(step)
        if due or step == steps or stop:
            stop = reports.flush() or stop
        if step == steps or stop:
            due = [hook for hook in calendar.visiting() if hook.urgent or not interrupted]
        asked, measured = _visit(due, step, state, {})
        if asked and not stop:  # the others visit the last state too
            _visit([hook for hook in calendar.visiting() if hook not in due], step, state, measured)
        if stop or asked:
            break
        if due:
            for hook in hooks:
                hook.resume(step)
    return state


def _visit(
    hooks: Sequence[Hook], step: int, state: State, measured: Mapping[str, Any]
) -> tuple[bool, Mapping[str, Any]]:
    """Calls the hooks on the State, each with the measurements so far: (whether one asks to stop, all measurements)."""
    stop = False
    for hook in hooks:
        answer = hook.visit(step, state, measured)
        if isinstance(answer, Mapping):
            measured = {**measured, **answer}
        else:
            stop |= bool(answer)
    return stop, measured


def _any(answers) -> bool:
    """Whether any answer is true, without short-circuiting."""
    return any([bool(answer) for answer in answers])
