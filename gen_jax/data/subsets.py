"""Batches of several members at once, each from its own rows of the same arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax.core import Batch
from gen_jax.data.checks import check_arrays
from gen_jax.data.order import Shuffled
from gen_jax.data.records import Arrays
from gen_jax.data.source import apply_transforms, check_division
from gen_jax.data.transforms import Transform
from gen_jax.errors import UserError

__all__ = ["Subsets", "stratified_rows"]


@partial(jax.tree_util.register_dataclass, data_fields=["arrays", "rows", "seeds"], meta_fields=["batch", "transforms"])
@dataclass(frozen=True)
class Subsets:
    """A source of batches (members, B, ...): member i visits the rows `rows[i]` in a new order in each epoch.

    rows: (members, n) indices. batch: examples per step and member. seeds: of orders and transforms, one per member.
    """

    arrays: Arrays
    rows: Any
    batch: int
    transforms: tuple[Transform, ...] = ()
    seeds: Any = None

    def __post_init__(self):
        if self.seeds is None:
            object.__setattr__(self, "seeds", np.arange(len(self.rows), dtype=np.uint32))

    @property
    def batch_size(self) -> int:
        return self.batch

    def batch_at(self, step) -> Batch:
        def one(rows, seed):
            index = rows[Shuffled().rows(jnp.asarray(step), rows.shape[0], self.batch, seed)]
            raw = {name: jnp.asarray(a)[index] for name, a in self.arrays.items()} | {"index": index}
            return apply_transforms(raw, self.transforms, seed, step)

        return jax.vmap(one)(jnp.asarray(self.rows), jnp.asarray(self.seeds))

    def example(self) -> Subsets:
        return self

    def window(self, step: int, n: int) -> Subsets:
        return self

    def check(self) -> None:
        check_arrays(self.arrays, self.batch, "the data", transforms=self.transforms)
        if self.batch > np.shape(self.rows)[1]:
            raise UserError(f"a batch of {self.batch} needs as many examples, there are {np.shape(self.rows)[1]}")

    def place(self, mesh: Mesh) -> Subsets:
        check_division(self.batch, mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        put = lambda a: jax.device_put(np.asarray(a), everywhere)
        return replace(self, arrays=jax.tree.map(put, dict(self.arrays)), rows=put(self.rows), seeds=put(self.seeds))

    def close(self) -> None: ...


def stratified_rows(labels: np.ndarray, n: int, members: int, seed: int = 0) -> np.ndarray:
    """(members, n) random rows without repetition; the classes have their shares, up to rounding, of each."""
    if not 1 <= n <= len(labels):
        raise UserError(f"there are {len(labels):,} labeled examples, not {n:,}")
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.stack([_stratified(classes, n, len(labels), rng) for _ in range(members)])


def _stratified(classes: Sequence[np.ndarray], n: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """n random rows: of each class its share rounded down, and the rest from what is left."""
    orders = [rng.permutation(rows) for rows in classes]
    counts = [len(rows) * n // total for rows in classes]
    chosen = np.concatenate([rows[:k] for rows, k in zip(orders, counts)])
    rest = rng.permutation(np.concatenate([rows[k:] for rows, k in zip(orders, counts)]))
    return rng.permutation(np.concatenate([chosen, rest[: n - len(chosen)]]))
