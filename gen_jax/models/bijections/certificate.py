"""Checks of a bijection against its laws, for layers of one's own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import PyTree
from gen_jax.models.bijections.layer import Layer

__all__ = ["Certificate", "certify"]


class Certificate(NamedTuple):
    """The largest deviations that were measured."""

    round_trip: float  # of x after inverse and forward, in float32, relative to the largest value
    round_trip_float64: float
    log_det: float  # from the logarithm of the determinant of the Jacobian by automatic differentiation, in float64
    params: int  # how many parameters the layer has


def certify(
    layer: Layer,
    x: Array,
    context: Array | None = None,
    params: PyTree | None = None,
    exact: Layer | None = None,
) -> Certificate:
    """Checks a layer at examples x (B, *event), a few of them. Raises ValueError for the first law that it breaks.

    Shapes and types; `forward` undoes `inverse`, to 1e-5 in float32 and to 1e-10 in float64; log-determinants are those
    of the Jacobian, to 1e-6; those of the two directions are opposite; a layer that says so is triangular; gradients
    are finite. params: by default fresh ones, to which random numbers are added, so that no layer is the identity.
    exact: the layer for float64, where a tolerance of its own says how exact it is.
    """
    if layer.estimated:
        raise ValueError(f"the log-determinants of {type(layer).__name__} are estimates: certify it with exact ones")
    x = jnp.asarray(x, jnp.float32)
    params = _moved(layer.init(jax.random.key(0), x, context)) if params is None else params
    single = _measure(layer, params, x, context, 1e-5, "float32")
    with jax.enable_x64(True):
        wider = lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else np.asarray(a)
        wide = jax.tree.map(lambda a: jnp.asarray(wider(a)), (params, x, context))
        double = _measure(exact or layer, *wide, 1e-10, "float64")
        error = _check_jacobians(exact or layer, *wide)
    _check_gradients(layer, params, x, context)
    return Certificate(single, double, error, sum(a.size for a in jax.tree.leaves(params)))


def _moved(params: PyTree) -> PyTree:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
    return tree.unflatten([a + 0.2 * jax.random.normal(key, a.shape) for a, key in zip(leaves, keys)])


def _measure(layer: Layer, params: PyTree, x: Array, context: Array | None, tolerance: float, kind: str) -> float:
    """The error of a round trip, which is checked with shapes, types and log-determinants."""

    @jax.jit
    def run(params: PyTree, x: Array, context: Array | None):
        z, log_det = layer.inverse(params, x, context)
        return (z, log_det), layer.forward(params, z, context)

    (z, log_det), (back, log_det_back) = run(params, x, context)
    name = type(layer).__name__
    if z.shape != x.shape or log_det.shape != (len(x),):
        raise ValueError(
            f"{name}.inverse must return values {x.shape} and log-determinants ({len(x)},), got {z.shape} and "
            f"{log_det.shape}"
        )
    if types := {str(a.dtype) for a in (z, log_det, back, log_det_back)} - {str(x.dtype)}:
        raise ValueError(f"{name} makes {min(types)} of {x.dtype}")
    error = float(jnp.abs(back - x).max()) / max(1.0, float(jnp.abs(x).max()))
    if not error <= tolerance:
        raise ValueError(f"{name}.forward does not undo inverse: {error:.2g} off in {kind}{_hint(tolerance)}")
    apart = float(jnp.abs(log_det + log_det_back).max()) / max(1.0, float(jnp.abs(log_det).max()))
    if not apart <= 10 * tolerance:
        said = f"{apart:.2g} off in {kind}{_hint(10 * tolerance)}"
        raise ValueError(f"{name}: the log-determinants of forward and inverse are not opposite: {said}")
    return error


def _hint(limit: float) -> str:
    return f", where {limit:.0e} is allowed (of a solver: lower its tolerance, for float64 by `exact`)"


def _check_jacobians(layer: Layer, params: PyTree, x: Array, context: Array | None) -> float:
    """The error of log-determinants, which is checked, as is whether Jacobians are triangular."""

    def one(x: Array, context: Array | None) -> Array:
        given = None if context is None else context[None]
        return layer.inverse(params, x[None], given)[0].reshape(-1)

    @jax.jit
    def run(x: Array, context: Array | None):
        jacobians = jax.vmap(jax.jacrev(one))(x, context)
        return jacobians.reshape(len(x), -1, x[0].size), layer.inverse(params, x, context)[1]

    jacobians, log_det = map(np.asarray, run(x, context))
    error = float(np.abs(log_det - np.linalg.slogdet(jacobians)[1]).max())
    name = type(layer).__name__
    if not error <= 1e-6:
        raise ValueError(f"{name}.inverse: the log-determinant is {error:.2g} off that of the Jacobian")
    above = np.abs(np.triu(jacobians, 1)).max()
    if layer.triangular and above > 0:
        raise ValueError(f"{name} says that it is triangular, and a value depends on one after it, by {above:.2g}")
    return error


def _check_gradients(layer: Layer, params: PyTree, x: Array, context: Array | None) -> None:
    total = lambda found: found[0].sum() + found[1].sum()

    def both(params: PyTree, x: Array) -> Array:
        z, log_det = layer.inverse(params, x, context)
        return total((z, log_det)) + total(layer.forward(params, z, context))

    run = jax.jit(jax.grad(both, argnums=(0, 1)))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(params, x))):
        raise ValueError(f"{type(layer).__name__}: a gradient is not finite")
