"""What the benchmarks of this folder share: rivals measured in turns, a table, a record, a section of the README."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

if any(name in argument for argument in sys.argv for name in ("PyTorch", "zuko", "evaluation.py")):
    sys.modules["tensorflow"] = None  # a dependency of ours imports it where it is, and beside PyTorch it aborts

import jax
from rich.console import Console
from rich.table import Table

from gen_jax.logs import environment, machine, write_json
from gen_jax.readme import markdown_table, write_section

ROOT = Path(__file__).parent.parent
COLUMNS = ("what", "gen_jax", "rival", "its time", "ratio", "target", "quality", "compiling")


def in_turns(rivals: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each after one call to warm up, the rivals taking turns.

    There is a pause before each: some libraries leave threads spinning for a while.
    """
    seen: dict[str, list[float]] = {name: [] for name in rivals}
    for round_ in range(rounds + 1):
        for name, run in rivals.items():
            time.sleep(0.2)
            start = time.perf_counter()
            jax.block_until_ready(run())
            if round_:
                seen[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seen.items()}


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """The function compiled for these arguments, and the seconds that took."""
    program = jax.jit(function)
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    middle = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return program, 2 * middle - start - time.perf_counter()


class Report:
    """Rows as they are measured; at the end a table, `results/NAME.json`, and the section NAME of a Markdown file."""

    def __init__(self, name: str):
        self.name, self.rows, self.notes = name, [], []

    def row(
        self, what: str, ours: float, rival: str, theirs: float, target: str, quality: str, compiling: float
    ) -> None:
        """Times in seconds; `quality` says how equal the results are."""
        row = dict(zip(COLUMNS, (what, ours, rival, theirs, theirs / ours, target, quality, compiling)))
        self.rows.append(row)
        print("  ".join(self._cells(row)), flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        cells = dict(
            row, ratio=f"{row['ratio']:.2f}x", compiling=f"{row['compiling']:.1f} s" if row["compiling"] else ""
        )
        return [cells[c] if isinstance(cells[c], str) else f"{1000 * cells[c]:.4g} ms" for c in COLUMNS]

    def finish(self) -> None:
        where = machine()
        table = Table(title=where)
        for column in COLUMNS:
            table.add_column(column)
        for row in self.rows:
            table.add_row(*self._cells(row))
        Console(width=150).print(table)
        results = ROOT / "benchmarks" / "results"
        results.mkdir(exist_ok=True)
        record = {"where": where, "commit": environment()["commit"], "rows": self.rows, "notes": self.notes}
        write_json(results / f"{self.name}.json", record)
        if path := options().write:
            lines = markdown_table(COLUMNS, [self._cells(row) for row in self.rows])
            write_section(path, self.name, "\n\n".join([f"{where}.", lines, *self.notes]))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--write", type=Path, help="a Markdown file with a section for the table")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # a case in a process of its own
    return parser.parse_args()


def peak_megabytes(script: str, case: str) -> float:
    """The growth of memory while a case of a script runs in a process of its own, which prints it as its last word."""
    command = [sys.executable, script, "--case", case]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def growth(run: Callable[[], Any]) -> float:
    """By how many megabytes the memory of this process grows while it runs."""
    page, peak, done = resource.getpagesize(), [0], threading.Event()
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    run()
    done.set()
    thread.join()
    return (peak[0] - before) / 1e6


Step = Callable[[], Any]  # trains on the next batch and returns its loss, which may not be there yet


class Elsewhere:
    """A rival in a process of its own, so that its threads and memory are its own too."""

    def __init__(self, script: str, name: str):
        command = [sys.executable, script, "--case", f"{name}/served"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def many(self, n: int) -> float:
        """n steps; the loss of the last."""
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def __call__(self) -> float:
        return self.many(1)


def serve(step: Step) -> None:
    for line in sys.stdin:
        for _ in range(int(line)):
            loss = step()
        print(float(loss), flush=True)


def several(step: Step, n: int) -> Callable[[], float]:
    """n steps as one thing to time, waiting for the last."""
    if isinstance(step, Elsewhere):
        return partial(step.many, n)

    def run():
        for _ in range(n):
            loss = step()
        return float(loss)

    return run
