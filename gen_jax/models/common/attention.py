"""Attention with grouped queries and causal, windowed and segmented masks; rotary and relative positions.

Dimensions: B batch, T queries, S keys, H query heads, K key heads (H a multiple of K), D head width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["attention", "attention_weights", "cached_attention", "relative_buckets", "rotate", "sinusoids"]

_MASKED = -1e30  # finite, so that a row without any key is no NaN
_BLOCK = 64  # queries that are processed together on CPU


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    window: int = 0,
    segments: tuple[Array, Array] | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Attention (B, T, H, D) of queries (B, T, H, D) to keys and values (B, S, K, D).

    causal: query t sees keys 0 .. t. window: and of these the last `window` only (0: all). segments: numbers (B, T) of
    queries and (B, S) of keys; a query sees keys of its own number. mask: (B, T, S), or broadcast to it, where a query
    may see a key. bias: (H, T, S) or (B, H, T, S), added to the scores. scale: of the scores, by default 1 / sqrt(D).
    A query that sees no key gets 0. The softmax is computed in float32.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    mask, bias = _joined(mask, segments), _batched(bias)
    if jax.default_backend() == "cpu" or q.shape[1] == 1:
        return _in_blocks(q, k, v, causal, window, mask, bias, scale)
    seen = mask if mask is None else jnp.broadcast_to(mask, (len(q), q.shape[1], k.shape[1]))
    fused = q.dtype in (jnp.bfloat16, jnp.float16) and mask is None and bias is None
    found = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        None if seen is None else seen[:, None],
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn" if fused and jax.default_backend() == "gpu" else "xla",
    )
    return found if seen is None else jnp.where(seen.any(axis=-1)[:, :, None, None], found, 0)


def attention_weights(
    q: Array,
    k: Array,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    segments: tuple[Array, Array] | None = None,
    bias: Array | None = None,
) -> Array:
    """The weights (B, H, T, S) of `attention`, for pictures."""
    one_hot = jnp.eye(k.shape[1], dtype=k.dtype)[None, :, None]
    values = jnp.broadcast_to(one_hot, (*k.shape[:3], k.shape[1]))
    mask, bias = _joined(None, segments), _batched(bias)
    return _in_blocks(q, k, values, causal, window, mask, bias, scale).swapaxes(1, 2)


def cached_attention(q: Array, k: Array, v: Array, scale: float, mask: Array, bias: Array | None = None) -> Array:
    """Attention (B, T, H, D) to keys and values (B, K, S, D), which lie as products need them, so nothing is copied."""
    return _products((q * scale).swapaxes(1, 2), k, v, None, mask, bias).swapaxes(1, 2)


def _joined(mask: Array | None, segments: tuple[Array, Array] | None) -> Array | None:
    """A mask that also keeps segments apart."""
    if segments is None:
        return mask
    same = segments[0][:, :, None] == segments[1][:, None, :]
    return same if mask is None else mask & same


def _batched(bias: Array | None) -> Array | None:
    return bias[None] if bias is not None and bias.ndim == 3 else bias


def _in_blocks(q, k, v, causal: bool, window: int, mask: Array | None, bias: Array | None, scale: float) -> Array:
    """Attention by plain products; of a causal mask only the blocks that have unmasked entries."""
    length, keys = q.shape[1], k.shape[1]
    q, k, v = (a.swapaxes(1, 2) for a in (q * scale, k, v))  # (B, H, T, D)
    size = _BLOCK if causal and length > _BLOCK else length
    found = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        first, last = (max(0, start - window + 1) if window else 0), (stop if causal else keys)
        part = (slice(None), slice(start, stop), slice(first, last))
        found.append(
            _products(
                q[:, :, start:stop],
                k[:, :, first:last],
                v[:, :, first:last],
                _triangle(start, stop, first, last, window) if causal else None,
                None if mask is None else mask[part if mask.shape[1] > 1 else (slice(None), slice(None), part[2])],
                None if bias is None else bias[:, :, start:stop, first:last],
            )
        )
    return (found[0] if len(found) == 1 else jnp.concatenate(found, axis=2)).swapaxes(1, 2)


def _triangle(start: int, stop: int, first: int, last: int, window: int) -> Array:
    """(T, S) where queries start .. stop - 1 may see keys first .. last - 1."""
    distance = jnp.arange(start, stop)[:, None] - jnp.arange(first, last)
    return (distance >= 0) & (distance < window) if window else distance >= 0


def _products(q, k, v, triangle: Array | None, mask: Array | None, bias: Array | None) -> Array:
    """Attention (B, H, T, D) of a block of queries."""
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    q = q.reshape(batch, groups, heads // groups * length, width)
    scores = jnp.einsum("bktd,bksd->bkts", q, k).reshape(batch, heads, length, -1).astype(jnp.float32)
    scores = scores if bias is None else scores + bias
    scores = scores if triangle is None else jnp.where(triangle, scores, _MASKED)
    scores = scores if mask is None else jnp.where(mask[:, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights if mask is None else jnp.where(mask[:, None], weights, 0.0)  # rows without any key
    weights = weights.astype(v.dtype).reshape(batch, groups, heads // groups * length, -1)
    return jnp.einsum("bkts,bksd->bktd", weights, v).reshape(batch, heads, length, v.shape[-1])


def rotate(x: Array, positions: Array, base: float) -> Array:
    """Rotary positions (Su et al. 2021) of x (B, T, H, D) at positions (B, T) or (T,): pairs (d, d + D / 2) turn by
    position * base^(-2 d / D)."""
    half = x.shape[-1] // 2
    angles = positions[..., None].astype(jnp.float32) * base ** (-jnp.arange(half) / half)
    cos, sin = (f(angles)[..., None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def sinusoids(positions: Array, width: int, base: float = 10_000.0) -> Array:
    """(..., width) sines, then cosines, of positions (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    angles = positions[..., None].astype(jnp.float32) * base ** (-jnp.arange(half) / max(half - 1, 1))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_buckets(distance: Array, causal: bool, buckets: int = 32, largest: int = 128) -> Array:
    """The bucket of distances key - query (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others grow logarithmically up to `largest`; without a causal mask
    each sign has half of all.
    """
    if causal:
        sign, distance = 0, jnp.maximum(-distance, 0)
    else:
        buckets //= 2
        sign, distance = jnp.where(distance > 0, buckets, 0), jnp.abs(distance)
    exact = buckets // 2
    far = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(largest / exact) * (buckets - exact)
    far = jnp.minimum(exact + far.astype(jnp.int32), buckets - 1)
    return sign + jnp.where(distance < exact, distance, far)
