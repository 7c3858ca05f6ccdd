"""All benchmarks, one after the other, and what became of their targets:  make bench

python -m benchmarks.run [--only gmm hmm] [--write README.md]          (needs the `bench` extra)

Each script runs in a process of its own and leaves `results/NAME.json`; then `python -m gen_jax bench` measures configs
of every family, with a trace of their steps, and on accelerators image models in two types and ever larger batches. The
summary says which targets hold, which do not, and why. On an accelerator records go into a folder of its name, so that
they can be brought elsewhere: `--records` runs nothing and writes the tables of all records that are there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, ROOT, as_markdown, beside, misses, results, section, without_paths
from gen_jax.logs import environment, machine, read_json, write_json
from gen_jax.markdown import check_section, markdown_table, write_section
from gen_jax.profiling import report

SCRIPTS = ("loop", "mixture", "hmm", "vae", "flow", "gan", "convolutions", "metrics", "scaling")
WHOLE = "whole.json"  # the record of the last run of all: what each part took
OURS = ("products alone", "bare compiled step", "step by step in fit", "hand-written loop", "serial scan", "1 process")
OURS += ("1 device", "step of vae_mnist")  # no other library, but bounds and other ways of our own
FAMILIES = "gmm_digits hmm_gaussian hmm_chorales vae_digits vae_mnist hvae_digits vqvae_digits realnvp_moons maf_moons"
FAMILIES += " nsf_digits glow_digits gan_ring8 dcgan_digits dcgan_mnist sngan_mnist"
IMAGES = "vae_mnist hvae_mnist dcgan_mnist sngan_mnist realnvp_mnist glow_mnist"
STEPS = {  # of configs, by `python -m gen_jax bench`: which, how, and whether that is for accelerators only
    "bench": (FAMILIES, "--profile", False),
    "bench_types": (IMAGES, "--dtype float32 bfloat16", True),
    "bench_batches": ("vae_mnist dcgan_mnist", "--scale batch 2048:1048576", True),
}


def run(words: list[str]) -> tuple[float, bool]:
    """Minutes that a command of this project takes, and whether it succeeded; what it says is shown."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=beside(TF_CPP_MIN_LOG_LEVEL="3"))
    return (time.perf_counter() - start) / 60, done.returncode == 0


def summary(folder: Path) -> str:
    """How much faster than each rival, and what became of the targets, of the scripts whose records are in a folder."""
    rows, ratios, missed = [], {}, []
    for name in SCRIPTS:
        record = read_json(folder / f"{name}.json")
        if record is None:
            continue
        for row in record["rows"]:
            if row["rival"] not in OURS:
                ratios.setdefault(row["rival"], []).append(row["ratio"])
        targets = [entry["met"] for entry in (*record["rows"], *record["facts"]) if entry["met"] is not None]
        where = f"{record['where']}, commit {_commit(record['environment'])}"
        reached = f"{sum(targets)} of {len(targets)}" if targets else "none set"
        rows.append([name, reached, f"{record['seconds'] / 60:.1f}", where])
        missed += [[name, one, why] for why, which in misses(record).items() for one in which]
    times = [
        [rival, f"{len(found)}", *(_times(f(found)) for f in (min, median, max)), f"{sum(r < 1 for r in found)}"]
        for rival, found in ratios.items()
    ]
    tables = [
        (["rival", "rows", "least", "median", "most", "rows in which it is faster"], times),
        (["benchmark", "targets met", "minutes", "where"], rows),
        (["benchmark", "missed", "because"], missed),
    ]
    texts = [markdown_table(*table) for table in tables if table[1]]
    if whole := read_json(folder / WHOLE):
        parts = ", ".join(f"{name} {minutes:.1f}" for name, minutes in whole["minutes"].items())
        texts.append(
            f"The last run of all of them took {sum(whole['minutes'].values()):.0f} minutes ({parts}): "
            f"{whole['where']}, commit {_commit(whole['environment'])}."
        )
    return "\n\n".join(texts)


def _commit(of: Mapping[str, Any]) -> str:
    return (of["commit"] or "unknown")[:9] + " and changes" * of["uncommitted_changes"]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:,.0f}x"


def records() -> list[Path]:
    """What is recorded, of CPUs and of every accelerator."""
    names = {*SCRIPTS, *STEPS}
    return sorted(path for path in RESULTS.rglob("*.json") if path.stem in names)


def write_records(page: Path) -> None:
    """The tables of all records into a Markdown file."""
    for path in records():
        record = read_json(path)
        text = report.as_markdown(record) if path.stem in STEPS else as_markdown(record)
        write_section(page, section(path), text)
    for folder in {path.parent for path in records()}:
        write_section(page, section(folder / "summary"), summary(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = [name for name, (*_, large) in STEPS.items() if results() != RESULTS or not large]
    parser.add_argument("--only", nargs="+", choices=[*SCRIPTS, *here], default=[*SCRIPTS, *here])
    parser.add_argument("--write", type=Path, help="a Markdown file with sections for the tables")
    parser.add_argument(
        "--records", action="store_true", help="run nothing: the summaries of all records, and their tables"
    )
    chosen = parser.parse_args()
    if chosen.records and not records():
        sys.exit("there are no records yet: run without --records")
    expected = {section(path) for path in records()}
    expected |= {section(results() / name) for name in ("summary", *chosen.only)}
    for name in expected if chosen.write else ():
        check_section(chosen.write, name)
    took, failed = {}, []
    for name in () if chosen.records else chosen.only:
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
    if took and not failed and len(took) == len([*SCRIPTS, *here]):
        whole = {"where": machine(), "environment": without_paths(environment()), "minutes": took}
        write_json(results() / WHOLE, whole)
    if took:
        table = Table("benchmark", "minutes")
        for name, minutes in took.items():
            table.add_row(name, f"{minutes:.1f}")
        Console().print(table)
    for folder in {path.parent for path in records()} if chosen.records else {results()}:
        print(f"{'cpu' if folder == RESULTS else folder.name}:\n\n{summary(folder)}\n")
    if chosen.write:
        write_records(chosen.write)
    if failed:
        sys.exit(f"failed, their results are those of before: {', '.join(failed)}")


if __name__ == "__main__":
    main()
