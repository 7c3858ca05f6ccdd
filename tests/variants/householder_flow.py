"""A flow of Householder reflections between couplings (Tomczak & Welling 2016)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from gen_jax import Experiment, Flow, descent, plots
from gen_jax.evaluation import log_likelihood
from gen_jax.models.bijections import Chain, Coupling, Layer, Stack, Standardize
from gen_jax.models.flow import Normal


@dataclass(frozen=True)
class Householder(Layer):
    """z - 2 v (v . z) / |v|^2, a reflection, whose inverse is itself."""

    def init(self, key, x, context=None):
        return {"v": jax.random.normal(key, x.shape[-1:], x.dtype)}

    def forward(self, params, z, context=None):
        v = params["v"] / jnp.linalg.norm(params["v"])
        return z - 2 * (z @ v)[:, None] * v, jnp.zeros(len(z), z.dtype)

    def inverse(self, params, x, context=None):
        return self.forward(params, x)


def config(depth: int = 6, steps: int = 500, smoke: bool = False) -> Experiment:
    """A bijection of one's own.

    Args:
        depth: reflections and couplings
    """
    model = Flow(Normal((2,)), [Stack(Chain([Coupling(), Householder()]), 2 if smoke else depth), Standardize()])
    return Experiment(
        model,
        descent(model, {"flow": optax.adam(2e-3)}),
        data="two_moons",
        batch=256,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood],
        plots=[plots.flow_density],
    )
