"""Chains whose posterior is the gradient of their log-evidence (Eisner 2016), which needs a forward recursion alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State
from gen_jax.models.common.linalg import after
from gen_jax.models.hmm.batches import held, mean_per_sequence, observed_steps, sequence_weights
from gen_jax.models.hmm.emissions import Emission

__all__ = ["IMPOSSIBLE", "ByGradient", "Expected", "Prepared"]

IMPOSSIBLE = -1e30  # the logarithm of 0, finite so that gradients are


class Prepared(NamedTuple):
    """A batch as inference takes it."""

    batch: Batch
    there: Array  # (B, T) the existing steps
    seen: Array  # (B, T) those with an observation
    weight: Array  # (B,) of the sequences
    log_likelihood: Array  # (B, T, K)
    chain: PyTree  # log-probabilities


class Expected(NamedTuple):
    """The posterior: log-evidence (B,), and expected counts times the weights of the sequences."""

    log_evidence: Array
    marginals: Array  # (B, T, K)
    counts: PyTree  # in the structure of the chain


class ByGradient:
    """Training and inference shared by chains that define `_chain` and `_forward`; parameters are {"hmm": ...}.

    Sequences that are impossible have a log-likelihood of -inf and no counts.
    """

    emission: Emission
    fixed: tuple[str, ...]

    def _chain(self, params: PyTree, batch: Batch, counted: Array, extra: Extra) -> PyTree:
        """Log-probabilities of the chain, at least IMPOSSIBLE; counted (B, T): steps that exist and have a weight."""
        raise NotImplementedError

    def _forward(self, chain: PyTree, log_likelihood: Array, there: Array) -> tuple[Array, Array]:
        """log p(x_t | x before t) (B, T), and what is known at each step (B, T, ...)."""
        raise NotImplementedError

    def _prepared(self, params: PyTree, extra: Extra, batch: Batch, weighted: bool = False) -> Prepared:
        if "starts" in batch:
            raise ValueError(f"{type(self).__name__} takes one sequence per row: its batches hold no 'starts'")
        batch, there, seen = observed_steps(self.emission, batch, weighted)
        log_likelihood = self.emission.log_prob(params["emission"], extra["emission"], batch)
        log_likelihood = jnp.maximum(jnp.where(seen[..., None], log_likelihood, 0), IMPOSSIBLE)
        weight = sequence_weights(batch, there, log_likelihood.dtype)
        counted = there & (weight > 0)[:, None] if weighted else there
        chain = self._chain(params, batch, counted, extra)
        return Prepared(batch, there, seen, weight, log_likelihood, chain)

    def _log_evidence(self, chain: PyTree, log_likelihood: Array, there: Array) -> Array:
        return self._forward(chain, log_likelihood, there)[0].sum(axis=1)

    def _expected(self, prepared: Prepared) -> Expected:
        weight, there = prepared.weight, prepared.there

        def total(chain: PyTree, log_likelihood: Array) -> tuple[Array, Array]:
            log_evidence = self._log_evidence(chain, log_likelihood, there)
            counts = (weight > 0) & _possible(log_evidence)
            return jnp.sum(jnp.where(counts, weight * log_evidence, 0)), log_evidence

        gather = jax.grad(total, argnums=(0, 1), has_aux=True)
        (counts, marginals), log_evidence = gather(prepared.chain, prepared.log_likelihood)
        return Expected(_or_impossible(log_evidence), marginals, counts)

    def e_step(self, state: State, batch: Batch) -> tuple[PyTree, Metrics]:
        prepared = self._prepared(state.params["hmm"], state.extra, batch, weighted=True)
        found, weight = self._expected(prepared), prepared.weight
        params, extra = state.params["hmm"]["emission"], state.extra["emission"]
        seen = prepared.seen[..., None]
        r = found.marginals * seen
        emission = self.emission.stats(after(params, r), extra, prepared.batch, r)
        each = jnp.where(weight > 0, weight * found.log_evidence, 0)
        return {**self._statistics(prepared, found), "emission": emission}, {
            "log_likelihood": mean_per_sequence(found.log_evidence, weight, batch),
            "per_step": Mean(each.sum(), jnp.sum(weight * prepared.there.sum(axis=1))),
        }

    def _statistics(self, prepared: Prepared, found: Expected) -> dict[str, Any]:
        """Sufficient statistics of the chain."""
        raise NotImplementedError

    def recenter(self, state: State, stats: PyTree, params: Params) -> PyTree:
        """Statistics recentered from the parameters of the State to `params`."""
        old, new = state.params["hmm"]["emission"], params["hmm"]["emission"]
        return {**stats, "emission": self.emission.recenter(stats["emission"], old, new)}

    def log_prior(self, state: State) -> Array | None:
        """Log-prior of the emission, up to a constant; None if it is flat."""
        return self.emission.log_prior(state.params["hmm"]["emission"], state.extra["emission"])

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean negative log-likelihood per sequence; the priors are for `em` alone."""
        params = held(params, self.emission, self.fixed)
        prepared = self._prepared(params, state.extra, batch, weighted=True)
        log_evidence = self._log_evidence(prepared.chain, prepared.log_likelihood, prepared.there)
        mean = mean_per_sequence(log_evidence, prepared.weight, batch)
        return Mean(-mean.total, mean.count), ({}, {"log_likelihood": mean})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("hmm", self.loss),)

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-likelihoods in nats."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)
        return _or_impossible(self._log_evidence(prepared.chain, prepared.log_likelihood, prepared.there))


def _possible(log_evidence: Array) -> Array:
    return lax.stop_gradient(log_evidence) > IMPOSSIBLE / 2


def _or_impossible(log_evidence: Array) -> Array:
    return jnp.where(_possible(log_evidence), log_evidence, -jnp.inf)
