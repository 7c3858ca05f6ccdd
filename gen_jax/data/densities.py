"""Unnormalized densities in closed form, test targets for samplers and variational methods."""

from __future__ import annotations

from jax import Array

__all__ = ["banana"]


def banana(x: Array) -> Array:
    """(n, 2) -> (n,): unnormalized density of the data set `banana`. Its integral is 0.6 pi."""
    across, up = x[..., 0], x[..., 1]
    return -0.5 * across**2 - 0.5 * ((up - 0.5 * across**2 + 1) / 0.3) ** 2
