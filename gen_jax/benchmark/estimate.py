"""On paper: how data-parallel training would scale over many accelerators.

Every device keeps the config's batch; after each step what the devices found is summed over them: the gradients, or
the sufficient statistics of EM. With n devices, ring all-reduce and nothing overlapped,

    step(n) = FLOPs / (utilisation x peak) + 2 (n - 1) / n x bytes / link + 2 log2(n) x latency,

and the efficiency is step(1) / step(n). (Patarasuk & Yuan 2009 for the bytes of a ring; the latency is that of a tree.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from gen_jax.benchmark.measure import Measurement
from gen_jax.core import State


class Cluster(NamedTuple):
    """By default H100s, eight per node, with one 400 Gb/s link each."""

    flops: float = 989e12  # bfloat16 products per second and device
    utilisation: float = 0.4
    link: float = 50e9  # bytes/s and device
    latency: float = 10e-6  # of one hop, seconds

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e12:.0f} TFLOP/s at {100 * self.utilisation:.0f} %, "
            f"{self.link / 1e9:.0f} GB/s per device, {self.latency * 1e6:.0f} us per hop"
        )


def reduced_bytes(state: State) -> int:
    """What is summed over devices at every step: gradients of all players, or the statistics of EM."""
    trained = isinstance(state.opt, dict) and set(state.opt) == set(state.params)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state.params if trained else state.opt))


def efficiency(flops: float, moved: float, n: int, cluster: Cluster = Cluster()) -> float:
    computing = flops / (cluster.utilisation * cluster.flops)
    return computing / (computing + _summing(moved, n, cluster))


def batch_for(share: float, m: Measurement, moved: float, n: int, cluster: Cluster = Cluster()) -> int:
    """Examples per device from which on the efficiency is at least `share`."""
    each = m.model_flops / m.batch / (cluster.utilisation * cluster.flops)
    return math.ceil(share / (1 - share) * _summing(moved, n, cluster) / each)


def _summing(moved: float, n: int, cluster: Cluster) -> float:
    return 2 * (n - 1) / n * moved / cluster.link + 2 * math.log2(n) * cluster.latency if n > 1 else 0.0
