"""Optimizers and schedules that several configs use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

from gen_jax.core import PyTree

__all__ = ["adamw", "half_life", "kernels", "lazy_adam", "matrices", "muon", "warm_down"]


def adamw(
    lr: float,
    steps: int,
    weight_decay: float = 0.0,
    clip: float = 200.0,
    decayed: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with cosine decay from `lr` to 0 and gradients clipped to norm `clip`.

    A loss in nats per image has gradients of norm 10 to 100; clipping only affects rare outliers that would derail
    training. decayed: mask function for weight decay, params -> tree of booleans, e.g. `kernels`; None for all.
    """
    schedule = optax.cosine_decay_schedule(lr, steps)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay, mask=decayed))


def lazy_adam(lr: float, every: int, b1: float = 0.0, b2: float = 0.99) -> optax.GradientTransformation:
    """Adam for a player with a lazy regularizer on every n-th step, which updates n + 1 times in n steps.

    The rate is multiplied by n / (n + 1), and both decays are raised to that power, so that their time constants in
    steps stay the same (Karras et al. 2020, arXiv:1912.04958, appendix B). every: 0 or 1 if no regularizer is lazy.
    """
    share = every / (every + 1) if every > 1 else 1.0
    return optax.adam(lr * share, b1=b1**share, b2=b2**share)


def half_life(images: float, batch: int, ramp: float = 0.05) -> optax.Schedule:
    """The decay of an average over parameters whose half-life is a number of images, see `with_ema`.

    ramp: the half-life is at most this share of the images seen so far, so that the first ones are forgotten; 0 for no
    such limit (Karras et al. 2020, arXiv:2006.06676).
    """
    if images <= 0 or batch < 1 or ramp < 0:
        raise ValueError(f"a half-life must be positive and a ramp not negative, got {images} and {ramp}")

    def decay(step: jax.Array) -> jax.Array:
        seen = batch * (jnp.asarray(step, jnp.float32) + 1)
        return 0.5 ** (batch / (jnp.minimum(images, ramp * seen) if ramp else images))

    return decay


def kernels(params: PyTree) -> PyTree:
    """Mask that selects the kernels of networks, not biases, scales or statistics."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)


def matrices(params: PyTree) -> PyTree:
    """Mask that selects weights of two or more dimensions, as GPT-2's decay does: embeddings too."""
    stacked = lambda path: any(getattr(part, "key", "") == "layers" for part in path)
    return jax.tree_util.tree_map_with_path(lambda path, a: a.ndim - stacked(path) >= 2, params)


def warm_down(lr: float, steps: int, warm_up: int = 0, share: float = 0.65, last: float = 0.0) -> optax.Schedule:
    """Linear warm-up, a constant rate, and a linear decay to `last * lr` over the last `share` of the steps."""
    if not 0 <= share <= 1:
        raise ValueError(f"the rate decays over a share of the steps between 0 and 1, got {share}")
    start = int(steps * (1 - share))
    up = optax.linear_schedule(0.0, lr, warm_up) if warm_up else optax.constant_schedule(lr)
    down = optax.linear_schedule(lr, last * lr, max(1, steps - start))
    return lambda step: jnp.where(step < start, up(step + 1), down(step - start))


def muon(
    lr: optax.ScalarOrSchedule, adam_lr: optax.ScalarOrSchedule, weight_decay: float = 0.0, clip: float = 0.0
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of stacked layers, AdamW at the rate `adam_lr` for all else.

    Both have Nesterov momentum. Updates of a kernel are its momentum with all singular values near 1, times
    sqrt(max(1, outputs / inputs)).
    """

    def dimensions(params: PyTree) -> PyTree:
        def of(path, a):
            names = [getattr(part, "key", "") for part in path]
            inside = "layers" in names and names[-1] == "kernel" and a.ndim == 3
            return MuonDimensionNumbers(reduction_axis=1, output_axis=2) if inside else None

        return jax.tree_util.tree_map_with_path(of, params)

    tx = optax_muon(
        lr,
        weight_decay=weight_decay,
        adam_learning_rate=adam_lr,
        adam_b1=0.9,
        adam_b2=0.95,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=dimensions,
    )
    return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
