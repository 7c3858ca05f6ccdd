"""One direction of a translation: a GAN whose generator sees an image of the other domain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, ImageTranslator, State, fold_in
from gen_jax.models.common.conditioning import Conditioning
from gen_jax.models.common.normalization import STATISTICS
from gen_jax.models.gan.augmentations import Augmentation
from gen_jax.models.gan.gan import GAN
from gen_jax.models.gan.losses import AdversarialLoss
from gen_jax.models.gan.regularizers import DISCRIMINATOR, GENERATOR, Regularizer

__all__ = [
    "BACK",
    "check_direction",
    "check_images",
    "check_noiseless",
    "distance",
    "of_side",
    "sampled",
    "translated",
    "translator",
]

BACK = {"a2b": "b2a", "b2a": "a2b"}


class _Source(Conditioning):
    """The image to be translated, the entry "source"."""

    entry = "source"

    def __call__(self, batch, params=None, key=None):
        return batch["source"]


class _FromSource(nn.Module):
    """A network of images as the generator of a GAN. noise: channels of noise beside the image, constant over it."""

    network: nn.Module
    noise: int
    joined: bool  # whether the discriminator sees the source too, in front of the other channels

    @nn.compact
    def __call__(self, z: Array, source: Array) -> Array:
        given = source
        if self.noise:
            z = jnp.broadcast_to(z[:, None, None], (*source.shape[:3], z.shape[-1]))
            given = jnp.concatenate([source, z], axis=-1)
        made = self.network(given)
        return jnp.concatenate([source, made], axis=-1) if self.joined else made


class _Unconditioned(nn.Module):
    """A discriminator that sees the condition in its first argument, or not at all."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: Array, source: Array) -> Array:
        return self.network(x)


def translator(
    generator: nn.Module,
    discriminator: nn.Module,
    adversarial: AdversarialLoss,
    regularizers: Sequence[Regularizer],
    augmentation: Augmentation,
    noise: int = 0,
    joined: bool = False,
) -> GAN:
    """A GAN of batches with real images "x" of one domain, and "source" images of the other to be translated.

    joined: its examples are images with the channels of their source in front, so that the discriminator judges pairs,
    and augmentations change both sides alike.
    """
    return GAN(
        _FromSource(generator, noise, joined),
        _Unconditioned(discriminator),
        latent=max(noise, 1),
        adversarial=adversarial,
        regularizers=regularizers,
        augmentation=augmentation,
        conditioning=_Source(),
    )


def translated(gan: GAN, state: State, images: Array, key: Array | None, own: bool) -> Array:
    """The translations of images (n, H, W, C), each computed for itself.

    key: of noise and dropout, one for all or one for each image; none without. own: batch normalization uses the
    statistics of the image itself.
    """
    variables = {"params": state.params[GENERATOR], STATISTICS: state.extra["batch_stats"][GENERATOR]}

    def one(image: Array, key: Array | None) -> Array:
        z = jnp.zeros((1, gan.latent), jnp.float32) if key is None else gan.noise(key, 1)
        rngs = {} if key is None else {"dropout": fold_in(key, "dropout")}
        mutable = [STATISTICS] if own else False
        made: Any = gan.generator.apply(variables, z, image[None], rngs=rngs, mutable=mutable)
        return (made[0] if own else made)[0]

    if key is None and not own:  # nothing mixes the images
        return gan.generator.apply(variables, jnp.zeros((len(images), gan.latent), jnp.float32), images)
    if key is None:
        return jax.vmap(partial(one, key=None))(images)
    keys = key if key.ndim else jax.vmap(partial(fold_in, key))(jnp.arange(len(images)))
    return jax.vmap(one)(images, keys)


def of_side(state: State, side: str) -> State:
    """The part of a State with several translators that one of them reads."""
    take = lambda tree: {player: tree[player][side] for player in (GENERATOR, DISCRIMINATOR)}
    extra = {name: state.extra[name][side] for name in ("augmentation", "regularizers")}
    return state._replace(params=take(state.params), extra={**extra, "batch_stats": take(state.extra["batch_stats"])})


def check_direction(direction: str, directions: Sequence[str]) -> None:
    """Raises ValueError for a direction in which a model does not translate."""
    if direction not in directions:
        raise ValueError(f"this model translates {' and '.join(directions)}, not {direction!r}")


def check_noiseless(regularizers: Sequence[Regularizer]) -> None:
    """Raises ValueError for regularizers that compare examples of different noise, where there is none."""
    if unfit := [r.name for r in regularizers if r.resamples]:
        raise ValueError(f"{unfit[0]} compares translations with different noise, but the generator sees none")


def sampled(model: ImageTranslator, state: State, key: Array, n: int, condition: Batch | None) -> Batch:
    """Translations "y" of the images "x" in the condition, with noise and dropout."""
    if condition is None or len(condition["x"]) != n:
        raise ValueError(f'translations need {n} images "x" as their condition')
    return {**condition, "y": model.translate(state, condition["x"], key=fold_in(key, "translate"))}


def distance(a: Array, b: Array) -> Array:
    """The mean absolute difference of two batches of images."""
    return jnp.abs(a - b).mean()


def check_images(batch: Batch, *entries: str) -> None:
    """Raises ValueError unless the batch has images in these entries."""
    for entry in entries:
        if entry not in batch:
            raise ValueError(
                f'there is no entry "{entry}": give pairs of images, or two folders of them (--partner FOLDER)'
            )
        if batch[entry].ndim != 4:
            raise ValueError(f'"{entry}" must hold images (height, width, channels), got {batch[entry].shape[1:]}')
    sizes = ["x".join(map(str, batch[entry].shape[1:3])) for entry in entries]
    if len(set(sizes)) > 1:
        raise ValueError(f"both sides must have images of one size, got {' and '.join(sizes)}: give --size and --fit")
