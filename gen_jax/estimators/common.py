"""Helpers of both interfaces: precision, array validation, seeds, and covariances by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from scipy.sparse import issparse
from sklearn.utils import check_random_state

from gen_jax.compilation import use_compilation_cache
from gen_jax.models.mixture.covariances import DIAGONAL, FULL, SPHERICAL, TIED, Full

__all__ = [
    "KINDS",
    "assign",
    "at_least",
    "broadcast",
    "covariance_matrices",
    "key_of",
    "numbers",
    "one_of",
    "points",
    "precision",
    "probabilities",
    "whole",
]

KINDS: Mapping[str, Full] = {"full": FULL, "tied": TIED, "diag": DIAGONAL, "spherical": SPHERICAL}


def precision(x: np.ndarray) -> AbstractContextManager:
    """Context in which float64 arrays are computed in float64 where the hardware supports it, i.e. not on TPUs.

    Compiled programs are kept on disk for the next process.
    """
    use_compilation_cache()
    return jax.enable_x64(x.dtype == np.float64 and jax.default_backend() != "tpu")


def assign(estimator: Any, arguments: dict[str, Any]) -> None:
    """Stores the arguments of `__init__` as attributes, as scikit-learn's estimators must."""
    vars(estimator).update({name: value for name, value in arguments.items() if name not in ("self", "__class__")})


def one_of(name: str, value: Any, options: Mapping[str, Any]) -> Any:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
    return options[value]


def at_least(low: float, **values: Any) -> None:
    """Raises a ValueError that names the first argument that is no number or below `low`."""
    for name, value in values.items():
        if not isinstance(value, (int, float, np.number)) or not value >= low:
            raise ValueError(f"{name} must be {'a number' if low == -np.inf else f'at least {low}'}, got {value!r}")


def whole(low: int, **values: Any) -> None:
    """Raises a ValueError that names the first argument that is no whole number or below `low`."""
    for name, value in values.items():
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def numbers(x: Any, name: str = "X") -> Any:
    """`x` with masked, None and pandas' missing values as NaN; a ValueError for dtypes that are no real numbers.

    Data frames and other containers are returned as they are.
    """
    if isinstance(x, np.ma.MaskedArray):
        x = np.ma.filled(x.astype(x.dtype if x.dtype.kind == "f" else np.float64), np.nan)
    if issparse(x):
        raise TypeError(f"{name} is a sparse matrix, and only dense ones are supported: use {name}.toarray()")
    dtype = np.asarray(x).dtype
    if dtype.kind in "cMmSUV":
        kind = "Complex data not supported: " if dtype.kind == "c" else ""
        raise ValueError(f"{kind}{name} must hold real numbers, got dtype {dtype}")
    if isinstance(x, np.ndarray) and dtype.kind == "O":
        missing = np.frompyfunc(lambda v: v is None or type(v).__name__ == "NAType", 1, 1)(x).astype(bool)
        x = np.where(missing, np.nan, x)
    return x


def points(x: Any, name: str = "X", features: int | None = None, missing: bool = True) -> np.ndarray:
    """Validates a float matrix (N, D): float32 is kept, all else becomes float64; NaN marks missing values."""
    x = np.asarray(numbers(x, name))
    if x.dtype.kind == "O":
        x = numbers(x, name)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"{name} must be a matrix (n_samples, n_features) with entries, got shape {x.shape}")
    try:
        x = x.astype(np.float32 if x.dtype == np.float32 else np.float64, copy=False)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers, got dtype {x.dtype}") from None
    if np.isinf(x).any():
        row, column = np.argwhere(np.isinf(x))[0]
        raise ValueError(f"{name} has {np.isinf(x).sum()} infinite values, the first at [{row}, {column}]: remove them")
    if features is not None and x.shape[1] != features:
        raise ValueError(f"{name} has {x.shape[1]} features, the model has {features}")
    if np.isnan(x).any() and not missing:
        raise ValueError(f"{name} has {np.isnan(x).sum()} NaN: this model cannot take missing values")
    return x


def broadcast(name: str, value: Any, shape: tuple[int, ...], low: float = -np.inf) -> np.ndarray:
    """A finite number or array of at least `low` as an array of this shape."""
    try:
        value = np.broadcast_to(np.asarray(value, np.float64), shape)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or have shape {shape}, got {np.shape(value)}") from None
    if not np.isfinite(value).all() or (value < low).any():
        raise ValueError(f"{name} must be finite" + ("" if low == -np.inf else f" and at least {low}"))
    return value


def probabilities(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Validates probabilities along the last axis, which must sum to one."""
    value = np.asarray(value, np.float64)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if not np.isfinite(value).all() or (value < 0).any():
        raise ValueError(f"{name} must be finite and not negative")
    total = value.sum(axis=-1)
    if not np.allclose(total, 1, atol=1e-6):
        worst = np.unravel_index(np.argmax(np.abs(total - 1)), total.shape) if total.ndim else ()
        where = f"row {worst[0]} of {name}" if total.ndim else name
        raise ValueError(f"{where} sums to {total[worst]:.6g}: divide it by its sum")
    return value / total[..., None]


def covariance_matrices(name: str, value: Any, kind: str, k: int, d: int) -> np.ndarray:
    """(K, D, D) covariances from the shape of their kind, or from (K, D, D); they must be symmetric and positive
    definite."""
    value = np.asarray(value, np.float64)
    shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind]
    if value.shape == (k, d, d) and kind != "full":  # as hmmlearn hands out covariances of every type
        value = {"tied": lambda: value[0], "diag": lambda: np.diagonal(value, axis1=1, axis2=2)}.get(
            kind, lambda: value[:, 0, 0]
        )()
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape} for {kind!r} covariances, got {value.shape}")
    if kind == "spherical":
        value = np.repeat(value[:, None], d, axis=1)
    if kind in ("diag", "spherical"):
        if not (value > 0).all():
            raise ValueError(f"{name} must be positive")
        return value[:, :, None] * np.eye(d)
    value = np.broadcast_to(value, (k, d, d))
    apart = np.abs(value - np.swapaxes(value, 1, 2))
    if not np.isfinite(value).all() or (apart > 1e-8 + 1e-5 * np.abs(value)).any() or not _positive_definite(value):
        raise ValueError(f"{name} must be symmetric and positive definite")
    return value


def _positive_definite(value: np.ndarray) -> bool:
    try:
        np.linalg.cholesky(value)
    except np.linalg.LinAlgError:
        return False
    return True


def key_of(random_state: Any) -> int:
    """A seed from a scikit-learn random state."""
    return int(check_random_state(random_state).randint(2**31 - 1))
