"""EM and gradient steps in turns, on one State."""

import jax.numpy as jnp
import optax
from jax import lax

from gen_jax import GMM, Experiment, descent, em, plots
from gen_jax.core import Algorithm
from gen_jax.evaluation import log_likelihood


def alternating(first: Algorithm, second: Algorithm) -> Algorithm:
    """Even steps by the first algorithm, odd steps by the second; they report what both measure."""

    def init(key, batch):
        state = first.init(key, batch)
        return state._replace(opt=(state.opt, second.init(key, batch).opt))

    def step(state, batch):
        def by(algorithm, which):
            def run(state):
                new, metrics = algorithm.step(state._replace(opt=state.opt[which]), batch)
                opt = (new.opt, state.opt[1]) if which == 0 else (state.opt[0], new.opt)
                return new._replace(opt=opt), {"log_likelihood": metrics["log_likelihood"]}

            return run

        return lax.cond(state.step % 2 == 0, by(first, 0), by(second, 1), state)

    return Algorithm(init, step)


def config(components: int = 3, lr: float = 0.01, steps: int = 100, smoke: bool = False) -> Experiment:
    """An algorithm made of two.

    Args:
        components: number of Gaussians
        lr: learning rate of the gradient steps
    """
    model = GMM(components)
    schedule = optax.linear_schedule(lr, 0.0, max(1, steps))
    return Experiment(
        model,
        alternating(em(model), descent(model, {"gmm": optax.sgd(lambda step: jnp.asarray(schedule(step)))})),
        data="blobs",
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood],
        plots=[plots.density],
    )
