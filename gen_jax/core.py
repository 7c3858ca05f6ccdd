"""The vocabulary of gen_jax: State, Mean, Objective, Algorithm, and the protocols of models and data sources.

A run is one pytree, the `State`. A `Model` holds hyper-parameters and no arrays. An `Algorithm` is a pair of pure
functions that create a State and advance it by one batch; `gen_jax.algorithms` builds them from models, and
`gen_jax.loop.fit` runs any of them.

Entries of a batch, each with a leading axis B of examples; models read those they need:

    x            observations (B, ...); sequences (B, T, ...)
    label        class indices (B,) from 0
    weight       example weights (B,); 0 removes an example
    length       observed steps of each sequence (B,)
    observed     which steps of a sequence are observed (B, T)
    starts       where another sequence than the first of a row begins (B, T)
    mask         which tokens count in a loss (B, T)
    index        the index of each example in its data set (B,), added by sources
    condition    any other conditioning input, under the name that the model's `conditioning` expects
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.errors import check_takes, place_of

__all__ = [
    "Adversarial",
    "Algorithm",
    "Autoregressive",
    "Batch",
    "Bound",
    "BoundsIntegers",
    "Classifier",
    "ClosedForm",
    "ComparesExamples",
    "Components",
    "Conditional",
    "Density",
    "Diagnosed",
    "EncodesMissing",
    "EstimatedDensity",
    "ExpectationMaximization",
    "Extra",
    "FittedToDensity",
    "GaussianComponents",
    "ImageTranslator",
    "ImportanceWeighted",
    "Imputable",
    "Infilling",
    "Invertible",
    "Latent",
    "LimitedContext",
    "Loss",
    "MaximumAPosteriori",
    "Mean",
    "Metrics",
    "Model",
    "Objective",
    "Params",
    "Penalized",
    "Prefilled",
    "PreparesBatch",
    "PyTree",
    "Recentered",
    "Reconstructing",
    "Resampling",
    "Seq2Seq",
    "Source",
    "State",
    "StyleBased",
    "Supported",
    "TokenDensity",
    "Trainable",
    "as_mean",
    "averaged",
    "fold_in",
    "initial",
    "is_sequential",
]

PyTree = Any
Batch = Mapping[str, Any]  # see above
Params = Mapping[str, PyTree]  # {player: unconstrained arrays}
Extra = Mapping[str, PyTree]  # {name: arrays not trained by gradients}; reserved: batch_stats, ema, curve


class State(NamedTuple):
    """A whole run: checkpointed, sharded and donated as one pytree."""

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
        """The mean of an array of values, optionally weighted."""
        values = jnp.asarray(values)
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        if weights is None:
            return cls(values.sum(), jnp.asarray(values.size, values.dtype))
        counted = jnp.where(weights > 0, values * weights, 0.0)  # so that a NaN of weight 0 does not count
        return cls(counted.sum(), weights.sum().astype(values.dtype))

    @property
    def value(self) -> Array:
        return self.total / self.count


Metrics = Mapping[str, Mean]
Loss = Callable[[PyTree, State, Batch, Array], tuple[Array | Mean, tuple[Extra, Metrics]]]


class Objective(NamedTuple):
    """Minimizes `loss` with respect to the parameters of `player` on every n-th step; all others are constant.

    `loss(params, state, batch, key)` returns the loss, and a pair of new values for entries of `state.extra` and
    metrics. A loss is a scalar, or a `Mean` where examples or tokens have weights: microbatches and devices then add
    totals and counts and divide once. `name` labels the loss in the metrics; only a player with several needs it.
    """

    player: str
    loss: Loss
    every: int = 1
    name: str = ""


class Algorithm(NamedTuple):
    """A pair of pure functions: `init` creates a State, `step` advances it by one batch.

    members: how many runs the State holds along a leading axis, see `gen_jax.restarts.population`; 0 for a single one.
    """

    init: Callable[[Array, Batch], State]
    step: Callable[[State, Any], tuple[State, Metrics]]
    members: int = 0


@runtime_checkable
class Model(Protocol):
    """A frozen dataclass of hyper-parameters and Flax modules."""

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters and extras for data like `batch`."""

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        """n new examples, in the shape, dtype and range of the data.

        condition: the conditioning inputs of each example, e.g. {"label": (n,)}; only for conditional models.
        """


@runtime_checkable
class Trainable(Model, Protocol):
    """A model trained by `descent`."""

    @property
    def objectives(self) -> Sequence[Objective]: ...


@runtime_checkable
class PreparesBatch(Trainable, Protocol):
    """A trainable model whose losses share computations.

    XLA does not recognize that two losses draw the same numbers, and after the first player's turn its parameters are
    gone: `prepare` adds random numbers, or examples made by the State before all turns, to the batch.
    """

    def prepare(self, state: State, batch: Batch, key: Array) -> Batch: ...


@runtime_checkable
class Penalized(Trainable, Protocol):
    """A model whose loss is not its likelihood or bound alone: weighted, penalized, smoothed, or another one."""

    def unpenalized(self) -> Trainable:
        """The same model, with the same parameters, whose loss is its negative log-likelihood or bound."""


@runtime_checkable
class ExpectationMaximization(Model, Protocol):
    """A model trained by `em`."""

    def e_step(self, state: State, batch: Batch) -> tuple[PyTree, Metrics]:
        """Sufficient statistics, which add over batches, and metrics."""

    def m_step(self, state: State, stats: PyTree) -> tuple[Params, Extra]:
        """The parameters that maximize the expected complete-data log-likelihood, and new values for extras."""


@runtime_checkable
class MaximumAPosteriori(ExpectationMaximization, Protocol):
    """A model whose parameters may have a prior: EM then climbs the log-posterior."""

    def log_prior(self, state: State) -> Array | None:
        """The log-density of the parameters up to a constant, in nats; None if it is flat."""


@runtime_checkable
class ClosedForm(Model, Protocol):
    """A model trained by `closed_form`: its best parameters for a batch have a closed form."""

    def solve(self, state: State, batch: Batch) -> tuple[Params, Extra, Metrics]:
        """Parameters, new values for extras, and metrics."""


@runtime_checkable
class Recentered(ExpectationMaximization, Protocol):
    """A model trained by `stepwise_em`: its statistics can be moved along with its parameters."""

    def recenter(self, state: State, stats: PyTree, params: Params) -> PyTree:
        """Statistics about the parameters of the State, about `params` instead."""


@runtime_checkable
class Density(Protocol):
    """A model with a log-density: mixture, HMM, flow, autoregressive model."""

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-densities in nats."""


@runtime_checkable
class EstimatedDensity(Density, Protocol):
    """A density that may be an unbiased estimate instead of exact, e.g. with a Hutchinson trace estimator."""

    @property
    def estimated(self) -> bool: ...


@runtime_checkable
class Bound(Protocol):
    """A model with a lower bound on its log-likelihood: VAE, hierarchical VAE, VQ-VAE."""

    def elbo(self, state: State, batch: Batch, key: Array) -> Array:
        """(B,) evidence lower bounds in nats, from one posterior sample."""


@runtime_checkable
class ImportanceWeighted(Protocol):
    """A model with an importance-weighted bound."""

    def log_weights(self, state: State, batch: Batch, key: Array, samples: int) -> Array:
        """(samples, B) log p(x, z) / q(z | x) in nats."""


@runtime_checkable
class BoundsIntegers(Protocol):
    """A model that states whether its bound is on the probability of integers, so that bits/dim are defined."""

    @property
    def discrete(self) -> bool: ...


@runtime_checkable
class Reconstructing(Protocol):
    """A model that encodes and decodes an example: VAE, hierarchical VAE, VQ-VAE."""

    def reconstruct(self, state: State, batch: Batch) -> Array:
        """(B, *x) the mean of p(x | z) for the mean of q(z | x)."""


@runtime_checkable
class Resampling(Protocol):
    """A model that draws an example anew through its latent variables: hierarchical VAE, VQ-VAE."""

    def resample(self, state: State, batch: Batch, key: Array) -> Array:
        """(B, *x) draws from p(x | z), for z from q(z | x)."""


@runtime_checkable
class Latent(Protocol):
    """A model with a prior, a posterior and a likelihood of one latent vector per example: VAE."""

    def encode(self, state: State, batch: Batch) -> Any:
        """q(z | x), a distribution of vectors (B, latent)."""

    def decode(self, state: State, z: Array, condition: Batch | None = None) -> Any:
        """p(x | z) for vectors (n, latent), a distribution over the individual values of x."""

    def prior_of(self, state: State) -> Any:
        """p(z)."""


@runtime_checkable
class EncodesMissing(Latent, Protocol):
    """A model with latent vectors whose posterior and bound may take NaN in "x" as missing values: VAE."""

    @property
    def missing(self) -> bool:
        """Whether they do."""

    @property
    def mask(self) -> Any:
        """The model of which values are missing; None if they are missing at random."""

    def log_mask(self, state: State, x: Array, seen: Array) -> Array:
        """(B,) log-probabilities in nats of the masks `seen` (B, *x) given complete x; 0 without such a model."""


@runtime_checkable
class Invertible(Protocol):
    """A model that pushes noise through a bijection: flow."""

    def latent(self, state: State, batch: Batch) -> tuple[Array, Array]:
        """The noise (B, *x) of examples, and log|det dz/dx| (B,)."""

    @property
    def autoregressive(self) -> bool:
        """Whether the noise is independent and the bijection triangular: x_i depends on noise 0 .. i only."""

    def distribution(self, state: State, batch: Batch | None = None) -> Any:
        """The distribution of x, with a base `distribution` and a `bijector`."""


@runtime_checkable
class FittedToDensity(Protocol):
    """A flow fitted to an unnormalized density instead of data."""

    @property
    def samples(self) -> int:
        """How many samples a training step draws."""

    @property
    def flow(self) -> Density:
        """The flow that is fitted."""

    def log_ratios(self, params: PyTree, key: Array) -> Array:
        """(samples,) log-ratios of the density to the flow, at samples of the flow."""


@runtime_checkable
class Adversarial(Model, Protocol):
    """A model with a generator and a discriminator: GAN."""

    @property
    def adversarial(self) -> Any:
        """The losses of both players; see `gen_jax.models.gan.losses`."""

    @property
    def packing(self) -> int:
        """How many examples the discriminator judges at once."""

    def generate(self, state: State, z: Array, condition: Batch | None = None) -> Array:
        """(B, *x) from noise (B, latent)."""

    def noise(self, key: Array, n: int) -> Array:
        """(n, latent) noise."""

    def discriminate(self, state: State, batch: Batch) -> Array:
        """Logits of being real."""

    def sample_logits(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Array:
        """Logits of being real of the samples that `sample` draws with the same arguments."""


@runtime_checkable
class ComparesExamples(Protocol):
    """A model, or a network, whose judgment of an example may depend on others of its batch: GAN, discriminators."""

    @property
    def compares_examples(self) -> bool:
        """Whether it does, so that one example alone has no logit."""


@runtime_checkable
class StyleBased(Adversarial, Protocol):
    """A generator that maps noise to a style for each of its layers, and styles to images: StyleGAN."""

    @property
    def styles(self) -> int:
        """How many styles make an image."""

    @property
    def psi(self) -> float:
        """Truncation: the share of the distance to the mean style that is left."""

    def map(self, state: State, z: Array, condition: Batch | None = None) -> Array:
        """(B, styles, width) styles of noise (B, latent)."""

    def synthesize(self, state: State, ws: Array, key: Array | None = None) -> Array:
        """Images (B, *x) of styles (B, styles, width), with random noise in the layers if there is a key."""


@runtime_checkable
class ImageTranslator(Protocol):
    """A model that maps images of one domain to another: Pix2Pix, CycleGAN, CUT."""

    @property
    def directions(self) -> Sequence[str]:
        """The directions: "a2b", from "x" to "y", and "b2a" if it maps both ways."""

    def translate(
        self, state: State, images: Array, direction: str = "a2b", key: Array | None = None, own: bool = False
    ) -> Array:
        """Images (n, H', W', D) of the other domain from images (n, H, W, C) of one, each independent of the others.

        key: draws noise and dropout, one for all images or one for each; without it the result is deterministic.
        own: normalizes by the statistics of the image itself where training used those of a batch.
        """


@runtime_checkable
class TokenDensity(Density, Protocol):
    """A density of sequences with the log-probability of each token."""

    def log_probs(self, state: State, batch: Batch) -> Array:
        """(B, T) log-probabilities in nats of tokens "x" (B, T), each given those before it; 0 for the first."""


@runtime_checkable
class Autoregressive(Protocol):
    """A model that generates sequences token by token; see `gen_jax.models.common.autoregressive`.

    condition: anything that all tokens depend on, with leading axis n, or None.
    """

    def start(self, params: Params, condition: PyTree, n: int, size: int) -> tuple[PyTree, Array]:
        """The initial cache for n sequences of at most `size` tokens, and the token (n,) before the first."""

    def next(self, params: Params, condition: PyTree, cache: PyTree, token: Array) -> tuple[PyTree, Array]:
        """The cache after token (n,), and the logits (n, V) of the next token."""


@runtime_checkable
class Prefilled(Autoregressive, Protocol):
    """An autoregressive model that reads many tokens at once."""

    def extend(self, params: Params, condition: PyTree, cache: PyTree, tokens: Array, lengths: Array) -> PyTree:
        """The cache after the first `lengths` (n,) of tokens (n, P)."""


@runtime_checkable
class Seq2Seq(Autoregressive, Protocol):
    """An autoregressive model of targets "y" given sources "x"."""

    def encode_source(self, params: Params, batch: Batch) -> PyTree:
        """The condition for `start` and `next`, from sources "x" (n, S) with "length"."""


@runtime_checkable
class LimitedContext(Autoregressive, Protocol):
    """An autoregressive model that sees a limited number of tokens."""

    @property
    def context(self) -> int:
        """The most tokens, with the one before the text, that its cache may hold."""


@runtime_checkable
class Infilling(Density, Protocol):
    """A density of sequences that knows the exact posterior of gaps: HMM, n-gram model of low order.

    A batch with "observed" (B, T) has gaps; `log_prob` is then that of the observed steps.
    """

    def fill(self, state: State, batch: Batch, key: Array) -> Array:
        """(B, T, ...) "x" whose gaps are drawn from their posterior given all observed steps."""


@runtime_checkable
class Imputable(Protocol):
    """A model that draws missing values of vectors from their exact posterior: mixture."""

    def complete(self, state: State, x: Array, mask: Array, key: Array, n: int) -> Array:
        """(n, B, D) completions of x (B, D), which is kept where `mask` (B, D) is True; other values are not read."""

    def with_missing(self) -> Density:
        """The same model, whose densities integrate out NaN in "x"."""


@runtime_checkable
class Classifier(Protocol):
    """A model that predicts the "label" of an example."""

    @property
    def classes(self) -> int: ...

    def predict(self, state: State, batch: Batch) -> Array:
        """(B,) class indices."""


@runtime_checkable
class Conditional(Protocol):
    """A model that may condition on entries of the batch; `conditioning` is None if unconditional."""

    @property
    def conditioning(self) -> Any: ...


@runtime_checkable
class Supported(Protocol):
    """A model with limited support."""

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""; checked before training."""


@runtime_checkable
class Diagnosed(Protocol):
    """A model that diagnoses training failures from its metrics."""

    def diagnose(self, metrics: Mapping[str, Any]) -> str:
        """A message about a training failure, "" if there is none."""


@runtime_checkable
class Components(Protocol):
    """A mixture: an example belongs to one of several components."""

    def responsibilities(self, state: State, batch: Batch) -> Array:
        """(B, components) posterior probabilities of the components."""


@runtime_checkable
class GaussianComponents(Protocol):
    """A model with Gaussian components, for plots."""

    def covariances(self, state: State) -> tuple[Array, Array]:
        """Means (K, D) and covariances (K, D, D)."""


@runtime_checkable
class Source(Protocol):
    """Batches as a function of the step; see `gen_jax.data.source`."""

    @property
    def batch_size(self) -> int: ...

    def batch_at(self, step: Array | int) -> Batch:
        """The batch of a step."""

    def example(self) -> Any:
        """A pytree with `batch_at`, holding the batch of step 0."""

    def window(self, step: int, n: int) -> Any:
        """A pytree with `batch_at`, traceable for the n steps starting at `step`."""

    def check(self) -> None:
        """Raises UserError if the data cannot be trained on."""

    def place(self, mesh: Any) -> Source:
        """The same source on the devices of a mesh."""

    def close(self) -> None:
        """Stops reading ahead."""


def fold_in(key: Array, *names: int | str | Array) -> Array:
    """A new key from a key and names: `fold_in(key, step, "noise")`. Keys are never split on the host or carried."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key


def is_sequential(batch: Batch) -> bool:
    """Whether "x" holds sequences: ragged ones, of vectors (B, T, D), or of symbols (B, T)."""
    x = batch["x"]
    return "length" in batch or x.ndim == 3 or (x.ndim == 2 and x.dtype.kind in "iu")


def initial(model: Model, key: Array, batch: Batch) -> tuple[Params, Extra]:
    """The result of a model's `init`. Raises ValueError if that is not a pair of dicts."""
    check_takes(model.init, ("key", "batch"), "`init`")
    found = model.init(key, batch)
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, dict) for part in found):
        return found
    said = f"must return (params, extra), two dicts; it returned a {type(found).__name__}"
    raise ValueError(f"`init`, at {place_of(model.init)}, {said}")


def averaged(state: State) -> State:
    """The State for evaluation and sampling, with averaged instead of current parameters and batch statistics.

    `algorithms.with_ema` keeps the averages in `extra["ema"]`; without them the State is returned unchanged.
    """
    if "ema" not in state.extra:
        return state
    ema = state.extra["ema"]
    extra = {name: value for name, value in state.extra.items() if name != "ema"}
    if "batch_stats" in ema:
        extra["batch_stats"] = {**extra["batch_stats"], **ema["batch_stats"]}
    return state._replace(params={**state.params, **ema["params"]}, extra=extra)


def as_mean(loss: Array | Mean) -> Mean:
    """A loss as a Mean; a scalar counts once."""
    return loss if isinstance(loss, Mean) else Mean.of(loss)
