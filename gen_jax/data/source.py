"""Data as a function of the step: `source.batch_at(step)` is pure, so nothing about data needs a checkpoint.

`Resident` keeps its arrays on the device and is traced into the compiled step. `Streamed` reads records on the host in
a thread. Both visit the examples in the same order: in each epoch a new permutation keyed by (seed, epoch) and computed
element by element, in O(batch) per step. With batch size B and N examples an epoch has N // B steps, and the N mod B
examples dropped differ from epoch to epoch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax.core import Batch, fold_in
from gen_jax.data.transforms import Transform, as_transforms
from gen_jax.errors import UserError

__all__ = [
    "Arrays",
    "Resident",
    "Streamed",
    "Window",
    "apply_transforms",
    "check_arrays",
    "check_division",
    "epoch",
    "permute",
]

Arrays = Mapping[str, Any]
_ROUNDS = 32


def permute(index, size: int, seed, epoch):
    """Maps `index` by the permutation of 0 .. size - 1 keyed by (seed, epoch). Takes NumPy or JAX arrays.

    A swap-or-not network (Hoang, Morris & Rogaway 2012): each round pairs every position x with k - x (mod size) and
    swaps the pair or not by one hashed bit, so it is a bijection for every size, without sorting or tables.
    """
    xp = np if isinstance(index, np.ndarray) else jnp
    size, key = xp.uint32(size), _hash(_hash(xp.asarray(seed, xp.uint32)) + xp.asarray(epoch, xp.uint32))

    def exchange(i, x):
        round_key = _hash(key + xp.asarray(2 * i + 1, xp.uint32))
        pivot = round_key % size
        partner = xp.where(x <= pivot, pivot - x, pivot + size - x)
        swap = _hash(xp.maximum(x, partner) ^ _hash(round_key)) >> 31
        return xp.where(swap == 1, partner, x)

    x = index.astype(xp.uint32)
    if xp is np:
        for i in range(_ROUNDS):
            x = exchange(i, x)
    else:  # a loop: some versions of XLA take minutes to compile it unrolled
        x = lax.fori_loop(0, _ROUNDS, exchange, x)
    return x.astype(xp.int32)


def _hash(x):
    """The 32-bit finalizer of MurmurHash3: every input bit affects every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
        return x ^ (x >> 16)


def _order(step, size: int, batch: int, seed, shuffle: bool):
    """(B,) indices of the examples of a step."""
    xp = jnp if isinstance(step, jax.Array) else np
    per_epoch = size // batch
    index = (step % per_epoch) * batch + xp.arange(batch, dtype=xp.int32)
    return permute(index, size, seed, step // per_epoch) if shuffle else index.astype(xp.int32)


def apply_transforms(raw: Batch, transforms: tuple[Transform, ...], seed, step) -> Batch:
    """Applies the transforms to a raw batch; noise is keyed by (seed, step)."""
    for i, transform in enumerate(transforms):
        raw = transform(raw, fold_in(jax.random.key(seed), "data", i, step))
    return raw


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays", "seed"],
    meta_fields=["batch", "shuffle", "transforms", "missing", "name"],
)
@dataclass(frozen=True)
class Resident:
    """Arrays on the device, all with the same leading axis. `batch=None`: all examples at every step, in order.

    missing: NaN in "x" marks missing values, for models that accept them. name: of the data, for messages.
    """

    arrays: Arrays
    batch: int | None = None
    transforms: tuple[Transform, ...] = ()
    shuffle: bool = True
    seed: Any = 0
    missing: bool = False
    name: str = "the data"

    def __post_init__(self):
        object.__setattr__(self, "transforms", as_transforms(self.transforms))

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
            index = _order(jnp.asarray(step), self.size, self.batch, self.seed, self.shuffle)
            raw = {name: jnp.asarray(a)[index] for name, a in self.arrays.items()} | {"index": index}
        return apply_transforms(raw, self.transforms, self.seed, step)

    def example(self) -> Resident:
        return self

    def window(self, step: int, n: int) -> Resident:
        return self

    def check(self) -> None:
        check_arrays(self.arrays, self.batch, self.name, self.missing)

    def place(self, mesh: Mesh) -> Resident:
        """The same source with its arrays on every device of the mesh."""
        check_division(self.batch_size, mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        put = lambda a: jax.make_array_from_process_local_data(everywhere, np.asarray(a))
        return replace(self, arrays=jax.tree.map(put, dict(self.arrays)), seed=put(np.uint32(self.seed)))

    def close(self) -> None: ...


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
    each reads only its `shard = (process, processes)` of every batch.
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
    _reader: Generator[Arrays, None, None] | None = field(default=None, repr=False)
    _expected: int = field(default=-1, repr=False)

    def __post_init__(self):
        self.transforms = as_transforms(self.transforms)
        self.check()

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
            self._reader = _ahead(lambda i: self._read(step + i), self.prefetch)
        self._expected = step + n
        return self._window(step, [next(self._reader) for _ in range(n)])

    def check(self) -> None:
        if not 1 <= self.batch <= self.size:
            raise UserError(f"batch = {self.batch}, but there are {self.size} records: choose 1 to {self.size}")

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
        return replace(self, sharding=sharding, shard=(jax.process_index(), processes), _reader=None)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self, step: int) -> Arrays:
        index = _order(step, self.size, self.batch, self.seed, self.shuffle)
        process, processes = self.shard
        index = np.array_split(index, processes)[process]
        return {**self.records(index), "index": index}

    def _window(self, step: int, rows: list[Arrays]) -> Window:
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if self.sharding is None:
            batches = jax.device_put(stacked)
        else:
            batches = jax.tree.map(partial(jax.make_array_from_process_local_data, self.sharding), stacked)
        return Window(batches, np.int32(step), np.uint32(self.seed), self.transforms)


def _ahead(read: Callable[[int], Any], depth: int) -> Generator[Any, None, None]:
    """Yields read(0), read(1), ... from a thread that stays `depth` results ahead; its exceptions are raised here."""
    results: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return results.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        i = 0
        while not stop.is_set():
            try:
                put((read(i), None))
            except BaseException as error:
                return put((None, error))
            i += 1

    thread = threading.Thread(target=work, name="gen_jax-reader", daemon=True)
    thread.start()
    try:
        while True:
            value, error = results.get()
            if error is not None:
                raise error
            yield value
    finally:
        stop.set()
        thread.join()


def epoch(arrays: Arrays, batch: int) -> Iterator[tuple[Arrays, np.ndarray]]:
    """Yields every example exactly once, in order, as raw (batch, mask): the last batch is padded, with mask (B,) 0."""
    size = len(arrays["x"])
    for start in range(0, size, batch):
        index = np.arange(start, start + batch, dtype=np.int32)
        mask = (index < size).astype(np.float32)
        index = np.minimum(index, size - 1)
        yield {name: np.asarray(a[index]) for name, a in arrays.items()} | {"index": index}, mask


def check_division(batch: int, mesh: Mesh) -> None:
    """Raises a UserError if the batch cannot be divided over the devices of the mesh's "data" axis."""
    devices = mesh.shape["data"]
    if batch % devices:
        raise UserError(
            f"a batch of {batch} cannot be divided over {devices} devices: choose another --batch, or fewer --devices"
        )


def check_arrays(arrays: Arrays, batch: int | None, name: str = "the data", missing: bool = False) -> None:
    """Raises a UserError for arrays that cannot be trained on; `missing` allows NaN in "x"."""
    sizes = {key: len(a) for key, a in arrays.items()}
    if "x" not in arrays:
        raise UserError(f'{name} needs an entry "x" with the observations, got {sorted(arrays)}')
    if len(set(sizes.values())) > 1:
        raise UserError(f"{name}: entries differ in length: {sizes}")
    if sizes["x"] == 0:
        raise UserError(f"{name} is empty")
    if batch is not None and not 1 <= batch <= sizes["x"]:
        raise UserError(f"batch = {batch}, but {name} has {sizes['x']} examples: choose 1 to {sizes['x']}")
    for key, a in arrays.items():
        a = np.asarray(a)
        if a.dtype.kind not in "biuf":
            raise UserError(f'{name}: "{key}" has dtype {a.dtype}; numbers are needed')
        fine = np.isfinite(a) | (np.isnan(a) if missing and key == "x" else False) if a.dtype.kind == "f" else True
        if not np.all(fine):
            bad = np.argwhere(~fine)
            raise UserError(
                f'{name}: "{key}" has {len(bad)} NaN or infinite values, the first at {tuple(bad[0].tolist())}: '
                "remove or impute them (models that integrate over missing values take NaN with missing=True)"
            )
