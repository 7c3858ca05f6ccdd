"""Hidden Markov models with any emission, by Baum-Welch (Baum et al. 1970) or descent on the exact likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.linalg import after
from gen_jax.models.hmm import inference
from gen_jax.models.hmm.batches import (
    Mask,
    allowed_states,
    check_chain,
    check_no_padding,
    held,
    maximized_logits,
    mean_per_sequence,
    observed_steps,
    sequence_weights,
)
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.inference import Path, Posterior, Scan
from gen_jax.models.mixture.gaussians import check_fixed

__all__ = ["HMM", "Forecast", "Mask", "Stats", "left_right", "stationary"]


class Stats(NamedTuple):
    """Expected sufficient statistics: initial states, transitions, and those of the emission."""

    initial: Array  # (K,)
    pairs: Array  # (K, K)
    emission: PyTree


class Forecast(NamedTuple):
    """Predictions beyond the end of each sequence."""

    states: Array  # (B, H, K) p(z_T+h | x)
    mean: Array  # (B, H, ...) E[x_T+h | x]


def left_right(states: int, jump: int = 1) -> Mask:
    """Left-right (Bakis) models: transitions to the state itself and to the `jump` states after it.

    With a jump of 0 no sequence leaves its first state: a mixture of sequences of independent observations.
    """
    return tuple(tuple(0 <= j - i <= jump for j in range(states)) for i in range(states))


def stationary(transition: Array) -> Array:
    """The stationary distribution (K,) of transition probabilities (K, K) of which all states are in one class."""
    k = len(transition)
    a = jnp.eye(k, dtype=transition.dtype) - transition + 1  # Zucchini & MacDonald 2009, exercise 8 of chapter 1
    return jnp.linalg.solve(a.T, jnp.ones(k, transition.dtype))


@dataclass(frozen=True)
class HMM:
    """p(x) = sum over z of p(z_1) prod p(z_t | z_t-1) prod p(x_t | z_t), for sequences "x" (B, T, ...).

    states: K. emission: see `gen_jax.models.hmm.emissions`. transitions: which are allowed (K, K), all by default;
    `left_right(K)` is the usual chain, which begins in state 0. concentration, stickiness: of the Dirichlet priors over
    initial and transition probabilities; 1 and 0 are flat, stickiness adds to self-transitions. length: of sampled
    sequences. stationary: the initial probabilities are the stationary ones of the transitions, without parameters of
    their own (Zucchini & MacDonald 2009, section 1.3). fixed: parameters that training leaves as they are: "initial",
    "transition" or "emission". scan: the scan over time, chosen by length and backend if None.

    A batch may hold "length" (B,): later steps are padding, and sequences of length 0 do not count; "observed" (B, T):
    where False, or where x is NaN, the step exists but its emission is unobserved; "starts" (B, T): where another
    sequence than the first of a row begins, so that one row may hold several; "weight" (B,): sequence weights, of
    which only the ratios matter unless there is a prior. Probabilities that are 0 stay 0.
    """

    states: int
    emission: Emission
    transitions: Mask | None = None
    concentration: float = 1.0
    stickiness: float = 0.0
    length: int = 100
    stationary: bool = False
    fixed: tuple[str, ...] = ()
    scan: Scan | None = None

    def __post_init__(self):
        check_fixed(
            self.fixed, ("transition", "emission") if self.stationary else ("initial", "transition", "emission")
        )
        check_chain(self.states, self.length, self.emission, self.transitions)
        if self.concentration < 1 or self.stickiness < 0:
            got = f"got {self.concentration} and {self.stickiness}"
            raise ValueError(f"concentration must be at least 1 and stickiness 0 or more, {got}")

    @property
    def allowed(self) -> tuple[Array, Array]:
        """Masks of initial states (K,) and transitions (K, K) with nonzero probability."""
        return allowed_states(self.states, self.transitions)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        batch, _, seen = observed_steps(self.emission, batch, weighted=True)
        emission, extra = self.emission.init(fold_in(key, "emission"), batch, seen, self.states)
        dtype = jnp.result_type(float, *jax.tree.leaves(emission)) if batch["x"].dtype.kind != "f" else batch["x"].dtype
        jitter = lambda name, *shape: 0.3 * jax.random.normal(fold_in(key, name), shape, dtype)
        initial, transition = jitter("initial", self.states), jitter("transition", self.states, self.states)
        params = {"initial": initial, "transition": transition, "emission": emission}
        if self.stationary:
            del params["initial"]
        return {"hmm": params}, {"emission": extra, **self._prior(dtype)}

    def _prior(self, dtype: Any) -> Extra:
        """Pseudo-counts of the chain, nothing if its prior is flat."""
        if self.concentration == 1 and not self.stickiness:
            return {}
        more = jnp.asarray(self.concentration - 1, dtype)
        pairs = more + self.stickiness * jnp.eye(self.states, dtype=dtype)
        return {"prior": {"initial": jnp.full(self.states, more), "transition": pairs}}

    def _log_chain(self, params: PyTree) -> tuple[Array, Array]:
        start, moves = self.allowed
        log = lambda logits, allowed: jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
        transition = log(params["transition"], moves)
        if self.stationary:
            return jnp.log(jnp.maximum(stationary(jnp.exp(transition)), 0)), transition
        return log(params["initial"], start), transition

    def _prepared(self, params: PyTree, extra: Extra, batch: Batch, weighted: bool = False):
        """Inputs of inference, and masks of the existing and the observed steps."""
        batch, there, seen = observed_steps(self.emission, batch, weighted)
        log_likelihood = self.emission.log_prob(params["emission"], extra["emission"], batch)
        log_likelihood = jnp.where(seen[..., None], log_likelihood, 0)
        scan = self.scan or inference.automatic(*log_likelihood.shape)
        return batch, there, seen, (*self._log_chain(params), log_likelihood), scan

    def _of(self, state: State, batch: Batch):
        _, there, _, chain, scan = self._prepared(state.params["hmm"], state.extra, batch)
        return there, chain, scan, batch.get("starts")

    def e_step(self, state: State, batch: Batch) -> tuple[Stats, Metrics]:
        params = state.params["hmm"]
        batch, there, seen, chain, scan = self._prepared(params, state.extra, batch, weighted=True)
        found = inference.posterior(*chain, scan, mask=there, starts=batch.get("starts"))
        weight = sequence_weights(batch, there, found.marginals.dtype)
        r = found.marginals * (seen * weight[:, None])[..., None]
        emission = self.emission.stats(after(params["emission"], r), state.extra["emission"], batch, r)
        initial = inference.initial_counts(found.marginals, weight, batch.get("starts"))
        stats = Stats(initial, jnp.einsum("b,bij->ij", weight, found.pairs), emission)
        return stats, {
            "log_likelihood": mean_per_sequence(found.log_evidence, weight, batch),
            "per_step": Mean(jnp.sum(weight * found.log_evidence), jnp.sum(weight * there.sum(axis=1))),
        }

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        params, (start, moves) = state.params["hmm"], self.allowed
        prior = state.extra.get("prior", {"initial": 0, "transition": 0})
        initial = stats.initial + prior["initial"]
        pairs = stats.pairs + prior["transition"]
        if self.stationary:
            possible = moves & (params["transition"] > -jnp.inf)
            pairs = _stationary_counts(pairs, initial, jnp.where(possible, params["transition"], 0), possible)
        new = {
            "transition": maximized_logits(pairs, params["transition"], moves),
            "emission": self.emission.maximize(params["emission"], state.extra["emission"], stats.emission),
        }
        if not self.stationary:
            new["initial"] = maximized_logits(initial, params["initial"], start)
        return {"hmm": new | {name: params[name] for name in self.fixed}}, {}

    def log_prior(self, state: State) -> Array | None:
        """Log-prior of the parameters, up to a constant; None if it is flat."""
        params, terms = state.params["hmm"], []
        if "prior" in state.extra:
            for name, log_p in zip(("initial", "transition"), self._log_chain(params)):
                terms.append(jnp.sum(jnp.where(log_p > -jnp.inf, state.extra["prior"][name] * log_p, 0)))
        if (emission := self.emission.log_prior(params["emission"], state.extra["emission"])) is not None:
            terms.append(emission)
        return sum(terms) if terms else None

    def free_parameters(self, state: State) -> int:
        """Number of free parameters, without those that are fixed or structurally 0; not inside jit."""
        log_initial, log_transition = (np.asarray(a) for a in self._log_chain(state.params["hmm"]))
        emission = self.emission.free_parameters(state.params["hmm"]["emission"])
        free = {
            "initial": 0 if self.stationary else int((log_initial > -np.inf).sum()) - 1,
            "transition": int((log_transition > -np.inf).sum()) - self.states,
            "emission": emission,
        }
        return sum(n for name, n in free.items() if name not in self.fixed)

    def recenter(self, state: State, stats: Stats, params: Params) -> Stats:
        """Statistics recentered from the parameters of the State to `params`."""
        old, new = state.params["hmm"]["emission"], params["hmm"]["emission"]
        return stats._replace(emission=self.emission.recenter(stats.emission, old, new))

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean negative log-likelihood per sequence; the priors are for `em` alone."""
        params = held(params, self.emission, self.fixed)
        _, there, _, chain, scan = self._prepared(params, state.extra, batch, weighted=True)
        log_evidence = inference.log_evidence(*chain, scan, batch.get("starts"))
        mean = mean_per_sequence(log_evidence, sequence_weights(batch, there, log_evidence.dtype), batch)
        return Mean(-mean.total, mean.count), ({}, {"log_likelihood": mean})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("hmm", self.loss),)

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-likelihoods in nats, of all sequences of a row."""
        _, chain, scan, starts = self._of(state, batch)
        return inference.log_evidence(*chain, scan, starts)

    def filter(self, state: State, batch: Batch) -> Array:
        """(B, T, K) p(z_t | x up to t)."""
        _, chain, scan, starts = self._of(state, batch)
        return jnp.exp(inference.forward_filter(*chain, scan, starts))

    def smooth(self, state: State, batch: Batch) -> Posterior:
        """The posterior of the states, and expected transition counts."""
        there, chain, scan, starts = self._of(state, batch)
        return inference.posterior(*chain, scan, mask=there, starts=starts)

    def decode(self, state: State, batch: Batch) -> Path:
        """The most probable state sequence (Viterbi 1967)."""
        there, chain, scan, starts = self._of(state, batch)
        return inference.most_probable(*chain, scan, mask=there, starts=starts)

    def posterior_sample(self, state: State, batch: Batch, key: Array, n: int) -> Array:
        """(n, B, T) samples from the posterior of the states."""
        _, chain, scan, starts = self._of(state, batch)
        return inference.posterior_sample(*chain, key, n, scan, starts)

    def fill(self, state: State, batch: Batch, key: Array) -> Array:
        """(B, T, ...) "x" whose unobserved steps, and NaN coordinates, are drawn from their posterior given all others.

        Raises ValueError for emissions that depend on earlier observations or on inputs.
        """
        if not self.emission.independent:
            raise ValueError("gaps can only be filled where observations are independent given the states")
        model = replace(self, emission=self.emission.with_missing())
        _, _, seen = observed_steps(model.emission, batch)
        path = model.posterior_sample(state, batch, fold_in(key, "path"), 1)[0]
        emission, extra = state.params["hmm"]["emission"], state.extra["emission"]
        x = jnp.asarray(batch["x"])
        known = jnp.broadcast_to(seen.reshape(*seen.shape, *[1] * (x.ndim - 2)), x.shape)
        known = known & ~jnp.isnan(x) if x.dtype.kind == "f" else known
        rows = lambda a: a.reshape(-1, *a.shape[2:])
        made = self.emission.complete(emission, extra, fold_in(key, "x"), rows(path), rows(x), rows(known))
        return made.reshape(x.shape)

    def forecast(self, state: State, batch: Batch, horizon: int) -> Forecast:
        """Predicts the `horizon` steps after the end of each row."""
        there, chain, scan, starts = self._of(state, batch)
        last = there.sum(axis=1) - 1
        now = jnp.exp(inference.forward_filter(*chain, scan, starts))[jnp.arange(len(last)), last]
        transition = jnp.exp(chain[1])
        step = lambda p, _: (p @ transition,) * 2
        states = jnp.swapaxes(jax.lax.scan(step, now, length=horizon)[1], 0, 1)
        mean = self.emission.mean(state.params["hmm"]["emission"])
        return Forecast(states, jnp.tensordot(states, mean, axes=1))

    def extend(self, state: State, batch: Batch, key: Array, horizon: int) -> Batch:
        """Samples continuations of sequences without padding: "x" (B, horizon, ...) and "state"."""
        check_no_padding(batch)
        params = state.params["hmm"]
        batch, _, _, chain, scan = self._prepared(params, state.extra, batch)
        log_transition = chain[1]
        now = jax.random.categorical(
            fold_in(key, "now"), inference.forward_filter(*chain, scan, batch.get("starts"))[:, -1]
        )
        path = self._path(log_transition, fold_in(key, "path"), log_transition[now], horizon)
        x = self.emission.draw(params["emission"], state.extra["emission"], fold_in(key, "x"), path, batch["x"])
        return {"x": x, "state": path}

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, length: int | None = None
    ) -> Batch:
        """n sequences: "x" (n, length, ...) and "state" (n, length)."""
        params = state.params["hmm"]
        log_initial, log_transition = self._log_chain(params)
        first = jnp.broadcast_to(log_initial, (n, self.states))
        path = self._path(log_transition, fold_in(key, "path"), first, length or self.length)
        x = self.emission.draw(params["emission"], state.extra["emission"], fold_in(key, "x"), path)
        return {"x": x, "state": path}

    def _path(self, log_transition: Array, key: Array, first: Array, length: int) -> Array:
        """Samples states (B, length), the first from logits (B, K)."""

        def step(logits: Array, t: Array):
            state = jax.random.categorical(fold_in(key, t), logits)
            return log_transition[state], state

        return jax.lax.scan(step, first, jnp.arange(length))[1].T.astype(jnp.int32)

    def chain(self, state: State) -> tuple[Array, Array]:
        """Initial (K,) and transition (K, K) probabilities."""
        return tuple(jnp.exp(log) for log in self._log_chain(state.params["hmm"]))


def _stationary_counts(pairs: Array, initial: Array, logits: Array, allowed: Array) -> Array:
    """Shares (K, K) that increase sum(pairs log A) + sum(initial log stationary(A)) over A, by L-BFGS on its logits.

    The maximum has no closed form. Steps never decrease the sum, so that EM stays monotone.
    """
    log_share = lambda logits: jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf), axis=1)

    def loss(logits: Array) -> Array:
        log_a = log_share(logits)
        log_start = jnp.log(jnp.maximum(stationary(jnp.exp(log_a)), jnp.finfo(log_a.dtype).tiny))
        return -jnp.sum(jnp.where(allowed, pairs * log_a, 0)) - jnp.sum(initial * log_start)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        logits, opt = carry
        value, slope = optax.value_and_grad_from_state(loss)(logits, state=opt)
        updates, opt = search.update(slope, opt, logits, value=value, grad=slope, value_fn=loss)
        return (optax.apply_updates(logits, updates), opt), None

    def best(a: Array, b: Array) -> Array:
        return jnp.where(loss(b) <= loss(a), b, a)

    search = optax.lbfgs()
    empirical = jnp.where(pairs > 0, jnp.log(jnp.maximum(pairs, 1e-30)), logits)
    start = best(logits, jnp.where((pairs > 0).any(axis=1, keepdims=True), empirical, logits))
    found = jax.lax.scan(step, (start, search.init(start)), length=8)[0][0]
    return jnp.exp(log_share(best(start, found)))
