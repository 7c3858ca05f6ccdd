"""Sizes and layouts of arrays that let few compiled programs serve data of any size."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gen_jax.core import Batch

__all__ = ["Placement", "map_rows", "pack_sequences", "pad_rows", "rounded"]

BLOCK = 1 << 14  # rows per call where each is computed by itself


def rounded(n: int) -> int:
    """The next of eight sizes per power of two, at most an eighth larger than n."""
    step = 1 << max(int(n - 1).bit_length() - 4, 0)
    return -(-n // step) * step


def pad_rows(a: np.ndarray, n: int) -> np.ndarray:
    """The array (N, ...) with rows of zeros up to n."""
    return a if len(a) == n else np.concatenate([a, np.zeros((n - len(a), *a.shape[1:]), a.dtype)])


def map_rows(f: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """Computes a row-wise function of x (N, ...) in blocks whose sizes are powers of two, at most a fifth of them
    padding unless there are few rows."""

    def blocks() -> Iterator[np.ndarray]:
        start = 0
        while start < len(x):
            rest = len(x) - start
            size = 1 << (max(rest, min(len(x), 65)) - 1).bit_length()  # at least 128 rows, so that sizes are few
            if size > BLOCK or size > max(1.25 * rest, 256):
                size = min(size // 2, BLOCK)
            part = x[start : start + size]
            yield np.asarray(f(pad_rows(part, size)))[: len(part)]
            start += size

    found = list(blocks())
    return found[0] if len(found) == 1 else np.concatenate(found)


class Placement(NamedTuple):
    """The places of the steps of concatenated sequences in a batch."""

    rows: np.ndarray  # (N,)
    columns: np.ndarray  # (N,)
    sequences: int  # how many there are, without those of length 0

    def unpacked(self, a: Any) -> np.ndarray:
        """(N, ...) from the values of a batch (B, T, ...)."""
        return np.asarray(a)[self.rows, self.columns]


def pack_sequences(entries: Batch, lengths: np.ndarray) -> tuple[Batch, Placement]:
    """A batch (B, T, ...) of concatenated sequences (N, ...).

    Rows are as long as the longest sequence and hold several shorter ones, so that at most about half of the batch is
    padding, whatever the lengths. Sequences of length 0 are left out.
    """
    lengths = lengths[lengths > 0]
    longest, places, free = int(lengths.max()), np.zeros((len(lengths), 2), np.int64), []
    if lengths.min() * 2 > longest:  # no two fit into a row
        places[:, 0] = np.arange(len(lengths))
        used = lengths
    else:
        for i in np.argsort(-lengths, kind="stable"):  # the longest first, each into the emptiest row
            n = int(lengths[i])
            if free and free[0][0] + n <= longest:
                full, row = free[0]
                heapq.heapreplace(free, (full + n, row))
            else:
                full, row = 0, len(free)
                heapq.heappush(free, (n, row))
            places[i] = row, full
        used = np.array([full for full, _ in sorted(free, key=lambda item: item[1])])
    begins = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
    rows, columns = np.repeat(places[:, 0], lengths), np.repeat(places[:, 1], lengths) + within
    shape = rounded(len(used)), rounded(longest)
    batch = {"length": pad_rows(used.astype(np.int32), shape[0])}
    for name, a in entries.items():
        batch[name] = np.zeros((*shape, *a.shape[1:]), a.dtype)
        batch[name][rows, columns] = a
    if len(used) < len(lengths):
        batch["starts"] = np.zeros(shape, bool)
        later = places[places[:, 1] > 0]
        batch["starts"][later[:, 0], later[:, 1]] = True
    return batch, Placement(rows, columns, len(lengths))
