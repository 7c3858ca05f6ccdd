"""Normalizing flows: densities of data as noise moved through bijections (Rezende & Mohamed 2015, arXiv:1505.05770)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold, weights
from gen_jax.models import imputation
from gen_jax.models.bases import Base
from gen_jax.models.bijections.layer import Chain, Layer
from gen_jax.models.contexts import Context, given_to, told
from gen_jax.models.likelihoods import of_each_example


@dataclass(frozen=True)
class Flow:
    """Noise of a base moved through layers, the first of which takes the noise and the last of which gives the data.

    base: `gen_jax.models.bases`; its shape is that of one example. layers: `gen_jax.models.bijections`.
    context: `gen_jax.models.contexts`, what the layers are told beside x; None for nothing.
    """

    base: Base
    layers: Sequence[Layer]
    context: Context | None = None

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "chain", Chain(self.layers))

    @property
    def estimated(self) -> bool:
        """Whether log-likelihoods are unbiased estimates, not exact."""
        return self.chain.estimated

    def __call__(self, params: PyTree, context: Array | None = None) -> distrax.Distribution:
        """The distribution of x with these parameters: of single examples, or (B,) of them by a context (B, C)."""
        batch = () if context is None else context.shape[:-1]
        bijector = self.chain(params.get("layers", {}), context, len(self.base.shape))
        return distrax.Transformed(self.base(params.get("base", {}), batch), bijector)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = batch["x"]
        if x.shape[1:] != self.base.shape:
            raise ValueError(f"examples have the shape {x.shape[1:]}, but the base has {self.base.shape}")
        context = self.context.init(fold(key, "context"), batch) if self.context else {}
        given = self.context(batch, context) if self.context else None
        params = {
            "base": self.base.init(fold(key, "base")),
            "layers": self.chain.init(fold(key, "layers"), x.astype(jnp.float32), given),
            "context": context,
        }
        return {"flow": {name: own for name, own in params.items() if own}}, {}

    def outside(self, batch: Batch) -> str:
        """What of some data this model cannot explain, in words; "" if it can."""
        x = np.asarray(batch["x"])
        if x.dtype.kind in "iub":
            return "x holds integers, of which a density has no bound: add a transform such as dequantise()"
        if not np.isfinite(x).all():
            return "x holds values that are not finite"
        low, high = self.chain.support or (-np.inf, np.inf)
        if x.min() < low or x.max() > high:
            return f"x goes from {x.min():.4g} to {x.max():.4g}, but the last layer gives data in [{low:g}, {high:g}]"
        return self.context.outside(batch) if self.context else ""

    def of(self, state: State, batch: Batch | None = None) -> distrax.Distribution:
        """The distribution of x, for the contexts of a batch where the model takes any."""
        return self._of(weights(state, "flow"), batch)

    def _of(self, params: PyTree, batch: Batch | None) -> distrax.Distribution:
        return self(params, told(self.context, batch or {}, params.get("context")) if self.context else None)

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-densities in nats; estimates of them where a continuous layer has probes."""
        return self.of(state, batch).log_prob(batch["x"])

    def latent(self, state: State, batch: Batch) -> tuple[Array, Array]:
        """The noise (B, *x) behind examples, and the log-determinants (B,) of the way there."""
        return self.of(state, batch).bijector.inverse_and_log_det(batch["x"])

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        distribution = self._of(params, batch)
        z, log_det = distribution.bijector.inverse_and_log_det(batch["x"])
        nll = -(distribution.distribution.log_prob(z) + log_det)
        metrics = {"log_det_low": Mean.of(log_det.min()), "log_det_high": Mean.of(log_det.max())}
        return nll.mean(), ({}, metrics)

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("flow", self.loss),)

    def sample(
        self, state: State, key: Array, n: int, given: Batch | None = None, temperature: float | Array = 1.0
    ) -> Batch:
        """given: the context of each of the n examples. temperature: what the distance of noise from its mean is
        scaled by."""
        given = given_to(self.context, n, given)
        distribution = self.of(state, given)
        shape = () if self.context else (n,)
        base = distribution.distribution
        z = base.mean() + temperature * (base.sample(seed=fold(key, "z"), sample_shape=shape) - base.mean())
        return {**given, "x": distribution.bijector.forward(z), "z": z}

    def impute(
        self,
        state: State,
        batch: Batch | Array,
        mask: Array,
        key: Array,
        n: int = 16,
        method: Callable[..., Array] | None = None,
    ) -> Array:
        """(n, B, *x) completions of x, which is kept where `mask` (B, *x) is True; see `gen_jax.models.imputation`.

        method: `imputation.in_order` (exact) where every layer is autoregressive in the order of x and each mask says
        that a first part of x was observed, else `imputation.latent_walk`. Raises ValueError for a mask of another
        shape and, outside of jit, for examples of which nothing was observed.
        """
        batch = batch if isinstance(batch, Mapping) else {"x": batch}
        imputation.check(batch["x"], mask)
        if method is None:
            exact = self.chain.triangular and self.base.independent and imputation.is_prefix(mask)
            method = imputation.in_order if exact else imputation.latent_walk
        return method(self, state, batch, jnp.asarray(mask), key, n)


@dataclass(frozen=True)
class Dequantised:
    """A flow of integers 0 .. levels - 1 by learned noise between them (Ho et al. 2019, Flow++, arXiv:1902.00275).

    flow: of (x + u) / levels with u in [0, 1). u is the sigmoid of a normal, whose means and log-scales `network` makes
    from x scaled to [-1, 1]: (B, *x) -> (B, ..., 2 C).
    """

    flow: Flow
    network: nn.Module
    levels: int = 256

    def __post_init__(self):
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        middle = {**batch, "x": (batch["x"].astype(jnp.float32) + 0.5) / self.levels}
        params, extra = self.flow.init(fold(key, "flow"), middle)
        made, noise = self.network.init_with_output(fold(key, "noise"), self._scaled(batch["x"]))
        expected = (*batch["x"].shape[:-1], 2 * batch["x"].shape[-1])
        if made.shape != expected:
            raise ValueError(
                f"the network of the noise must give {expected[1:]} per example, and gives {made.shape[1:]}"
            )
        return {"flow": {**params["flow"], "noise": noise["params"]}}, extra

    def outside(self, batch: Batch) -> str:
        """What of some data this model cannot explain, in words; "" if it can."""
        x = np.asarray(batch["x"])
        if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= self.levels:
            return (
                f"x must hold integers from 0 to {self.levels - 1}, got {x.dtype} from {x.min():.4g} to {x.max():.4g}"
            )
        return self.flow.context.outside(batch) if self.flow.context else ""

    def _scaled(self, x: Array) -> Array:
        return 2 * x.astype(jnp.float32) / (self.levels - 1) - 1

    def _bounds(self, params: PyTree, batch: Batch, key: Array) -> Array:
        mean, log_std = jnp.split(self.network.apply({"params": params["noise"]}, self._scaled(batch["x"])), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape)
        raw = mean + jnp.exp(log_std) * noise
        log_slope = jax.nn.log_sigmoid(raw) + jax.nn.log_sigmoid(-raw)
        log_q = of_each_example(-0.5 * (noise**2 + np.log(2 * np.pi)) - log_std - log_slope)
        x = (batch["x"] + jax.nn.sigmoid(raw)) / self.levels
        log_p = self.flow._of(params, batch).log_prob(x)
        return log_p - log_q - np.prod(x.shape[1:]) * np.log(self.levels)

    def elbo(self, state: State, batch: Batch, key: Array) -> Array:
        """(B,) lower bounds on log-probabilities in nats, by one sample of the noise."""
        return self._bounds(weights(state, "flow"), batch, key)

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        return -self._bounds(params, batch, key).mean(), ({}, {})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("flow", self.loss),)

    def sample(
        self, state: State, key: Array, n: int, given: Batch | None = None, temperature: float | Array = 1.0
    ) -> Batch:
        """As `Flow.sample`, in integers."""
        drawn = self.flow.sample(state, key, n, given, temperature)
        x = jnp.clip(jnp.floor(drawn["x"] * self.levels), 0, self.levels - 1)
        return {**drawn, "x": x.astype(jnp.int32)}


@dataclass(frozen=True)
class Variational:
    """A flow fitted to an unnormalised density by the reverse KL on its own samples (Rezende & Mohamed 2015, eq. 15).

    target: log-densities (n,) up to a constant, of x (n, *shape), which it must take wherever the flow may go. Data is
    only needed for its shape, and to compare with.
    """

    flow: Flow
    target: Callable[[Array], Array]
    samples: int = 512

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.flow.context:
            raise ValueError("a density without a context has nothing to tell the flow: leave its context out")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        noise = jax.random.normal(fold(key, "noise"), (self.samples, *self.flow.base.shape))
        return self.flow.init(key, {"x": noise if batch["x"].shape[1:] == noise.shape[1:] else batch["x"]})

    def log_weights(self, params: PyTree, key: Array) -> Array:
        """(samples,) log target(x) - log q(x) of as many x ~ q: their mean bounds the log of the target's integral."""
        x, log_q = self.flow(params).sample_and_log_prob(seed=key, sample_shape=(self.samples,))
        return self.target(x) - log_q

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        log_weights = self.log_weights(params, key)
        log_integral = jax.nn.logsumexp(log_weights) - np.log(self.samples)
        size = jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights)) / self.samples
        return -log_weights.mean(), ({}, {"log_integral": Mean.of(log_integral), "effective": Mean.of(size)})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("flow", self.loss),)

    def sample(self, state: State, key: Array, n: int) -> Batch:
        return self.flow.sample(state, key, n)
