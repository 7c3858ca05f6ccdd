"""The door through which data enters training and evaluation: arrays in one form, errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gen_jax.data.dataset import blocks, value_range
from gen_jax.data.records import Arrays, Column, take
from gen_jax.data.transforms import Transform, as_transforms
from gen_jax.errors import UserError

__all__ = ["as_arrays", "check_arrays"]

FIRST = 10_000  # examples of a column whose values are compared with what transforms accept


def as_arrays(arrays: Arrays, name: str = "the data") -> dict[str, Any]:
    """Lists as arrays, in the byte order and the precisions of the machine; other entries as they are."""
    return {key: _native(a, f'{name}: "{key}"') for key, a in arrays.items()}


def _native(a: Any, what: str) -> Any:
    if a is None:
        raise UserError(f"{what} is None: leave the entry out")
    if isinstance(a, (list, tuple)):
        try:
            a = np.asarray(a)
        except ValueError:
            raise UserError(f"{what} is a list of examples of different shapes: pad them, with a mask") from None
    if not isinstance(a, np.ndarray):
        return a
    if a.dtype.kind == "f" and a.dtype.itemsize > 8:  # longdouble
        return a.astype(np.float64)
    return a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))


def check_arrays(
    arrays: Arrays,
    batch: int | None,
    name: str = "the data",
    missing: bool = False,
    transforms: Sequence[Transform] = (),
) -> None:
    """Raises a UserError for arrays that cannot be trained on or evaluated.

    missing: allows NaN in "x". transforms: asked which values they accept.
    """
    if "x" not in arrays:
        raise UserError(f'{name} needs an entry "x" with the observations, got {sorted(arrays)}')
    flat = [key for key, a in arrays.items() if not np.shape(a) and not isinstance(a, Column)]
    if flat:
        raise UserError(f'{name}: "{flat[0]}" is a single number: each entry needs one value, or array, per example')
    sizes = {key: len(a) for key, a in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"{name}: entries differ in length: {sizes}")
    if sizes["x"] == 0:
        raise UserError(f"{name} is empty")
    if batch is not None and not 1 <= batch <= sizes["x"]:
        raise UserError(f"batch = {batch}, but {name} has {sizes['x']} examples: choose 1 to {sizes['x']} (--batch)")
    for key, a in arrays.items():
        a = a if isinstance(a, Column) else np.asarray(a)
        if a.dtype.kind not in "biuf":
            raise UserError(f'{name}: "{key}" has dtype {a.dtype}; numbers are needed')
        if a.dtype.kind == "f":
            _check_finite(a, f'{name}: "{key}"', missing and key == "x")
    if "label" in arrays:
        _check_labels(arrays["label"], name)
    if "weight" in arrays:
        _check_weights(arrays["weight"], name)
    _check_values(arrays, transforms, name)


def _check_labels(labels: Any, name: str) -> None:
    """Labels are integers (N,), numbered from 0 without large gaps."""
    shape = tuple(np.shape(labels) if not isinstance(labels, Column) else labels.shape)
    if len(shape) > 1:
        advice = "labels[:, 0]" if shape[1:] == (1,) else "labels.argmax(axis=1), if they are one-hot"
        raise UserError(f'{name}: "label" has the shape {shape}, and one integer per example is needed: {advice}')
    kind = (labels if isinstance(labels, Column) else np.asarray(labels)).dtype.kind
    if kind not in "biu":
        raise UserError(f'{name}: "label" holds floats, and integers are needed: labels.astype(int)')
    low, high = value_range(labels)
    if low < 0:
        raise UserError(f'{name}: "label" has the value {low:g}; classes are numbered from 0')
    if high >= 1000:
        values = np.unique(np.asarray(labels))
        if high + 1 > 10 * len(values):
            raise UserError(
                f'{name}: "label" has {len(values)} values up to {high:g}, which would be {high + 1:g} classes: number '
                "them by np.unique(labels, return_inverse=True)[1]"
            )


def _check_weights(weights: Any, name: str) -> None:
    """Weights are numbers (N,) of at least 0, not all 0."""
    weights = np.asarray(weights)
    if weights.ndim != 1:
        raise UserError(f'{name}: "weight" has the shape {weights.shape}, and one number per example is needed')
    if weights.min() < 0 or not weights.max() > 0:
        reason = f"goes down to {weights.min():g}" if weights.min() < 0 else "is 0 everywhere"
        raise UserError(f'{name}: "weight" {reason}: weights are at least 0, and some above')


def _check_values(arrays: Arrays, transforms: Sequence[Transform], name: str) -> None:
    """Values are those that the first transform of each entry accepts."""
    seen: set[str] = set()
    for transform in as_transforms(transforms):
        for entry in transform.entries:
            if entry in seen or entry not in arrays:
                continue
            seen.add(entry)
            if transform.support is not None:
                _check_support(arrays[entry], transform.support, f'{name}: "{entry}"')


def _check_support(a: Any, support: tuple[float, float], what: str) -> None:
    low, high = support
    part = take({"x": a}, np.arange(min(len(a), FIRST)))["x"] if isinstance(a, Column) else np.asarray(a)
    lowest, highest = value_range(part)
    levels = f"integers {low:g} .. {high:g}"
    advice = "pass them as they are stored, or set `levels` of the transform (or leave it out)"
    if part.dtype.kind == "f" and not all(np.array_equal(block, np.rint(block)) for block in blocks(part)):
        raise UserError(f"{what} has floats from {lowest:g} to {highest:g}, and its transform takes {levels}: {advice}")
    if lowest < low or highest > high:
        raise UserError(f"{what} has values from {lowest:g} to {highest:g}, and its transform takes {levels}: {advice}")
    if high > 1 and 0 < highest < high / 8:
        raise UserError(f"{what} has no value above {highest:g}, and its transform takes {levels}: {advice}")


def _check_finite(a: Any, what: str, missing: bool) -> None:
    """Raises a UserError for infinite values, and NaN unless it marks missing values; reads block by block."""
    count, first, start = 0, (), 0
    for block in blocks(a):
        bad = np.isinf(block) if missing else ~np.isfinite(block)
        if found := int(bad.sum()):
            place = np.unravel_index(int(bad.argmax()), bad.shape)
            first = first or (start + int(place[0]), *map(int, place[1:]))
            count += found
        start += len(block)
    if count:
        raise UserError(
            f"{what} has {count} NaN or infinite values, the first at {first}: "
            "remove them (of a table: --missing drop) or impute them; models that integrate over missing values "
            "take NaN with missing=True"
        )
