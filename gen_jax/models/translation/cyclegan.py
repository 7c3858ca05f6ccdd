"""Translation between unpaired domains, both ways: CycleGAN (Zhu et al. 2017, arXiv:1703.10593)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.gan.augmentations import Augmentation
from gen_jax.models.gan.gan import GAN
from gen_jax.models.gan.losses import AdversarialLoss, least_squares
from gen_jax.models.gan.regularizers import DISCRIMINATOR, GENERATOR, Regularizer
from gen_jax.models.translation.direction import (
    BACK,
    check_direction,
    check_images,
    check_noiseless,
    distance,
    of_side,
    sampled,
    translated,
    translator,
)
from gen_jax.models.translation.pool import empty_pool, exchange

__all__ = ["CycleGAN"]

CLASSIFIER = "classifier"
SIDES = {"a2b": ("x", "y"), "b2a": ("y", "x")}


@dataclass(frozen=True)
class CycleGAN:
    """Two GANs that translate images "x" to "y" and back, in [-1, 1]; each step shows them one batch of each domain.

    generators: modules from "x" to "y", and from "y" to "x". discriminators: modules of images "y", and of images "x".
    cycle, identity: weights of |back(there(x)) - x| and of |there(y) - y|, as mean absolute differences. Since
    `least_squares` halves the generator's loss, the paper's weights 10 and 5 are 5 and 2.5 here. identity = 0: none,
    for domains of other channels or meaning.
    pool: the discriminators see images of earlier steps too, of which so many are kept (section 4); 0: none.
    classifier: a module from images (B, H, W, C) to logits (B, classes), a third player, which learns the "label" of
    images "x" and of their translations (Bousmalis et al. 2017). semantic: weight of the cross-entropy between its
    answers to an image and to the translation, both ways, as probabilities (after CyCADA, Hoffman et al. 2018, whose
    classifier is trained before).
    """

    generators: tuple[nn.Module, nn.Module]
    discriminators: tuple[nn.Module, nn.Module]
    cycle: float = 5.0
    identity: float = 2.5
    pool: int = 50
    adversarial: AdversarialLoss = least_squares()
    regularizers: Sequence[Regularizer] = ()
    augmentation: Augmentation = Augmentation()
    classifier: nn.Module | None = None
    semantic: float = 1.0

    def __post_init__(self):
        weights = {"cycle": self.cycle, "identity": self.identity, "pool": self.pool, "semantic": self.semantic}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if any(regularizer.every > 1 for regularizer in self.regularizers):
            raise ValueError("the regularizers of a CycleGAN count at every step: give every=1")
        check_noiseless(self.regularizers)
        _ = self.gans

    @cached_property
    def gans(self) -> Mapping[str, GAN]:
        """The GAN of each direction."""
        networks = zip(SIDES, self.generators, self.discriminators, strict=True)
        return {
            side: translator(generator, discriminator, self.adversarial, self.regularizers, self.augmentation)
            for side, generator, discriminator in networks
        }

    @property
    def directions(self) -> Sequence[str]:
        return tuple(SIDES)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        check_images(batch, "x", "y")
        if self.identity and batch["x"].shape[-1] != batch["y"].shape[-1]:
            raise ValueError("the identity loss needs domains of as many channels: give identity=0")
        made = {side: gan.init(fold_in(key, side), _side(batch, side)) for side, gan in self.gans.items()}
        params = {p: {side: params[p] for side, (params, _) in made.items()} for p in (GENERATOR, DISCRIMINATOR)}
        stats = {
            p: {side: extra["batch_stats"][p] for side, (_, extra) in made.items()} for p in (GENERATOR, DISCRIMINATOR)
        }
        rest = {n: {side: extra[n] for side, (_, extra) in made.items()} for n in ("augmentation", "regularizers")}
        if self.classifier is not None:
            params[CLASSIFIER] = self._init_classifier(fold_in(key, CLASSIFIER), batch)
        pools = {side: empty_pool(self.pool, batch[real].shape[1:]) for side, (_, real) in SIDES.items()}
        return params, {"batch_stats": stats, **rest, "pools": pools if self.pool else {}}

    @property
    def objectives(self) -> Sequence[Objective]:
        """Both generators, then both discriminators, which judge images made before this step (as the reference)."""
        players = [Objective(GENERATOR, self._generators_turn), Objective(DISCRIMINATOR, self._discriminators_turn)]
        return players if self.classifier is None else [*players, Objective(CLASSIFIER, self._classifiers_turn)]

    def prepare(self, state: State, batch: Batch, key: Array) -> Batch:
        """Adds the translations of both domains by the generators as they are before this step."""
        fakes = {}
        for side in self.gans:
            made = lambda params, side=side: self._forward(params, state, side, _side(batch, side), key)[0]
            fakes[side], _ = jax.vjp(made, state.params[GENERATOR][side])  # as in the generators' turn, shared by XLA
        return {**batch, "fakes": fakes}

    def translate(self, state, images, direction="a2b", key=None, own=False):
        check_direction(direction, self.directions)
        return translated(self.gans[direction], of_side(state, direction), images, key, own)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        """Translations "y" of the images "x" in the condition, with noise and dropout."""
        return sampled(self, state, key, n, condition)

    def diagnose(self, metrics: Mapping[str, np.ndarray]) -> str:
        for side, gan in self.gans.items():
            own = {name.removeprefix(f"{side}_"): a for name, a in metrics.items() if name.startswith(f"{side}_")}
            if said := gan.diagnose(own):
                return f"{side}: {said}"
        return ""

    def _forward(self, params: PyTree, state: State, side: str, batch: Batch, key: Array) -> tuple[Array, PyTree]:
        """The translations of "source", and the new statistics."""
        z = jnp.zeros((len(batch["source"]), self.gans[side].latent), jnp.float32)
        return self.gans[side].forward(params, of_side(state, side), batch, z, fold_in(key, "fake", side))

    def _generators_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        loss, metrics, changes = jnp.zeros((), jnp.float32), {}, {}
        for side, (source, target) in SIDES.items():
            own, back = _side(batch, side), BACK[side]
            fake, stats = self._forward(params[side], state, side, own, key)
            adversarial, (extra, found) = self.gans[side].generator_loss(
                params[side], of_side(state, side), own, fake, fold_in(key, side)
            )
            again, _ = self._forward(params[back], state, back, {"source": fake}, fold_in(key, "cycle"))
            cycle = distance(again, batch[source])
            loss += adversarial + self.cycle * cycle
            metrics |= {f"{side}_{name}": value for name, value in found.items()}
            metrics[f"cycle_{source}"] = Mean.of(cycle)
            if self.identity:
                same, _ = self._forward(params[side], state, side, {"source": batch[target]}, fold_in(key, "identity"))
                identity = distance(same, batch[target])
                loss += self.identity * identity
                metrics[f"identity_{target}"] = Mean.of(identity)
            if self.classifier is not None:
                meaning = _disagreement(self._logits(state.params, batch[source]), self._logits(state.params, fake))
                loss += self.semantic * meaning
                metrics[f"{side}_semantic"] = Mean.of(meaning)
            changes[side] = {**extra, "statistics": stats}
        return loss, (self._changed(state, GENERATOR, changes), metrics)

    def _discriminators_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        loss, metrics, changes, pools = jnp.zeros((), jnp.float32), {}, {}, {}
        for side, gan in self.gans.items():
            own, sub, fakes = _side(batch, side), of_side(state, side), batch["fakes"][side]
            if self.pool:
                pools[side], fakes = exchange(state.extra["pools"][side], fakes, fold_in(key, "pool", side))
            more, (extra, found) = gan.discriminator_loss(params[side], sub, own, fakes, fold_in(key, side))
            loss += more
            metrics |= {f"{side}_{name}": value for name, value in found.items()}
            changes[side] = {**extra, "statistics": extra["batch_stats"][DISCRIMINATOR]}
        return loss, ({**self._changed(state, DISCRIMINATOR, changes), "pools": pools}, metrics)

    def _classifiers_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        fakes = lax.stop_gradient(batch["fakes"]["a2b"])
        logits = jnp.stack([self._logits({CLASSIFIER: params}, images) for images in (batch["x"], fakes)])
        label = jnp.broadcast_to(batch["label"], logits.shape[:2])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        right = logits.argmax(axis=-1) == label
        return loss, ({}, {"accuracy": Mean.of(right[0]), "a2b_accuracy": Mean.of(right[1])})

    def _init_classifier(self, key: Array, batch: Batch) -> PyTree:
        channels = [batch[entry].shape[-1] for entry in ("x", "y")]
        if "label" not in batch or channels[0] != channels[1]:
            raise ValueError('the classifier needs the "label" of images "x", and domains of as many channels')
        variables = self.classifier.init(key, batch["x"][:1])
        if variables.keys() != {"params"}:
            raise ValueError("the classifier must have parameters only: choose one without batch normalization")
        return variables["params"]

    def _logits(self, params: Params, images: Array) -> Array:
        return self.classifier.apply({"params": params[CLASSIFIER]}, images)

    def _changed(self, state: State, player: str, changes: Mapping[str, Mapping[str, Any]]) -> Extra:
        """The extras with what changed on each side."""
        stats = {**state.extra["batch_stats"], player: {side: new["statistics"] for side, new in changes.items()}}
        changed = {"batch_stats": stats}
        for name in ("augmentation", "regularizers"):
            changed[name] = {side: new.get(name, state.extra[name][side]) for side, new in changes.items()}
        return changed


def _side(batch: Batch, side: str) -> Batch:
    """The batch as the GAN of one direction takes it."""
    source, target = SIDES[side]
    return {"x": batch[target], "source": batch[source]}


def _disagreement(before: Array, after: Array) -> Array:
    """The mean cross-entropy of class probabilities."""
    return -(jax.lax.stop_gradient(jax.nn.softmax(before)) * jax.nn.log_softmax(after)).sum(axis=-1).mean()
