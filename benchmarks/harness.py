"""What the benchmarks of this folder share: rivals measured in turns, and one format of what was found.

`Report` prints a table and writes `results/DEVICE/NAME.json` (machine, versions, commit, date; rows with their spread;
single numbers; notes). `run` runs all of them, `tables` writes the pages of the docs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if any(name in argument for argument in sys.argv for name in ("PyTorch", "zuko", "metrics.py")):
    sys.modules["tensorflow"] = None  # a dependency of ours imports it where it is, and beside PyTorch it aborts

import jax
import jax.numpy as jnp
from rich.console import Console

from gen_jax.core import Algorithm
from gen_jax.data import Resident
from gen_jax.files import write_json
from gen_jax.logs import environment, machine
from gen_jax.loop import compile_steps, initial_state, zero_metrics
from gen_jax.markdown import markdown_table
from gen_jax.profiling.device import device_slug
from gen_jax.profiling.report import rich_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # a folder per device
SPEED = (
    "loop",
    "data",
    "mixture",
    "hmm",
    "estimators",
    "vae",
    "flow",
    "gan",
    "text",
    "translation",
    "applications",
    "convolutions",
    "metrics",
    "scaling",
)  # modules of speed/
_FAMILIES = "gmm_digits hmm_gaussian hmm_chorales vae_digits vae_mnist hvae_digits vqvae_digits realnvp_moons maf_moons"
_FAMILIES += " nsf_digits glow_digits gan_ring8 dcgan_digits dcgan_mnist sngan_mnist"
_IMAGES = "vae_mnist hvae_mnist dcgan_mnist sngan_mnist realnvp_mnist glow_mnist"
STEPS = {  # of configs, by `python -m gen_jax bench`: which, how, and whether on accelerators only
    "bench": (_FAMILIES, "--profile", False),
    "bench_types": (_IMAGES, "--dtype float32 bfloat16", True),
    "bench_batches": ("vae_mnist dcgan_mnist", "--scale batch 2048:1048576", True),
}
COLUMNS = ("what", "gen_jax", "rival", "its time", "ratio", "target", "quality", "compiling")


class Seconds(float):
    """The median of several times, which knows the least and the largest of them; divided, it still does."""

    def __new__(cls, values: Sequence[float]):
        made = super().__new__(cls, statistics.median(values))
        made.values = tuple(values)
        return made

    def __truediv__(self, n: float) -> Seconds | float:
        return float(self) / n if isinstance(n, Seconds) else Seconds([value / n for value in self.values])

    def __str__(self) -> str:
        half = (max(self.values) - min(self.values)) / 2 / self
        return f"{1000 * self:.4g} ms" + (f" ± {100 * half:.0f} %" if len(self.values) > 1 else "")


def in_turns(rivals: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, Seconds]:
    """Seconds of each after two calls to warm up, the rivals taking turns.

    There is a pause before each: some libraries leave threads spinning for a while. After it a GPU has fallen asleep,
    so short calls are repeated: first for a while untimed, then timed together. What takes long is called only twice.
    """

    def seconds(run: Callable[[], Any], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            jax.block_until_ready(run())
        return (time.perf_counter() - start) / n

    seen: dict[str, list[float]] = {name: [] for name in rivals}
    for run in rivals.values():
        seconds(run, 1)  # which may compile
    once = {name: seconds(run, 1) for name, run in rivals.items()}
    for _ in range(rounds):
        for name, run in rivals.items():
            if once[name] > (5 if jax.default_backend() == "cpu" else 0.5):
                seen[name] = [once[name]]
                continue
            time.sleep(0.2)
            repeats = max(1, min(50, int(0.05 / once[name])))
            if repeats > 1:
                seconds(run, repeats)
            seen[name].append(seconds(run, repeats))
    return {name: Seconds(values) for name, values in seen.items()}


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """The function compiled for these arguments, and the seconds that took."""
    program = jax.jit(function)
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    middle = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return program, 2 * middle - start - time.perf_counter()


def stepper(algorithm: Algorithm, arrays: Mapping[str, Any], batch: int, metric: str) -> Callable[[], jax.Array]:
    """A function that trains one step of the loop on resident arrays at each call, and returns a metric of it."""
    source = jax.tree.map(jnp.asarray, Resident(arrays, batch))
    state = initial_state(algorithm, source)
    advance, zeros = compile_steps(algorithm), zero_metrics(algorithm, state, source)
    held = [state]

    def run() -> jax.Array:
        held[0], totals, _ = advance(held[0], zeros(), source, 1)
        return totals[metric].value

    return run


class Report:
    """Rows beside a rival, single numbers, and notes, as they are measured; `finish` writes them down."""

    def __init__(self, name: str):
        self.name, self.rows, self.facts, self.notes, self.began = name, [], [], [], time.perf_counter()
        self.options = options()

    def row(
        self,
        what: str,
        ours: float,
        rival: str,
        theirs: float,
        target: str = "",
        quality: str = "",
        compiling: float = 0.0,
        why: str = "",
    ) -> None:
        """Times in seconds, kept as lists; `quality` says how equal the results are, `why` what a miss comes from."""
        times = [list(t.values) if isinstance(t, Seconds) else [t] for t in (ours, theirs)]
        row = dict(zip(COLUMNS, (what, times[0], rival, times[1], float(theirs) / ours, target, quality, compiling)))
        row["met"] = met(row["ratio"], target)
        row["why"] = why if row["met"] is False else ""
        self.rows.append(row)
        print("  ".join(_cells(row)), flush=True)

    def fact(self, what: str, value: float, unit: str, target: str = "", why: str = "") -> None:
        """A number that has no rival."""
        fact = {"what": what, "value": value, "unit": unit, "target": target, "met": met(value, target)}
        self.facts.append(fact | {"why": why if fact["met"] is False else ""})
        print(f"{what}: {value:.4g} {unit}  {target}", flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    def finish(self) -> None:
        folder = results()
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "where": machine(),
            "seconds": time.perf_counter() - self.began,
            "environment": without_paths(environment()),
            "rows": self.rows,
            "facts": self.facts,
            "notes": self.notes,
        }
        if not self.options.only:
            write_json(folder / f"{self.name}.json", record)
        console = Console(width=160)
        for cells in tables(record):
            console.print(rich_table(machine(), cells))


def results() -> Path:
    """Where the records of this device are kept."""
    return RESULTS / device_slug()


def without_paths(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without what names this very machine."""
    return {name: value for name, value in record.items() if name not in ("command", "platform")}


def met(value: float, target: str) -> bool | None:
    """Whether a number reaches a target like ">= 4" or "< 2"; None without one."""
    if not target:
        return None
    sign, bound = target.split()
    return {">=": value >= float(bound), "<": value < float(bound), "<=": value <= float(bound)}[sign]


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = dict(row, ratio=f"{row['ratio']:.4g}x", compiling=f"{row['compiling']:.1f} s" if row["compiling"] else "")
    for name in ("gen_jax", "its time"):
        shown[name] = str(Seconds(row[name]))
    return [shown[c] for c in COLUMNS[:5]] + [_reached(row)] + [shown[c] for c in COLUMNS[6:]]


def _reached(row: Mapping[str, Any]) -> str:
    return row["target"] + {True: "", False: ", missed", None: ""}[row["met"]]


def tables(record: Mapping[str, Any]) -> list[tuple[Sequence[str], list[list[str]]]]:
    facts = [[f["what"], f"{f['value']:.4g} {f['unit']}".strip(), _reached(f)] for f in record["facts"]]
    found = [(COLUMNS, [_cells(row) for row in record["rows"]]), (("what", "measured", "target"), facts)]
    return [(header, rows) for header, rows in found if rows]


def as_markdown(record: Mapping[str, Any]) -> str:
    texts = [markdown_table(header, rows) for header, rows in tables(record)]
    return "\n\n".join([*texts, *record["notes"]])


def misses(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """The targets that were missed, by the reason."""
    rows = [(f"{row['what']}, against {row['rival']}: {row['ratio']:.4g}x", row) for row in record["rows"]]
    rows += [(f"{fact['what']}: {fact['value']:.4g} {fact['unit']}".strip(), fact) for fact in record["facts"]]
    found: dict[str, list[str]] = {}
    for said, row in rows:
        if row["met"] is False:
            found.setdefault(row["why"] or "not looked into", []).append(f"{said} ({row['target']})")
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # a case in a process of its own
    chosen = parser.parse_args()
    return chosen


def beside(**more: str) -> dict[str, str]:
    """The environment of a process beside this one, which finds this project."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def peak_megabytes(module: str, case: str) -> float:
    """The growth of memory while a case of a module runs in a process of its own, which prints it as its last word."""
    command = [sys.executable, "-m", module, "--case", case]
    done = subprocess.run(command, env=beside(), capture_output=True, text=True, check=True)
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
