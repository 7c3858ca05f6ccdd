"""Measurements as tables, as JSON, and compared with an earlier run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from gen_jax.errors import UserError
from gen_jax.files import read_json, write_json
from gen_jax.logs import environment, machine
from gen_jax.markdown import markdown_table
from gen_jax.profiling.measure import Measurement
from gen_jax.profiling.trace import Trace

__all__ = [
    "GAPS",
    "KEY",
    "Cells",
    "against",
    "as_markdown",
    "as_page",
    "division",
    "gaps",
    "limits",
    "names",
    "operations",
    "read_measurements",
    "rich_table",
    "save",
    "speeds",
    "tables",
]

Cells = tuple[list[str], list[list[str]]]  # header and rows
GAPS = ["config", "steps per call", "of the time"]
KEY = ("config", "batch", "chunk", "dtype", "devices")


def speeds(found: Sequence[Measurement]) -> Cells:
    """Step times and start-up times."""
    header = [
        "config",
        "batch",
        "chunk",
        "type",
        "step p50",
        "p95",
        "steps/s",
        "examples/s",
        "trace, lower, compile",
        "memory",
    ]
    tokens = any(m.tokens for m in found)
    several = any(m.devices > 1 for m in found)
    rows = [
        [
            m.config,
            f"{m.batch:,}",
            f"{m.chunk}",
            m.dtype,
            _time(m.p50),
            _time(m.p95),
            f"{m.steps_per_second:,.5g}",
            f"{m.examples_per_second:,.0f}",
            f"{m.tracing:.2f}, {m.lowering:.2f}, {m.compiling:.2f} s",
            f"{m.memory / 1e6:,.1f} MB" if m.memory > 1e6 else f"{m.memory / 1e3:,.1f} kB",
            *([f"{m.tokens_per_second:,.0f}" if m.tokens else ""] if tokens else []),
            *([f"{m.devices}"] if several else []),
        ]
        for m in found
    ]
    return header + ["tokens/s"] * tokens + ["devices"] * several, rows


def limits(found: Sequence[Measurement]) -> Cells:
    """Performance of each step relative to the device's peaks."""
    listed, several = any(m.known_flops for m in found), any(m.devices > 1 for m in found)
    header = ["config", "batch", "chunk", "type", "MFLOP: XLA", "formula", "GFLOP/s", "of matmul", "GB/s", "of copy"]
    header.append("bound by")
    rows = [
        [
            m.config,
            f"{m.batch:,}",
            f"{m.chunk}",
            m.dtype,
            f"{m.flops / 1e6:,.4g}" + ("+" if m.endless_loops else ""),
            f"{m.formula / 1e6:,.4g}" if m.formula else "—",
            f"{m.model_flops / m.p50 / 1e9:,.4g}",
            f"{100 * m.utilization:.1f} %",
            f"{m.bandwidth / 1e9:,.4g}",
            f"{100 * m.bandwidth / m.peak_bandwidth:.0f} %",
            f"{m.roofline[0]} ({100 * m.roofline[1]:.0f} % of the roof)",
            *([f"{100 * m.known_utilization:.1f} %" if m.known_flops else ""] if listed else []),
            *([f"{m.devices}"] if several else []),
        ]
        for m in found
    ]
    return header + ["of data sheet"] * listed + ["devices"] * several, rows


def division(found: Sequence[Measurement]) -> Cells:
    """Speedup from dividing a batch over devices."""
    shared = jax.default_backend() == "cpu"
    one = {_alike(m): m.p50 for m in found if m.devices == 1}
    rows = []
    for m in (m for m in found if _alike(m) in one):
        gain, ideal = one[_alike(m)] / m.p50, 1 if shared else m.devices
        cells = [m.config, f"{m.batch:,}", f"{m.chunk}", m.dtype, f"{m.devices}", _time(m.p50)]
        rows.append([*cells, f"{gain:.2f}x", f"{ideal}x", f"{100 * gain / ideal:.0f} %"])
    best = f"at best (they share {os.cpu_count()} cores)" if shared else "at best"
    return [*KEY, "step p50", "faster than one", best, "efficiency"], rows


def _alike(m: Measurement) -> tuple:
    return tuple(getattr(m, name) for name in KEY if name != "devices")


def operations(trace: Trace, n: int = 10) -> Cells:
    """The most expensive operations of a step."""
    header = ["operation", "ms per step", "calls", "of all operations", "comes from"]
    rows = [
        [o.name, f"{1000 * o.seconds:.3f}", f"{o.calls:g}", f"{100 * o.share:.1f} %", o.origin]
        for o in trace.operations[:n]
    ]
    return header, rows


def rich_table(title: str, cells: Cells) -> Table:
    """Cells as a table for the terminal."""
    header, rows = cells
    table = Table(title=title)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def names(found: Sequence[Measurement]) -> list[str]:
    """The name of each measurement: its config, with all settings if a config was measured more than once."""
    configs = [m.config for m in found]
    whole = lambda m: (
        f"{m.config}, batch {m.batch:,}, chunk {m.chunk}, {m.dtype}, {m.devices} device" + "s" * (m.devices > 1)
    )
    return [m.config if configs.count(m.config) == 1 else whole(m) for m in found]


def gaps(traces: Sequence[tuple[str, Trace]]) -> Cells:
    """The fraction of time with no part of the steps running, from the first call of the program to the last."""
    rows = [[name, f"{trace.chunk}", f"{100 * trace.host_gap:.1f} %"] for name, trace in traces]
    return GAPS, rows


def save(
    path: Path,
    found: Sequence[Measurement],
    traces: Sequence[tuple[str, Trace]] = (),
    too_large: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Writes the measurements as JSON and returns them; `too_large` are the rows that did not fit into memory."""
    rows, idle = [dataclasses.asdict(m) for m in found], gaps(traces)[1]
    contents = {"measurements": rows, "gaps": idle, "too_large": list(too_large)}
    record = {"where": machine(), **environment(), **contents}
    write_json(path, record)
    return record


def tables(record: Mapping[str, Any]) -> list[tuple[str, Cells]]:
    """The titled tables of a record written by `save`."""
    found = [Measurement(**row) for row in record["measurements"]]
    shown = [("time", speeds(found)), ("limits", limits(found))]
    if record.get("too_large"):
        shown.append(
            ("do not fit into memory, with their data", (["config", "chunk", "type", "batch"], record["too_large"]))
        )
    if record.get("gaps"):
        shown.append(
            ("in the loop of `fit`, while it was traced, nothing of the compiled step ran", (GAPS, record["gaps"]))
        )
    return shown


def as_markdown(record: Mapping[str, Any]) -> str:
    return "\n\n".join([as_page(record["where"], tables(record)), *record.get("notes", [])])


def as_page(where: str, shown: Sequence[tuple[str, Cells]]) -> str:
    """Titled tables as Markdown, below the name of the machine."""
    return "\n\n".join([f"{where}.", *(f"{title}:\n\n{markdown_table(*cells)}" for title, cells in shown)])


def read_measurements(path: Path) -> Mapping[str, Any]:
    """The record of an earlier run, written by `save`."""
    record = read_json(path)
    if record is None:
        raise UserError(f"--compare {path}: there is no such file")
    fields = {field.name for field in dataclasses.fields(Measurement)}
    rows = record.get("measurements") if isinstance(record, dict) and "where" in record else None
    if not isinstance(rows, list) or any(not isinstance(row, dict) or fields - row.keys() for row in rows):
        raise UserError(f"--compare {path}: this is no file that `bench` wrote")
    return record


def against(found: Sequence[Measurement], earlier: Mapping[str, Any]) -> Cells:
    """Step times against an earlier run: slower or faster if by more than a tenth and beyond its p95."""
    before = {tuple(row[name] for name in KEY): row for row in earlier["measurements"]}
    rows = []
    for m in found:
        old = before.get(tuple(getattr(m, name) for name in KEY))
        case = [f"{getattr(m, name)}" for name in KEY]
        if old is None:
            rows.append([*case, "—", _time(m.p50), "", "not measured then"])
            continue
        slower = m.p50 > max(1.1 * old["p50"], old["p95"])
        faster = old["p50"] > max(1.1 * m.p50, m.p95)
        said = "slower" if slower else "faster" if faster else "the same"
        rows.append([*case, _time(old["p50"]), _time(m.p50), f"{m.p50 / old['p50']:.2f}x", said])
    return [*KEY, "step p50 then", "now", "ratio", "verdict"], rows


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"
