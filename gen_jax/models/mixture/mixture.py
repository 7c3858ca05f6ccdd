"""Mixtures of any distribution: Bernoulli, categorical (latent classes), Poisson, or columns of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.linalg import after
from gen_jax.models.mixture.covariances import ratio
from gen_jax.models.mixture.gaussians import check_fixed
from gen_jax.models.mixture.gmm import criteria_of

if TYPE_CHECKING:
    from gen_jax.models.hmm.emissions import Emission

__all__ = ["Mixture"]


NAMES = {"weights": "logits", "component": "component"}  # of what `fixed` may hold, among the parameters


class Stats(NamedTuple):
    """Expected sufficient statistics."""

    count: Array  # (K,)
    component: PyTree


@dataclass(frozen=True)
class Mixture:
    """p(x) = sum_k w_k p(x | k) over rows x (B, ...), which are flattened; `GMM` is faster for Gaussian components.

    components: K. component: the distribution of x given k, an emission of `gen_jax.models.hmm.emissions`; with
    `Bernoulli()` it is the mixture of Bishop 2006, section 9.3.3, with `Categorical(symbols)` latent class analysis
    (Lazarsfeld & Henry 1968). concentration: of the Dirichlet prior of the weights; 1 is flat. fixed: parameters that
    training leaves as they are: "weights" or "component". shape: of one example, if it is not a vector. active: number
    of components in use, all by default; it may be traced.

    A batch may hold "weight" (B,): example weights, of which only the ratios matter unless there is a prior.
    """

    components: int
    component: Emission
    concentration: float = 1.0
    fixed: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    active: int | Array | None = None

    def __post_init__(self):
        check_fixed(self.fixed, tuple(NAMES))
        if self.components < 1 or self.concentration < 1:
            got = f"got {self.components} and {self.concentration}"
            raise ValueError(f"components and concentration must be at least 1, {got}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        rows, seen, weight = self._rows(batch)
        counted = seen & (weight > 0)[:, None]
        component, extra = self.component.init(fold_in(key, "component"), rows, counted, self.components)
        logits = jnp.zeros(self.components, jnp.result_type(float, *jax.tree.leaves(component)))
        return {"mixture": {"logits": logits, "component": component}}, {"component": extra}

    def _rows(self, batch: Batch) -> tuple[Batch, Array, Array]:
        """Rows as sequences of one step, which of them are observed (B, 1), and their weights (B,)."""
        x = jnp.asarray(batch["x"])
        ones = jnp.ones(len(x), x.dtype if x.dtype.kind == "f" else None)
        x = self.component.read(x.reshape(len(x), 1, -1))
        weight = jnp.asarray(batch.get("weight", ones))
        return {"x": x}, ~self.component.unseen(x), weight

    def _log_weights(self, params: PyTree) -> Array:
        used = jnp.arange(self.components) < (self.components if self.active is None else self.active)
        return jax.nn.log_softmax(jnp.where(used, params["logits"], -jnp.inf))

    def _log_joint(self, params: PyTree, extra: Extra, rows: Batch, seen: Array) -> Array:
        log_prob = self.component.log_prob(params["component"], extra["component"], rows)
        return jnp.where(seen, log_prob[:, 0], 0) + self._log_weights(params)

    def log_joint(self, state: State, batch: Batch) -> Array:
        """(B, K) log p(x, k)."""
        rows, seen, _ = self._rows(batch)
        return self._log_joint(state.params["mixture"], state.extra, rows, seen)

    def e_step(self, state: State, batch: Batch) -> tuple[Stats, Metrics]:
        params, (rows, seen, weight) = state.params["mixture"], self._rows(batch)
        joint = self._log_joint(params, state.extra, rows, seen)
        log_prob = jax.nn.logsumexp(joint, axis=1)
        r = jnp.exp(joint - log_prob[:, None]) * jnp.where(weight > 0, weight, 0)[:, None]
        given = after(params["component"], r)
        component = self.component.stats(given, state.extra["component"], rows, (r * seen)[:, None])
        return Stats(r.sum(axis=0), component), {"log_likelihood": _mean(log_prob, weight)}

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        params = state.params["mixture"]
        count = stats.count + self.concentration - 1
        logits = jnp.log(jnp.maximum(ratio(count, count.sum()), 1e-30))
        given = (params["logits"] > -jnp.inf) & (count.sum() > 0)  # weights of 0 stay 0
        new = {
            "logits": jnp.where(given, logits, params["logits"]),
            "component": self.component.maximize(params["component"], state.extra["component"], stats.component),
        }
        return {"mixture": new | {NAMES[name]: params[NAMES[name]] for name in self.fixed}}, {}

    def recenter(self, state: State, stats: Stats, params: Params) -> Stats:
        """Statistics recentered from the parameters of the State to `params`."""
        old, new = state.params["mixture"]["component"], params["mixture"]["component"]
        return stats._replace(component=self.component.recenter(stats.component, old, new))

    def log_prior(self, state: State) -> Array | None:
        """Log-prior of the parameters, up to a constant; None if it is flat."""
        params = state.params["mixture"]
        component = self.component.log_prior(params["component"], state.extra["component"])
        if self.concentration == 1:
            return component
        log_weights = self._log_weights(params)
        weights = (self.concentration - 1) * jnp.sum(jnp.where(log_weights > -jnp.inf, log_weights, 0))
        return weights if component is None else weights + component

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean negative log-likelihood; the priors are for `em` alone."""
        held = {"logits": params["logits"], "component": self.component.held(params["component"])}
        held |= {NAMES[name]: jax.lax.stop_gradient(held[NAMES[name]]) for name in self.fixed}
        rows, seen, weight = self._rows(batch)
        mean = _mean(jax.nn.logsumexp(self._log_joint(held, state.extra, rows, seen), axis=1), weight)
        return Mean(-mean.total, mean.count), ({}, {"log_likelihood": mean})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("mixture", self.loss),)

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-probabilities in nats; log-densities where x is real."""
        return jax.nn.logsumexp(self.log_joint(state, batch), axis=1)

    def responsibilities(self, state: State, batch: Batch) -> Array:
        """(B, K) p(k | x)."""
        return jax.nn.softmax(self.log_joint(state, batch), axis=1)

    def predict(self, state: State, batch: Batch) -> Array:
        """(B,) the most probable component."""
        return jnp.argmax(self.log_joint(state, batch), axis=1)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        params = state.params["mixture"]
        k = jax.random.categorical(fold_in(key, "component"), self._log_weights(params), shape=(n,))
        drawn = self.component.draw(params["component"], state.extra["component"], fold_in(key, "x"), k[:, None])
        x = drawn.reshape(n, *self.shape) if self.shape else drawn.reshape(n, -1)
        return {"x": x, "component": k}

    def with_missing(self) -> Mixture:
        """The same mixture, which integrates out NaN in "x"."""
        return replace(self, component=self.component.with_missing())

    def complete(self, state: State, x: Array, mask: Array, key: Array, n: int) -> Array:
        """(n, B, D) exact draws from p(missing | observed) beside x (B, D), observed where `mask` (B, D).

        The component is drawn given the observed coordinates, and the others given both.
        """
        params, extra = state.params["mixture"]["component"], state.extra["component"]
        x, mask = jnp.asarray(x), jnp.asarray(mask)
        joint = self.with_missing().log_joint(state, {"x": jnp.where(mask, x, jnp.nan)})

        def one(key: Array) -> Array:
            k = jax.random.categorical(fold_in(key, "component"), joint)
            return self.component.complete(params, extra, fold_in(key, "x"), k, x, mask)

        return jax.lax.map(one, jax.random.split(key, n))

    def pack(self, given: PyTree, params: PyTree) -> PyTree:
        """Parameters from the given "weights" (K,) and "component", as its `pack` takes them; the others are those of
        `params`."""
        logits = jnp.log(given["weights"]) if "weights" in given else params["logits"]
        component = self.component.pack(given.get("component", {}), params.get("component", {}))
        return {"logits": logits, "component": component}

    def unpack(self, params: PyTree) -> PyTree:
        """The "weights" (K,), and the parameters of the "component" in the field's terms."""
        weights = jnp.exp(self._log_weights(params))
        return {"weights": weights, "component": self.component.unpack(params["component"])}

    def free_parameters(self, state: State) -> int:
        """Number of free parameters, without those that are fixed; not inside jit."""
        component = self.component.free_parameters(state.params["mixture"]["component"])
        free = {"weights": self.components - 1, "component": component}
        return sum(n for name, n in free.items() if name not in self.fixed)

    def criteria(self, state: State, batch: Batch) -> dict[str, Array]:
        """AIC, BIC and ICL on a data set; lower is better. Not inside jit."""
        return criteria_of(self.log_joint(state, batch), self._rows(batch)[2], self.free_parameters(state))


def _mean(log_prob: Array, weight: Array) -> Mean:
    """The weighted mean; rows of weight 0 may have any value."""
    return Mean.of(jnp.where(weight > 0, log_prob, 0), weight)
