"""Logging of a run: metrics as JSONL and TensorBoard events, and its record."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gen_jax.files import read_json
from gen_jax.sharding import is_writer
from gen_jax.trackers import Guarded, scalars

__all__ = [
    "TRAIN",
    "VALIDATION",
    "Writer",
    "environment",
    "machine",
    "read_metrics",
    "read_record",
    "reports",
]

TRAIN, VALIDATION = "train/", "validation/"  # before the names of metrics of training, and of the validation split


class Writer:
    """Appends metrics to `metrics.jsonl` and to TensorBoard events in `folder`; only the first process writes.

    Resuming at step s first drops the lines after s. trackers: other places that receive them.
    """

    def __init__(self, folder: str | os.PathLike, resumed_at: int = 0, trackers: Sequence[Guarded] = ()):
        self._file = self._board = None
        self._trackers = trackers
        if not is_writer():
            return
        folder = Path(folder)
        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= resumed_at]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in kept))
        draft.replace(path)
        self._file = open(path, "a", buffering=1)
        self._path, self._resumed_at = folder / "tensorboard", resumed_at

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line: the step, the wall-clock time and the values (null where not finite)."""
        if self._file is None:
            return
        row = {"step": step, "time": round(time.time(), 3)} | {name: _plain(v) for name, v in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._path), purge_step=self._resumed_at + 1, flush_secs=10)
        for name, value in scalars(values).items():
            self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a line truncated by a crash is skipped."""
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def reports(workdir: Path, until: int) -> list[tuple[int, dict[str, Any]]]:
    """The metrics of training reported up to a step, by their names in the loop; values that were not finite are left
    out."""
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["step"] <= until]
    named = lambda row: {k.removeprefix(TRAIN): v for k, v in row.items() if k.startswith(TRAIN) and v is not None}
    return [(row["step"], values) for row in rows if (values := named(row))]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if math.isfinite(value) else None


def read_record(workdir: Path) -> dict[str, Any] | None:
    """The content of run.json; None if there is none."""
    return read_json(workdir / "run.json")


def environment() -> dict[str, Any]:
    """Provenance of a run's results: commit, uncommitted changes of the package, versions, machine, devices."""
    packages = ("jax", "jaxlib", "flax", "optax", "distrax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ".")),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def machine() -> str:
    """A short description of the machine, with the date."""
    device = jax.devices()[0].device_kind
    return f"{device}, {os.cpu_count()} cores, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}"


def _git(*words: str) -> str | None:
    """Output of a git command in the checkout this package runs from; None outside one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
