"""Flow matching: continuous flows trained by regression, without solving their equation."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import Array, lax

from gen_jax.core import Batch, Mean, PyTree, State, fold_in
from gen_jax.models.bijections.continuous import Continuous
from gen_jax.models.bijections.layer import Flattened, unrolled
from gen_jax.models.common.conditioning import embed
from gen_jax.models.flow.flow import Flow

__all__ = ["FlowMatching"]


@dataclass(frozen=True)
class FlowMatching(Flow):
    """A flow whose first layer is `Continuous`, trained by conditional flow matching (Lipman et al. 2023,
    arXiv:2210.02747): its field is regressed on x1 - (1 - least) x0 along straight lines from noise x0 to data x1.

    Layers after the first one map data to where the equation ends; they have no gradient, and should have no weight
    decay (`gen_jax.optimizers.kernels`). Densities and samples are those of the flow. least: deviation of the noise
    that is left at the data (eq. 22).
    """

    least: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        first = self.layers[0] if self.layers else None
        object.__setattr__(self, "continuous", first.layer if isinstance(first, Flattened) else first)
        if not isinstance(self.continuous, Continuous):
            raise ValueError(
                f"flow matching trains a first layer Continuous, or Flattened(Continuous), not {type(first).__name__}"
            )
        if not 0 <= self.least < 1:
            raise ValueError(f"least must be in [0, 1), got {self.least}")

    def unpenalized(self) -> Flow:
        """The same flow trained by its log-likelihood."""
        return Flow(self.base, self.layers, self.conditioning)

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean squared error of the velocity (eq. 23), summed over the values of an example."""
        context = None
        if self.conditioning is not None:
            context = embed(self.conditioning, batch, params.get("conditioning"), fold_in(key, "condition"))
        (_, field), *others = unrolled(self.chain, params["layers"])
        end, n = batch["x"], len(batch["x"])
        for layer, own in reversed(others):
            end, _ = layer.inverse(own, end, context)
        end = lax.stop_gradient(end).reshape(n, -1)
        start = self.base(params.get("base", {}), ()).sample(seed=fold_in(key, "noise"), sample_shape=(n,))
        start = lax.stop_gradient(start.reshape(n, -1))
        t = jax.random.uniform(fold_in(key, "time"), (n, 1), end.dtype)
        along = (1 - (1 - self.least) * t) * start + t * end
        velocity = self.continuous.field.apply({"params": field}, along, t, context)
        errors = ((velocity - (end - (1 - self.least) * start)) ** 2).sum(axis=1)
        return Mean.of(errors, batch.get("weight")), ({}, {})
