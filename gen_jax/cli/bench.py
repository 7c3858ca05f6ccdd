"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gen_jax.cli.options import DataDir

__all__ = ["bench"]


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
    data_dir: DataDir = None,
) -> None:
    """Times the training step of a config and compares it with the peak performance of the device.

    Args:
        configs: config files, with their default knobs
        batch: examples per step; several values are all measured
        dtype: compute dtype of the networks (configs with a knob precision), or of matrix products on accelerators
        devices: number of devices the batch is divided over
        chunk: steps per call of the compiled program
        scale: "batch LOW:HIGH" (doubling), "devices" (1, 2, 4, ...), or "accelerators" (on paper: 8 to 1,024)
        seconds: how long each case is timed
        profile: also trace a few training steps, and list the ten most expensive operations
        compare: the bench.json of an earlier run; slower means over a tenth above its p50 and above its p95
        out: the folder for bench.json, bench.md, figures and traces
    """
    from gen_jax.profiling import bench as run
    from gen_jax.sharding import force_cpu_devices

    run.check(seconds, out, compare)
    if devices or scale == ("devices",):
        force_cpu_devices(*(devices or [4]))
    found = run.cases(configs, scale, data_dir, batch=batch, dtype=dtype, devices=devices, chunk=chunk)
    run.bench(found, scale, seconds, out, compare, profile, data_dir)
