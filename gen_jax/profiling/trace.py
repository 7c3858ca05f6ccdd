"""Time breakdown of a few steps of the training loop, read from a JAX profiler trace."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gen_jax.errors import UserError
from gen_jax.hooks import Profile
from gen_jax.loop import fit, program
from gen_jax.profiling.measure import Case, lay_out, loop_length, products_in

__all__ = ["CALLS", "Operation", "Trace", "read", "trace_steps"]

CALLS = 5  # traced calls of the compiled program
_CONTAINER = re.compile(r"%?([\w.\-]+) = [^\n]*? (?:while|conditional|call)\(")  # its time is that of its contents


class Operation(NamedTuple):
    """Time of one operation of the compiled program per step, over all threads."""

    name: str
    seconds: float
    calls: float
    share: float  # fraction of the time of all operations
    origin: str  # its origin in the model or algorithm, as named by JAX


class Trace(NamedTuple):
    operations: Sequence[Operation]  # most expensive first
    host_gap: float  # fraction of the time between the first and the last call of the program in which none of it ran
    chunk: int = 1  # steps per call


def trace_steps(case: Case, folder: Path, data_dir: Path | None = None) -> Trace:
    """Runs `fit` for a few steps and writes a trace of the last of them into a folder, for TensorBoard or Perfetto."""
    experiment, source = lay_out(case, data_dir)
    chunk, layout = min(experiment.chunk, 20), experiment.layout
    first = 2 * chunk
    steps = first + CALLS * chunk
    earlier = set(folder.rglob("*.xplane.pb"))
    with products_in(case.dtype):
        fit(
            experiment.algorithm_of_seeds,
            source,
            steps,
            chunk=chunk,
            hooks=[Profile(folder, first, steps)],
            layout=layout,
        )
    (path,) = set(folder.rglob("*.xplane.pb")) - earlier
    ready = program(experiment.algorithm_of_seeds, source, chunk, layout)
    step = ready.advance.lower(ready.abstract_state, ready.zeros(), ready.source.window(0, chunk), loop_length(chunk))
    ready.source.close()
    return read(path, CALLS * chunk, step.compile().as_text())._replace(chunk=chunk)


def read(path: Path, steps: int, program_text: str = "") -> Trace:
    """Reads a trace file of `steps` steps; the program's text gives the origins of its operations."""
    containers = set(_CONTAINER.findall(program_text))
    found = _events(jax.profiler.ProfileData.from_file(str(path)))
    events = [event for event in found if event[0] not in containers]
    if not events:
        raise UserError(f"{path} names no operation of the training step: open it in TensorBoard or Perfetto instead")
    spent, times = defaultdict(float), defaultdict(int)
    for name, start, end, _ in events:
        spent[name] += end - start
        times[name] += 1
    total = sum(spent.values()) or 1.0
    origins = dict(re.findall(r"%?([\w.\-]+) = [^\n]*?op_name=\"([^\"]*)\"", program_text))
    operations = [
        Operation(name, ns / 1e9 / steps, times[name] / steps, ns / total, _short(origins.get(name, "")))
        for name, ns in sorted(spent.items(), key=lambda item: -item[1])
    ]
    return Trace(operations, _gap(events))


def _events(data: Any) -> Iterator[tuple[str, float, float, Any]]:
    """(operation, start, end in ns, execution) of the training step's operations."""
    planes = [plane for plane in data.planes if plane.name.startswith("/device:")]
    for plane in planes or data.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op", event.name if line.name == "XLA Ops" else None)
                if str(name).startswith("command_buffer"):  # kernels launched on a GPU as one graph
                    name = event.name
                if name is not None and "advance" in str(stats.get("hlo_module", "advance")):
                    yield str(name), event.start_ns, event.start_ns + event.duration_ns, stats.get("run_id")


def _gap(events: Sequence[tuple[str, float, float, Any]]) -> float:
    """Idle time between the end of each execution and the start of the next, as a fraction of the total.

    On GPUs, whose traces do not assign kernels to executions: between kernels.
    """
    spans: dict[Any, tuple[float, float]] = {}
    for i, (_, start, end, run) in enumerate(events):
        run = ("kernel", i) if run is None else run
        low, high = spans.get(run, (start, end))
        spans[run] = min(low, start), max(high, end)
    ordered = sorted(spans.values())
    until, idle = ordered[0][1], 0.0
    for start, end in ordered:
        idle, until = idle + max(start - until, 0), max(until, end)
    return idle / max(until - ordered[0][0], 1.0)


def _short(origin: str) -> str:
    """The origin without the names of the loop around the step."""
    return re.sub(r"^jit\(advance\)/(while/body/)?(jit\(step\)/)?", "", origin)
