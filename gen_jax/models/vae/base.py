"""The base of models trained by a bound: VAE and hierarchical VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Mean, Objective, PyTree, State
from gen_jax.models.common.likelihoods import refuse_missing
from gen_jax.models.vae.bounds import BoundFunction, BoundTerms, elbo

__all__ = ["BoundModel"]


class BoundModel:
    """Base class of models trained by a bound. Subclasses have the fields `likelihood`, `bound`, `samples` and `beta`,
    one player `player`, and `terms`."""

    player = "vae"
    missing: bool = False
    likelihood: Any
    bound: BoundFunction
    samples: int
    beta: float | Callable[[Array], Array]

    def terms(self, params: PyTree, batch: Batch, key: Array, samples: int = 1, training: bool = False) -> BoundTerms:
        """The terms of the bound; in training, conditions may be dropped at random."""
        raise NotImplementedError

    @property
    def discrete(self) -> bool:
        """Whether the likelihood is a probability of integers."""
        return self.likelihood.discrete

    def check_training(self) -> None:
        """Raises ValueError for invalid `samples`, `beta` or `bound`."""
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if not callable(self.beta) and not self.beta >= 0:
            raise ValueError(f"beta cannot be negative, got {self.beta}")
        if not callable(self.bound):
            raise ValueError(f"bound must be a function such as gen_jax.models.vae.bounds.iwae, got {self.bound!r}")

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""."""
        return ("" if self.missing else refuse_missing(batch["x"])) or self.likelihood.unsupported(batch["x"])

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        terms = self.terms(params, batch, key, self.samples, training=True)
        beta = self.beta(state.step) if callable(self.beta) else self.beta
        divergence = terms.divergence
        metrics = {"reconstruction": Mean.of(-terms.log_likelihood), "kl": Mean.of(divergence.sum(axis=-1))}
        if divergence.shape[-1] > 1:  # dimensions or groups that have not collapsed
            metrics["active_latents"] = Mean.of(jnp.sum(divergence.mean(axis=0) > 0.01).astype(jnp.float32))
        return -self.bound(terms, beta).mean(), ({}, metrics)

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective(self.player, self.loss),)

    def unpenalized(self):
        """The same model trained by its ELBO from one sample."""
        return replace(self, bound=elbo, samples=1, beta=1.0)

    def elbo(self, state: State, batch: Batch, key: Array) -> Array:
        """(B,) the ELBO in nats from one sample, with beta 1 regardless of training."""
        return elbo(self.terms(state.params[self.player], batch, key))

    def log_weights(self, state: State, batch: Batch, key: Array, samples: int) -> Array:
        """(samples, B) log p(x, z) / q(z | x) in nats: their log-mean-exp bounds log p(x), tighter with more."""
        return self.terms(state.params[self.player], batch, key, samples).log_weights
