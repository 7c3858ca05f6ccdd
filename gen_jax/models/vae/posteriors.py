"""Posteriors q(z | x): each maps an encoder's outputs to a distrax distribution of z (latent,)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import PyTree, fold_in
from gen_jax.models.bijections.layer import Layer
from gen_jax.models.common.linalg import Triangular

__all__ = ["NOISE", "Diagonal", "FlowPosterior", "FullCovariance", "draw", "kl_by_dimension", "mean"]

NOISE = 256  # noise samples that initialize flows


@dataclass(frozen=True)
class Diagonal:
    """A diagonal normal, from means and log standard deviations, or log variances with `log_variances`."""

    log_variances: bool = False

    def outputs(self, latent: int) -> int:
        return 2 * latent

    def init(self, key: Array, latent: int) -> PyTree:
        return {}

    def __call__(self, outputs: Array, params: PyTree = None) -> distrax.Distribution:
        mean, log_scale = jnp.split(outputs, 2, axis=-1)
        return distrax.MultivariateNormalDiag(mean, jnp.exp(0.5 * log_scale if self.log_variances else log_scale))


@dataclass(frozen=True)
class FullCovariance:
    """A full-covariance normal, from means and the lower triangle of the Cholesky factor with log diagonal."""

    def outputs(self, latent: int) -> int:
        return latent + latent * (latent + 1) // 2

    def init(self, key: Array, latent: int) -> PyTree:
        return {}

    def __call__(self, outputs: Array, params: PyTree = None) -> distrax.Distribution:
        latent = int(((9 + 8 * outputs.shape[-1]) ** 0.5 - 3) / 2 + 0.5)
        mean, log_std, below = jnp.split(outputs, [latent, 2 * latent], axis=-1)
        factor = jnp.zeros((*outputs.shape[:-1], latent, latent), outputs.dtype)
        diagonal, rows = jnp.diag_indices(latent), jnp.tril_indices(latent, -1)
        factor = factor.at[..., *diagonal].set(jnp.exp(log_std)).at[..., *rows].set(below)
        return Triangular(mean, factor)


@dataclass(frozen=True)
class FlowPosterior:
    """Another posterior pushed through a bijection (Rezende & Mohamed 2015), see `gen_jax.models.bijections`.

    context: number of additional encoder outputs that condition the flow, as in inverse autoregressive flows (Kingma et
    al. 2016, algorithm 1). Training needs the flow's forward direction only.
    """

    flow: Layer
    base: Any = Diagonal()
    context: int = 0

    def outputs(self, latent: int) -> int:
        return self.base.outputs(latent) + self.context

    def init(self, key: Array, latent: int) -> PyTree:
        noise = jax.random.normal(fold_in(key, "noise"), (NOISE, latent), jnp.float32)
        context = jnp.zeros((NOISE, self.context)) if self.context else None
        return {"flow": self.flow.init(fold_in(key, "flow"), noise, context)}

    def __call__(self, outputs: Array, params: PyTree = None) -> distrax.Distribution:
        ours = outputs.shape[-1] - self.context
        context = outputs[..., ours:] if self.context else None
        return distrax.Transformed(self.base(outputs[..., :ours]), self.flow(params["flow"], context))


def kl_by_dimension(posterior: distrax.Distribution, prior: distrax.Distribution) -> Array | None:
    """(B, parts) KL(q || p) in closed form, by dimension if both are diagonal; None if there is no closed form."""
    if not isinstance(prior, distrax.MultivariateNormalDiag):
        return None
    if isinstance(posterior, distrax.MultivariateNormalDiag):
        ratio = posterior.scale_diag / prior.scale_diag
        distance = (posterior.loc - prior.loc) / prior.scale_diag
        return 0.5 * (ratio**2 + distance**2 - 1.0) - jnp.log(ratio)
    if isinstance(posterior, Triangular):
        ratios = posterior.scale_tri / prior.scale_diag[:, None]
        distance = (posterior.loc - prior.loc) / prior.scale_diag
        log_diagonal = jnp.log(jnp.diagonal(ratios, axis1=-2, axis2=-1))
        squares = jnp.sum(ratios**2, axis=(-2, -1)) + jnp.sum(distance**2 - 1.0, axis=-1)
        return (0.5 * squares - log_diagonal.sum(axis=-1))[..., None]
    return None


def draw(distribution: distrax.Distribution, key: Array, n: int) -> tuple[Array, Array]:
    """(n, B, latent) samples and their (n, B) log-densities."""
    return distribution.sample_and_log_prob(seed=key, sample_shape=(n,))


def mean(distribution: distrax.Distribution) -> Array:
    """(B, latent) mean of q, or the image of its base's mean for a flow: a point estimate to decode and plot."""
    normal = (distrax.MultivariateNormalDiag, Triangular)
    if isinstance(distribution, distrax.Transformed) and not isinstance(distribution, normal):
        return distribution.bijector.forward(mean(distribution.distribution))
    return distribution.mean()
