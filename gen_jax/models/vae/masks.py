"""Models of which values are missing, for data that are missing not at random (Ipsen, Mattei & Frellsen 2021).

not-MIWAE, arXiv:2006.12871: log p(observed, mask) is bounded with missing values drawn from p(x | z), on which the mask
may depend. The observed data cannot tell such models apart from others that fit them as well: they are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree
from gen_jax.models.common.arrays import sum_except_batch

__all__ = ["Dependent", "MaskModel", "SelfMasking"]


class MaskModel(Protocol):
    """p(which values are missing | all values)."""

    @property
    def assumption(self) -> str:
        """The assumption in words, for messages."""

    def init(self, columns: int) -> PyTree:
        """Parameters."""

    def log_prob(self, params: PyTree, x: Array, seen: Array) -> Array:
        """(B,) the log-probability of the mask `seen` (B, D), True where a value is known, given complete x (B, D)."""


@dataclass(frozen=True)
class SelfMasking:
    """Each value is missing with a probability that is logistic in itself, known to rise with it or to fall.

    direction: "high" if high values are missing, "low", or "any" to learn it for each column.
    columns: which have this mechanism, all by default; the masks of others are ignored (missing at random).
    """

    direction: str = "any"
    columns: tuple[int, ...] = ()

    def __post_init__(self):
        if self.direction not in ("high", "low", "any"):
            raise ValueError(f'direction is "high", "low" or "any", got {self.direction!r}')

    @property
    def assumption(self) -> str:
        which = {"high": "high values are", "low": "low values are", "any": "a value is"}[self.direction]
        return f"{which} missing more often because of the value itself"

    def init(self, columns):
        slope = jnp.full(columns, 0.0 if self.direction == "any" else 0.5, jnp.float32)
        return {"slope": slope, "offset": jnp.zeros(columns, jnp.float32)}

    def log_prob(self, params, x, seen):
        slope = params["slope"]
        if self.direction != "any":
            slope = jax.nn.softplus(slope) * (1 if self.direction == "high" else -1)
        return _bernoulli(slope * (x - params["offset"]), seen, self.columns)


@dataclass(frozen=True)
class Dependent:
    """Each value is missing with a probability that is logistic in all values of the row.

    Draws of missing categories and counts enter as numbers, and carry no gradient.
    """

    columns: tuple[int, ...] = ()

    @property
    def assumption(self) -> str:
        return "a value is missing with odds that depend on all values of its row, known or not"

    def init(self, columns):
        zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
        return {"weights": zeros(columns, columns), "offset": zeros(columns)}

    def log_prob(self, params, x, seen):
        return _bernoulli(x @ params["weights"] + params["offset"], seen, self.columns)


def _bernoulli(logits: Array, seen: Array, columns: tuple[int, ...]) -> Array:
    """(B,) log-probabilities of masks, given logits of missing (B, D)."""
    each = jnp.where(seen, jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits))
    return sum_except_batch(each[:, jnp.asarray(columns)] if columns else each)
