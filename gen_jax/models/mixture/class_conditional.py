"""Generative classifiers: one class-conditional model per class, classification by Bayes' rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold_in

__all__ = ["ClassConditional"]


@dataclass(frozen=True)
class ClassConditional:
    """p(x, label) = p(label) p(x | label), the same model with separate parameters for each class.

    model: any model trained by `em` with a log_prob and support for "weight" in its batches (GMM, HMM). All classes are
    trained jointly; parameters have a leading axis of classes. Batches hold "label" (B,).
    """

    model: Any
    classes: int

    def __post_init__(self):
        if self.classes < 1:
            raise ValueError(f"classes must be at least 1, got {self.classes}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        def one(c: Array) -> tuple[Params, Extra]:
            return self.model.init(fold_in(key, "class", c), self._of(batch, c))

        params, extra = jax.vmap(one)(jnp.arange(self.classes))
        return params, {"classes": extra, "log_prior": _log_frequencies(self._counts(batch))}

    def _counts(self, batch: Batch) -> Array:
        """(classes,) weights of the examples of each class."""
        return jnp.stack([self._of(batch, c)["weight"].sum() for c in range(self.classes)])

    def _of(self, batch: Batch, c: Array) -> Batch:
        mine = (batch["label"] == c).astype(jnp.float32)
        return {**batch, "weight": mine * batch.get("weight", 1.0)}

    def _states(self, state: State) -> State:
        """The States of all classes, stacked along a leading axis of parameters and extras."""
        return State(state.step, state.key, state.params, (), state.extra["classes"])

    def _each(self, state: State, f: Any) -> PyTree:
        """f(state of a class, its index) for all classes."""
        axes = State(step=None, key=None, params=0, opt=None, extra=0)
        return jax.vmap(f, in_axes=(axes, 0))(self._states(state), jnp.arange(self.classes))

    def e_step(self, state: State, batch: Batch) -> tuple[PyTree, Metrics]:
        stats, metrics = self._each(state, lambda mine, c: self.model.e_step(mine, self._of(batch, c)))
        count = self._counts(batch)
        log_prior = jnp.sum(count * state.extra["log_prior"])
        found = metrics["log_likelihood"]
        joint = Mean(found.total.sum() + log_prior, found.count.sum())
        return {"count": count, "classes": stats}, {"log_likelihood": joint}

    def m_step(self, state: State, stats: PyTree) -> tuple[Params, Extra]:
        axes = State(step=None, key=None, params=0, opt=None, extra=0)
        params, extra = jax.vmap(self.model.m_step, in_axes=(axes, 0))(self._states(state), stats["classes"])
        log_prior = _log_frequencies(stats["count"])
        return params, {"classes": {**state.extra["classes"], **extra}, "log_prior": log_prior}

    def log_joint(self, state: State, batch: Batch) -> Array:
        """(B, classes) log p(x, class) in nats."""
        found = self._each(state, lambda mine, c: self.model.log_prob(mine, batch))
        return found.T + state.extra["log_prior"]

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log p(x, label) in nats."""
        return jnp.take_along_axis(self.log_joint(state, batch), batch["label"][:, None], axis=1)[:, 0]

    def predict(self, state: State, batch: Batch) -> Array:
        """(B,) the most probable class, regardless of the label."""
        return jnp.argmax(self.log_joint(state, batch), axis=1)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        label = jax.random.categorical(fold_in(key, "label"), state.extra["log_prior"], shape=(n,))
        drawn = self._each(state, lambda mine, c: self.model.sample(mine, fold_in(key, "class", c), n))
        mine = lambda a: jax.vmap(lambda of_each, c: of_each[c], in_axes=(1, 0))(a, label)
        return {**jax.tree.map(mine, drawn), "label": label}

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        (player,) = state.params
        values = self.log_prob(state._replace(params={**state.params, player: params}), batch)
        log_prob = Mean.of(values, batch.get("weight"))
        return Mean(-log_prob.total, log_prob.count), ({}, {"log_likelihood": log_prob})

    @property
    def objectives(self) -> Sequence[Objective]:
        """Trains the parameters of each class; the class priors are the label frequencies of the first batch."""
        return tuple(Objective(o.player, self.loss) for o in self.model.objectives)


def _log_frequencies(count: Array) -> Array:
    """(classes,) log class priors."""
    return jnp.log(jnp.maximum(count / count.sum(), 1e-30))
