"""All benchmarks, one after the other:  make bench

python -m benchmarks.run [--only mixture hmm]          (needs the `bench` extra)

Each module of `speed/` runs in a process of its own and leaves `results/DEVICE/NAME.json`; then `bench` of the command
line measures configs of every family, with a trace of their steps, and on accelerators image models in two types and
ever larger batches. `python -m benchmarks.tables` writes the pages of the docs from the records.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import ROOT, SPEED, STEPS, beside, results, without_paths
from gen_jax.files import read_json, write_json
from gen_jax.logs import environment, machine

WHOLE = "whole.json"  # the record of the last run of all: minutes of each part


def run(words: list[str]) -> tuple[float, bool]:
    """Minutes that a command of this project takes, and whether it succeeded; its output is shown."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=beside(TF_CPP_MIN_LOG_LEVEL="3"))
    return (time.perf_counter() - start) / 60, done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = [name for name, (*_, large) in STEPS.items() if results().name != "cpu" or not large]
    parser.add_argument("--only", nargs="+", choices=[*SPEED, *here], default=[*SPEED, *here])
    chosen = parser.parse_args()
    took, failed = {}, []
    for name in chosen.only:
        print(f"--- {name}", flush=True)
        if name in STEPS:
            names, how, _ = STEPS[name]
            out = Path("runs") / name
            took[name], fine = run(["-m", "gen_jax", "bench", *names.split(), *how.split(), "--out", str(out)])
            if fine:
                write_json(results() / f"{name}.json", without_paths(read_json(ROOT / out / "bench.json")))
        else:
            took[name], fine = run(["-m", f"benchmarks.speed.{name}"])
        failed += [] if fine else [name]
    if not failed and len(took) == len([*SPEED, *here]):
        whole = {"where": machine(), "environment": without_paths(environment()), "minutes": took}
        write_json(results() / WHOLE, whole)
    table = Table("benchmark", "minutes")
    for name, minutes in took.items():
        table.add_row(name, f"{minutes:.1f}")
    Console().print(table)
    if failed:
        sys.exit(f"failed, their results are those of before: {', '.join(failed)}")


if __name__ == "__main__":
    main()
