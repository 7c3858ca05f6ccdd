"""Autoregressive models of vectors and images: exact probabilities, value by value."""

from gen_jax.models.autoregressive.made import MADE

__all__ = ["MADE"]
