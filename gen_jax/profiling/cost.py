"""Operations and bytes of a compiled step, as XLA counts them, with every turn of a loop counted.

XLA's own analysis counts the body of a loop once, and of a conditional the costliest branch. Here the body of each
`scan` (and of each `fori_loop` whose bounds are known) is compiled by itself, and what its other turns cost is added;
and where players move on every n-th step only, all on the same, a step has the n-th part of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from gen_jax.errors import UserError


class Cost(NamedTuple):
    """Of one step. Bytes are those that instructions read and write, caches or not."""

    flops: float
    bytes: float
    endless: int = 0  # loops of unknown length, whose bodies count once

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        more = (self.flops + times * other.flops, self.bytes + times * other.bytes)
        return Cost(*more, self.endless + (other.endless if times > 0 else 0))


class Part(NamedTuple):
    """A piece of a program that runs more often than it was counted."""

    body: ClosedJaxpr
    runs: int
    counted: int


def cost(jaxpr: ClosedJaxpr, compiled: Any = None, every: int = 1) -> Cost:
    """What a traced function costs; `compiled` is its program where there is one already. The outermost
    conditionals take their costliest branch once in `every` runs, otherwise the cheapest.

    On accelerators operations are counted before the compiler turns products into calls of libraries, which it then
    does not count, and on the CPU beside them, whose backend can; bytes are always those of the compiled program.
    """
    return _whole(jaxpr, _own(jaxpr, compiled), every)


def _whole(jaxpr: ClosedJaxpr, total: Cost, every: int = 1) -> Cost:
    """The cost of a function of which `total` was counted."""
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
    """As XLA counts it."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    lowered = lambda: jax.jit(jaxpr_as_fun(jaxpr)).lower(*shapes)
    counted = after = (compiled or lowered().compile()).cost_analysis() or {}
    if jax.default_backend() != "cpu":
        with jax.default_device(host()):
            counted = lowered().cost_analysis() or {}
    return Cost(max(counted.get("flops", 0.0), 0.0), max(after.get("bytes accessed", 0.0), 0.0))


def host() -> jax.Device:
    """The CPU beside an accelerator; a UserError where JAX was told not to use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        platforms = f"JAX_PLATFORMS={jax.config.jax_platforms},cpu"
        raise UserError(f"operations are counted on the CPU beside the device: name it too, {platforms}") from None


def parts(jaxpr: Jaxpr, every: int = 1) -> Iterator[Part | Cost | None]:
    """The outermost loops; None stands for one of unknown length. And what conditionals cost beyond what was counted
    of them, the most of any branch: for those with loops in them, and those that seldom take the costliest."""
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
