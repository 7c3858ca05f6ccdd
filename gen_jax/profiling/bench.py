"""The command `bench`: measures cases sequentially and writes a report."""

from __future__ import annotations

import gc
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
from rich.console import Console

from gen_jax.errors import UserError
from gen_jax.logs import machine
from gen_jax.profiling import charts, report
from gen_jax.profiling.cost import host
from gen_jax.profiling.measure import Case, Measurement, keep_programs, lay_out, measure_case
from gen_jax.profiling.projection import Cluster, step_work, table
from gen_jax.profiling.report import Cells
from gen_jax.profiling.trace import Trace, trace_steps

__all__ = ["SCALES", "bench", "cases", "check"]

SCALES = "batch LOW:HIGH, devices, or accelerators"


def cases(
    configs: Sequence[Path], scale: Sequence[str] = (), data_dir: Path | None = None, **axes: Sequence[int | str]
) -> list[Case]:
    """The Cartesian product of the axes, an empty axis meaning the config's value, for every size of `--scale`.

    Raises UserError for invalid cases, before anything slow starts.
    """
    if not configs:
        raise UserError("name one or more configs, for example: python -m gen_jax bench vae_digits gmm_digits")
    host()
    along, sizes = _sizes(scale)
    if sizes and axes.get(along):
        raise UserError(f"--scale {along} chooses the sizes itself: leave --{along} out")
    axes |= {along: sizes} if sizes else {}
    found = [Case(str(config)) for config in configs]
    for name, values in axes.items():
        found = [replace(case, **{name: value}) for case in found for value in values] if values else found
    for case in found:
        _, source = lay_out(case, data_dir)
        if source.batch_size % case.devices:
            raise UserError(
                f"{case.config}: {source.batch_size} examples cannot be divided over {case.devices} devices"
            )
        source.close()
    return found


def _sizes(scale: Sequence[str]) -> tuple[str, list[int]]:
    if scale[:1] == ("batch",) and len(scale) == 2:
        bounds = re.fullmatch(r"(\d+):(\d+)", scale[1])
        low, high = map(int, bounds.groups()) if bounds else (0, 0)
        if not 1 <= low <= high:
            raise UserError(f"--scale batch takes LOW:HIGH, for example 32:4096, got {scale[1]}")
        return "batch", [low * 2**i for i in range((high // low).bit_length())]
    if tuple(scale) == ("devices",):
        return "devices", [2**i for i in range(jax.device_count().bit_length())]
    if tuple(scale) in ((), ("accelerators",)):
        return "", []
    raise UserError(f"--scale takes {SCALES}; got {' '.join(scale)}")


def bench(
    found: Sequence[Case],
    scale: Sequence[str] = (),
    seconds: float = 3.0,
    out: Path = Path("runs/bench"),
    compare: Path | None = None,
    profile: bool = False,
    data_dir: Path | None = None,
) -> list[Measurement]:
    """Measures all cases, prints tables, and writes bench.json, bench.md and figures into a folder."""
    earlier = report.read_measurements(compare) if compare else None
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 180)
    shown: list[tuple[str, Cells]] = []
    rows, done, failed = [], [], []
    seen: dict[int, Trace] = {}  # by row
    full: dict[Case, int | None] = {}  # the first batch size that does not fit, by the other settings of the case
    for case in found:
        alike = replace(case, batch=None)
        if alike in full:
            continue
        try:
            with tempfile.TemporaryDirectory() as folder, keep_programs(Path(folder)):
                rows.append(measure_case(case, seconds, data_dir))
                done.append(case)
                divided = f", {case.devices} devices" if case.devices > 1 else ""
                print(f"{rows[-1].config}, batch {rows[-1].batch:,}{divided}: {rows[-1].words}", flush=True)
                if profile:
                    seen[len(rows) - 1] = trace_steps(case, out / "profile" / rows[-1].config, data_dir)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # e.g. out of memory: the others are still measured
            if "RESOURCE_EXHAUSTED" in str(error) and scale[:1] == ("batch",):
                full[alike] = case.batch
            else:
                failed.append(f"{case}: {str(error).splitlines()[0]}")
        report.save(out / "bench.json", rows)
        jax.clear_caches()
        gc.collect()
    if not rows:
        raise UserError("; ".join(failed) or "not even the smallest batch fits into the memory of this device")
    if tuple(scale) == ("devices",):
        shown.append(("one batch divided over devices", report.division(rows)))
    if tuple(scale) == ("accelerators",):
        works = [step_work(case, m.formula or m.flops, data_dir) for case, m in zip(done, rows)]
        shown.append((f"on paper: {Cluster()}", table(works)))
    pictures = {"roofline": charts.roofline(rows, report.names(rows), machine())}
    if scale and scale[0] in ("batch", "devices"):
        pictures[f"scale_{scale[0]}"] = charts.scaling(rows, scale[0], machine())
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png")
    traces = [(name, seen[i]) for i, name in enumerate(report.names(rows)) if i in seen]
    too_large = [
        [Path(case.config).stem, str(case.chunk or ""), case.dtype or "", f"{batch:,}"] for case, batch in full.items()
    ]
    shown = report.tables(report.save(out / "bench.json", rows, traces, too_large)) + shown
    costliest = [(f"{name}: the costliest operations", report.operations(trace)) for name, trace in traces]
    if earlier:
        shown.append((f"beside {compare}: {earlier['where']}", report.against(rows, earlier)))
    for title, cells in (*shown, *costliest):
        console.print(report.rich_table(title, cells))
    (out / "bench.md").write_text(report.as_page(machine(), [*shown, *costliest]) + "\n")
    files = ["bench.json", "bench.md", *(f"{name}.png" for name in pictures), *["profile"] * profile]
    print("written:", *(str(out / name) for name in files))
    if failed:
        raise UserError("not measured: " + "; ".join(failed))
    return rows


def check(seconds: float, out: Path, compare: Path | None = None) -> None:
    """Validates the command-line arguments other than the cases, without starting JAX."""
    if not 0 < seconds <= 600:
        raise UserError(f"--seconds must be above 0 and at most 600, got {seconds}")
    if any(path.is_file() for path in (out, *out.parents)):
        raise UserError(f"--out {out}: a file is in the way, name a folder")
    if compare and compare.resolve() == (out / "bench.json").resolve():
        raise UserError(
            f"--compare {compare} is what this run would write over: give it another folder, --out runs/now"
        )
