"""Progressive growing of GANs (Karras et al. 2018, arXiv:1710.10196), and its successors with the same networks.

Networks for small images are trained first, and layers for twice the size are faded in. All parameters exist from the
start; a stage of training uses those up to its level, and `State.step` says how far the newest layers have faded in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Params, State
from gen_jax.models.common.conditioning import resolve_condition
from gen_jax.models.common.normalization import pixel_norm
from gen_jax.models.common.resampling import doubled, halved
from gen_jax.models.gan.gan import GAN
from gen_jax.models.gan.generators import joined
from gen_jax.models.gan.regularizers import DISCRIMINATOR, GENERATOR
from gen_jax.models.gan.style_networks import (
    EqualConv,
    EqualDense,
    activate,
    minibatch_deviation,
    sizes,
    widths,
)

__all__ = [
    "Architecture",
    "GrowingDiscriminator",
    "GrowingGenerator",
    "ProgressiveGAN",
    "Schedule",
    "schedule_of",
]

Architecture = Literal["progressive", "skip", "residual", "msg"]


class GrowingGenerator(nn.Module):
    """Nearest-neighbor doubling, two convolutions with pixel normalization. (B, latent) -> images of a level.

    architecture: "progressive": the image of the last level only, faded in over the doubled one before; "skip": the sum
    of doubled images of all levels (Karras et al. 2020, figure 7); "residual": residual blocks; "msg": images of all
    levels, doubled to full size and concatenated along the channels (Karnewar & Wang 2020).
    """

    size: tuple[int, int]
    outputs: int = 1
    base: int = 8192
    most: int = 512
    architecture: Architecture = "progressive"

    @nn.compact
    def __call__(self, z: Array, *context: Array, level: int | None = None, fade: Array | float = 1.0) -> Array:
        channels, all_sizes = widths(self.size, self.base, self.most), sizes(self.size)
        last = len(channels) - 1
        level = last if level is None else level
        (height, width), first = all_sizes[0], channels[0]
        h = EqualDense(height * width * first, name="dense")(pixel_norm(joined(z, *context)))
        h = pixel_norm(activate(h.reshape(-1, height, width, first)))
        images: list[Any] = []
        for i in range(level + 1):
            before = h
            if i:
                h = doubled(h)
                h = pixel_norm(activate(EqualConv(channels[i], name=f"first_{i}")(h)))
            h = pixel_norm(activate(EqualConv(channels[i], name=f"second_{i}")(h)))
            if i and self.architecture == "residual":
                short = doubled(EqualConv(channels[i], 1, use_bias=False, name=f"short_{i}")(before))
                h = (h + short) * math.sqrt(0.5)
            wanted = self.architecture in ("skip", "msg") or i >= level - (self.architecture == "progressive")
            made = wanted or self.is_initializing()
            images.append(EqualConv(self.outputs, 1, name=f"to_image_{i}")(h) if made else None)
        return self._joined(images, fade)

    def _joined(self, images: list[Any], fade: Array | float) -> Array:
        """The image of the last level."""
        if self.architecture == "msg":
            last = len(images) - 1
            return jnp.concatenate([doubled(image, last - i) for i, image in enumerate(images)], axis=-1)
        if len(images) == 1 or self.architecture == "residual":
            return images[-1]
        if self.architecture == "progressive":
            old = doubled(images[-2])
            return old + (images[-1] - old) * fade
        total = images[0]
        for i, image in enumerate(images[1:], 1):
            total = doubled(total) + image * (fade if i == len(images) - 1 else 1.0)
        return total


class GrowingDiscriminator(nn.Module):
    """Two convolutions and a mean of 2x2 pixels per level; the size of the images says which level is the first.

    size: of full images. architecture: as in `GrowingGenerator`: "skip" and "msg" see the image again at every level.
    group: examples over which the minibatch deviation is computed; 0 for none.
    """

    size: tuple[int, int]
    base: int = 8192
    most: int = 512
    outputs: int = 1
    architecture: Architecture = "progressive"
    group: int = 4

    @property
    def compares_examples(self) -> bool:
        return self.group > 0

    @nn.compact
    def __call__(self, x_BHWC: Array, *context: Array, fade: Array | float = 1.0) -> Array:
        channels, level = widths(self.size, self.base, self.most), sizes(self.size).index(x_BHWC.shape[1:3])
        seen = _pyramid(x_BHWC, level, channels=x_BHWC.shape[-1] // (level + 1) if self.architecture == "msg" else 0)
        of_image = lambda i: activate(EqualConv(channels[i], 1, name=f"from_image_{i}")(seen[i]))
        h = of_image(level)
        for i in range(level, 0, -1):
            before = h
            h = activate(EqualConv(channels[i], name=f"first_{i}")(h))
            h = halved(activate(EqualConv(channels[i - 1], name=f"second_{i}")(h)))
            if self.architecture == "residual":
                short = EqualConv(channels[i - 1], 1, use_bias=False, name=f"short_{i}")(halved(before))
                h = (h + short) * math.sqrt(0.5)
            elif self.architecture == "progressive":
                if i == level or self.is_initializing():
                    old = of_image(i - 1)
                    h = old + (h - old) * fade if i == level else h
            else:  # what came in at the newest level is faded in; below it the network was there before
                share = fade if i == level else 1.0
                h = of_image(i - 1) + h * share
        if self.group:
            h = minibatch_deviation(h, self.group)
        h = activate(EqualConv(channels[0], name="second_0")(h))
        h = activate(EqualDense(channels[0], name="dense")(h.reshape(len(h), -1)))
        logits = EqualDense(self.outputs, name="logits")(h)
        if not context:
            return logits
        projection = EqualDense(channels[0], name="projection")(*context)
        return logits.at[:, :1].add(jnp.sum(projection * h, axis=1, keepdims=True) / math.sqrt(channels[0]))


def _pyramid(x: Array, level: int, channels: int) -> list[Array]:
    """Images of all levels up to that of x; with `channels`, those that x holds, doubled and concatenated."""
    if channels:
        return [
            x[:, :: 2 ** (level - i), :: 2 ** (level - i), i * channels : (i + 1) * channels] for i in range(level + 1)
        ]
    found = [x]
    for _ in range(level):
        found.insert(0, halved(found[0]))
    return found


@dataclass(frozen=True)
class Schedule:
    """starts: the first step of each level but the first. fades: how many steps it takes to fade each of them in."""

    starts: tuple[int, ...] = ()
    fades: tuple[int, ...] = ()

    def __post_init__(self):
        if len(self.starts) != len(self.fades) or min([1, *self.starts, *self.fades]) < 1:
            raise ValueError(f"each level needs a start and a fade of at least one step, got {self}")

    @property
    def switches(self) -> tuple[int, ...]:
        """Steps before which a level starts or has faded in."""
        return tuple(step for start, fade in zip(self.starts, self.fades) for step in (start, start + fade))

    def level(self, step: Array) -> Array:
        return jnp.searchsorted(jnp.asarray(self.starts, jnp.int32), step, side="right")

    def fade(self, level: int, step: Array) -> Array | float:
        """The share of the newest layers: 0 when the level starts, 1 when it has faded in."""
        if not level:
            return 1.0
        return jnp.clip((step - self.starts[level - 1]) / self.fades[level - 1], 0.0, 1.0)


def schedule_of(images: int, batches: Sequence[int]) -> Schedule:
    """A schedule in which each phase, of a level alone or of its fading in, sees so many images.

    batches: examples per step of each level.
    """
    steps = [max(1, round(images / batch)) for batch in batches]
    starts = [steps[0]]
    for of_level in steps[1:-1]:
        starts.append(starts[-1] + 2 * of_level)
    return Schedule(tuple(starts), tuple(steps[1:])) if len(steps) > 1 else Schedule()


@dataclass(frozen=True)
class ProgressiveGAN(GAN):
    """A GAN of a `GrowingGenerator` and a `GrowingDiscriminator`.

    schedule: when levels start; by default all are trained from the start. Reset the moments of Adam at its `switches`:
    those of new layers have aged without gradients, and first steps would be too large.
    level: that of a stage of training; None for the whole model, which generates images of the level that `State.step`
    has reached, doubled to full size.
    """

    schedule: Schedule = Schedule()
    level: int | None = None

    networks: ClassVar[tuple[type[nn.Module], type[nn.Module]]] = (GrowingGenerator, GrowingDiscriminator)

    def __post_init__(self):
        super().__post_init__()
        networks = self.generator, self.discriminator
        if not all(isinstance(*pair) for pair in zip(networks, self.networks)):
            needed = " and a ".join(kind.__name__ for kind in self.networks)
            raise ValueError(f"{type(self).__name__} needs a {needed}")
        if networks[0].architecture != networks[1].architecture or networks[0].size != networks[1].size:
            raise ValueError("both networks need the same architecture and size")
        if self.packing > 1:
            raise ValueError("packs of growing images are not supported: use packing=1")
        grows = self.schedule.starts
        if grows and networks[0].architecture in ("residual", "msg"):
            raise ValueError(f'"{networks[0].architecture}" networks do not grow: train them without a schedule')
        if grows and len(grows) != self.top:
            raise ValueError(f"{self.top + 1} levels need {self.top} starts, got {len(grows)}")

    @property
    def top(self) -> int:
        """The last level, of full images."""
        return len(sizes(self.generator.size)) - 1

    def stages(self) -> Sequence[ProgressiveGAN]:
        """The model at each level, for `staged`; itself if it does not grow."""
        return [replace(self, level=level) for level in range(self.top + 1)] if self.schedule.starts else [self]

    @property
    def _is_whole(self) -> bool:
        """Whether the state says which of several stages is meant."""
        return self.level is None and bool(self.schedule.starts)

    def _by_stage(self, state: State, f: Callable[[ProgressiveGAN], Array]) -> Array:
        """f of the stage that the state has reached."""
        return lax.switch(self.schedule.level(state.step), [partial(f, stage) for stage in self.stages()])

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        whole = replace(self, schedule=Schedule(), level=None)
        return super(ProgressiveGAN, whole).init(key, {**batch, "x": whole.at_level(batch["x"], self.top, 1.0)})

    def at_level(self, x: Array, level: int, fade: Array | float) -> Array:
        """Full images as the discriminator sees them at a level, faded as generated ones are."""
        pyramid = _pyramid(x, self.top, 0)
        if self.generator.architecture == "msg":
            return jnp.concatenate([doubled(image, self.top - i) for i, image in enumerate(pyramid)], axis=-1)
        x = pyramid[level]
        if not level or not self.schedule.starts:
            return x
        old = doubled(pyramid[level - 1])
        return old + (x - old) * fade

    def _stage(self, state: State) -> Any:
        level = self.top if self.level is None else self.level
        fade = self.schedule.fade(level, state.step) if self.schedule.starts else 1.0
        return {GENERATOR: {"level": level, "fade": fade}, DISCRIMINATOR: {"fade": fade}}

    def prepare(self, state: State, batch: Batch, key: Array) -> Batch:
        stage = self._stage(state)[GENERATOR]
        return {**super().prepare(state, batch, key), "x": self.at_level(batch["x"], stage["level"], stage["fade"])}

    def generate(self, state: State, z: Array, condition: Batch | None = None) -> Array:
        """(B, *x) from noise (B, latent), of the level that the state has reached, doubled to full size."""
        condition = resolve_condition(self.conditioning, len(z), condition)
        if self._is_whole:
            return self._by_stage(state, lambda stage: stage.generate(state, z, condition))
        return self.at_full_size(super().generate(state, z, condition), state)

    def at_full_size(self, images: Array, state: State) -> Array:
        """Images as the generator makes them, doubled to full size."""
        if self.generator.architecture == "msg":
            return images[..., -self.generator.outputs :]
        return doubled(images, self.top - self._stage(state)[GENERATOR]["level"])

    def discriminate(self, state: State, batch: Batch) -> Array:
        """(B,) logits of full images being real, by the discriminator of the level that the state has reached."""
        if self._is_whole:
            return self._by_stage(state, lambda stage: stage.discriminate(state, batch))
        stage = self._stage(state)[GENERATOR]
        return super().discriminate(state, {**batch, "x": self.at_level(batch["x"], stage["level"], stage["fade"])})

    def sample_logits(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Array:
        """(n,) logits of samples as they come from the generator at the level that the state has reached."""
        condition = resolve_condition(self.conditioning, n, condition)
        if self._is_whole:
            return self._by_stage(state, lambda stage: stage.sample_logits(state, key, n, condition))
        images = super().generate(state, self.noise(key, n), condition)
        return super().discriminate(state, {**condition, "x": images})
