"""Composed sources: unpaired domains, mixtures, and windows of one long token stream.

Each is a `core.Source` like its members, so chunks, several devices and exact resumption work as for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax.core import Batch, Source
from gen_jax.data.dataset import Dataset
from gen_jax.data.order import permute
from gen_jax.data.source import check_division
from gen_jax.errors import UserError

__all__ = ["Mixed", "TokenWindows", "Unpaired", "pairs_apart", "shares"]


class _Composed:
    """Methods applied to every member."""

    sources: Mapping[str, Any] | Sequence[Any]

    def _each(self, f) -> Any:
        return jax.tree.map(f, self.sources, is_leaf=lambda a: isinstance(a, Source))

    def _members(self) -> list[Source]:
        return jax.tree.leaves(self.sources, is_leaf=lambda a: isinstance(a, Source))

    def example(self):
        return replace(self, sources=self._each(lambda source: source.example()))

    def window(self, step: int, n: int):
        return replace(self, sources=self._each(lambda source: source.window(step, n)))

    def check(self) -> None:
        for source in self._members():
            source.check()

    def place(self, mesh: Mesh):
        return replace(self, sources=self._each(lambda source: source.place(mesh)))

    def close(self) -> None:
        for source in self._members():
            source.close()


@partial(jax.tree_util.register_dataclass, data_fields=["sources"], meta_fields=["batch_size"])
@dataclass(frozen=True)
class Unpaired(_Composed):
    """Unpaired domains: `Unpaired.of(x=photos, y=paintings)`, each with its own length and order.

    The entry "x" of the source called "y" becomes "y", its other entries "y_label" and so on. Give the sources
    different seeds: with equal lengths and seeds they are visited in the same order.
    """

    sources: Mapping[str, Any]
    batch_size: int

    @classmethod
    def of(cls, **sources: Source) -> Unpaired:
        sizes = {name: source.batch_size for name, source in sources.items()}
        if len(set(sizes.values())) != 1:
            raise UserError(f"unpaired sources need batches of one size, got {sizes}")
        return cls(sources, next(iter(sizes.values())))

    def batch_at(self, step: Array | int) -> Batch:
        batch: dict[str, Any] = {}
        for name, source in self.sources.items():
            prefix = "" if name == "x" else f"{name}_"
            entries = source.batch_at(step)
            batch |= {name if entry == "x" else f"{prefix}{entry}": a for entry, a in entries.items()}
        return batch


@partial(jax.tree_util.register_dataclass, data_fields=["sources"], meta_fields=["batch_size"])
@dataclass(frozen=True)
class Mixed(_Composed):
    """A mixture: every batch concatenates the batches of all sources; their sizes are the mixture weights.

    Entries that not all sources have are dropped; "source" (B,) is the index of each example's source.
    """

    sources: Sequence[Any]
    batch_size: int

    @classmethod
    def of(cls, *sources: Source) -> Mixed:
        if not sources:
            raise UserError("a mixture needs at least one source")
        return cls(tuple(sources), sum(source.batch_size for source in sources))

    @classmethod
    def weighted(cls, make: Sequence[Callable[[int], Source]], weights: Sequence[float], batch: int) -> Mixed:
        """A mixture in given proportions: functions from the size of a source's share of the batch to the source.

        Mixed.weighted([lambda n: Resident(a, n), lambda n: Resident(b, n)], weights=[3, 1], batch=64)
        """
        return cls.of(*(one(share) for one, share in zip(make, shares(weights, batch), strict=True)))

    def batch_at(self, step: Array | int) -> Batch:
        batches = [source.batch_at(step) for source in self.sources]
        shared = set.intersection(*(set(batch) for batch in batches))
        batch = {name: jnp.concatenate([one[name] for one in batches]) for name in batches[0] if name in shared}
        sizes = [len(one["x"]) for one in batches]
        return {
            **batch,
            "source": jnp.repeat(jnp.arange(len(sizes)), jnp.asarray(sizes), total_repeat_length=sum(sizes)),
        }


def shares(weights: Sequence[float], batch: int) -> list[int]:
    """Whole numbers in the proportions of the weights that add up to the batch, each at least 1."""
    given = np.asarray(weights, float)
    if not len(given) or not np.isfinite(given).all() or given.min() <= 0:
        raise UserError(f"weights of a mixture must be positive numbers, got {given.tolist()}")
    if batch < len(given):
        raise UserError(f"a batch of {batch} has no room for {len(given)} sources")
    exact = given / given.sum() * batch
    found = np.maximum(1, np.floor(exact)).astype(int)
    while found.sum() != batch:
        change = 1 if found.sum() < batch else -1
        room = np.where((found + change >= 1), change * (exact - found), -np.inf)
        found[int(room.argmax())] += change
    return found.tolist()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "seed"],
    meta_fields=["length", "batch", "shuffle", "overlap", "uncounted"],
)
@dataclass(frozen=True)
class TokenWindows:
    """Windows of one token stream (N,): "x" (B, length), each window visited once per epoch, in a new order.

    Windows begin at multiples of `length - overlap` plus an offset that changes every epoch, so that over the epochs
    every position is predicted from contexts of every length. overlap: how many of the last tokens of a window also
    begin the next. uncounted: a token that "mask" (B, length) leaves out.
    """

    tokens: Any
    length: int
    batch: int
    shuffle: bool = True
    seed: Any = 0
    overlap: int = 0
    uncounted: int | None = None

    @property
    def batch_size(self) -> int:
        return self.batch

    @property
    def stride(self) -> int:
        return self.length - self.overlap

    @property
    def windows(self) -> int:
        """Windows per epoch, valid for any offset below the stride."""
        return (len(self.tokens) - self.length - self.stride + 1) // self.stride + 1

    def batch_at(self, step: Array | int) -> Batch:
        step = jnp.asarray(step, jnp.int32)
        per_epoch = self.windows // self.batch
        epoch, index = step // per_epoch, (step % per_epoch) * self.batch + jnp.arange(self.batch, dtype=jnp.int32)
        offset = 0
        if self.shuffle:
            index = permute(index, self.windows, self.seed, epoch)
            offset = permute((epoch % self.stride)[None].astype(jnp.int32), self.stride, self.seed, 0)[0]
        at = index[:, None] * self.stride + offset + jnp.arange(self.length)
        x = jnp.asarray(self.tokens)[at]
        batch = {"x": x, "index": index}
        return batch if self.uncounted is None else {**batch, "mask": (x != self.uncounted).astype(jnp.float32)}

    def example(self) -> TokenWindows:
        return self

    def window(self, step: int, n: int) -> TokenWindows:
        return self

    def check(self) -> None:
        if self.length < 1 or np.ndim(self.tokens) != 1 or np.asarray(self.tokens).dtype.kind not in "iu":
            raise UserError("tokens must be integers (N,) and the length of windows at least 1")
        if not 0 <= self.overlap < self.length:
            raise UserError(f"the overlap of windows must be below their length {self.length}, got {self.overlap}")
        if not 1 <= self.batch <= self.windows:
            raise UserError(
                f"batch = {self.batch}, but {len(self.tokens)} tokens have {max(self.windows, 0)} windows of "
                f"{self.length}: choose a smaller batch or length"
            )

    def place(self, mesh: Mesh) -> TokenWindows:
        check_division(self.batch, mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        put = lambda a: jax.make_array_from_process_local_data(everywhere, np.asarray(a))
        return replace(self, tokens=put(self.tokens), seed=put(np.uint32(self.seed)))

    def close(self) -> None: ...


def pairs_apart(data: Dataset) -> Dataset:
    """Two unpaired domains from pairs of "x" and "y": no pair of the training split has both of its sides there.

    The domain "x" has the even examples of that split, its partner the odd ones; the other splits stay aligned, so that
    translations can be compared with the truth.
    """
    if "y" not in data["train"]:
        raise UserError(f'{data.name} has no pairs, entries "x" and "y", to take apart')

    def side(entry: str, first: int) -> Dataset:
        splits = {}
        for name, arrays in data.splits.items():
            rows = slice(first, None, 2) if name == "train" else slice(None)
            kept = {e: a for e, a in arrays.items() if e not in ("x", "y")}
            splits[name] = {e: a[rows] for e, a in {**kept, "x": arrays[entry]}.items()}
        info = data.info
        digest = hashlib.sha256(f"{info.digest} {entry}".encode()).hexdigest()
        shape = tuple(data["train"][entry].shape[1:])
        said = {**asdict(info), "shape": shape, "digest": digest, "aligned": True}
        return Dataset(f"{data.name}-{entry}", splits, said)

    return replace(side("x", 0), name=f"{data.name}-unpaired", partner=side("y", 1))
