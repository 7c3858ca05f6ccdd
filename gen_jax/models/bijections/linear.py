"""Linear layers: permutations, scales and shifts, learned matrices; on images they act on channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.models.bijections.layer import Layer
from gen_jax.models.common.linalg import inverses, matmul

__all__ = ["ActNorm", "Linear", "Permutation", "Reverse", "Standardize"]


@dataclass(frozen=True)
class Reverse(Layer):
    """Reverses the last axis."""

    def forward(self, params, z, context=None):
        return z[..., ::-1], jnp.zeros(len(z), z.dtype)

    def inverse(self, params, x, context=None):
        return self.forward(params, x)


@dataclass(frozen=True)
class Permutation(Layer):
    """Permutes the last axis at random by seed: a single cycle, so that under repetition every value visits every
    position."""

    seed: int = 0

    def forward(self, params, z, context=None):
        return jnp.take(z, self._order(z), axis=-1), jnp.zeros(len(z), z.dtype)

    def inverse(self, params, x, context=None):
        return jnp.take(x, np.argsort(self._order(x)), axis=-1), jnp.zeros(len(x), x.dtype)

    def _order(self, x: Array) -> np.ndarray:
        places = np.random.default_rng(self.seed).permutation(x.shape[-1])
        order = np.empty_like(places)
        order[places] = np.roll(places, 1)
        return order


@dataclass(frozen=True)
class ActNorm(Layer):
    """A learned scale and shift of the last axis, initialized so that the noise of the first batch has mean 0 and
    variance 1 (Kingma & Dhariwal 2018, arXiv:1807.03039, section 3.1)."""

    learned = True
    triangular = True

    def init(self, key, x, context=None):
        axes = tuple(range(x.ndim - 1))
        mean, std = x.mean(axis=axes), x.std(axis=axes)
        constant = std <= 1e-6 * jnp.abs(mean) + jnp.finfo(x.dtype).tiny
        return {"mean": mean, "log_std": jnp.log(jnp.where(constant, 1, std))}

    def forward(self, params, z, context=None):
        mean, log_std = self._of(params)
        return z * jnp.exp(log_std) + mean, self._log_det(log_std, z)

    def inverse(self, params, x, context=None):
        mean, log_std = self._of(params)
        return (x - mean) * jnp.exp(-log_std), -self._log_det(log_std, x)

    def _of(self, params):
        params = params if self.learned else lax.stop_gradient(params)
        return params["mean"], params["log_std"]

    def _log_det(self, log_std: Array, x: Array) -> Array:
        return jnp.full(len(x), math.prod(x.shape[1:-1]) * log_std.sum())


@dataclass(frozen=True)
class Standardize(ActNorm):
    """Standardizes by the fixed mean and scale of the first batch: data in any units becomes noise of unit scale."""

    learned = False


@dataclass(frozen=True)
class Linear(Layer):
    """A learned matrix on the last axis, z = x L U: on images the invertible 1x1 convolution (Kingma & Dhariwal 2018,
    section 3.2). Initialized to a random rotation, rows permuted and columns sign-flipped to have such factors."""

    def init(self, key, x, context=None):
        rotation = jnp.linalg.qr(jax.random.normal(key, (x.shape[-1],) * 2, x.dtype))[0]
        _, lower, upper = jax.scipy.linalg.lu(rotation)
        upper = upper * jnp.sign(jnp.diagonal(upper))  # flip columns so that the diagonal is positive
        log_diagonal = jnp.log(jnp.diagonal(upper))
        return {"below": jnp.tril(lower, -1), "above": jnp.triu(upper, 1), "log_diagonal": log_diagonal}

    def forward(self, params, z, context=None):
        lower, upper = self._factors(params)
        x = matmul(matmul(z, inverses(upper.T).T), inverses(lower))
        return x, -self._log_det(params, z)

    def inverse(self, params, x, context=None):
        lower, upper = self._factors(params)
        return matmul(x, matmul(lower, upper)), self._log_det(params, x)

    def _factors(self, params):
        lower = jnp.tril(params["below"], -1) + jnp.eye(len(params["below"]), dtype=params["below"].dtype)
        return lower, jnp.triu(params["above"], 1) + jnp.diag(jnp.exp(params["log_diagonal"]))

    def _log_det(self, params, x: Array) -> Array:
        return jnp.full(len(x), math.prod(x.shape[1:-1]) * params["log_diagonal"].sum())
