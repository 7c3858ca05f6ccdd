"""Normalizing flows: pushforwards of base densities through bijections (Rezende & Mohamed 2015, arXiv:1505.05770)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import distrax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.bijections.layer import Chain, Layer
from gen_jax.models.common.conditioning import Conditioning, embed, resolve_condition
from gen_jax.models.flow.bases import Base

__all__ = ["Flow"]


@dataclass(frozen=True)
class Flow:
    """Pushes a base distribution through a sequence of bijections: the first takes noise, the last outputs data.

    base: `gen_jax.models.flow.bases`; its shape is that of one example. layers: `gen_jax.models.bijections`.
    conditioning: `gen_jax.models.common.conditioning`, whose output is the context (B, C) of the layers; None for none.
    """

    base: Base
    layers: Sequence[Layer]
    conditioning: Conditioning | None = None

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "chain", Chain(self.layers))

    @property
    def estimated(self) -> bool:
        """Whether log-likelihoods are unbiased estimates instead of exact."""
        return self.chain.estimated

    @property
    def autoregressive(self) -> bool:
        """Whether the noise is independent and the bijection triangular: x_i depends on noise 0 .. i only."""
        return self.chain.triangular and self.base.independent

    def __call__(self, params: PyTree, context: Array | None = None) -> distrax.Distribution:
        """The distribution of x with these parameters, with batch shape (B,) for a context (B, C)."""
        batch = () if context is None else context.shape[:-1]
        bijector = self.chain(params.get("layers", {}), context, len(self.base.shape))
        return distrax.Transformed(self.base(params.get("base", {}), batch), bijector)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = batch["x"]
        if x.shape[1:] != self.base.shape:
            raise ValueError(f"examples have the shape {x.shape[1:]}, but the base has {self.base.shape}")
        own = self.conditioning.init(fold_in(key, "context"), batch) if self.conditioning else {}
        context = self.conditioning(batch, own) if self.conditioning else None
        params = {
            "base": self.base.init(fold_in(key, "base")),
            "layers": self.chain.init(fold_in(key, "layers"), x.astype(jnp.float32), context),
            "conditioning": own,
        }
        return {"flow": {name: own for name, own in params.items() if own}}, {}

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""."""
        x = np.asarray(batch["x"])
        if x.dtype.kind in "iub":
            return "x holds integers, of which a density has no bound: add a transform such as dequantize()"
        if not np.isfinite(x).all():
            return "x holds NaN or infinite values: impute them, or drop those rows (of a table: --missing drop)"
        low, high = self.chain.support or (-np.inf, np.inf)
        if x.min() < low or x.max() > high:
            return f"x goes from {x.min():.4g} to {x.max():.4g}, but the last layer gives data in [{low:g}, {high:g}]"
        return self.conditioning.unsupported(batch) if self.conditioning else ""

    def distribution(self, state: State, batch: Batch | None = None) -> distrax.Distribution:
        """The distribution of x, given the conditions of a batch if the model is conditional."""
        return self.of(state.params["flow"], batch)

    def of(self, params: PyTree, batch: Batch | None, key: Array | None = None) -> distrax.Distribution:
        """The distribution of x with these parameters; with a key the one for training."""
        if self.conditioning is None:
            return self(params)
        return self(params, embed(self.conditioning, batch or {}, params.get("conditioning"), key))

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-densities in nats; unbiased estimates if a continuous layer has probes."""
        return self.distribution(state, batch).log_prob(batch["x"])

    def latent(self, state: State, batch: Batch) -> tuple[Array, Array]:
        """The noise (B, *x) of examples, and the log-determinants (B,) of the inverse."""
        return self.distribution(state, batch).bijector.inverse_and_log_det(batch["x"])

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        distribution = self.of(params, batch, fold_in(key, "condition"))
        z, log_det = distribution.bijector.inverse_and_log_det(batch["x"])
        nll = -(distribution.distribution.log_prob(z) + log_det)
        metrics = {"log_det_min": Mean.of(log_det.min()), "log_det_max": Mean.of(log_det.max())}
        return nll.mean(), ({}, metrics)

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("flow", self.loss),)

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, temperature: float | Array = 1.0
    ) -> Batch:
        """n samples given a condition.

        condition: the conditioning inputs of each sample. temperature: scales the deviation of the noise from its mean.
        """
        condition = resolve_condition(self.conditioning, n, condition)
        distribution = self.distribution(state, condition)
        shape = () if self.conditioning else (n,)
        base = distribution.distribution
        z = base.mean() + temperature * (base.sample(seed=fold_in(key, "z"), sample_shape=shape) - base.mean())
        return {**condition, "x": distribution.bijector.forward(z), "z": z}
