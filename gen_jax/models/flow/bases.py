"""Base distributions of flows, over events of one shape.

A base initializes its parameters from a key, and turns them into a distrax distribution with the requested batch axes.
`independent`: whether all values of an event are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree

__all__ = ["Base", "Mixture", "Normal", "StudentT"]


class Base:
    """A base distribution over events of shape `shape`."""

    shape: tuple[int, ...]
    independent = True

    def init(self, key: Array) -> PyTree:
        return {}

    def __call__(self, params: PyTree, batch: tuple[int, ...] = ()) -> distrax.Distribution:
        raise NotImplementedError

    def _check(self):
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"a base needs the shape of one example, such as (2,), got {self.shape}")


@dataclass(frozen=True)
class Normal(Base):
    """Independent standard normals; with `learned`, trainable means and scales."""

    shape: tuple[int, ...]
    learned: bool = False

    def __post_init__(self):
        self._check()

    def init(self, key):
        zeros = jnp.zeros(self.shape, jnp.float32)
        return {"mean": zeros, "log_std": zeros} if self.learned else {}

    def __call__(self, params, batch=()):
        shape = (*batch, *self.shape)
        mean = params["mean"] if self.learned else jnp.float32(0)
        std = jnp.exp(params["log_std"]) if self.learned else jnp.float32(1)
        normals = distrax.Normal(jnp.broadcast_to(mean, shape), jnp.broadcast_to(std, shape))
        return distrax.Independent(normals, len(self.shape))


@dataclass(frozen=True)
class Mixture(Base):
    """A learned mixture of independent normals."""

    shape: tuple[int, ...]
    components: int = 10
    independent = False

    def __post_init__(self):
        self._check()
        if self.components < 1:
            raise ValueError(f"a mixture needs at least one component, got {self.components}")

    def init(self, key):
        means = jax.random.normal(key, (self.components, *self.shape), jnp.float32)
        return {"logits": jnp.zeros(self.components, means.dtype), "means": means, "log_stds": jnp.zeros_like(means)}

    def __call__(self, params, batch=()):
        of_each = lambda a: jnp.broadcast_to(a, (*batch, *a.shape))
        normals = distrax.Normal(of_each(params["means"]), of_each(jnp.exp(params["log_stds"])))
        components = distrax.Independent(normals, len(self.shape))
        return distrax.MixtureSameFamily(distrax.Categorical(logits=of_each(params["logits"])), components)


@dataclass(frozen=True)
class StudentT(Base):
    """Independent Student t distributions with trainable degrees of freedom, for heavy-tailed data."""

    shape: tuple[int, ...]
    degrees: float = 5.0

    def __post_init__(self):
        self._check()
        if not self.degrees > 1:
            raise ValueError(f"degrees of freedom must be above 1, got {self.degrees}")

    def init(self, key):
        return {"log_degrees": jnp.full(self.shape, jnp.log(self.degrees - 1), jnp.float32)}

    def __call__(self, params, batch=()):
        degrees = jnp.broadcast_to(1 + jnp.exp(params["log_degrees"]), (*batch, *self.shape))
        return distrax.Independent(_T(degrees), len(self.shape))


class _T(distrax.Distribution):
    """Student's t with location 0 and scale 1, and more than 1 degree of freedom, so that the mean exists."""

    def __init__(self, degrees: Array):
        super().__init__()
        self._degrees = degrees

    @property
    def event_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self._degrees.shape

    def log_prob(self, value: Array) -> Array:
        return jax.scipy.stats.t.logpdf(value, self._degrees)

    def _sample_n(self, key: Array, n: int) -> Array:
        return jax.random.t(key, self._degrees, (n, *self._degrees.shape), self._degrees.dtype)

    def mean(self) -> Array:
        return jnp.zeros_like(self._degrees)
