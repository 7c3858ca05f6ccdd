"""Text files as bytes: lines of different lengths, or windows of one long stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.dataset import Dataset, describe
from gen_jax.data.folders import content_splits, fraction
from gen_jax.data.tables import align, pad
from gen_jax.errors import UserError

__all__ = ["SUFFIXES", "open_text"]

SUFFIXES = (".txt", ".text", ".md")


def open_text(paths: Mapping[str, Path], options: Any, name: str) -> Dataset:
    """Lines as sequences of bytes "x" (N, T) with "length", or windows of `options.length` bytes of the whole text.

    Lines are split 80/10/10 % by their content; a stream by position, so that the last tenth is for testing.
    """
    texts = {split: _read(path) for split, path in paths.items()}
    make = _lines if options.text == "lines" else _windows
    parts = {split: make(text, options, paths[split]) for split, text in texts.items()}
    if len(parts) == 1:
        parts = _split_lines(parts[""], name) if options.text == "lines" else _split_stream(parts[""], name)
    elif missing := {"train", "validation", "test"} - parts.keys():
        raise UserError(f"{name} has no text for the splits {', '.join(sorted(missing))}: give one file, or all three")
    lines = options.text == "lines"
    splits = {split: pad(some) if lines else {"x": np.stack(some)} for split, some in parts.items()}
    splits = align(splits) if lines else splits
    return Dataset(name, splits, {**describe(splits), "levels": 256})


def _read(path: Path) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    if not len(data):
        raise UserError(f"{path} is empty")
    return data


def _lines(text: np.ndarray, options: Any, path: Path) -> list[np.ndarray]:
    lines = [np.frombuffer(line, np.uint8) for line in text.tobytes().splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} has no lines with text")
    longest = max(map(len, lines))
    if longest > options.length:
        number = next(i for i, line in enumerate(lines) if len(line) == longest)
        raise UserError(
            f"{path}: line {number + 1} of those with text has {longest:,} bytes, more than --length {options.length}: "
            "raise it, or read the text as one stream"
        )
    return lines


def _windows(text: np.ndarray, options: Any, path: Path) -> list[np.ndarray]:
    windows = len(text) // options.length
    if windows < 3:
        raise UserError(f"{path} has {len(text):,} bytes, too few for windows of {options.length}: lower --length")
    return list(text[: windows * options.length].reshape(windows, options.length))


def _split_lines(lines: list[np.ndarray], name: str) -> dict[str, list[np.ndarray]]:
    values = np.array([fraction(hashlib.blake2b(line.tobytes(), digest_size=16).hexdigest()) for line in lines])
    parts = content_splits(values, ("validation", "test"), name)
    return {split: [lines[i] for i in part] for split, part in parts.items()}


def _split_stream(windows: list[np.ndarray], name: str) -> dict[str, list[np.ndarray]]:
    tenth = max(1, len(windows) // 10)
    return {"train": windows[: -2 * tenth], "validation": windows[-2 * tenth : -tenth], "test": windows[-tenth:]}
