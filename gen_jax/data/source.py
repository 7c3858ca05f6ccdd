"""Data as a function of the step: `source.batch_at(step)` is pure, so nothing about data needs a checkpoint.

`Resident` keeps its arrays on the device and is traced into the compiled step. `Streamed` reads records on the host,
ahead of the training step, in threads or worker processes. Both visit the examples in the same order: see
`gen_jax.data.order`. With batch size B and N examples an epoch has N // B steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax.core import Batch, fold_in
from gen_jax.data.checks import as_arrays, check_arrays
from gen_jax.data.host import HostTransform, generators, transform_images
from gen_jax.data.order import InOrder, Order, Shuffled, permute
from gen_jax.data.records import Arrays, Column, is_lazy, nbytes, read_ahead, take
from gen_jax.data.transforms import Transform, as_transforms
from gen_jax.errors import UserError

__all__ = [
    "Arrays",
    "Resident",
    "Streamed",
    "Window",
    "apply_transforms",
    "check_division",
    "epoch",
    "permute",
    "too_large_for_device",
]

_BLOCK = 64  # steps whose examples are determined together
_FAR = 2**40  # more steps than any run has


def apply_transforms(raw: Batch, transforms: tuple[Transform, ...], seed, step) -> Batch:
    """Applies the transforms to a raw batch; noise is keyed by (seed, step)."""
    for i, transform in enumerate(transforms):
        raw = transform(raw, fold_in(jax.random.key(seed), "data", i, step))
    return raw


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays", "seed", "order"],
    meta_fields=["batch", "shuffle", "transforms", "missing", "name"],
)
@dataclass(frozen=True)
class Resident:
    """Arrays on the device, all with the same leading axis. `batch=None`: all examples at every step, in order.

    missing: NaN in "x" marks missing values, for models that accept them. name: of the data, for messages. order: by
    default `Shuffled`, or `InOrder` with shuffle=False.
    """

    arrays: Arrays
    batch: int | None = None
    transforms: tuple[Transform, ...] = ()
    shuffle: bool = True
    seed: Any = 0
    missing: bool = False
    name: str = "the data"
    order: Order | None = None

    def __post_init__(self):
        object.__setattr__(self, "transforms", as_transforms(self.transforms))
        if any(isinstance(a, (np.ndarray, list, tuple, NoneType)) for a in self.arrays.values()):
            object.__setattr__(self, "arrays", as_arrays(self.arrays, self.name))
        if is_lazy(self.arrays):
            read = {name: np.asarray(a) if isinstance(a, Column) else a for name, a in self.arrays.items()}
            object.__setattr__(self, "arrays", read)

    @property
    def size(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    @property
    def batch_size(self) -> int:
        return self.batch or self.size

    def batch_at(self, step) -> Batch:
        if self.batch is None:
            raw = {**self.arrays, "index": jnp.arange(self.size, dtype=jnp.int32)}
        else:
            index = _order(self).rows(jnp.asarray(step), self.size, self.batch, self.seed)
            raw = {name: jnp.asarray(a)[index] for name, a in self.arrays.items()} | {"index": index}
        return apply_transforms(raw, self.transforms, self.seed, step)

    def example(self) -> Resident:
        return self

    def window(self, step: int, n: int) -> Resident:
        return self

    def check(self) -> None:
        check_arrays(self.arrays, self.batch, self.name, self.missing, self.transforms)
        if self.batch is not None:
            _order(self).check(self.size, self.batch)

    def place(self, mesh: Mesh) -> Resident:
        """The same source with its arrays on every device of the mesh."""
        check_division(self.batch_size, mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        put = lambda a: jax.make_array_from_process_local_data(everywhere, np.asarray(a))
        order = jax.tree.map(put, self.order)
        return replace(self, arrays=jax.tree.map(put, dict(self.arrays)), seed=put(np.uint32(self.seed)), order=order)

    def close(self) -> None: ...


def _order(source: Resident | Streamed) -> Order:
    return source.order or (Shuffled() if source.shuffle else InOrder())


@partial(jax.tree_util.register_dataclass, data_fields=["batches", "start", "seed"], meta_fields=["transforms"])
@dataclass(frozen=True)
class Window:
    """The raw batches of consecutive steps, stacked: (n, B, ...)."""

    batches: Arrays
    start: Any
    seed: Any
    transforms: tuple[Transform, ...] = ()

    def batch_at(self, step) -> Batch:
        raw = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, step - self.start, keepdims=False), self.batches)
        return apply_transforms(raw, self.transforms, self.seed, step)


@dataclass
class Streamed:
    """Records read on the host, up to `prefetch` batches ahead of the training step.

    `records(indices)` returns a dict of NumPy arrays (B, ...); `size` is the number of records. With several processes
    each reads only its `shard = (process, processes)` of every batch. host: transforms of single images "x" as they
    are read. threads: how many read at once, by default one per core. workers: processes that read instead, for
    transforms in Python that keep one core busy; records and transforms must then be picklable.
    """

    records: Callable[[np.ndarray], Arrays]
    size: int
    batch: int
    transforms: tuple[Transform, ...] = ()
    shuffle: bool = True
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    prefetch: int = 8
    sharding: Any = None  # sharding of windows (n, B, ...); set by `place`
    order: Order | None = None
    host: Sequence[HostTransform] = ()
    threads: int = 0
    workers: int = 0
    grouped: int = 1  # batches that are read and put on the device together, where they are small
    _reader: Generator[list[Arrays], None, None] | None = field(default=None, repr=False)
    _expected: int = field(default=-1, repr=False)
    _group: tuple[int, list[Arrays]] = field(default=(0, []), repr=False)  # the last one read, from its first step on
    _held: Window | None = field(default=None, repr=False)  # that group on the device
    _visits: tuple[int, np.ndarray] | None = field(default=None, repr=False)  # of a block of steps

    def __post_init__(self):
        self.transforms = as_transforms(self.transforms)
        self.check()

    @classmethod
    def of(cls, arrays: Arrays, batch: int | None, transforms: Sequence[Transform] = (), **more: Any) -> Streamed:
        """A source of arrays and columns; with `batch=None`, all examples at every step, in order."""
        size = len(arrays["x"])
        width = max(1, nbytes(arrays) * (batch or size) // size)  # bytes of a batch
        depth, grouped = int(np.clip(2**28 // width, 2, 8)), int(np.clip(2**20 // width, 1, 32))
        more = {"prefetch": depth, "grouped": grouped, "shuffle": batch is not None, **more}
        return cls(partial(take, arrays), size, batch or size, tuple(transforms), **more)

    @property
    def batch_size(self) -> int:
        return self.batch

    def batch_at(self, step: int) -> Batch:
        """The transformed batch of a step (this process's part)."""
        return apply_transforms(jax.tree.map(jnp.asarray, self._read(int(step))), self.transforms, self.seed, step)

    def example(self) -> Window:
        return self._window(0, [self._read(0)])

    def window(self, step: int, n: int) -> Window:
        """The n batches from `step` on, prefetched as long as calls are consecutive."""
        if self._reader is None or self._expected != step:
            self.close()
            reader, threads = replace(self), self.threads or os.cpu_count() or 1
            read = partial(reader._read_group, step)
            self._reader = read_ahead(read, 0, _FAR, self.prefetch, threads, self.workers)
            self._group = step, []
        self._expected = step + n
        if n == 1:
            self._batch_of(step)
            self._held = self._held or self._window(*self._group)
            return self._held
        return self._window(step, [self._batch_of(i) for i in range(step, step + n)])

    def _batch_of(self, step: int) -> Arrays:
        """The raw batch of a step of the last group, or of the next one."""
        start, rows = self._group
        if step >= start + len(rows):
            start, rows = self._group = step, next(self._reader)
            self._held = None
        return rows[step - start]

    def _read_group(self, start: int, number: int) -> list[Arrays]:
        first = start + number * self.grouped
        return [self._read(step) for step in range(first, first + self.grouped)]

    def check(self) -> None:
        if not 1 <= self.batch <= self.size:
            raise UserError(f"batch = {self.batch}, but there are {self.size} records: choose 1 to {self.size}")
        _order(self).check(self.size, self.batch)

    def place(self, mesh: Mesh) -> Streamed:
        """The same source with batches sharded over the mesh; with several processes each reads its part."""
        check_division(self.batch, mesh)
        processes = jax.process_count()
        owners = [[device.process_index for device in row] for row in mesh.devices]
        if owners != [[i * processes // len(owners)] * len(owners[0]) for i in range(len(owners))]:
            raise UserError(
                "streamed data needs a mesh whose data axis has equal parts in all processes, in their order"
            )
        sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
        return replace(self, sharding=sharding, shard=(jax.process_index(), processes), _reader=None, _held=None)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = self._held = None

    def _read(self, step: int) -> Arrays:
        index = self._index(step)
        process, processes = self.shard
        mine = np.array_split(np.arange(self.batch), processes)[process]
        raw = {**self.records(index[mine]), "index": index[mine]}
        if self.host:
            rngs = generators(self.seed, step, index)
            raw["x"] = transform_images(raw["x"], self.host, [rngs[i] for i in mine])
        return raw

    def _index(self, step: int) -> np.ndarray:
        """The examples of a step; those of many steps, determined together, cost little more."""
        block, visits = step // _BLOCK, self._visits
        if visits is None or visits[0] != block:
            steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.int64)[:, None]
            visits = self._visits = block, _order(self).rows(steps, self.size, self.batch, self.seed)
        return visits[1][step % _BLOCK]

    def _window(self, step: int, rows: list[Arrays]) -> Window:
        stacked = {
            name: np.stack([row[name] for row in rows]) if len(rows) > 1 else a[None] for name, a in rows[0].items()
        }
        if self.sharding is None:
            batches = jax.device_put(stacked)
        else:
            batches = jax.tree.map(partial(jax.make_array_from_process_local_data, self.sharding), stacked)
        return Window(batches, np.int32(step), np.uint32(self.seed), self.transforms)


def too_large_for_device(arrays: Arrays) -> str:
    """The reason to stream a split instead of keeping it on the device; "" if there is none.

    It may take a quarter of the memory of the device, or of what is free in the memory of the host.
    """
    size, device = nbytes(arrays), jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        free, where = stats["bytes_limit"], f"{device.device_kind}'s"
    else:  # devices of the host share its memory
        free, where = _available() // jax.local_device_count(), "free"
    if size <= free // 4:
        return ""
    return f"{size / 2**30:.2g} GiB are more than a quarter of the {free / 2**30:.2g} GiB of {where} memory"


def _available() -> int:
    """Bytes of memory that programs can still have, caches of files included."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def epoch(arrays: Arrays, batch: int) -> Iterator[tuple[Arrays, np.ndarray]]:
    """Yields every example exactly once, in order, as raw (batch, mask): the last batch is padded, with mask (B,) 0."""
    size = len(arrays["x"])
    indices = [np.arange(start, start + batch, dtype=np.int32) for start in range(0, size, batch)]
    read = lambda i: take(arrays, np.minimum(indices[i], size - 1))
    if is_lazy(arrays):
        batches = read_ahead(read, 0, len(indices), depth=4, threads=os.cpu_count() or 1)
    else:
        batches = map(read, range(len(indices)))
    for index, raw in zip(indices, batches):
        mask = (index < size).astype(np.float32)
        yield raw | {"index": np.minimum(index, size - 1)}, mask


def check_division(batch: int, mesh: Mesh) -> None:
    """Raises a UserError if the batch cannot be divided over the devices of the mesh's "data" axis."""
    devices = mesh.shape["data"]
    if batch % devices:
        raise UserError(
            f"a batch of {batch} cannot be divided over {devices} devices: choose another --batch, or fewer --devices"
        )
