"""Normalizing flows: densities of data as noise moved through bijections (Rezende & Mohamed 2015, arXiv:1505.05770)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import distrax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in, weights
from gen_jax.models.bijections.layer import Chain, Layer
from gen_jax.models.common.conditioning import Conditioning, embed, resolve_condition
from gen_jax.models.flow.bases import Base


@dataclass(frozen=True)
class Flow:
    """Noise of a base moved through layers, the first of which takes the noise and the last of which gives the data.

    base: `gen_jax.models.flow.bases`; its shape is that of one example. layers: `gen_jax.models.bijections`.
    context: `gen_jax.models.common.conditioning`, what the layers are told beside x; None for nothing.
    """

    base: Base
    layers: Sequence[Layer]
    context: Conditioning | None = None

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "chain", Chain(self.layers))

    @property
    def estimated(self) -> bool:
        """Whether log-likelihoods are unbiased estimates, not exact."""
        return self.chain.estimated

    @property
    def autoregressive(self) -> bool:
        """Whether each value of x depends on no noise after its own, in their order, and the noise is independent."""
        return self.chain.triangular and self.base.independent

    def __call__(self, params: PyTree, context: Array | None = None) -> distrax.Distribution:
        """The distribution of x with these parameters: of single examples, or (B,) of them by a context (B, C)."""
        batch = () if context is None else context.shape[:-1]
        bijector = self.chain(params.get("layers", {}), context, len(self.base.shape))
        return distrax.Transformed(self.base(params.get("base", {}), batch), bijector)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = batch["x"]
        if x.shape[1:] != self.base.shape:
            raise ValueError(f"examples have the shape {x.shape[1:]}, but the base has {self.base.shape}")
        context = self.context.init(fold_in(key, "context"), batch) if self.context else {}
        given = self.context(batch, context) if self.context else None
        params = {
            "base": self.base.init(fold_in(key, "base")),
            "layers": self.chain.init(fold_in(key, "layers"), x.astype(jnp.float32), given),
            "context": context,
        }
        return {"flow": {name: own for name, own in params.items() if own}}, {}

    def unsupported(self, batch: Batch) -> str:
        """What of some data this model cannot explain, in words; "" if it can."""
        x = np.asarray(batch["x"])
        if x.dtype.kind in "iub":
            return "x holds integers, of which a density has no bound: add a transform such as dequantize()"
        if not np.isfinite(x).all():
            return "x holds values that are not finite"
        low, high = self.chain.support or (-np.inf, np.inf)
        if x.min() < low or x.max() > high:
            return f"x goes from {x.min():.4g} to {x.max():.4g}, but the last layer gives data in [{low:g}, {high:g}]"
        return self.context.unsupported(batch) if self.context else ""

    def of(self, state: State, batch: Batch | None = None) -> distrax.Distribution:
        """The distribution of x, for the contexts of a batch where the model takes any."""
        return self._of(weights(state, "flow"), batch)

    def _of(self, params: PyTree, batch: Batch | None) -> distrax.Distribution:
        return self(params, embed(self.context, batch or {}, params.get("context")) if self.context else None)

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
        given = resolve_condition(self.context, n, given)
        distribution = self.of(state, given)
        shape = () if self.context else (n,)
        base = distribution.distribution
        z = base.mean() + temperature * (base.sample(seed=fold_in(key, "z"), sample_shape=shape) - base.mean())
        return {**given, "x": distribution.bijector.forward(z), "z": z}
