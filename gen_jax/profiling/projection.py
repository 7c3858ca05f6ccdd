"""Projected scaling of data-parallel training over many accelerators.

Weak scaling: every device keeps the config's batch; each step ends with an all-reduce of the gradients, or of the
sufficient statistics of EM. With n devices, ring all-reduce and no overlap,

    step(n) = FLOPs / (utilization x peak) + 2 (n - 1) / n x bytes / link + 2 log2(n) x latency,

and the efficiency is step(1) / step(n). (Patarasuk & Yuan 2009 for the bytes of a ring; the latency is that of a tree.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from gen_jax.core import State
from gen_jax.loop import abstract_state
from gen_jax.profiling.cost import cost
from gen_jax.profiling.flops import of_algorithm
from gen_jax.profiling.measure import Case, cadence, lay_out

__all__ = ["ACCELERATORS", "Cluster", "Work", "reduced_bytes", "step_work", "table"]

ACCELERATORS = (8, 64, 256, 1024)


class Cluster(NamedTuple):
    """A cluster of accelerators; by default H100s, eight per node, with one 400 Gb/s link each."""

    flops: float = 989e12  # bfloat16 products per second and device
    utilization: float = 0.4
    link: float = 50e9  # bytes/s and device
    latency: float = 10e-6  # per hop, seconds

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e12:.0f} TFLOP/s at {100 * self.utilization:.0f} %, "
            f"{self.link / 1e9:.0f} GB/s per device, {self.latency * 1e6:.0f} us per hop"
        )


class Work(NamedTuple):
    """FLOPs of one device per step, and the bytes of the all-reduce."""

    config: str
    batch: int
    flops: float
    moved: int  # bytes

    def efficiency(self, n: int, cluster: Cluster = Cluster()) -> float:
        computing = self.flops / (cluster.utilization * cluster.flops)
        return computing / (computing + self._summing(n, cluster))

    def batch_for(self, share: float, n: int, cluster: Cluster = Cluster()) -> int:
        """Smallest number of examples per device with efficiency at least `share`."""
        each = self.flops / self.batch / (cluster.utilization * cluster.flops)
        return math.ceil(share / (1 - share) * self._summing(n, cluster) / each)

    def _summing(self, n: int, cluster: Cluster) -> float:
        return 2 * (n - 1) / n * self.moved / cluster.link + 2 * math.log2(n) * cluster.latency if n > 1 else 0.0


def step_work(case: Case, flops: float | None = None, data_dir: Path | None = None) -> Work:
    """The work of a config; FLOPs by default from the formula of its family, or else XLA's count."""
    experiment, source = lay_out(case, data_dir)
    view = jax.eval_shape(lambda source: source, source.example())
    batch = jax.eval_shape(lambda view: view.batch_at(0), view)
    state = abstract_state(experiment.algorithm_of_seeds, source)
    flops = (
        flops
        or of_algorithm(experiment.model, experiment.algorithm_of_seeds.step, state, batch)
        or cost(jax.make_jaxpr(experiment.algorithm_of_seeds.step)(state, batch), every=cadence(experiment.model)).flops
    )
    source.close()
    return Work(Path(case.config).stem, len(batch["x"]), flops, reduced_bytes(state))


def reduced_bytes(state: State) -> int:
    """Bytes all-reduced at every step: gradients of all players, or the sufficient statistics of EM."""
    trained = isinstance(state.opt, dict) and set(state.opt) == set(state.params)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state.params if trained else state.opt))


def table(found: Sequence[Work], cluster: Cluster = Cluster()) -> tuple[list[str], list[list[str]]]:
    header = [
        "config",
        "batch per device",
        "FLOPs per device",
        "all-reduced",
        *(f"efficiency of {n:,}" for n in ACCELERATORS),
    ]
    header.append(f"batch per device for 90 % at {ACCELERATORS[-1]:,}")
    rows = [
        [
            w.config,
            f"{w.batch:,}",
            f"{w.flops:.3g}",
            f"{w.moved / 1e6:.3g} MB" if w.moved >= 1e6 else f"{w.moved / 1e3:.3g} kB",
            *(f"{100 * w.efficiency(n, cluster):.1f} %" for n in ACCELERATORS),
            f"{w.batch_for(0.9, ACCELERATORS[-1], cluster):,}",
        ]
        for w in found
    ]
    return header, rows
