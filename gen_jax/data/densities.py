"""Densities in closed form, up to a constant, that samplers and variational methods are tried on."""

from __future__ import annotations

from jax import Array


def banana(x: Array) -> Array:
    """(n, 2) -> (n,): the bent normal that the data set `banana` is drawn from. Its integral is 0.6 pi."""
    across, up = x[..., 0], x[..., 1]
    return -0.5 * across**2 - 0.5 * ((up - 0.5 * across**2 + 1) / 0.3) ** 2
