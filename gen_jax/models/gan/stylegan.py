"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958): a GAN whose generator maps noise z to styles w, one per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, PyTree, State, fold_in
from gen_jax.models.common.arrays import sum_except_batch
from gen_jax.models.common.conditioning import resolve_condition
from gen_jax.models.common.normalization import STATISTICS
from gen_jax.models.gan.gan import GAN
from gen_jax.models.gan.progressive import ProgressiveGAN
from gen_jax.models.gan.regularizers import GENERATOR, Regularizer, Turn
from gen_jax.models.gan.style_networks import StyleDiscriminator, StyleGenerator

__all__ = ["ProgressiveStyleGAN", "StyleGAN", "path_length"]


@dataclass(frozen=True)
class StyleGAN(GAN):
    """A GAN with a `StyleGenerator`.

    mixing: probability that a batch has the styles of two z each, the second from a random layer on.
    psi: truncation of generated images: w is moved towards its mean until only this share of the distance is left;
    1 in training. cutoff: how many layers are truncated, by default all.
    """

    mixing: float = 0.9
    psi: float = 1.0
    cutoff: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.generator, StyleGenerator):
            raise ValueError(f"StyleGAN needs a StyleGenerator, got {type(self.generator).__name__}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing is a probability, got {self.mixing}")
        if self.cutoff is not None and not 0 <= self.cutoff <= self.styles:
            raise ValueError(f"cutoff must be between 0 and {self.styles}, the number of styles, got {self.cutoff}")

    @property
    def styles(self) -> int:
        """How many w make an image."""
        return self.generator.styles

    @property
    def width(self) -> int:
        """Dimensions of w."""
        return self.generator.width

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        condition = resolve_condition(self.conditioning, n, condition)
        ws = self.map(state, self.noise(key, n), condition)
        return {**condition, "x": self.synthesize(state, ws, fold_in(key, "noise"))}

    def generate(self, state: State, z: Array, condition: Batch | None = None) -> Array:
        """(B, *x) from noise (B, latent), with fixed noise in the layers."""
        return self._synthesize(_variables(state), state, self.map(state, z, condition))

    def map(self, state: State, z: Array, condition: Batch | None = None) -> Array:
        """ws (B, styles, width) of noise (B, latent), truncated by `psi`."""
        condition = self._condition(resolve_condition(self.conditioning, len(z), condition))
        variables = _variables(state)
        ws = self.generator.apply(
            variables, self.generator.apply(variables, z, *condition, method="map"), method="repeat"
        )
        return self.generator.apply(variables, ws, self.psi, self.cutoff, method="truncate")

    def synthesize(self, state: State, ws: Array, key: Array | None = None) -> Array:
        """Images (B, *x) of ws (B, styles, width); with a key for random noise in the layers, else it is fixed."""
        return self._synthesize(_variables(state), state, ws, key)

    def _synthesize(self, variables: PyTree, state: State, ws: Array, key: Array | None = None) -> Array:
        """Images of the level that is trained, the last one unless the networks grow."""
        rngs, stage = {} if key is None else {"noise": key}, self._stage(state)[GENERATOR]
        return self.generator.apply(variables, ws, **stage, method="synthesize", rngs=rngs)

    def _used(self, state: State) -> int:
        """How many of the styles make the images of the level that is trained."""
        return 2 * (self._stage(state)[GENERATOR].get("level", self.styles // 2 - 1) + 1)

    def forward(self, params: PyTree, state: State, batch: Batch, z: Array, key: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, STATISTICS: state.extra["batch_stats"][GENERATOR]}
        condition = self._condition(batch)
        w, new = self.generator.apply(variables, z, *condition, method="track", mutable=[STATISTICS])
        ws = self._mixed(params, state, w, condition, fold_in(key, "mixing"))
        return self._synthesize(variables, state, ws, fold_in(key, "noise")), new[STATISTICS]

    def _mixed(self, params: PyTree, state: State, w: Array, condition: tuple[PyTree, ...], key: Array) -> Array:
        """ws (B, styles, width): w, and from a random layer on those of other noise (section 3.1 of StyleGAN)."""
        ws = jnp.repeat(w[:, None], self.styles, axis=1)
        if not self.mixing:
            return ws
        variables = {"params": params, STATISTICS: state.extra["batch_stats"][GENERATOR]}
        other = self.generator.apply(variables, self.noise(key, len(w)), *condition, method="map")
        cut = jax.random.randint(fold_in(key, "cut"), (), 1, self._used(state))
        mixed = jax.random.bernoulli(fold_in(key, "mixed"), self.mixing)
        first = jnp.arange(self.styles) < jnp.where(mixed, cut, self.styles)
        return jnp.where(first[:, None], ws, other[:, None])

    def path_lengths(self, params: PyTree, state: State, batch: Batch, key: Array) -> Array:
        """(B,) lengths of J^T y for the Jacobian J of an image with respect to its ws and Gaussian y (section 3.2)."""
        variables = {"params": params, STATISTICS: state.extra["batch_stats"][GENERATOR]}
        condition = self._condition(batch)
        z = self.noise(key, len(batch["x"]))
        w = self.generator.apply(variables, z, *condition, method="map")
        ws = self._mixed(params, state, w, condition, fold_in(key, "mixing"))

        def projected(ws: Array) -> Array:
            images = self._synthesize(variables, state, ws, fold_in(key, "noise"))
            pixels = images.shape[1] * images.shape[2]
            return jnp.sum(images * jax.random.normal(fold_in(key, "y"), images.shape)) / pixels**0.5

        return jnp.sqrt(sum_except_batch(jax.grad(projected)(ws) ** 2) / self._used(state) + 1e-12)


@dataclass(frozen=True)
class ProgressiveStyleGAN(ProgressiveGAN, StyleGAN):
    """A `StyleGAN` whose networks grow as those of a `ProgressiveGAN`.

    The discriminator knows its full `size`. While a level fades in, its image is mixed with that of the level before.
    """

    networks: ClassVar[tuple[type[nn.Module], type[nn.Module]]] = (StyleGenerator, StyleDiscriminator)

    def synthesize(self, state: State, ws: Array, key: Array | None = None) -> Array:
        """Images (B, *x) of ws (B, styles, width), of the level that the state has reached, doubled to full size."""
        if self._is_whole:
            return self._by_stage(state, lambda stage: stage.synthesize(state, ws, key))
        return self.at_full_size(super().synthesize(state, ws, key), state)


def _variables(state: State) -> PyTree:
    return {"params": state.params[GENERATOR], STATISTICS: state.extra["batch_stats"][GENERATOR]}


def path_length(weight: float = 2.0, every: int = 4, decay: float = 0.01, share: float = 0.5) -> Regularizer:
    """E(|J^T y| - a)^2 with the running mean a of path lengths (Karras et al. 2020, arXiv:1912.04958, eq. 4).

    share: of the batch whose size the paths have, rounded down to at least 1. The mean of this batch enters a with
    weight `decay` before the loss is computed, and is differentiated with it.
    """
    if not 0 < share <= 1 or not 0 < decay <= 1:
        raise ValueError(f"share and decay must be above 0 and at most 1, got {share}, {decay}")

    def value(turn: Turn, memory: PyTree) -> tuple[Array, PyTree]:
        few = jax.tree.map(lambda a: a[: max(1, int(share * len(a)))], dict(turn.batch))
        lengths = turn.model.path_lengths(turn.params, turn.state, few, fold_in(turn.key, "path_length"))
        mean = memory["mean"] + decay * (lengths.mean() - memory["mean"])
        return jnp.mean((lengths - mean) ** 2), {"mean": lax.stop_gradient(mean)}

    return Regularizer("path_length", GENERATOR, weight, value, every, memory={"mean": np.float32(0)}, resamples=True)
