"""Continuous flows: noise is mapped to data by an ordinary differential equation (Grathwohl et al. 2019, FFJORD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.models.bijections.layer import Layer, Mapped, check_vectors

__all__ = ["Continuous", "Field"]


class Field(nn.Module):
    """The velocity dx/dt (B, D) at x (B, D), time t and a context (B, C)."""

    hidden: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = jnp.tanh

    @nn.compact
    def __call__(self, x: Array, t: Array, context: Array | None = None) -> Array:
        h = jnp.concatenate([x, jnp.broadcast_to(t, (len(x), 1)), *([] if context is None else [context])], axis=-1)
        for width in self.hidden:
            h = self.activation(nn.Dense(width)(h))
        return nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros)(h)


@dataclass(frozen=True)
class Continuous(Layer):
    """FFJORD (arXiv:1810.01367): noise at time 0, data at time 1, log-determinants as the integral of a trace (eq. 4).

    probes: number of probes of Hutchinson's trace estimator (eq. 8), drawn per batch; 0 for the exact trace, which
    costs D derivatives. tolerance: of the solver, absolute and relative, averaged over a batch. With probes,
    log-determinants are unbiased estimates that differ between batches and directions, but are deterministic for a
    given batch.
    """

    field: nn.Module = Field()
    probes: int = 0
    tolerance: float = 1e-5
    max_steps: int = 256

    def __post_init__(self):
        if self.probes < 0 or not self.tolerance > 0 or self.max_steps < 1:
            raise ValueError(
                "a continuous layer needs probes of at least 0, a tolerance above 0 and at least one step, "
                f"got {self.probes}, {self.tolerance} and {self.max_steps}"
            )

    @property
    def estimated(self) -> bool:
        return self.probes > 0

    def init(self, key, x, context=None):
        check_vectors(self, x)
        return self.field.init(key, x, jnp.zeros(()), context)["params"]

    def forward(self, params, z, context=None):
        return self._carried(params, z, context, 0.0, 1.0)

    def inverse(self, params, x, context=None):
        return self._carried(params, x, context, 1.0, 0.0)

    def _carried(self, params, x: Array, context: Array | None, start: float, end: float) -> Mapped:
        import diffrax  # takes half a second to import, only needed here

        directions = self._directions(x)

        def velocity(t: Array, y: Mapped, _) -> Mapped:
            flow = lambda x: self.field.apply({"params": params}, x, t.astype(x.dtype), context)
            along, pushed = jax.vmap(lambda v: jax.jvp(flow, (y[0],), (v,)))(directions)
            trace = jnp.sum(directions * pushed, axis=(0, 2)) / (1 if self.probes == 0 else self.probes)
            return along[0], trace

        found = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            jnp.asarray(start, x.dtype),
            jnp.asarray(end, x.dtype),
            None,
            (x, jnp.zeros(len(x), x.dtype)),
            stepsize_controller=diffrax.PIDController(self.tolerance, self.tolerance),
            max_steps=self.max_steps,
            throw=False,
        )
        failed = found.result != diffrax.RESULTS.successful
        return jax.tree.map(lambda y: jnp.where(failed, jnp.nan, y[0]), found.ys)

    def _directions(self, x: Array) -> Array:
        """(n, B, D) probe vectors for the Jacobian: unit vectors, or random signs from a key derived from x."""
        if not self.probes:
            axes = jnp.eye(x.shape[-1], dtype=x.dtype)
            return jnp.broadcast_to(axes[:, None], (len(axes), *x.shape))
        bits = lax.bitcast_convert_type(lax.stop_gradient(x).astype(jnp.float32).sum(), jnp.int32)
        return jax.random.rademacher(jax.random.key(bits), (self.probes, *x.shape), x.dtype)
