"""Orders in which the examples of a source are visited: pure functions of the step, the same on host and device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gen_jax.errors import UserError

__all__ = ["Balanced", "InOrder", "Order", "Repeated", "Shuffled", "permute"]

_ROUNDS = 32


class Order(Protocol):
    """The examples that each step visits."""

    def rows(self, step: Any, size: int, batch: int, seed: Any) -> Any:
        """(B,) indices of the examples of a step, on the host for a Python number; (S, B) for steps (S, 1) in NumPy."""

    def check(self, size: int, batch: int) -> None:
        """Raises UserError if batches of this size cannot be made."""


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclass(frozen=True)
class Shuffled:
    """A new order in each epoch, with every example at most once; the few that do not fill a batch differ."""

    def rows(self, step: Any, size: int, batch: int, seed: Any) -> Any:
        return permute(_places(step, size, batch), size, seed, step // (size // batch))

    def check(self, size: int, batch: int) -> None: ...


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclass(frozen=True)
class InOrder:
    """The stored order, from the first example on."""

    def rows(self, step: Any, size: int, batch: int, seed: Any) -> Any:
        return _places(step, size, batch)

    def check(self, size: int, batch: int) -> None: ...


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["times"])
@dataclass(frozen=True)
class Repeated:
    """Repeated augmentation: each batch holds every example `times` times, with transforms of its own (Hoffer et al.
    2020)."""

    times: int

    def rows(self, step: Any, size: int, batch: int, seed: Any) -> Any:
        rows = Shuffled().rows(step, size, batch // self.times, seed)
        return (
            rows.repeat(self.times, total_repeat_length=batch)
            if isinstance(rows, jax.Array)
            else rows.repeat(self.times, axis=-1)
        )

    def check(self, size: int, batch: int) -> None:
        if self.times < 1 or batch % self.times:
            raise UserError(f"a batch of {batch} cannot hold every example {self.times} times: choose a multiple")


@partial(jax.tree_util.register_dataclass, data_fields=["table", "starts", "counts"], meta_fields=[])
@dataclass(frozen=True)
class Balanced:
    """Class-balanced sampling: the classes take turns, each in an order of its own that starts anew at its end.

    table: the examples (N,) sorted by class. starts, counts: where the classes begin in it, and their sizes (K,).
    """

    table: Any
    starts: Any
    counts: Any

    @classmethod
    def of(cls, labels: Any) -> Balanced:
        """The order for labels (N,); classes without examples are left out."""
        labels = np.asarray(labels)
        table = np.argsort(labels, kind="stable").astype(np.int32)
        _, starts, counts = np.unique(labels[table], return_index=True, return_counts=True)
        return cls(table, starts.astype(np.int32), counts.astype(np.int32))

    def rows(self, step: Any, size: int, batch: int, seed: Any) -> Any:
        xp = jnp if isinstance(step, jax.Array) else np
        table, starts, counts = (xp.asarray(a) for a in (self.table, self.starts, self.counts))
        classes = len(starts)
        whole, rest = divmod(batch, classes)
        step = xp.asarray(step, xp.uint32)  # which wraps alike on host and device
        turn = rest * (step % classes) + xp.arange(batch, dtype=xp.uint32)
        round_ = whole * step + rest * (step // classes) + turn // classes  # of (step * batch + i) // classes
        one = permute(turn % classes, classes, seed, round_)
        count = counts[one].astype(xp.uint32)
        place = permute(round_ % count, count, seed + 1 + one.astype(xp.uint32), round_ // count)
        return table[starts[one] + place]

    def check(self, size: int, batch: int) -> None:
        if len(self.table) != size:
            raise UserError(f"class-balanced sampling needs a label for each of {size} examples, got {len(self.table)}")


def _places(step: Any, size: int, batch: int) -> Any:
    """(B,) places of a step in its epoch."""
    xp = jnp if isinstance(step, jax.Array) else np
    return ((step % (size // batch)) * batch + xp.arange(batch, dtype=xp.int32)).astype(xp.int32)


def permute(index, size, seed, epoch):
    """Maps `index` by the permutation of 0 .. size - 1 keyed by (seed, epoch). Takes NumPy or JAX arrays.

    size, seed and epoch are numbers, or arrays like `index`. A swap-or-not network (Hoang, Morris & Rogaway 2012): each
    round pairs every position x with k - x (mod size) and swaps the pair or not by one hashed bit, so it is a bijection
    for every size, without sorting or tables.
    """
    xp = np if isinstance(index, np.ndarray) else jnp
    with np.errstate(over="ignore"):
        size, key = (
            xp.asarray(size, xp.uint32),
            _hash(_hash(xp.asarray(seed, xp.uint32)) + xp.asarray(epoch, xp.uint32)),
        )
        numbers = 2 * xp.arange(_ROUNDS, dtype=xp.uint32) + 1
        keys = _hash(key + numbers.reshape(-1, *(1,) * key.ndim))  # (rounds, ...)
        pivots, salts = keys % size, _hash(keys)

    def exchange(i, x):
        pivot = pivots[i]
        partner = xp.where(x <= pivot, pivot - x, pivot + size - x)
        swap = _hash(xp.maximum(x, partner) ^ salts[i]) >> 31
        return xp.where(swap == 1, partner, x)

    x = index.astype(xp.uint32)
    if xp is np:
        with np.errstate(over="ignore"):
            for i in range(_ROUNDS):
                x = exchange(i, x)
    else:  # a loop: some versions of XLA take minutes to compile it unrolled
        x = lax.fori_loop(0, _ROUNDS, exchange, x)
    return x.astype(xp.int32)


def _hash(x):
    """The 32-bit finalizer of MurmurHash3: every input bit affects every output bit. It overflows."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
