"""Pool of generated images (Shrivastava et al. 2017, section 2.3), part of the State, so that a run resumes exactly."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree

__all__ = ["empty_pool", "exchange"]


def empty_pool(size: int, shape: Sequence[int]) -> PyTree:
    """A pool of `size` images (H, W, C), and how many it holds."""
    return {"images": jnp.zeros((size, *shape), jnp.float32), "count": jnp.int32(0)}


def exchange(pool: PyTree, images: Array, key: Array) -> tuple[PyTree, Array]:
    """The pool after a batch of new images (B, H, W, C), and the images to be judged in their place.

    Image by image: while the pool is not full, it keeps the image, which is also returned. Afterwards, with probability
    1/2, a random image of the pool is returned and the new one takes its slot; else the new one is returned.
    """
    size = len(pool["images"])

    def put(pool: PyTree, item: tuple[Array, Array]) -> tuple[PyTree, Array]:
        image, key = item
        coin, slot = jax.random.split(key)
        full = pool["count"] == size
        swap = full & jax.random.bernoulli(coin)
        slot = jnp.where(full, jax.random.randint(slot, (), 0, size), pool["count"])
        old = pool["images"][slot]
        kept = jnp.where(~full | swap, image, old)
        pool = {"images": pool["images"].at[slot].set(kept), "count": jnp.minimum(pool["count"] + 1, size)}
        return pool, jnp.where(swap, old, image)

    return lax.scan(put, pool, (lax.stop_gradient(images), jax.random.split(key, len(images))))
