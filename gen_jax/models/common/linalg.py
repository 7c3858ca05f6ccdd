"""Matrix products in full precision, and normals parametrized by Cholesky factors of their covariances."""

from __future__ import annotations

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["LOG_2PI", "Triangular", "einsum", "inverses", "matmul"]

# Never TF32 or bfloat16: for sums with cancellation, inverses, recursions.
matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


LOG_2PI = float(np.log(2 * np.pi))


def inverses(factor: Array) -> Array:
    """Inverses of lower triangular matrices (..., D, D), on a CPU by forward substitution.

    `triangular_solve` is avoided there: it calls a BLAS whose threads keep spinning and slow down subsequent work by a
    third.
    """
    identity = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    if jax.default_backend() != "cpu":
        return lax.linalg.triangular_solve(factor, jnp.broadcast_to(identity, factor.shape), left_side=True, lower=True)
    unit = factor / jnp.diagonal(factor, axis1=-2, axis2=-1)[..., None]
    start = identity / jnp.diagonal(factor, axis1=-2, axis2=-1)[..., None]

    def row(i: Array, inverse: Array) -> Array:
        known = einsum("...j,...jd->...d", unit[..., i, :], inverse * (jnp.arange(len(identity)) < i)[:, None])
        return inverse.at[..., i, :].add(-known)

    return lax.fori_loop(1, len(identity), row, start)


class Triangular(distrax.MultivariateNormalTri):
    """A normal with mean (..., D) and the lower Cholesky factor (..., D, D) of its covariance.

    Its density is computed by substitution: two LAPACK solves in one program can deadlock on each other's threads on a
    CPU.
    """

    def log_prob(self, value: Array) -> Array:
        white = einsum("...ij,...j->...i", inverses(self.scale_tri), value - self.loc)
        log_diagonal = jnp.log(jnp.diagonal(self.scale_tri, axis1=-2, axis2=-1))
        return -0.5 * jnp.sum(white**2 + LOG_2PI, axis=-1) - log_diagonal.sum(axis=-1)
