"""Hidden Markov models whose transitions depend on inputs (Bengio & Frasconi 1995)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.linalg import einsum
from gen_jax.models.hmm.batches import maximized_logits, mean_per_sequence, observed_steps, sequence_weights
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.hmm import Mask
from gen_jax.models.hmm.inference import Path
from gen_jax.models.hmm.logspace import Posterior
from gen_jax.models.mixture.gaussians import check_fixed

__all__ = ["InputOutputHMM"]

IMPOSSIBLE = -1e30  # finite, so that gradients are


class Stats(NamedTuple):
    """Expected sufficient statistics, and those of a lower bound of the transitions' likelihood."""

    initial: Array  # (K,)
    slope: Array  # (K, K, U + 1) gradient of the expected log-likelihood in the weights of the transitions
    curvature: Array  # (K, U + 1, U + 1) sums of the outer products of the inputs
    emission: PyTree


@dataclass(frozen=True)
class InputOutputHMM:
    """p(x | u) of sequences "x" (B, T, ...) given inputs "input" (B, T, U).

    p(z_t = j | z_t-1 = i, u_t) is the softmax over j of `bias_ij + weights_ij . u_t`. Emissions may depend on the
    inputs too: `LinearRegression(lags=0, inputs=U)`.

    states: K. inputs: U. emission: see `gen_jax.models.hmm.emissions`. transitions: which are allowed (K, K), all by
    default. length: of sampled sequences without inputs, which are 0. fixed: parameters that training leaves as they
    are: "initial", "transition" or "emission".

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
        if min(self.states, self.inputs, self.length) < 1:
            got = f"got {self.states}, {self.inputs} and {self.length}"
            raise ValueError(f"states, inputs and length must be at least 1, {got}")
        rows = self.transitions
        if rows is not None and (len(rows) != self.states or any(len(r) != self.states or not any(r) for r in rows)):
            raise ValueError(f"transitions must be {self.states} rows of {self.states}, each with a state to go to")

    @property
    def allowed(self) -> Array:
        """(K, K) mask of the transitions with nonzero probability."""
        return jnp.ones((self.states, self.states), bool) if self.transitions is None else jnp.asarray(self.transitions)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        self._regressors(batch, jnp.float32)
        batch, _, seen = observed_steps(self.emission, batch, weighted=True)
        emission, extra = self.emission.init(fold_in(key, "emission"), batch, seen, self.states)
        dtype = jnp.result_type(float, *jax.tree.leaves(emission)) if batch["x"].dtype.kind != "f" else batch["x"].dtype
        jitter = lambda name, *shape: 0.3 * jax.random.normal(fold_in(key, name), shape, dtype)
        k = self.states
        transition = {
            "bias": jitter("transition", k, k),
            "weights": jnp.zeros((k, k, self.inputs), dtype),
        }
        params = {"initial": jitter("initial", k), "transition": transition, "emission": emission}
        return {"hmm": params}, {"emission": extra}

    def _regressors(self, batch: Batch, dtype) -> Array:
        """(B, T, U + 1) inputs and 1."""
        if "starts" in batch:
            raise ValueError("an input-output HMM needs one sequence per row: its batches hold no 'starts'")
        if "input" not in batch or batch["input"].shape[2:] != (self.inputs,):
            got = "none" if "input" not in batch else f"shape {batch['input'].shape}"
            raise ValueError(f'a batch must hold "input" (sequences, steps, {self.inputs}), got {got}')
        u = jnp.asarray(batch["input"], dtype)
        return jnp.concatenate([u, jnp.ones((*u.shape[:2], 1), dtype)], axis=2)

    def _log_chain(self, params: PyTree, regressors: Array) -> tuple[Array, Array]:
        """Initial log-probabilities (K,), and those of the transitions into each step (B, T, K, K)."""
        weights = jnp.concatenate([params["transition"]["weights"], params["transition"]["bias"][:, :, None]], axis=2)
        logits = jnp.where(self.allowed, einsum("iju,btu->btij", weights, regressors), -jnp.inf)
        finite = lambda a: jnp.maximum(a, IMPOSSIBLE)
        return finite(jax.nn.log_softmax(params["initial"])), finite(jax.nn.log_softmax(logits, axis=3))

    def _prepared(self, params: PyTree, extra: Extra, batch: Batch, weighted: bool = False):
        batch, there, seen = observed_steps(self.emission, batch, weighted)
        log_likelihood = self.emission.log_prob(params["emission"], extra["emission"], batch)
        log_likelihood = jnp.maximum(jnp.where(seen[..., None], log_likelihood, 0), IMPOSSIBLE)
        regressors = self._regressors(batch, log_likelihood.dtype)
        return batch, there, seen, regressors, (*self._log_chain(params, regressors), log_likelihood)

    def e_step(self, state: State, batch: Batch) -> tuple[Stats, Metrics]:
        params = state.params["hmm"]
        batch, there, seen, regressors, chain = self._prepared(params, state.extra, batch, weighted=True)
        weight = sequence_weights(batch, there, chain[2].dtype)
        log_evidence, (initial, pairs, marginals) = _posterior(*chain, there, weight)
        before = pairs.sum(axis=3)  # (B, T, K) expected transitions from each state
        slope = einsum("btij,btu->iju", pairs - before[..., None] * jnp.exp(chain[1]), regressors)
        curvature = einsum("bti,btu,btv->iuv", before, regressors, regressors)
        emission = self.emission.stats(params["emission"], state.extra["emission"], batch, marginals * seen[..., None])
        return Stats(initial, slope, curvature, emission), {
            "log_likelihood": mean_per_sequence(log_evidence, weight, batch),
            "per_step": Mean(jnp.sum(weight * log_evidence), jnp.sum(weight * there.sum(axis=1))),
        }

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        params = state.params["hmm"]
        # The Hessian of a softmax in its logits is at least -(1/2)(1 - 1 1^T / K), whose pseudoinverse doubles slopes.
        size = jnp.trace(stats.curvature, axis1=1, axis2=2)[:, None, None] + jnp.finfo(stats.slope.dtype).tiny
        ridge = 4 * jnp.finfo(stats.slope.dtype).eps * size * jnp.eye(self.inputs + 1, dtype=stats.slope.dtype)
        move = 2 * jnp.linalg.solve(stats.curvature + ridge, stats.slope.mT).mT
        old = params["transition"]
        new = {
            "initial": maximized_logits(stats.initial, params["initial"], jnp.ones(self.states, bool)),
            "transition": {"weights": old["weights"] + move[..., :-1], "bias": old["bias"] + move[..., -1]},
            "emission": self.emission.maximize(params["emission"], state.extra["emission"], stats.emission),
        }
        return {"hmm": new | {name: params[name] for name in self.fixed}}, {}

    def recenter(self, state: State, stats: Stats, params: Params) -> Stats:
        """Statistics recentered from the parameters of the State to `params`."""
        old, new = state.params["hmm"]["emission"], params["hmm"]["emission"]
        return stats._replace(emission=self.emission.recenter(stats.emission, old, new))

    def log_prior(self, state: State) -> Array | None:
        """Log-prior of the emission, up to a constant; None if it is flat."""
        return self.emission.log_prior(state.params["hmm"]["emission"], state.extra["emission"])

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean negative log-likelihood per sequence; the priors are for `em` alone."""
        params = {**params, "emission": self.emission.held(params["emission"])}
        params = {name: lax.stop_gradient(p) if name in self.fixed else p for name, p in params.items()}
        batch, there, _, _, chain = self._prepared(params, state.extra, batch, weighted=True)
        log_evidence = _forward(*chain, there)[0].sum(axis=1)
        mean = mean_per_sequence(log_evidence, sequence_weights(batch, there, log_evidence.dtype), batch)
        return Mean(-mean.total, mean.count), ({}, {"log_likelihood": mean})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("hmm", self.loss),)

    def free_parameters(self, state: State) -> int:
        """Number of free parameters, without those that are fixed or structurally 0; not inside jit."""
        moves = sum(map(sum, self.transitions)) if self.transitions else self.states**2
        free = {
            "initial": self.states - 1,
            "transition": (self.inputs + 1) * (moves - self.states),
            "emission": self.emission.free_parameters(state.params["hmm"]["emission"]),
        }
        return sum(n for name, n in free.items() if name not in self.fixed)

    def _of(self, state: State, batch: Batch):
        _, there, _, _, chain = self._prepared(state.params["hmm"], state.extra, batch)
        return *chain, there

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log p(x | u) in nats."""
        return _forward(*self._of(state, batch))[0].sum(axis=1)

    def filter(self, state: State, batch: Batch) -> Array:
        """(B, T, K) p(z_t | x and u up to t)."""
        return jnp.exp(_forward(*self._of(state, batch))[1])

    def smooth(self, state: State, batch: Batch) -> Posterior:
        """The posterior of the states, and expected transition counts."""
        of = self._of(state, batch)
        log_evidence, (_, pairs, marginals) = _posterior(*of, jnp.ones(len(of[2]), of[2].dtype))
        return Posterior(log_evidence, marginals, pairs.sum(axis=1))

    def decode(self, state: State, batch: Batch) -> Path:
        """The most probable state sequence (Viterbi 1967)."""
        return _most_probable(*self._of(state, batch))

    def chain(self, state: State, inputs: Array) -> tuple[Array, Array]:
        """Initial probabilities (K,), and those of the transitions under each of the inputs (N, U): (N, K, K)."""
        params = state.params["hmm"]
        regressors = self._regressors({"input": jnp.asarray(inputs)[None]}, params["initial"].dtype)
        log_initial, log_transition = self._log_chain(params, regressors)
        return jnp.exp(log_initial), jnp.exp(log_transition[0])

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, length: int | None = None
    ) -> Batch:
        """n sequences: "x" (n, T, ...) and "state" (n, T), under the "input" (n, T, U) of the condition."""
        params = state.params["hmm"]
        if condition is None:
            condition = {"input": jnp.zeros((n, length or self.length, self.inputs))}
        log_initial, log_transition = self._log_chain(params, self._regressors(condition, params["initial"].dtype))
        key, rows = fold_in(key, "path"), jnp.arange(n)

        def step(state: Array, inputs: tuple[Array, Array]):
            log_transition, t = inputs
            logits = jnp.where(t == 0, log_initial, log_transition[rows, state])
            state = jax.random.categorical(fold_in(key, t), logits).astype(jnp.int32)
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


def _posterior(
    log_initial: Array, log_transition: Array, log_likelihood: Array, there: Array, weight: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Log-evidence (B,), and the gradient of its weighted sum: expected initial states (K,), transitions
    (B, T, K, K), and states (B, T, K)."""

    def total(*chain: Array) -> tuple[Array, Array]:
        log_evidence = _forward(*chain, there)[0].sum(axis=1)
        return jnp.sum(jnp.where(weight > 0, weight * log_evidence, 0)), log_evidence

    gathered, log_evidence = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(
        log_initial, log_transition, log_likelihood
    )
    return log_evidence, gathered


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
