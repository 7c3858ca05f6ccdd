"""The words every part of gen_jax shares: State, Mean, Objective, Algorithm, and what a Model is.

A run is one pytree, the `State`. A `Model` holds hyper-parameters and no arrays. An `Algorithm` is a pair of pure
functions that makes a State and moves it one batch further; `gen_jax.algorithms` builds them from models, and
`gen_jax.loop.fit` runs any of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any
Batch = Mapping[str, Any]  # "x" holds the observations (B, ...); other entries are context
Params = Mapping[str, PyTree]  # {player: unconstrained arrays}
Extra = Mapping[str, PyTree]  # {name: arrays that no gradient touches}


class State(NamedTuple):
    """A whole run: what is checkpointed, sharded and donated."""

    step: Array  # () int32, completed steps
    key: Array  # () typed PRNG key, constant for the run; see `fold_in`
    params: Params
    opt: PyTree  # {player: optax state}; for EM the running sufficient statistics
    extra: Extra  # batch statistics, moving averages


class Mean(NamedTuple):
    """A metric as (total, count): Means add over batches, masks, skipped turns and devices, and divide when printed."""

    total: Array
    count: Array

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> Mean:
        """The mean of an array of values, each counted once or `weights` times."""
        values = jnp.asarray(values)
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        if weights is None:
            return cls(values.sum(), jnp.asarray(values.size, values.dtype))
        kept = jnp.where(weights > 0, values * weights, 0.0)  # a masked NaN is no NaN
        return cls(kept.sum(), weights.sum().astype(values.dtype))

    @property
    def value(self) -> Array:
        return self.total / self.count


Metrics = Mapping[str, Mean]
Loss = Callable[[PyTree, State, Batch, Array], tuple[Array, tuple[Extra, Metrics]]]


class Objective(NamedTuple):
    """`player` lowers `loss` on every n-th step, everyone else held fixed.

    `loss(params, state, batch, key)` returns the scalar to minimize and a pair: new values for entries of
    `state.extra`, and metrics. `name` labels the loss in the metrics; it is needed only when one player has several.
    """

    player: str
    loss: Loss
    every: int = 1
    name: str = ""


class Algorithm(NamedTuple):
    """How a State begins and how a batch moves it on. Both are pure; combinators return Algorithms."""

    init: Callable[[Array, Batch], State]
    step: Callable[[State, Any], tuple[State, Metrics]]


class Model(Protocol):
    """A frozen dataclass of hyper-parameters and Flax modules.

    It may have `unsupported(batch) -> str`, which says in words what of some data it cannot explain ("" if nothing): runs
    ask it before they train. And `diagnose(metrics) -> str`, what these metrics of a report say is going wrong.
    """

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters and extras for data like `batch`."""

    def sample(self, state: State, key: Array, n: int) -> Batch:
        """n new examples, in the shape, dtype and range of the data."""


class Descendable(Model, Protocol):
    """Trainable by `descent`.

    It may have `shared(batch, key) -> batch`, which adds what all losses of a step draw together: that random numbers
    of two losses are the same, compilers do not find out.
    """

    @property
    def objectives(self) -> Sequence[Objective]: ...


class Mixture(Model, Protocol):
    """Trainable by `em`."""

    def e_step(self, state: State, batch: Batch) -> tuple[PyTree, Metrics]:
        """Sufficient statistics, which add over batches, and metrics."""

    def m_step(self, state: State, stats: PyTree) -> tuple[Params, Extra]:
        """The parameters that maximize the expected complete-data log-likelihood, and new values for extras."""


class Density(Model, Protocol):
    """A model with an exact density: GMM, HMM, flow, autoregressive."""

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-densities in nats."""


class Bound(Model, Protocol):
    """A model with a lower bound on its log-likelihood: VAE, hierarchical VAE."""

    def elbo(self, state: State, batch: Batch, key: Array) -> Array:
        """(B,) evidence lower bounds in nats, by one sample from the posterior."""


@runtime_checkable
class Latent(Protocol):
    """A model with a prior, a posterior and a likelihood of one latent vector per example: VAE."""

    def encode(self, state: State, batch: Batch) -> Any:
        """q(z | x), a distribution of vectors (B, latent)."""

    def decode(self, state: State, z: Array, given: Batch | None = None) -> Any:
        """p(x | z) of vectors (n, latent), a distribution of the single values of x."""

    def prior_of(self, state: State) -> Any:
        """p(z)."""


@runtime_checkable
class Invertible(Protocol):
    """A model whose examples are noise moved through a bijection: flow."""

    @property
    def autoregressive(self) -> bool:
        """Whether each value of x depends on no noise after its own, in their order, and the noise is independent."""

    def of(self, state: State, batch: Batch | None = None) -> Any:
        """The distribution of x, a base and a bijector."""


def fold_in(key: Array, *names: int | str | Array) -> Array:
    """A new key from a key and names: `fold_in(key, step, "noise")`. Keys are never split on the host or carried."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key


def weights(state: State, player: str) -> PyTree:
    """A player's averaged parameters where `with_ema` keeps them, else its current ones: those to evaluate."""
    return state.extra.get("ema", {}).get(player, state.params[player])


def statistics(state: State, player: str) -> PyTree:
    """The batch statistics of a player, `extra["PLAYER_statistics"]`, averaged where its parameters are."""
    name = f"{player}_statistics"
    return state.extra.get("ema", {}).get(name, state.extra[name])
