"""Hidden semi-Markov models: states last for durations of any distribution (Ferguson 1980; Yu 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold_in
from gen_jax.models.hmm.batches import maximized_logits, mean_per_sequence, observed_steps, sequence_weights
from gen_jax.models.hmm.durations import Durations
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.hmm import Forecast, Mask
from gen_jax.models.hmm.inference import Path
from gen_jax.models.mixture.gaussians import check_fixed

__all__ = ["HSMM", "Segments"]

IMPOSSIBLE = -1e30  # finite, so that gradients are


class Segments(NamedTuple):
    """The posterior of the states and durations given the observations."""

    log_evidence: Array  # (B,) log p(x) in nats
    marginals: Array  # (B, T, K) p(z_t | x)
    initial: Array  # (B, K) p(z_1 | x)
    pairs: Array  # (B, K, K) expected transitions
    durations: Array  # (B, K, D) expected segments of each duration, including what is left of those cut off by the end


class _Chain(NamedTuple):
    log_initial: Array  # (K,)
    log_transition: Array  # (K, K)
    log_durations: Array  # (K, D)


@dataclass(frozen=True)
class HSMM:
    """p(x) of sequences "x" (B, T, ...) whose states last for explicit durations.

    A segment begins in a state, which draws how many steps it lasts; then another state follows. The last segment may
    be cut off by the end of the sequence (right censoring).

    states: K. emission: see `gen_jax.models.hmm.emissions`. durations: see `gen_jax.models.hmm.durations`. transitions:
    which are allowed (K, K); by default all to another state. length: of sampled sequences. fixed: parameters that
    training leaves as they are: "initial", "transition", "durations" or "emission".

    Batches are those of `HMM`, with one sequence per row. Time and memory of a step are K^2 + K D; inference is in
    log-space.
    """

    states: int
    emission: Emission
    durations: Durations
    transitions: Mask | None = None
    length: int = 100
    fixed: tuple[str, ...] = ()

    def __post_init__(self):
        check_fixed(self.fixed, ("initial", "transition", "durations", "emission"))
        if self.states < 1 or self.length < 1:
            raise ValueError(f"states and length must be at least 1, got {self.states} and {self.length}")
        rows = self.transitions
        if rows is not None and (len(rows) != self.states or any(len(r) != self.states or not any(r) for r in rows)):
            raise ValueError(f"transitions must be {self.states} rows of {self.states}, each with a state to go to")

    @property
    def allowed(self) -> Array:
        """(K, K) mask of the transitions with nonzero probability."""
        if self.transitions is not None:
            return jnp.asarray(self.transitions)
        return ~jnp.eye(self.states, dtype=bool) if self.states > 1 else jnp.ones((1, 1), bool)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        _single(batch)
        batch, _, seen = observed_steps(self.emission, batch, weighted=True)
        emission, extra = self.emission.init(fold_in(key, "emission"), batch, seen, self.states)
        dtype = jnp.result_type(float, *jax.tree.leaves(emission)) if batch["x"].dtype.kind != "f" else batch["x"].dtype
        jitter = lambda name, *shape: 0.3 * jax.random.normal(fold_in(key, name), shape, dtype)
        params = {
            "initial": jitter("initial", self.states),
            "transition": jitter("transition", self.states, self.states),
            "durations": jax.tree.map(lambda a: a.astype(dtype), self.durations.init(key, self.states)),
            "emission": emission,
        }
        return {"hsmm": params}, {"emission": extra}

    def _chain(self, params: PyTree) -> _Chain:
        masked = jnp.where(self.allowed, params["transition"], -jnp.inf)
        logs = jax.nn.log_softmax(params["initial"]), jax.nn.log_softmax(masked, axis=1)
        finite = lambda a: jnp.maximum(a, IMPOSSIBLE)
        return _Chain(*map(finite, (*logs, self.durations.log_prob(params["durations"]))))

    def _prepared(self, params: PyTree, extra: Extra, batch: Batch, weighted: bool = False):
        _single(batch)
        batch, there, seen = observed_steps(self.emission, batch, weighted)
        log_likelihood = self.emission.log_prob(params["emission"], extra["emission"], batch)
        log_likelihood = jnp.maximum(jnp.where(seen[..., None], log_likelihood, 0), IMPOSSIBLE)
        return batch, there, seen, log_likelihood

    def e_step(self, state: State, batch: Batch) -> tuple[PyTree, Metrics]:
        params = state.params["hsmm"]
        batch, there, seen, log_likelihood = self._prepared(params, state.extra, batch, weighted=True)
        weight = sequence_weights(batch, there, log_likelihood.dtype)
        chain = self._chain(params)
        log_evidence, gathered = _posterior(chain, log_likelihood, there, weight)
        counts, marginals = gathered
        emission = self.emission.stats(params["emission"], state.extra["emission"], batch, marginals * seen[..., None])
        return {**counts._asdict(), "emission": emission}, {
            "log_likelihood": mean_per_sequence(log_evidence, weight, batch),
            "per_step": Mean(jnp.sum(weight * log_evidence), jnp.sum(weight * there.sum(axis=1))),
        }

    def m_step(self, state: State, stats: PyTree) -> tuple[Params, Extra]:
        params = state.params["hsmm"]
        everywhere = jnp.ones(self.states, bool)
        new = {
            "initial": maximized_logits(stats["log_initial"], params["initial"], everywhere),
            "transition": maximized_logits(stats["log_transition"], params["transition"], self.allowed),
            "durations": self.durations.maximize(params["durations"], stats["log_durations"]),
            "emission": self.emission.maximize(params["emission"], state.extra["emission"], stats["emission"]),
        }
        return {"hsmm": new | {name: params[name] for name in self.fixed}}, {}

    def recenter(self, state: State, stats: PyTree, params: Params) -> PyTree:
        """Statistics recentered from the parameters of the State to `params`."""
        old, new = state.params["hsmm"]["emission"], params["hsmm"]["emission"]
        return {**stats, "emission": self.emission.recenter(stats["emission"], old, new)}

    def log_prior(self, state: State) -> Array | None:
        """Log-prior of the emission, up to a constant; None if it is flat."""
        return self.emission.log_prior(state.params["hsmm"]["emission"], state.extra["emission"])

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean negative log-likelihood per sequence; the priors are for `em` alone."""
        params = {**params, "emission": self.emission.held(params["emission"])}
        params = {name: lax.stop_gradient(p) if name in self.fixed else p for name, p in params.items()}
        batch, there, _, log_likelihood = self._prepared(params, state.extra, batch, weighted=True)
        log_evidence = _log_evidence(self._chain(params), log_likelihood, there)
        mean = mean_per_sequence(log_evidence, sequence_weights(batch, there, log_evidence.dtype), batch)
        return Mean(-mean.total, mean.count), ({}, {"log_likelihood": mean})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("hsmm", self.loss),)

    def free_parameters(self, state: State) -> int:
        """Number of free parameters, without those that are fixed or structurally 0; not inside jit."""
        free = {
            "initial": self.states - 1,
            "transition": int(np.asarray(self.allowed).sum()) - self.states,
            "durations": self.durations.free_parameters(self.states),
            "emission": self.emission.free_parameters(state.params["hsmm"]["emission"]),
        }
        return sum(n for name, n in free.items() if name not in self.fixed)

    def _of(self, state: State, batch: Batch):
        params = state.params["hsmm"]
        _, there, _, log_likelihood = self._prepared(params, state.extra, batch)
        return self._chain(params), log_likelihood, there

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-likelihoods in nats."""
        return _log_evidence(*self._of(state, batch))

    def filter(self, state: State, batch: Batch) -> Array:
        """(B, T, K) p(z_t | x up to t)."""
        known = _forward(*self._of(state, batch))[1]
        return jax.nn.softmax(jax.nn.logsumexp(known, axis=3), axis=2)

    def smooth(self, state: State, batch: Batch) -> Segments:
        """The posterior of the states, and expected transitions and durations."""
        chain, log_likelihood, there = self._of(state, batch)

        def one(log_likelihood: Array, there: Array) -> Segments:
            weight = jnp.ones(1, log_likelihood.dtype)
            log_evidence, (counts, marginals) = _posterior(chain, log_likelihood[None], there[None], weight)
            return Segments(log_evidence[0], marginals[0], *counts)

        return jax.vmap(one)(log_likelihood, there)

    def decode(self, state: State, batch: Batch) -> Path:
        """The most probable segments (Viterbi 1967), the last of which may go on."""
        return _most_probable(*self._of(state, batch))

    def forecast(self, state: State, batch: Batch, horizon: int) -> Forecast:
        """Predicts the `horizon` steps after the end of each row."""
        chain, log_likelihood, there = self._of(state, batch)
        now = _forward(chain, log_likelihood, there)[1][:, -1]
        ahead = jnp.zeros((len(now), horizon, self.states), now.dtype)
        known = _forward(chain, ahead, jnp.ones(ahead.shape[:2], bool), now)[1]
        states = jax.nn.softmax(jax.nn.logsumexp(known, axis=3), axis=2)
        return Forecast(states, jnp.tensordot(states, self.emission.mean(state.params["hsmm"]["emission"]), axes=1))

    def extend(self, state: State, batch: Batch, key: Array, horizon: int) -> Batch:
        """Samples continuations of sequences without padding: "x" (B, horizon, ...) and "state"."""
        params = state.params["hsmm"]
        batch, there, _, log_likelihood = self._prepared(params, state.extra, batch)
        now = _forward(self._chain(params), log_likelihood, there)[1][:, -1]
        cell = jax.random.categorical(fold_in(key, "now"), now.reshape(len(now), -1))
        path = self._path(params, fold_in(key, "path"), divmod(cell, now.shape[2]), horizon)
        x = self.emission.draw(params["emission"], state.extra["emission"], fold_in(key, "x"), path, batch["x"])
        return {"x": x, "state": path}

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, length: int | None = None
    ) -> Batch:
        """n sequences: "x" (n, length, ...) and "state" (n, length)."""
        params = state.params["hsmm"]
        logits = jnp.broadcast_to(self._chain(params).log_initial, (n, self.states))
        first = jax.random.categorical(fold_in(key, "first"), logits)
        rest = self._path(params, fold_in(key, "path"), (first, jnp.zeros_like(first)), (length or self.length) - 1)
        path = jnp.concatenate([first.astype(jnp.int32)[:, None], rest], axis=1)
        x = self.emission.draw(params["emission"], state.extra["emission"], fold_in(key, "x"), path)
        return {"x": x, "state": path}

    def _path(self, params: PyTree, key: Array, now: tuple[Array, Array], length: int) -> Array:
        """Samples states (B, length) that follow states (B,) which have lasted for so many steps (B,) after their
        first."""
        chain = self._chain(params)
        leave, _ = _hazards(chain.log_durations)

        def step(before: tuple[Array, Array], t: Array):
            (state, age), key_ = before, fold_in(key, t)
            left = jnp.log(jax.random.uniform(fold_in(key_, "leave"), state.shape)) < leave[state, age]
            after = jax.random.categorical(fold_in(key_, "state"), chain.log_transition[state])
            new = jnp.where(left, after, state), jnp.where(left, 0, age + 1)
            return new, new[0]

        return lax.scan(step, now, jnp.arange(length))[1].T.astype(jnp.int32)

    def chain(self, state: State) -> tuple[Array, Array]:
        """Probabilities of the initial states (K,) and of the transitions (K, K) between segments."""
        chain = self._chain(state.params["hsmm"])
        return jnp.exp(chain.log_initial), jnp.exp(chain.log_transition)


def _single(batch: Batch) -> None:
    if "starts" in batch:
        raise ValueError("a semi-Markov model needs one sequence per row: its batches hold no 'starts'")


def _hazards(log_durations: Array) -> tuple[Array, Array]:
    """(K, D) log-probabilities of leaving a state after having been there for 1, 2, ... steps, and of staying."""
    at_least = jnp.maximum(lax.cumlogsumexp(log_durations, axis=1, reverse=True), IMPOSSIBLE)
    after = jnp.concatenate([at_least[:, 1:], jnp.full_like(at_least[:, :1], IMPOSSIBLE)], axis=1)
    return log_durations - at_least, jnp.maximum(after - at_least, IMPOSSIBLE)


def _forward(chain: _Chain, log_likelihood: Array, there: Array, before: Array | None = None) -> tuple[Array, Array]:
    """log p(x_t | x before t) (B, T), and log p(z_t, steps in it so far | x up to t) (B, T, K, D).

    before: what is known at the step before the first, instead of the initial probabilities.
    """
    leave, stay = _hazards(chain.log_durations)

    @jax.checkpoint
    def step(known: Array, inputs: tuple[Array, Array, Array]):
        value, there, first = inputs
        left = jax.nn.logsumexp(known + leave, axis=2)
        arrived = jax.nn.logsumexp(left[:, :, None] + chain.log_transition, axis=1)
        arrived = jnp.where(first, chain.log_initial, arrived)
        stayed = jnp.where(first, IMPOSSIBLE, (known + stay)[:, :, :-1])
        joint = jnp.concatenate([arrived[:, :, None], stayed], axis=2) + value[:, :, None]
        scale = jax.nn.logsumexp(joint, axis=(1, 2))
        new = jnp.where(there[:, None, None], jnp.maximum(joint - scale[:, None, None], IMPOSSIBLE), known)
        return new, (jnp.where(there, scale, 0), new)

    batch, time, k = log_likelihood.shape
    first = (jnp.arange(time) == 0) & (before is None)
    start = jnp.zeros((batch, k, chain.log_durations.shape[1]), log_likelihood.dtype) if before is None else before
    scale, known = lax.scan(step, start, (jnp.swapaxes(log_likelihood, 0, 1), there.T, first))[1]
    return scale.T, jnp.swapaxes(known, 0, 1)


def _log_evidence(chain: _Chain, log_likelihood: Array, there: Array) -> Array:
    return _forward(chain, log_likelihood, there)[0].sum(axis=1)


def _posterior(chain: _Chain, log_likelihood: Array, there: Array, weight: Array) -> tuple[Array, tuple[_Chain, Array]]:
    """Log-evidence (B,), and the gradient of its weighted sum: expected counts, and weighted marginals (B, T, K)."""

    def total(chain: _Chain, log_likelihood: Array) -> tuple[Array, Array]:
        log_evidence = _log_evidence(chain, log_likelihood, there)
        return jnp.sum(jnp.where(weight > 0, weight * log_evidence, 0)), log_evidence

    (counts, marginals), log_evidence = jax.grad(total, argnums=(0, 1), has_aux=True)(chain, log_likelihood)
    # Hazards do not change when durations are multiplied by a factor, so that their gradient lacks the expectation.
    segments = counts.log_initial + counts.log_transition.sum(axis=0)
    durations = jnp.maximum(counts.log_durations + segments[:, None] * jnp.exp(chain.log_durations), 0)
    return log_evidence, (counts._replace(log_durations=durations), marginals)


def _most_probable(chain: _Chain, log_likelihood: Array, there: Array) -> Path:
    batch, time, k = log_likelihood.shape
    leave, stay = _hazards(chain.log_durations)

    def step(best: Array, inputs: tuple[Array, Array, Array]):
        value, there, first = inputs
        leaving = best + leave
        moved = leaving.max(axis=2)[:, :, None] + chain.log_transition
        arrived = jnp.where(first, chain.log_initial, moved.max(axis=1))
        stayed = jnp.where(first, IMPOSSIBLE, (best + stay)[:, :, :-1])
        new = jnp.concatenate([arrived[:, :, None], stayed], axis=2) + value[:, :, None]
        new = jnp.where(there[:, None, None], jnp.maximum(new, IMPOSSIBLE), best)
        return new, (jnp.argmax(moved, axis=1), jnp.argmax(leaving, axis=2))

    inputs = jnp.swapaxes(log_likelihood, 0, 1), there.T, jnp.arange(time) == 0
    start = jnp.zeros((batch, k, chain.log_durations.shape[1]), log_likelihood.dtype)
    best, (before, lasted) = lax.scan(step, start, inputs)
    rows = jnp.arange(batch)

    def back(at: tuple[Array, Array], inputs: tuple[Array, Array, Array]):
        (state, age), (before, lasted, there) = at, inputs
        earlier = before[rows, state]
        moved = jnp.where(age > 0, state, earlier), jnp.where(age > 0, age - 1, lasted[rows, earlier])
        return jax.tree.map(partial(jnp.where, there), moved, at), state

    end = divmod(jnp.argmax(best.reshape(batch, -1), axis=1), best.shape[2])
    states = lax.scan(back, end, (before, lasted, there.T), reverse=True)[1]
    return Path(states.T.astype(jnp.int32), best.max(axis=(1, 2)))
