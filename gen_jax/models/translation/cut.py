"""One-sided translation between unpaired domains: CUT (Park et al. 2020, arXiv:2007.15651)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.image_to_image import FEATURES
from gen_jax.models.common.normalization import STATISTICS
from gen_jax.models.gan.augmentations import Augmentation
from gen_jax.models.gan.gan import GAN
from gen_jax.models.gan.losses import AdversarialLoss, least_squares
from gen_jax.models.gan.regularizers import DISCRIMINATOR, GENERATOR, Regularizer
from gen_jax.models.translation.direction import (
    check_direction,
    check_images,
    check_noiseless,
    sampled,
    translated,
    translator,
)

__all__ = ["CUT"]


@dataclass(frozen=True)
class CUT:
    """A GAN that translates images "x" to "y", whose patches stay recognizable by the generator's own features.

    generator: a module that keeps "features", such as a `ResNetTranslator`. nce: weight of the contrastive loss of
    patches (eq. 3); since `least_squares` halves the generator's loss, the paper's 1 is 0.5 here, FastCUT's 10 is 5.
    identity: also compares images "y" with their own translation, and takes the mean (FastCUT: False).
    temperature, patches, width: of the contrastive loss: of its logits, positions for each map, and sizes of the
    projection heads, whose weights start from a normal distribution of deviation 0.02, as do all others.
    maps: names of the generator's maps that are compared; by default all. The shallow ones hold colors and edges, which
    must stay alike; where light and dark are exchanged only the deep ones ("block_0", ...) can be.
    flip: translates mirrored images at half of the steps, and compares mirrored maps (FastCUT).
    """

    generator: nn.Module
    discriminator: nn.Module
    nce: float = 0.5
    identity: bool = True
    temperature: float = 0.07
    patches: int = 256
    width: int = 256
    maps: Sequence[str] = ()
    flip: bool = False
    adversarial: AdversarialLoss = least_squares()
    regularizers: Sequence[Regularizer] = ()
    augmentation: Augmentation = Augmentation()

    def __post_init__(self):
        if self.nce < 0 or self.temperature <= 0 or min(self.patches, self.width) < 1:
            raise ValueError("nce must not be negative, and temperature, patches and width must be positive")
        if any(r.every > 1 and r.player == GENERATOR for r in self.regularizers):
            raise ValueError("the generator's regularizers count at every step here: give every=1")
        check_noiseless(self.regularizers)
        _ = self.gan

    @cached_property
    def gan(self) -> GAN:
        return translator(self.generator, self.discriminator, self.adversarial, self.regularizers, self.augmentation)

    @property
    def directions(self) -> Sequence[str]:
        return ("a2b",)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        check_images(batch, "x", "y")
        if self.identity and batch["x"].shape[-1] != batch["y"].shape[-1]:
            raise ValueError("translations of their own domain need as many channels: give identity=False")
        if self.flip and batch["x"].shape[2] % 4:
            raise ValueError(f"mirrored maps need a width that is a multiple of 4, got {batch['x'].shape[2]}: --size N")
        own = {"x": batch["y"], "source": batch["x"]}
        params, extra = self.gan.init(key, own)
        state = State(jnp.int32(0), key, params, (), extra)
        maps = jax.eval_shape(lambda: self._features(params[GENERATOR], state, batch["x"][:1]))
        if not maps:
            raise ValueError("the generator keeps no features: use a ResNetTranslator")
        if missing := set(self.maps) - set(maps):
            raise ValueError(f"the generator keeps no map {sorted(missing)[0]!r}: it keeps {', '.join(maps)}")
        features = {
            name: jnp.zeros((1, 1, a.shape[-1]), jnp.float32) for name, a in maps.items() if self._compares(name)
        }
        heads = _Heads(self.width).init(fold_in(key, "heads"), features)["params"]
        return {**params, GENERATOR: {"network": params[GENERATOR], "heads": heads}}, extra

    @property
    def objectives(self) -> Sequence[Objective]:
        """The discriminator, then the generator with the projection heads (as the reference)."""

        def inner(loss):
            return lambda params, state, batch, key: loss(params, _inner(state), batch, key)

        judge = [o._replace(loss=inner(o.loss)) for o in self.gan.objectives if o.player == DISCRIMINATOR]
        return (*judge, Objective(GENERATOR, self._generator_turn))

    def prepare(self, state: State, batch: Batch, key: Array) -> Batch:
        """The batch as the GAN takes it, mirrored or not."""
        mirrored = jax.random.bernoulli(fold_in(key, "flip")) if self.flip else jnp.bool_(False)
        source = jnp.where(mirrored, batch["x"][:, :, ::-1], batch["x"]) if self.flip else batch["x"]
        own = {**batch, "x": batch["y"], "source": source, "unmirrored": batch["x"]}
        return {**self.gan.prepare(_inner(state), own, key), "mirrored": jnp.broadcast_to(mirrored, len(source))}

    def translate(self, state, images, direction="a2b", key=None, own=False):
        check_direction(direction, self.directions)
        return translated(self.gan, _inner(state), images, key, own)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        """Translations "y" of the images "x" in the condition, with noise and dropout."""
        return sampled(self, state, key, n, condition)

    def diagnose(self, metrics: Mapping[str, np.ndarray]) -> str:
        return self.gan.diagnose(metrics)

    def _generator_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        state, network = _inner(state), params["network"]
        fake, stats = self.gan.forward(network, state, batch, batch["noise"], fold_in(key, "fake"))
        loss, (extra, metrics) = self.gan.generator_loss(network, state, batch, fake, key)
        contrast = self.contrast(params, state, batch["unmirrored"], fake, key, batch["mirrored"][0])
        metrics |= {"nce": Mean.of(contrast)}
        if self.identity:
            same, _ = self.gan.forward(network, state, {"source": batch["x"]}, batch["noise"], fold_in(key, "identity"))
            own = self.contrast(params, state, batch["x"], same, fold_in(key, "own"))
            metrics |= {"nce_identity": Mean.of(own)}
            contrast = (contrast + own) / 2
        extra = {"batch_stats": {**state.extra["batch_stats"], GENERATOR: stats}, **extra}
        return loss + self.nce * contrast, (extra, metrics)

    def contrast(
        self, params: PyTree, state: State, x: Array, made: Array, key: Array, mirrored: Array | bool = False
    ) -> Array:
        """PatchNCE (eq. 3, 4): each position of the translation against all positions of its source.

        Averaged over positions, images and maps; there is no gradient through the source.
        """
        chosen, projected = {}, []
        for maps in (self._features(params["network"], state, made), self._features(params["network"], state, x)):
            for name, a in maps.items():
                if not self._compares(name):
                    continue
                if not projected and self.flip:  # the maps of the translation
                    a = jnp.where(mirrored, a[:, :, ::-1], a)
                a = a.reshape(len(a), -1, a.shape[-1])
                places = jax.random.permutation(fold_in(key, "places", name), a.shape[1])
                chosen[name] = a[:, places[: self.patches]]
            projected.append(_Heads(self.width).apply({"params": params["heads"]}, chosen))
        losses = []
        for name, query in projected[0].items():
            logits = jnp.einsum("bik,bjk->bij", query, lax.stop_gradient(projected[1][name])) / self.temperature
            losses.append(-jnp.diagonal(jax.nn.log_softmax(logits), axis1=1, axis2=2).mean())
        return jnp.stack(losses).mean()

    def _compares(self, name: str) -> bool:
        """Whether a map of the generator is compared."""
        return not self.maps or name in self.maps

    def _features(self, network: PyTree, state: State, x: Array) -> dict[str, Array]:
        """The maps that the generator keeps of images."""
        variables = {"params": network, STATISTICS: state.extra["batch_stats"][GENERATOR]}
        z = jnp.zeros((len(x), self.gan.latent), jnp.float32)
        kept = self.gan.generator.apply(variables, z, x, mutable=[FEATURES, STATISTICS])[1].get(FEATURES, {})
        return {name: a for name, (a,) in sorted(kept.get("network", {}).items())}


class _Heads(nn.Module):
    """A small network for each map: vectors (B, P, C) -> unit vectors (B, P, width)."""

    width: int

    @nn.compact
    def __call__(self, maps: Mapping[str, Array]) -> dict[str, Array]:
        init = nn.initializers.normal(0.02)
        projected = {}
        for name, a in maps.items():
            h = nn.relu(nn.Dense(self.width, kernel_init=init, name=f"{name}_hidden")(a))
            h = nn.Dense(self.width, kernel_init=init, name=f"{name}_output")(h)
            projected[name] = h * lax.rsqrt((h**2).sum(axis=-1, keepdims=True) + 1e-12)
        return projected


def _inner(state: State) -> State:
    """The State of the GAN, without projection heads."""
    return state._replace(params={**state.params, GENERATOR: state.params[GENERATOR]["network"]})
