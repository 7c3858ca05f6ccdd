"""Optimizers that several configs use."""

from collections.abc import Callable

import jax
import optax

from gen_jax.core import PyTree

__all__ = ["adamw", "kernels"]


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


def kernels(params: PyTree) -> PyTree:
    """Mask that selects the kernels of networks, not biases, scales or statistics."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)
