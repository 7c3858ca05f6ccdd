"""FLOPs and bytes of a compiled step, as counted by XLA, with every loop iteration counted.

XLA's own analysis counts a loop body once, and the most expensive branch of a conditional. Here the body of each
`scan` (and of each `fori_loop` with known bounds) is compiled by itself, and the cost of its other iterations is added;
if players are updated on every n-th step only, all on the same steps, their cost is divided by n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from gen_jax.errors import UserError

__all__ = ["Cost", "Part", "cost", "host", "parts"]


class Cost(NamedTuple):
    """Cost of one step. Bytes are those read and written by instructions, cached or not."""

    flops: float
    bytes: float
    endless: int = 0  # loops of unknown length, whose bodies are counted once

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        more = (self.flops + times * other.flops, self.bytes + times * other.bytes)
        return Cost(*more, self.endless + (other.endless if times > 0 else 0))


class Part(NamedTuple):
    """A loop body that runs more often than it was counted."""

    body: ClosedJaxpr
    runs: int
    counted: int


def cost(jaxpr: ClosedJaxpr, compiled: Any = None, every: int = 1) -> Cost:
    """Cost of a traced function; `compiled` is its program if already compiled. The outermost conditionals take their
    most expensive branch once in `every` runs, otherwise the cheapest.

    On accelerators FLOPs are counted before compilation, which turns products into library calls that are not counted,
    and by the backend of the host CPU, which supports that; bytes are always those of the compiled program.
    """
    return _whole(jaxpr, _own(jaxpr, compiled), every)


def _whole(jaxpr: ClosedJaxpr, total: Cost, every: int = 1) -> Cost:
    """The cost of a function with all loop iterations, from XLA's count `total`."""
    for part in parts(jaxpr.jaxpr, every):
        if part is None:
            total = total._replace(endless=total.endless + 1)
        elif isinstance(part, Cost):
            total = total.plus(part)
        else:
            once = _own(part.body)
            total = total.plus(_whole(part.body, once, every), part.runs).plus(once, -part.counted)
    return total


def _own(jaxpr: ClosedJaxpr, compiled: Any = None) -> Cost:
    """The cost of a function as counted by XLA."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    lowered = lambda: jax.jit(jaxpr_as_fun(jaxpr)).lower(*shapes)
    counted = after = (compiled or lowered().compile()).cost_analysis() or {}
    if jax.default_backend() != "cpu":
        with jax.default_device(host()):
            counted = lowered().cost_analysis() or {}
    return Cost(max(counted.get("flops", 0.0), 0.0), max(after.get("bytes accessed", 0.0), 0.0))


def host() -> jax.Device:
    """The host CPU device; a UserError if JAX_PLATFORMS excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        platforms = f"JAX_PLATFORMS={jax.config.jax_platforms},cpu"
        raise UserError(f"operations are counted on the CPU beside the device: name it too, {platforms}") from None


def parts(jaxpr: Jaxpr, every: int = 1) -> Iterator[Part | Cost | None]:
    """Yields the outermost loops, None for one of unknown length, and a correction to the counted cost of each
    conditional that contains loops or rarely takes its most expensive branch."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            length, unroll = params["length"], params["unroll"]
            yield Part(params["jaxpr"], length, length if length <= unroll else unroll + length % unroll)
        elif name == "while":
            yield None
        elif name == "cond":
            branches = params["branches"]
            if every > 1 or any(True for branch in branches for _ in parts(branch.jaxpr)):
                once = [_own(branch) for branch in branches]
                whole = sorted(map(_whole, branches, once))
                counted = Cost(max(c.flops for c in once), max(c.bytes for c in once))
                mean = [a + (b - a) / every for a, b in zip(whole[0], whole[-1])]
                yield Cost(*mean[:2], max(its.endless for its in whole)).plus(counted, -1)
        else:
            for value in params.values():
                for inner in value if isinstance(value, (tuple, list)) else [value]:
                    yield from parts(_jaxpr(inner), every) if _jaxpr(inner) else ()


def _jaxpr(value: Any) -> Jaxpr | None:
    return value.jaxpr if isinstance(value, ClosedJaxpr) else value if isinstance(value, Jaxpr) else None
