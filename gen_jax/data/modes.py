"""Mode centers of the mode-collapse sets, for their builders and their metrics."""

import numpy as np

__all__ = ["grid", "ring"]


def ring(modes: int = 8, radius: float = 1.0) -> np.ndarray:
    """(modes, 2) centers on a circle."""
    angle = 2 * np.pi * np.arange(modes) / modes
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def grid(side: int = 5, spacing: float = 2.0) -> np.ndarray:
    """(side * side, 2) centers on a square grid around the origin."""
    line = spacing * (np.arange(side) - (side - 1) / 2)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
