"""Standardized columns with missing cells, and mixtures of them whose size is selected."""

from __future__ import annotations

import numpy as np

from gen_jax.estimators.mixture import GaussianMixture

__all__ = ["column_moments", "selected_mixture"]

SIZES = (1, 2, 3, 5, 10, 20, 40)  # numbers of components among which held-out rows select
RIDGE = 1e-2  # added to the variances of standardized columns


def selected_mixture(n: int, rows: int, seed: int) -> GaussianMixture:
    """A mixture for n rows of standardized columns, with at least `rows` for each component, or one component."""
    sizes = [k for k in SIZES if rows * k <= n] or [1]
    return GaussianMixture(sizes, criterion="held_out", reg_covar=RIDGE, random_state=seed)


def column_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column (N, D) over its known cells; 0 and 1 of a column without any."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, x, 0).sum(axis=0) / count
    deviation = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(axis=0) / count)
    return mean, np.where(deviation > 0, deviation, 1)
