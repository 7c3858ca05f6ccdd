"""Peak performance of the device: measured by a large matrix product and a large copy, and from its data sheet."""

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

__all__ = ["KNOWN", "Peaks", "copy_bandwidth", "data_sheet", "device_slug", "matmul_peak", "verdict"]


class Peaks(NamedTuple):
    """FLOP/s of matrix products and memory bandwidth in bytes/s."""

    flops: float
    bandwidth: float


# Dense peaks by compute dtype, FLOP/s, and bytes/s, from the vendors' data sheets (without sparsity). float32 products
# on NVIDIA GPUs run as TF32 unless JAX is configured otherwise. The first pattern found in the device kind applies.
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
    """Data-sheet peaks of this device; None if unknown."""
    kind = jax.devices()[0].device_kind
    for pattern, (flops, bandwidth) in KNOWN.items():
        if re.search(pattern, kind):
            return Peaks(flops[dtype], bandwidth) if dtype in flops else None
    return None


@lru_cache
def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of a large matrix product of this dtype."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((side, side), 0.5, dtype)
    return 2 * side**3 / _fastest(jax.jit(jnp.matmul), a, a)


def copy_bandwidth(footprint: int) -> float:
    """Bytes/s read and written by copies in a working set of about `footprint` bytes: a CPU's caches serve small ones.

    On accelerators at least 128 MB, more than their caches hold.
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
    """The median time in seconds of the fastest quarter of the calls within half a second, at least eight: an idle GPU
    takes a while to reach full speed."""
    jax.block_until_ready(f(*arguments))
    seen: list[float] = []
    while len(seen) < 8 or sum(seen) < 0.5:
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seen.append(time.perf_counter() - start)
    return statistics.median(sorted(seen)[: len(seen) // 4])


def verdict(flops: float, moved: float, seconds: float, peaks: Peaks) -> tuple[str, float]:
    """The bottleneck of a step, and the fraction of the roofline it reaches (Williams, Waterman & Patterson 2009).

    The roofline time is the maximum of FLOPs / peak and bytes / bandwidth. A step that reaches less than a quarter of
    it is bound by the latency of many small operations instead.
    """
    computing, moving = flops / peaks.flops, moved / peaks.bandwidth
    reached = max(computing, moving) / seconds
    if reached < 0.25:
        return "latency", reached
    return ("compute" if computing > moving else "memory"), reached
