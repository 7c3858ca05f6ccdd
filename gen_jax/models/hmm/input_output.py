"""Hidden Markov models whose transitions depend on inputs (Bengio & Frasconi 1995)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Params, PyTree, State, fold_in
from gen_jax.models.common.linalg import einsum
from gen_jax.models.hmm.batches import (
    Mask,
    allowed_states,
    check_chain,
    maximized_logits,
    observed_steps,
    sequence_weights,
)
from gen_jax.models.hmm.by_gradient import IMPOSSIBLE, ByGradient
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.inference import Path
from gen_jax.models.hmm.logspace import Posterior
from gen_jax.models.mixture.covariances import occupied
from gen_jax.models.mixture.gaussians import check_fixed, data_moments

__all__ = ["InputOutputHMM"]


@dataclass(frozen=True)
class InputOutputHMM(ByGradient):
    """p(x | u) of sequences "x" (B, T, ...) given inputs "input" (B, T, U), which must all be known.

    p(z_t = j | z_t-1 = i, u_t) is the softmax over j of `bias_ij + weights_ij . u_t`, with inputs standardized by the
    first batch; `coefficients` are those of the inputs as they are. Emissions may depend on the inputs too, except for
    sampling: `LinearRegression(lags=0, inputs=U)`.

    states: K. inputs: U. emission: see `gen_jax.models.hmm.emissions`. transitions: which are allowed (K, K), all by
    default; `left_right(K)` is the usual chain, which begins in state 0. length: of sampled sequences without inputs,
    which are at their means. fixed: parameters that training leaves as they are: "initial", "transition" or "emission".

    The M-step of `em` climbs a quadratic lower bound of the multinomial logistic regressions (Bohning 1992), so that
    the likelihood never falls; `descent` works as well. Batches are those of `HMM`, with one sequence per row.
    """

    states: int
    inputs: int
    emission: Emission
    transitions: Mask | None = None
    length: int = 100
    fixed: tuple[str, ...] = ()

    def __post_init__(self):
        check_fixed(self.fixed, ("initial", "transition", "emission"))
        check_chain(self.states, self.length, self.emission, self.transitions)
        if self.inputs < 1:
            raise ValueError(f"inputs must be at least 1, got {self.inputs}")

    @property
    def allowed(self) -> tuple[Array, Array]:
        """Masks of initial states (K,) and transitions (K, K) with nonzero probability."""
        return allowed_states(self.states, self.transitions)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        self._check_inputs(batch)
        batch, there, seen = observed_steps(self.emission, batch, weighted=True)
        emission, extra = self.emission.init(fold_in(key, "emission"), batch, seen, self.states)
        dtype = jnp.result_type(float, *jax.tree.leaves(emission)) if batch["x"].dtype.kind != "f" else batch["x"].dtype
        jitter = lambda name, *shape: 0.3 * jax.random.normal(fold_in(key, name), shape, dtype)
        k = self.states
        transition = {"bias": jitter("transition", k, k), "weights": jnp.zeros((k, k, self.inputs), dtype)}
        counted = there & (sequence_weights(batch, there, dtype) > 0)[:, None]
        inputs = batch["input"].astype(dtype).reshape(-1, self.inputs)
        mean, variance = data_moments(inputs, counted.reshape(-1).astype(dtype))
        params = {"initial": jitter("initial", k), "transition": transition, "emission": emission}
        return {"hmm": params}, {"emission": extra, "input": {"mean": mean, "scale": jnp.sqrt(variance)}}

    def _check_inputs(self, batch: Batch) -> None:
        if "input" not in batch or batch["input"].ndim != 3 or batch["input"].shape[2] != self.inputs:
            got = "none" if "input" not in batch else f"shape {batch['input'].shape}"
            raise ValueError(f'a batch must hold "input" (sequences, steps, {self.inputs}), got {got}')

    def _regressors(self, extra: Extra, inputs: Array, dtype: Any) -> Array:
        """(..., U + 1) standardized inputs and 1."""
        u = (jnp.asarray(inputs, dtype) - extra["input"]["mean"]) / extra["input"]["scale"]
        return jnp.concatenate([u, jnp.ones((*u.shape[:-1], 1), dtype)], axis=-1)

    def _log_transition(self, params: PyTree, regressors: Array) -> Array:
        """(..., K, K) log-probabilities of the transitions into the steps of these regressors."""
        weights = jnp.concatenate([params["transition"]["weights"], params["transition"]["bias"][:, :, None]], axis=2)
        logits = jnp.where(self.allowed[1], einsum("iju,...u->...ij", weights, regressors), -jnp.inf)
        return jnp.maximum(jax.nn.log_softmax(logits, axis=-1), IMPOSSIBLE)

    def _log_initial(self, params: PyTree) -> Array:
        logits = jnp.where(self.allowed[0], params["initial"], -jnp.inf)
        return jnp.maximum(jax.nn.log_softmax(logits), IMPOSSIBLE)

    def _chain(self, params, batch, counted, extra):
        """Log-probabilities of the first states and the transitions, and the regressors."""
        self._check_inputs(batch)
        regressors = self._regressors(extra, batch["input"], params["initial"].dtype)
        regressors = jnp.where(counted[..., None], regressors, 0)  # padding may hold anything, even NaN
        return self._log_initial(params), self._log_transition(params, regressors), regressors

    def _forward(self, chain, log_likelihood, there):
        return _forward(*chain[:2], log_likelihood, there)

    def _statistics(self, prepared, found):
        (_, log_transition, regressors), (initial, pairs, _) = prepared.chain, found.counts
        before = pairs.sum(axis=3)  # (B, T, K) expected transitions from each state
        return {
            "initial": initial,
            "slope": einsum("btij,btu->iju", pairs - before[..., None] * jnp.exp(log_transition), regressors),
            "curvature": einsum("bti,btu,btv->iuv", before, regressors, regressors),
        }

    def m_step(self, state: State, stats: PyTree) -> tuple[Params, Extra]:
        params, old, dtype = state.params["hmm"], state.params["hmm"]["transition"], stats["slope"].dtype
        # The Hessian of a softmax in its logits is at least -(1/2)(1 - 1 1^T / K), whose pseudoinverse doubles slopes.
        count = stats["curvature"][:, -1, -1]  # of transitions from each state
        there = occupied(count)[:, None, None]
        identity = jnp.eye(self.inputs + 1, dtype=dtype)
        curvature = jnp.where(
            there, stats["curvature"] + 8 * jnp.finfo(dtype).eps * count[:, None, None] * identity, identity
        )
        move = jnp.where(there, 2 * jnp.linalg.solve(curvature, stats["slope"].mT).mT, 0)
        new = {
            "initial": maximized_logits(stats["initial"], params["initial"], self.allowed[0]),
            "transition": {"weights": old["weights"] + move[..., :-1], "bias": old["bias"] + move[..., -1]},
            "emission": self.emission.maximize(params["emission"], state.extra["emission"], stats["emission"]),
        }
        return {"hmm": new | {name: params[name] for name in self.fixed}}, {}

    def coefficients(self, state: State) -> tuple[Array, Array]:
        """Biases (K, K), and weights (K, K, U) of the inputs as they are, of the logits of transitions."""
        transition, inputs = state.params["hmm"]["transition"], state.extra["input"]
        weights = transition["weights"] / inputs["scale"]
        return transition["bias"] - jnp.sum(weights * inputs["mean"], axis=2), weights

    def free_parameters(self, state: State) -> int:
        """Number of free parameters, without those that are fixed or structurally 0; not inside jit."""
        start, moves = (int(a.sum()) for a in self.allowed)
        free = {
            "initial": start - 1,
            "transition": (self.inputs + 1) * (moves - self.states),
            "emission": self.emission.free_parameters(state.params["hmm"]["emission"]),
        }
        return sum(n for name, n in free.items() if name not in self.fixed)

    def filter(self, state: State, batch: Batch) -> Array:
        """(B, T, K) p(z_t | x and u up to t)."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)
        return jnp.exp(self._forward(prepared.chain, prepared.log_likelihood, prepared.there)[1])

    def smooth(self, state: State, batch: Batch) -> Posterior:
        """The posterior of the states, and expected transition counts."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)
        found = self._expected(prepared._replace(weight=jnp.ones_like(prepared.weight)))
        return Posterior(found.log_evidence, found.marginals, found.counts[1].sum(axis=1))

    def decode(self, state: State, batch: Batch) -> Path:
        """The most probable state sequence (Viterbi 1967)."""
        prepared = self._prepared(state.params["hmm"], state.extra, batch)
        return _most_probable(*prepared.chain[:2], prepared.log_likelihood, prepared.there)

    def chain(self, state: State, inputs: Array) -> tuple[Array, Array]:
        """Initial probabilities (K,), and those of the transitions under each of the inputs (N, U): (N, K, K)."""
        params = state.params["hmm"]
        regressors = self._regressors(state.extra, inputs, params["initial"].dtype)
        return jnp.exp(self._log_initial(params)), jnp.exp(self._log_transition(params, regressors))

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, length: int | None = None
    ) -> Batch:
        """n sequences: "x" (n, T, ...) and "state" (n, T), under the "input" (n, T, U) of the condition."""
        params, time = state.params["hmm"], length or self.length
        if condition is None:
            inputs = jnp.broadcast_to(state.extra["input"]["mean"], (n, time, self.inputs))
        else:
            self._check_inputs(condition)
            inputs = condition["input"]
            if len(inputs) != n or (length is not None and inputs.shape[1] != length):
                got = f"got shape {inputs.shape}"
                raise ValueError(f'the condition must hold "input" for {n} sequences of {length or "any"} steps, {got}')
        log_initial = self._log_initial(params)
        log_transition = self._log_transition(params, self._regressors(state.extra, inputs, log_initial.dtype))
        rows, path_key = jnp.arange(n), fold_in(key, "path")

        def step(state: Array, inputs: tuple[Array, Array]):
            log_transition, t = inputs
            logits = jnp.where(t == 0, log_initial, log_transition[rows, state])
            state = jax.random.categorical(fold_in(path_key, t), logits).astype(jnp.int32)
            return state, state

        steps = jnp.arange(log_transition.shape[1])
        path = lax.scan(step, jnp.zeros(n, jnp.int32), (jnp.swapaxes(log_transition, 0, 1), steps))[1].T
        x = self.emission.draw(params["emission"], state.extra["emission"], fold_in(key, "x"), path)
        return {"x": x, "state": path}


def _forward(log_initial: Array, log_transition: Array, log_likelihood: Array, there: Array) -> tuple[Array, Array]:
    """log p(x_t | x before t) (B, T), and log p(z_t | x up to t) (B, T, K)."""

    def step(known: Array, inputs: tuple[Array, ...]):
        moves, value, there, first = inputs
        predicted = jnp.where(first, log_initial, jax.nn.logsumexp(known[:, :, None] + moves, axis=1))
        joint = predicted + value
        scale = jax.nn.logsumexp(joint, axis=1)
        known = jnp.where(there[:, None], jnp.maximum(joint - scale[:, None], IMPOSSIBLE), known)
        return known, (jnp.where(there, scale, 0), known)

    over_time = lambda a: jnp.swapaxes(a, 0, 1)
    first = jnp.arange(log_likelihood.shape[1]) == 0
    inputs = over_time(log_transition), over_time(log_likelihood), there.T, first
    start = jnp.zeros((len(log_likelihood), len(log_initial)), log_likelihood.dtype)
    scale, known = lax.scan(step, start, inputs)[1]
    return scale.T, over_time(known)


def _most_probable(log_initial: Array, log_transition: Array, log_likelihood: Array, there: Array) -> Path:
    def step(best: Array, inputs: tuple[Array, ...]):
        moves, value, there, first = inputs
        moved = best[:, :, None] + moves
        new = jnp.where(first, log_initial, moved.max(axis=1)) + value
        return jnp.where(there[:, None], new, best), jnp.argmax(moved, axis=1)

    over_time = lambda a: jnp.swapaxes(a, 0, 1)
    first = jnp.arange(log_likelihood.shape[1]) == 0
    start = jnp.zeros((len(log_likelihood), len(log_initial)), log_likelihood.dtype)
    inputs = over_time(log_transition), over_time(log_likelihood), there.T, first
    best, before = lax.scan(step, start, inputs)
    rows = jnp.arange(len(best))

    def back(state: Array, inputs: tuple[Array, Array]):
        before, there = inputs
        return jnp.where(there, before[rows, state], state), state

    states = lax.scan(back, jnp.argmax(best, axis=1), (before, there.T), reverse=True)[1]
    return Path(states.T.astype(jnp.int32), best.max(axis=1))
