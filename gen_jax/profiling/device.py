"""What a device can do: measured by a large matrix product and a large copy, and as its maker says."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Peaks(NamedTuple):
    """FLOP/s of products and bytes/s of memory."""

    flops: float
    bandwidth: float


# Dense peaks by type computed in, FLOP/s, and bytes/s, as the makers' data sheets have them (without sparsity). float32
# products of NVIDIA's run as TF32 unless JAX is told otherwise. The first pattern found in the device's kind decides.
KNOWN = {
    r"\bH200\b": ({"bfloat16": 989e12, "float32": 495e12}, 4.8e12),
    r"\bH100 PCIe\b": ({"bfloat16": 756e12, "float32": 378e12}, 2.0e12),
    r"\bH100 80GB HBM3\b": ({"bfloat16": 989e12, "float32": 495e12}, 3.35e12),
    r"\bA100\b.*\b40GB\b": ({"bfloat16": 312e12, "float32": 156e12}, 1.555e12),
    r"\bA100\b.*\b80GB\b": ({"bfloat16": 312e12, "float32": 156e12}, 2.039e12),
    r"\bL4\b": ({"bfloat16": 121e12, "float32": 60e12}, 0.3e12),
    r"\bV100\b": ({"float32": 15.7e12}, 0.9e12),
    r"\bTPU v6": ({"bfloat16": 918e12}, 1.64e12),
    r"\bTPU v5( lite|e)": ({"bfloat16": 197e12}, 0.819e12),
    r"\bTPU v5": ({"bfloat16": 459e12}, 2.765e12),
    r"\bTPU v4\b": ({"bfloat16": 275e12}, 1.2e12),
}


def device_slug() -> str:
    """The folder of this device's records: "cpu", or the name of the accelerator."""
    return "cpu" if jax.default_backend() == "cpu" else re.sub(r"\W+", "_", jax.devices()[0].device_kind.lower())


def data_sheet(dtype: str = "float32") -> Peaks | None:
    """What the maker of this device says of it; None where that is not known here."""
    kind = jax.devices()[0].device_kind
    for pattern, (flops, bandwidth) in KNOWN.items():
        if re.search(pattern, kind):
            return Peaks(flops[dtype], bandwidth) if dtype in flops else None
    return None


@lru_cache
def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of a product of large matrices of this type."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((side, side), 0.5, dtype)
    return 2 * side**3 / _fastest(jax.jit(jnp.matmul), a, a)


def copy_bandwidth(footprint: int) -> float:
    """Bytes/s that copying reads and writes in a working set of about so many bytes: a CPU's caches serve small ones.

    On accelerators not below 128 MB, which their caches do not hold.
    """
    least = 1 << (16 if jax.default_backend() == "cpu" else 27)
    return _copy_bandwidth(min(max(footprint // 2, least), 1 << 28).bit_length() - 1)


@lru_cache
def _copy_bandwidth(bits: int) -> float:
    x = jnp.zeros((1 << bits) // 4, jnp.float32)
    turns = max(7, (1 << 29) // x.nbytes)
    copy = jax.jit(lambda x: lax.fori_loop(0, turns, lambda _, x: x + 1, x))
    return 2 * x.nbytes * (turns + 1) / _fastest(copy, x)  # the argument is copied first


def _fastest(f: Callable[..., Any], *arguments: Any) -> float:
    """The median of the fastest quarter of the calls of half a second, at least eight, in seconds: a GPU that has
    fallen asleep takes a while to wake up."""
    jax.block_until_ready(f(*arguments))
    seen: list[float] = []
    while len(seen) < 8 or sum(seen) < 0.5:
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seen.append(time.perf_counter() - start)
    return statistics.median(sorted(seen)[: len(seen) // 4])


def verdict(flops: float, moved: float, seconds: float, peaks: Peaks) -> tuple[str, float]:
    """What bounds a step, and how much of the roof it reaches (Williams, Waterman & Patterson 2009).

    The roof is the longer of the times that its operations at the peak, and its bytes at the bandwidth, would take. A
    step that reaches less than a quarter of it is bound by neither but by the latency of many small operations.
    """
    computing, moving = flops / peaks.flops, moved / peaks.bandwidth
    reached = max(computing, moving) / seconds
    if reached < 0.25:
        return "latency", reached
    return ("compute" if computing > moving else "memory"), reached
