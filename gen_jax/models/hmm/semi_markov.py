"""Hidden semi-Markov models: states last for durations of any distribution (Ferguson 1980; Yu 2010)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, Extra, Params, PyTree, State, fold_in
from gen_jax.models.hmm.batches import (
    Mask,
    allowed_states,
    check_chain,
    check_no_padding,
    maximized_logits,
    observed_steps,
)
from gen_jax.models.hmm.by_gradient import IMPOSSIBLE, ByGradient, Expected, Prepared
from gen_jax.models.hmm.durations import Durations
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.hmm import Forecast
from gen_jax.models.hmm.inference import Path
from gen_jax.models.hmm.segments import SegmentChain, forward, hazards, most_probable_segments
from gen_jax.models.mixture.gaussians import check_fixed

__all__ = ["HSMM", "Segments"]


class Segments(NamedTuple):
    """The posterior of the states and durations given the observations."""

    log_evidence: Array  # (B,) log p(x) in nats
    marginals: Array  # (B, T, K) p(z_t | x)
    initial: Array  # (B, K) p(z_1 | x)
    pairs: Array  # (B, K, K) expected transitions
    durations: Array  # (B, K, D) expected segments of each duration, including what is left of those cut off by the end


@dataclass(frozen=True)
class HSMM(ByGradient):
    """p(x) of sequences "x" (B, T, ...) whose states last for explicit durations.

    A segment begins in a state, which draws how many steps it lasts; then another state follows. The last segment may
    be cut off by the end of the sequence (right censoring).

    states: K. emission: see `gen_jax.models.hmm.emissions`. durations: see `gen_jax.models.hmm.durations`. transitions:
    which are allowed (K, K), by default all; `left_right(K)` is the usual chain, which begins in state 0. A state
    follows itself only if no other may. length: of sampled sequences. fixed: parameters that training leaves as they
    are: "initial", "transition", "durations" or "emission".

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
        check_chain(self.states, self.length, self.emission, self.transitions)
        if not isinstance(self.durations, Durations):
            raise ValueError(f"durations must be Durations, such as PoissonDurations(20), got {self.durations!r}")

    @property
    def allowed(self) -> tuple[Array, Array]:
        """Masks of initial states (K,) and transitions (K, K) with nonzero probability."""
        start, moves = allowed_states(self.states, self.transitions)
        others = moves & ~jnp.eye(self.states, dtype=bool)
        return start, jnp.where(others.any(axis=1, keepdims=True), others, moves)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
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
        return {"hmm": params}, {"emission": extra}

    def _segments(self, params: PyTree) -> SegmentChain:
        start, moves = self.allowed
        log = lambda logits, allowed: jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
        logs = log(params["initial"], start), log(params["transition"], moves)
        return SegmentChain(
            *(jnp.maximum(a, IMPOSSIBLE) for a in (*logs, self.durations.log_prob(params["durations"])))
        )

    def _chain(self, params, batch, counted, extra):
        return self._segments(params)

    def _forward(self, chain, log_likelihood, there):
        return forward(chain, log_likelihood, there)

    def _expected(self, prepared: Prepared) -> Expected:
        found, chain = super()._expected(prepared), prepared.chain
        # Hazards do not change when durations are multiplied by a factor, so that their gradient lacks the expectation.
        segments = found.counts.initial + found.counts.transition.sum(axis=0)
        durations = jnp.maximum(found.counts.durations + segments[:, None] * jnp.exp(chain.durations), 0)
        return found._replace(counts=found.counts._replace(durations=durations))

    def _statistics(self, prepared, found):
        return found.counts._asdict()

    def m_step(self, state: State, stats: PyTree) -> tuple[Params, Extra]:
        params, (start, moves) = state.params["hmm"], self.allowed
        new = {
            "initial": maximized_logits(stats["initial"], params["initial"], start),
            "transition": maximized_logits(stats["transition"], params["transition"], moves),
            "durations": self.durations.maximize(params["durations"], stats["durations"]),
            "emission": self.emission.maximize(params["emission"], state.extra["emission"], stats["emission"]),
        }
        return {"hmm": new | {name: params[name] for name in self.fixed}}, {}

    def free_parameters(self, state: State) -> int:
        """Number of free parameters, without those that are fixed or structurally 0; not inside jit."""
        start, moves = (int(np.asarray(a).sum()) for a in self.allowed)
        free = {
            "initial": start - 1,
            "transition": moves - self.states,
            "durations": self.durations.free_parameters(self.states),
            "emission": self.emission.free_parameters(state.params["hmm"]["emission"]),
        }
        return sum(n for name, n in free.items() if name not in self.fixed)

    def _known(self, state: State, batch: Batch) -> tuple[Prepared, Array]:
        """log p(z_t, steps in it so far | x up to t) (B, T, K, D)."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)
        return prepared, forward(prepared.chain, prepared.log_likelihood, prepared.there)[1]

    def filter(self, state: State, batch: Batch) -> Array:
        """(B, T, K) p(z_t | x up to t)."""
        return jax.nn.softmax(jax.nn.logsumexp(self._known(state, batch)[1], axis=3), axis=2)

    def smooth(self, state: State, batch: Batch) -> Segments:
        """The posterior of the states, and expected transitions and durations."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)

        def one(log_likelihood: Array, there: Array) -> Segments:
            alone = prepared._replace(
                log_likelihood=log_likelihood[None], there=there[None], weight=jnp.ones(1, log_likelihood.dtype)
            )
            found = self._expected(alone)
            return Segments(found.log_evidence[0], found.marginals[0], *found.counts)

        return jax.vmap(one)(prepared.log_likelihood, prepared.there)

    def decode(self, state: State, batch: Batch) -> Path:
        """The most probable segments (Viterbi 1967), the last of which may go on."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)
        return most_probable_segments(prepared.chain, prepared.log_likelihood, prepared.there)

    def forecast(self, state: State, batch: Batch, horizon: int) -> Forecast:
        """Predicts the `horizon` steps after the end of each row."""
        prepared, known = self._known(state, batch)
        ahead = jnp.zeros((len(known), horizon, self.states), known.dtype)
        known = forward(prepared.chain, ahead, jnp.ones(ahead.shape[:2], bool), known[:, -1])[1]
        states = jax.nn.softmax(jax.nn.logsumexp(known, axis=3), axis=2)
        return Forecast(states, jnp.tensordot(states, self.emission.mean(state.params["hmm"]["emission"]), axes=1))

    def extend(self, state: State, batch: Batch, key: Array, horizon: int) -> Batch:
        """Samples continuations of sequences without padding: "x" (B, horizon, ...) and "state"."""
        check_no_padding(batch)
        params, (prepared, known) = state.params["hmm"], self._known(state, batch)
        now = known[:, -1]
        cell = jax.random.categorical(fold_in(key, "now"), now.reshape(len(now), -1))
        path = self._path(params, fold_in(key, "path"), divmod(cell, now.shape[2]), horizon)
        x = self.emission.draw(
            params["emission"], state.extra["emission"], fold_in(key, "x"), path, prepared.batch["x"]
        )
        return {"x": x, "state": path}

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, length: int | None = None
    ) -> Batch:
        """n sequences: "x" (n, length, ...) and "state" (n, length)."""
        params = state.params["hmm"]
        logits = jnp.broadcast_to(self._segments(params).initial, (n, self.states))
        first = jax.random.categorical(fold_in(key, "first"), logits)
        rest = self._path(params, fold_in(key, "path"), (first, jnp.zeros_like(first)), (length or self.length) - 1)
        path = jnp.concatenate([first.astype(jnp.int32)[:, None], rest], axis=1)
        x = self.emission.draw(params["emission"], state.extra["emission"], fold_in(key, "x"), path)
        return {"x": x, "state": path}

    def _path(self, params: PyTree, key: Array, now: tuple[Array, Array], length: int) -> Array:
        """Samples states (B, length) that follow states (B,) which have lasted for so many steps (B,) after their
        first."""
        chain = self._segments(params)
        leave, _ = hazards(chain.durations)

        def step(before: tuple[Array, Array], t: Array):
            (state, age), key_ = before, fold_in(key, t)
            left = jnp.log(jax.random.uniform(fold_in(key_, "leave"), state.shape)) < leave[state, age]
            after = jax.random.categorical(fold_in(key_, "state"), chain.transition[state])
            new = jnp.where(left, after, state), jnp.where(left, 0, age + 1)
            return new, new[0]

        return lax.scan(step, now, jnp.arange(length))[1].T.astype(jnp.int32)

    def chain(self, state: State) -> tuple[Array, Array]:
        """Probabilities of the initial states (K,) and of the transitions (K, K) between segments."""
        chain = self._segments(state.params["hmm"])
        return jnp.exp(chain.initial), jnp.exp(chain.transition)
