"""Standardized columns with missing cells, and mixtures of them whose size is selected."""

from __future__ import annotations

import numpy as np

__all__ = ["RIDGE", "SIZES", "column_moments"]

SIZES = (1, 2, 3, 5, 10, 20, 40)  # numbers of components among which held-out rows select
RIDGE = 1e-2  # added to the variances of standardized columns


def column_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column (N, D) over its known cells; 0 and 1 of a column without any."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, x, 0).sum(axis=0) / count
    deviation = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(axis=0) / count)
    return mean, np.where(deviation > 0, deviation, 1)
