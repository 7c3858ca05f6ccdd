"""Log-probabilities of tokens from hidden vectors, in blocks, so that logits of a whole batch are never held."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch

__all__ = ["counted_tokens", "soft_capped", "token_log_probs"]


def token_log_probs(
    logits_of: Callable[[Array], Array], hidden: Array, targets: Array, block: int = 0
) -> tuple[Array, Array]:
    """Log-probabilities (B, T) of targets, and the mean log-probability (B, T) of all tokens, for label smoothing.

    logits_of: logits (..., V) of hidden vectors (..., D). block: how many tokens have their logits in memory at a time,
    in the backward pass too; 0: all.
    """

    def of_block(h: Array, target: Array) -> tuple[Array, Array]:
        logits = logits_of(h).astype(jnp.promote_types(h.dtype, jnp.float32))
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return chosen - normalizer, logits.mean(axis=-1) - normalizer

    size = targets.size
    if not 0 < block < size:
        return of_block(hidden, targets)
    blocks = -(-size // block)
    fill = blocks * block - size
    h = jnp.pad(hidden.reshape(size, -1), ((0, fill), (0, 0))).reshape(blocks, block, -1)
    target = jnp.pad(targets.reshape(size), (0, fill)).reshape(blocks, block)
    found = lax.map(jax.checkpoint(lambda one: of_block(*one)), (h, target))
    return tuple(a.reshape(-1)[:size].reshape(targets.shape) for a in found)


def soft_capped(logits: Array, cap: float) -> Array:
    """cap * tanh(logits / cap), for cap > 0 (Gemma Team 2024)."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def counted_tokens(batch: Batch, entry: str = "x", skip: int = 0, weighted: bool = True) -> Array:
    """(B, T) weights of tokens from `skip` on: the "mask" and "length" of their entry, the "weight" of examples.

    weighted: whether examples have their weight, or all the same.
    """
    x, prefix = batch[entry], "" if entry == "x" else f"{entry}_"
    weights = jnp.ones(x.shape, jnp.float32)
    if f"{prefix}length" in batch:
        weights = weights * (jnp.arange(x.shape[1]) < batch[f"{prefix}length"][:, None])
    if f"{prefix}mask" in batch:
        weights = weights * batch[f"{prefix}mask"]
    if weighted and "weight" in batch:
        weights = weights * batch["weight"][:, None]
    return weights[:, skip:]
