"""Bayesian hidden Markov models by variational EM (MacKay 1997; Beal 2003, chapter 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Params, PyTree, State, fold_in
from gen_jax.models.hmm.batches import check_chain, observed_steps, sequence_weights
from gen_jax.models.hmm.emissions.bayesian import BayesianEmission, dirichlet_divergence, expected_log
from gen_jax.models.hmm.hmm import HMM, Forecast, Stats
from gen_jax.models.mixture.gaussians import check_fixed

__all__ = ["BayesianHMM"]


@dataclass(frozen=True)
class BayesianHMM(HMM):
    """An HMM with posteriors over its probabilities and its emissions, which EM improves in turns.

    emission: a `BayesianEmission`. concentration: of the Dirichlet priors of the initial and the transition
    probabilities, 1 / K by default. States that the data does not need are left empty; `states` is the most there may
    be.

    The log-posterior that `em` reports is the evidence lower bound, divided by the number of sequences; its
    log-likelihood is the part without the divergences from the priors. Parameters are those of the posteriors;
    densities, states and samples are those of the HMM at their means.
    """

    concentration: float | None = None

    def __post_init__(self):
        if not isinstance(self.emission, BayesianEmission):
            name = type(self.emission).__name__
            raise ValueError(f"a Bayesian HMM needs an emission with posteriors, such as BayesianGaussian, got {name}")
        if self.stationary:
            raise ValueError("a Bayesian HMM has no stationary start: its transitions have no closed posterior then")
        if self.concentration is not None and self.concentration <= 0:
            raise ValueError(f"concentration must be positive, got {self.concentration}")
        check_fixed(self.fixed, ("initial", "transition", "emission"))
        check_chain(self.states, self.length, self.emission, self.transitions)
        if self.stickiness < 0:
            raise ValueError(f"stickiness must be 0 or more, got {self.stickiness}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        batch, there, seen = observed_steps(self.emission, batch, weighted=True)
        emission, extra = self.emission.init(fold_in(key, "emission"), batch, seen, self.states)
        dtype = jnp.result_type(*jax.tree.leaves(emission))
        prior = self._prior(dtype)
        jitter = lambda name, *shape: jax.nn.softmax(0.3 * jax.random.normal(fold_in(key, name), shape, dtype))
        weight = sequence_weights(batch, there, dtype)
        starts = batch["starts"].sum(axis=1) if "starts" in batch else 0
        sequences, steps = jnp.sum(weight * (1 + starts)), jnp.sum(weight * there.sum(axis=1)) / self.states
        params = {
            "initial": prior["prior"]["initial"] + sequences * jitter("initial", self.states),
            "transition": prior["prior"]["transition"] + steps * jitter("transition", self.states, self.states),
            "emission": emission,
        }
        return {"hmm": params}, {"emission": extra, **prior}

    def _prior(self, dtype: Any) -> Extra:
        each = jnp.asarray(1 / self.states if self.concentration is None else self.concentration, dtype)
        transition = each + self.stickiness * jnp.eye(self.states, dtype=dtype)
        return {"prior": {"initial": jnp.full(self.states, each), "transition": transition}}

    def _log_chain(self, params: PyTree) -> tuple[Array, Array]:
        """Expected log-probabilities; their exponentials sum to less than 1."""
        start, moves = self.allowed
        return expected_log(params["initial"], start), expected_log(params["transition"], moves)

    def _prepared(self, params: PyTree, extra: Extra, batch: Batch, weighted: bool = False):
        """Inputs of inference: each row of transitions is normalized, and its sum is part of the likelihood of the step
        before, so that padding has no effect."""
        batch, there, seen, (initial, transition, log_likelihood), scan = super()._prepared(
            params, extra, batch, weighted
        )
        first, rows = jax.nn.logsumexp(initial), jax.nn.logsumexp(transition, axis=1)
        begins = jnp.zeros(there.shape, bool).at[:, 0].set(True)
        if "starts" in batch:
            begins |= jnp.asarray(batch["starts"], bool)
        followed = jnp.pad(there[:, 1:] & ~begins[:, 1:], ((0, 0), (0, 1)))
        log_likelihood += jnp.where(begins & there, first, 0)[..., None] + jnp.where(followed[..., None], rows, 0)
        return batch, there, seen, (initial - first, transition - rows[:, None], log_likelihood), scan

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        params, prior = state.params["hmm"], state.extra["prior"]
        new = {
            "initial": prior["initial"] + jnp.maximum(stats.initial, 0),
            "transition": prior["transition"] + jnp.maximum(stats.pairs, 0),
            "emission": self.emission.maximize(params["emission"], state.extra["emission"], stats.emission),
        }
        return {"hmm": new | {name: params[name] for name in self.fixed}}, {}

    def log_prior(self, state: State) -> Array:
        """Minus the divergences of the posteriors from the priors, in nats."""
        params, prior = state.params["hmm"], state.extra["prior"]
        value = self.emission.log_prior(params["emission"], state.extra["emission"])
        for name, allowed in zip(("initial", "transition"), self.allowed):
            value -= dirichlet_divergence(params[name], prior[name], allowed)
        return value

    def at_means(self, state: State) -> tuple[HMM, State]:
        """The HMM at the posterior means."""
        params = state.params["hmm"]
        emission, means = self.emission.at_means(params["emission"])
        plain = HMM(self.states, emission, self.transitions, length=self.length, scan=self.scan)
        at = {"initial": jnp.log(params["initial"]), "transition": jnp.log(params["transition"]), "emission": means}
        return plain, state._replace(params={"hmm": at}, extra={"emission": {}})

    def _of(self, state: State, batch: Batch):
        plain, at_means = self.at_means(state)
        return plain._of(at_means, batch)

    def chain(self, state: State) -> tuple[Array, Array]:
        plain, at_means = self.at_means(state)
        return plain.chain(at_means)

    def fill(self, state: State, batch: Batch, key: Array) -> Array:
        plain, at_means = self.at_means(state)
        return plain.fill(at_means, batch, key)

    def forecast(self, state: State, batch: Batch, horizon: int) -> Forecast:
        plain, at_means = self.at_means(state)
        return plain.forecast(at_means, batch, horizon)

    def extend(self, state: State, batch: Batch, key: Array, horizon: int) -> Batch:
        plain, at_means = self.at_means(state)
        return plain.extend(at_means, batch, key, horizon)

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, length: int | None = None
    ) -> Batch:
        plain, at_means = self.at_means(state)
        return plain.sample(at_means, key, n, condition, length)

    @property
    def objectives(self):
        raise AttributeError("a Bayesian HMM is trained by em: its parameters are those of posteriors")

    def free_parameters(self, state: State) -> int:
        raise TypeError("posteriors have no free parameters: compare models by their evidence lower bound")
