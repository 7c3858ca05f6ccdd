"""Optimizers that several configs use."""

import jax
import optax

from gen_jax.core import PyTree


def adamw(lr: float, steps: int, weight_decay: float = 0.0, clip: float = 200.0) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) from `lr` down to 0 by a cosine, with gradients clipped to a norm of `clip`.

    A loss in nats per image has gradients of norm 10 to 100; the clip only holds back the rare one that would throw
    training off. Only kernels decay, not biases, scales or statistics.
    """
    schedule = optax.cosine_decay_schedule(lr, steps)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay, mask=_kernels))


def _kernels(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)
