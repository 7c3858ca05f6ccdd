"""Priors p(z) of latent variables.

A prior initializes its parameters from a key, the number of latent dimensions and example data, and turns them into a
distrax distribution of z (latent,). `posterior` is q(z | x) as a function of data, needed by the VampPrior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree
from gen_jax.models.bijections.layer import Layer
from gen_jax.models.vae.posteriors import NOISE

__all__ = ["FlowPrior", "GaussianMixture", "Posterior", "StandardNormal", "VampPrior"]

Posterior = Callable[[Array], distrax.Distribution]


@dataclass(frozen=True)
class StandardNormal:
    """N(0, I)."""

    def init(self, key: Array, latent: int, x: Array) -> PyTree:
        return {}

    def __call__(self, params: PyTree, latent: int, posterior: Posterior) -> distrax.Distribution:
        return distrax.MultivariateNormalDiag(jnp.zeros(latent, jnp.float32), jnp.ones(latent, jnp.float32))


@dataclass(frozen=True)
class GaussianMixture:
    """A learned mixture of diagonal normals."""

    components: int = 10

    def __post_init__(self):
        if self.components < 1:
            raise ValueError(f"a mixture needs at least one component, got {self.components}")

    def init(self, key: Array, latent: int, x: Array) -> PyTree:
        means = jax.random.normal(key, (self.components, latent), jnp.float32)
        return {"logits": jnp.zeros(self.components, means.dtype), "means": means, "log_stds": jnp.zeros_like(means)}

    def __call__(self, params: PyTree, latent: int, posterior: Posterior) -> distrax.Distribution:
        normals = distrax.MultivariateNormalDiag(params["means"], jnp.exp(params["log_stds"]))
        return distrax.MixtureSameFamily(distrax.Categorical(logits=params["logits"]), normals)


@dataclass(frozen=True)
class VampPrior:
    """A mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are in the units of encoder inputs, about [-1, 1]. The posterior must not be conditional.
    """

    components: int = 100

    def __post_init__(self):
        if self.components < 1:
            raise ValueError(f"a VampPrior needs at least one pseudo-input, got {self.components}")

    def init(self, key: Array, latent: int, x: Array) -> PyTree:
        noise = 0.5 * jax.random.normal(key, (self.components, *x.shape[1:]), jnp.float32)
        return {"logits": jnp.zeros(self.components, noise.dtype), "inputs": noise}

    def __call__(self, params: PyTree, latent: int, posterior: Posterior) -> distrax.Distribution:
        components = posterior(params["inputs"])
        return distrax.MixtureSameFamily(distrax.Categorical(logits=params["logits"]), components)


@dataclass(frozen=True)
class FlowPrior:
    """N(0, I) pushed through a bijection, see `gen_jax.models.bijections`."""

    flow: Layer

    def init(self, key: Array, latent: int, x: Array) -> PyTree:
        return {"flow": self.flow.init(key, jax.random.normal(key, (NOISE, latent)))}

    def __call__(self, params: PyTree, latent: int, posterior: Posterior) -> distrax.Distribution:
        base = distrax.MultivariateNormalDiag(jnp.zeros(latent, jnp.float32), jnp.ones(latent, jnp.float32))
        return distrax.Transformed(base, self.flow(params["flow"], None))
