"""Sharpness-aware minimization (Foret et al. 2021) with lookahead (Zhang et al. 2019), as an algorithm of one's own."""

import jax
import jax.numpy as jnp
import optax

from gen_jax import Experiment, Flow, fold_in, plots
from gen_jax.core import Algorithm, Mean, State, as_mean
from gen_jax.evaluation import log_likelihood
from gen_jax.models.bijections import Chain, Coupling, Reverse, Stack, Standardize
from gen_jax.models.flow import Normal


def sam(model, tx, radius: float = 0.05, every: int = 5, share: float = 0.5) -> Algorithm:
    """Descends by the gradient at params + radius g / |g|; every few steps, goes back a share of the way."""
    (objective,) = model.objectives

    def loss(params, state, batch, key):
        value, _ = objective.loss(params, state, batch, key)
        return as_mean(value).value

    def init(key, batch):
        params, extra = model.init(fold_in(key, "init"), batch)
        own = params[objective.player]
        return State(jnp.int32(0), key, params, (tx.init(own), jax.tree.map(jnp.copy, own)), extra)

    def step(state, batch):
        key, own, (opt, slow) = fold_in(state.key, state.step), state.params[objective.player], state.opt
        value, gradient = jax.value_and_grad(loss)(own, state, batch, key)
        scale = radius / (optax.tree.norm(gradient) + 1e-12)
        worse = jax.tree.map(lambda p, g: p + scale * g, own, gradient)
        updates, opt = tx.update(jax.grad(loss)(worse, state, batch, key), opt, own)
        fast = optax.apply_updates(own, updates)
        due = (state.step + 1) % every == 0
        slow = jax.tree.map(lambda s, f: jnp.where(due, s + share * (f - s), s), slow, fast)
        fast = jax.tree.map(lambda s, f: jnp.where(due, s, f), slow, fast)
        params = {**state.params, objective.player: fast}
        return state._replace(step=state.step + 1, params=params, opt=(opt, slow)), {"loss": Mean.of(value)}

    return Algorithm(init, step)


def config(radius: float = 0.05, lr: float = 2e-3, steps: int = 500, smoke: bool = False) -> Experiment:
    """A training step of one's own.

    Args:
        radius: of the ball around the parameters
        lr: learning rate of Adam
    """
    model = Flow(Normal((2,)), [Stack(Chain([Coupling(), Reverse()]), 2 if smoke else 6), Standardize()])
    return Experiment(
        model,
        sam(model, optax.adam(lr), radius),
        data="two_moons",
        batch=256,
        steps=min(steps, 20) if smoke else steps,
        metrics=[log_likelihood],
        plots=[plots.flow_density],
    )
