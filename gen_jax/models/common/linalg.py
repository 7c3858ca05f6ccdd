"""Matrix products in full precision, and normals parametrized by Cholesky factors of their covariances."""

from __future__ import annotations

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import PyTree

__all__ = ["LOG_2PI", "Triangular", "after", "einsum", "inverses", "matmul"]

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


def after(tree: PyTree, value: Array) -> PyTree:
    """The floats of a tree, unchanged, but computed with only once `value` is there.

    Two LAPACK calls of one program that do not depend on each other can deadlock on each other's threads on a CPU, and
    XLA drops an `optimization_barrier` before it decides what runs at once.
    """
    nothing = 0 * jnp.sum(jnp.where(jnp.isfinite(value), jnp.sign(value), 0))
    return jax.tree.map(lambda a: a + nothing.astype(a.dtype) if a.dtype.kind == "f" else a, tree)


class Triangular(distrax.MultivariateNormalTri):
    """A normal with mean (..., D) and the lower Cholesky factor (..., D, D) of its covariance.

    Its density is computed by substitution: two LAPACK solves in one program can deadlock on each other's threads on a
    CPU.
    """

    def log_prob(self, value: Array) -> Array:
        white = einsum("...ij,...j->...i", inverses(self.scale_tri), value - self.loc)
        log_diagonal = jnp.log(jnp.diagonal(self.scale_tri, axis1=-2, axis2=-1))
        return -0.5 * jnp.sum(white**2 + LOG_2PI, axis=-1) - log_diagonal.sum(axis=-1)
