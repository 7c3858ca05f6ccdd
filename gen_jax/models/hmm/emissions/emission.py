"""The contract of an emission distribution.

An emission is a frozen dataclass. `init` and `distribution` suffice for sampling, inference and training by
`descent`; `stats` and `maximize` make it trainable by `em`. Batches hold "x" (B, T, ...); `seen` (B, T) is the mask of
observed steps.
"""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, PyTree, fold_in

__all__ = ["Emission", "rows"]


class Emission:
    """K emission distributions, one per state, over one step of a sequence."""

    @property
    def independent(self) -> bool:
        """Whether observations are independent given the states."""
        return True

    def read(self, x: Array) -> Array:
        """Observations as the emission takes them, from rows of numbers (B, T, D)."""
        return x

    def init(self, key: Array, batch: Batch, seen: Array, k: int) -> tuple[PyTree, Extra]:
        """Unconstrained parameters, and extras not trained by gradients."""
        raise NotImplementedError

    def distribution(self, params: PyTree) -> distrax.Distribution:
        """The emission distributions, with batch shape (K,)."""
        raise NotImplementedError

    def stats(self, params: PyTree, extra: Extra, batch: Batch, r: Array) -> PyTree:
        """Sufficient statistics for state probabilities r (B, T, K); they add over batches."""
        raise NotImplementedError(f"{type(self).__name__} has no EM: train it by descent")

    def maximize(self, params: PyTree, extra: Extra, stats: PyTree) -> PyTree:
        raise NotImplementedError(f"{type(self).__name__} has no EM: train it by descent")

    def log_prior(self, params: PyTree, extra: Extra) -> Array | None:
        """Log-density of the prior up to a constant; None if it is flat."""
        return None

    def pack(self, given: PyTree, params: PyTree) -> PyTree:
        """Parameters from those given in the field's terms (means, covariances, probabilities, rates); the others are
        those of `params`."""
        return {**params, **given}

    def unpack(self, params: PyTree) -> PyTree:
        """All parameters in the terms that `pack` takes."""
        return params

    def held(self, params: PyTree) -> PyTree:
        """The parameters, without gradients of those that are fixed."""
        return params

    def free_parameters(self, params: PyTree) -> int:
        """Number of free parameters of all states."""
        return sum(a.size for a in jax.tree.leaves(params))

    def recenter(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        """Statistics recentered from old to new parameters."""
        return stats

    def log_prob(self, params: PyTree, extra: Extra, batch: Batch) -> Array:
        """(B, T, K) log p(x_t | z_t = k) in nats."""
        distribution = self.distribution(params)
        events = len(distribution.event_shape)
        return distribution.log_prob(jnp.expand_dims(batch["x"], -1 - events))

    def draw(self, params: PyTree, extra: Extra, key: Array, states: Array, past: Array | None = None) -> Array:
        """Samples x (B, T, ...) given states (B, T) and past observations `past` (B, T', ...)."""
        of_each = jax.vmap(lambda i: self.distribution(params).sample(seed=fold_in(key, i)))(jnp.arange(states.size))
        return jax.vmap(lambda x, k: x[k])(of_each, states.reshape(-1)).reshape(*states.shape, *of_each.shape[2:])

    def with_missing(self) -> Emission:
        """The same distributions, which integrate out each NaN coordinate of a step."""
        return self

    def complete(self, params: PyTree, extra: Extra, key: Array, states: Array, x: Array, seen: Array) -> Array:
        """x (R, ...) with coordinates outside `seen` drawn given the others and the state of each row (R,).

        Here for coordinates that are independent given the state.
        """
        drawn = self.draw(params, extra, key, states[:, None])
        return jnp.where(seen, x, drawn.reshape(x.shape).astype(x.dtype))

    def mean(self, params: PyTree) -> Array:
        """(K, ...) means of the emissions."""
        return self.distribution(params).mean()

    def unseen(self, x: Array) -> Array:
        """(B, T) mask of steps without an observation: any coordinate is NaN."""
        return jnp.isnan(x).any(axis=tuple(range(2, x.ndim))) if x.dtype.kind == "f" else jnp.zeros(x.shape[:2], bool)


def rows(x: Array) -> Array:
    """(B T, D) observations of all sequences, one below the other."""
    return x.reshape(-1, x.shape[-1])
