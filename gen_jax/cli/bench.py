"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gen_jax.cli.options import DataDir


def bench(
    configs: Positional[tuple[Path, ...]] = (),
    batch: tuple[int, ...] = (),
    dtype: tuple[Literal["float32", "bfloat16"], ...] = (),
    devices: tuple[int, ...] = (),
    chunk: tuple[int, ...] = (),
    scale: tuple[str, ...] = (),
    seconds: float = 3.0,
    profile: bool = False,
    compare: Path | None = None,
    out: Path = Path("runs/bench"),
    write: Path | None = None,
    data_dir: DataDir = None,
) -> None:
    """Times the step that trains a config, and holds it against what the device can do.

    Args:
        configs: config files, with their default knobs
        batch: examples per step; of several numbers all are measured
        dtype: what networks compute in (configs with a knob precision), or products on accelerators
        devices: over how many devices a batch is divided
        chunk: steps per call of the compiled program
        scale: "batch LOW:HIGH" (doubling), "devices" (1, 2, 4, ...), or "accelerators" (on paper: 8 to 1,024)
        seconds: for how long each case is timed
        profile: also trace a few steps of training, and list the ten costliest operations
        compare: the bench.json of an earlier run; slower is what takes a tenth more, and longer than its p95 was
        out: the folder for bench.json, bench.md, pictures and traces
        write: also write the tables into this Markdown file, between its bench markers (on accelerators NAME/bench)
    """
    from gen_jax.markdown import check_section
    from gen_jax.profiling import bench as run
    from gen_jax.profiling.device import device_slug
    from gen_jax.sharding import force_cpu_devices

    run.check(seconds, out, compare)
    if devices or scale == ("devices",):
        force_cpu_devices(*(devices or [4]))
    section = str(Path(device_slug()) / "bench")
    if write:
        check_section(write, section)
    found = run.cases(configs, scale, data_dir, batch=batch, dtype=dtype, devices=devices, chunk=chunk)
    run.bench(found, scale, seconds, out, compare, profile, (write, section) if write else None, data_dir)
