"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661).

A GAN is an architecture (`generators`, `discriminators`) x a loss (`adversarial`) x `penalties` x a normalizer
(`normalizers`), and remedies against mode collapse, each a field of `GAN` or a module of its discriminator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in, statistics, weights
from gen_jax.models.common.arrays import pack, sum_except_batch
from gen_jax.models.common.conditioning import Conditioning, embed, resolve_condition
from gen_jax.models.common.normalization import STATISTICS, mixes_examples
from gen_jax.models.gan.augmentations import Augmentation
from gen_jax.models.gan.losses import AdversarialLoss, non_saturating
from gen_jax.models.gan.regularizers import Penalty

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class Unrolling(NamedTuple):
    """The generator foresees `steps` steps of the discriminator, by `tx` (Metz et al. 2017, arXiv:1611.02163).

    It then raises the discriminator's own loss, real examples included (eq. 4 to 6): by its usual loss, which sees the
    generated alone, it would lead the discriminator astray instead of fooling it.

    tx: the very transformation that trains the discriminator, whose state they start from. Its square roots must have
    gradients: `optax.adam(rate, eps_root=1e-16)`.
    """

    steps: int
    tx: optax.GradientTransformation


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says of a batch."""

    logits: Array  # (B,), or (B / packing,)
    classes: Array  # (B, classes) logits; (B, 0) without an auxiliary classifier
    statistics: PyTree


@dataclass(frozen=True)
class GAN:
    """A generator and a discriminator, each a player of its own.

    generator: a module (B, latent) -> (B, *x). discriminator: a module (B, *x) -> (B, 1) logits.
    every: steps of the discriminator for each of the generator.
    context: both networks are called with it as a second argument (conditional GAN).
    auxiliary: weight of the classification of `context.classes`, by which the discriminator, of 1 + classes outputs,
        is told of classes instead (AC-GAN, Odena et al. 2017).
    augmentation: what all examples go through before the discriminator sees them.
    packing: how many examples the discriminator judges together (PacGAN, Lin et al. 2018).
    mode_seeking: weight of a loss that wants different examples of different noise (MSGAN, Mao et al. 2019).
    unrolling: see `Unrolling`.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: int
    adversarial: AdversarialLoss = non_saturating()
    penalties: Sequence[Penalty] = ()
    every: int = 1
    context: Conditioning | None = None
    auxiliary: float = 0.0
    augmentation: Augmentation = Augmentation()
    packing: int = 1
    mode_seeking: float = 0.0
    unrolling: Unrolling | None = None

    def __post_init__(self):
        for name in ("latent", "every", "packing"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("auxiliary", "mode_seeking"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a weight and must not be negative, got {getattr(self, name)}")
        if self.packing > 1 and self.context is not None:
            raise ValueError("packs have no single context: use packing=1 in a conditional GAN")
        if self.auxiliary and not hasattr(self.context, "classes"):
            raise ValueError("an auxiliary classifier needs a context of classes: context=Labels(n)")
        if self.unrolling and self.unrolling.steps < 1:
            raise ValueError(f"unroll at least 1 step, got {self.unrolling.steps}")
        names = [penalty.name for penalty in self.penalties]
        if len(set(names)) < len(names):
            raise ValueError(f"each penalty counts once, got {names}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x, context = batch["x"][: self.packing], self._condition(batch, self.packing)
        if len(batch["x"]) % self.packing:
            raise ValueError(
                f"a batch of {len(batch['x'])} cannot be packed by {self.packing}: choose a multiple of it"
            )
        z = jnp.zeros((self.packing, self.latent))
        fake, made = self.generator.init_with_output(fold_in(key, GENERATOR), z, *context)
        if fake.shape != x.shape:
            raise ValueError(f"the generator makes examples {fake.shape[1:]}, but those of the data are {x.shape[1:]}")
        logits, judged = self.discriminator.init_with_output(
            fold_in(key, DISCRIMINATOR), pack(x, self.packing), *self._discriminator_condition(context)
        )
        outputs = 1 + (self.context.classes if self.auxiliary else 0)
        if logits.shape != (1, outputs):
            raise ValueError(f"the discriminator must have {outputs} outputs, but it has {logits.shape[1:]}")
        kept = {GENERATOR: made.get(STATISTICS, {}), DISCRIMINATOR: judged.get(STATISTICS, {})}
        wrong = [penalty.name for penalty in self.penalties if penalty.of_gradients]
        if wrong and mixes_examples(kept[DISCRIMINATOR]):
            raise ValueError(
                f"{wrong[0]} is made of the gradient of each example's logit, but batch normalization lets it "
                "depend on the others: give the discriminator another normalizer (none, instance, pixel, spectral)"
            )
        extra = {f"{player}_statistics": s for player, s in kept.items()}
        params = {DISCRIMINATOR: judged["params"], GENERATOR: made["params"]}
        return params, {**extra, "augmentation": self.augmentation.init()}

    @property
    def objectives(self) -> Sequence[Objective]:
        lazy = [p for p in self.penalties if p.every > 1]
        return (
            Objective(DISCRIMINATOR, self._discriminator_turn, name=DISCRIMINATOR),
            *(Objective(DISCRIMINATOR, self._lazy_regularizer(p), p.every, p.name) for p in lazy),
            Objective(GENERATOR, self._generator_turn, self.every),
        )

    def shared(self, batch: Batch, key: Array) -> Batch:
        """Both players are shown what is made of the same noise."""
        return {**batch, "noise": self._z(batch, key)}

    def _z(self, batch: Batch, key: Array) -> Array:
        return batch["noise"] if "noise" in batch else self.noise(fold_in(key, "fake"), len(batch["x"]))

    def generate(self, state: State, z: Array, given: Batch | None = None) -> Array:
        """(B, *x) of noise (B, latent), by the averaged generator where there is one."""
        context = () if self.context is None else (embed(self.context, resolve_condition(self.context, len(z), given)),)
        variables = {"params": weights(state, GENERATOR), STATISTICS: statistics(state, GENERATOR)}
        return self.generator.apply(variables, z, *context)

    def sample(self, state: State, key: Array, n: int, given: Batch | None = None) -> Batch:
        given = resolve_condition(self.context, n, given)
        return {**given, "x": self.generate(state, self.noise(key, n), given)}

    def noise(self, key: Array, n: int) -> Array:
        """(n, latent)"""
        return jax.random.normal(fold_in(key, "z"), (n, self.latent))

    def discriminate(self, state: State, batch: Batch) -> Array:
        """(B / packing,) logits of being real, by the discriminator as it is."""
        context = self._discriminator_condition(self._condition(batch))
        variables = {
            "params": state.params[DISCRIMINATOR],
            STATISTICS: state.extra["discriminator_statistics"],
        }
        return self.discriminator.apply(variables, pack(batch["x"], self.packing), *context)[:, 0]

    def diagnose(self, values: Mapping[str, np.ndarray]) -> str:
        """What is wrong with the game, by the metrics of a report; "" if nothing is."""
        if not self.adversarial.saturates or not {"real_accuracy", "fake_accuracy"} <= values.keys():
            return ""
        real, fake = (np.mean(values[name]) for name in ("real_accuracy", "fake_accuracy"))
        if min(real, fake) > 0.99:
            return (
                "the discriminator wins: it tells all real from all generated examples, and the generator learns "
                "little from one that is so sure. Give the discriminator a lower learning rate, a penalty such as "
                "r1(), spectral normalization, instance noise or an augmentation"
            )
        if max(real, fake) < 0.01:
            return "the discriminator takes all real examples for generated ones: is its learning rate too high?"
        return ""

    def _discriminator_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The discriminator tells real from generated."""
        made = lambda params: self._generate(params, state, batch, self._z(batch, key), fold_in(key, "fake"))[0]
        fake, _ = jax.vjp(made, state.params[GENERATOR])  # the operations of the generator's turn, for XLA to share
        return self._discriminator_loss(params, state, batch, fake, key)

    def _discriminator_loss(self, params: PyTree, state: State, batch: Batch, fake: Array, key: Array):
        pair = self._augmented_pair(batch["x"], fake, state, key)
        real, fake = self._discriminator_outputs(params, state, batch, *pair, key)
        loss = self.adversarial.discriminator(real.logits, fake.logits)
        correct = self.adversarial.correct(real.logits, fake.logits)
        metrics = {"real_accuracy": Mean.of(correct[0]), "fake_accuracy": Mean.of(correct[1])}
        if self.auxiliary:
            labels = batch[self.context.entry]
            loss += self.auxiliary * (
                _classification_loss(real.classes, labels) + _classification_loss(fake.classes, labels)
            )
            metrics["class_accuracy"] = Mean.of(real.classes.argmax(axis=-1) == labels)
        for penalty in self.penalties:
            if penalty.every == 1:
                value = self._penalty(penalty, params, state, batch, pair, key)
                loss, metrics[penalty.name] = loss + value, Mean.of(value)
        threshold = self.adversarial.threshold
        margins = real.logits - (fake.logits.mean() if threshold is None else threshold)
        memory = self.augmentation.adapt(state.extra["augmentation"], margins)
        if memory:
            metrics |= {f"augmentation_{name}": Mean.of(value) for name, value in memory.items()}
        return loss, ({"discriminator_statistics": fake.statistics, "augmentation": memory}, metrics)

    def _lazy_regularizer(self, penalty: Penalty):
        """The loss of a penalty that has steps of its own."""

        def loss(params: PyTree, state: State, batch: Batch, key: Array):
            fake, _ = self._generate(state.params[GENERATOR], state, batch, self._z(batch, key), fold_in(key, "fake"))
            pair = self._augmented_pair(batch["x"], fake, state, key)
            return penalty.every * self._penalty(penalty, params, state, batch, pair, key), ({}, {})

        return loss

    def _penalty(self, penalty: Penalty, params, state, batch, pair, key) -> Array:
        critic = lambda x: (
            self._discriminator_output(params, state, batch, x, fold_in(key, "dropout", penalty.name)).logits
        )
        return penalty(critic, *pair, fold_in(key, penalty.name))

    def _generator_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The generated is taken for real."""
        fake, statistics = self._generate(params, state, batch, self._z(batch, key), fold_in(key, "fake"))
        metrics = {}
        discriminate = state.params[DISCRIMINATOR]
        if self.unrolling:
            discriminate = self._unrolled_discriminator(params, state, batch, key)
        real, made = self._discriminator_outputs(
            discriminate, state, batch, *self._augmented_pair(batch["x"], fake, state, key), key
        )
        loss = self.adversarial.generator(real.logits, made.logits)
        if self.unrolling:  # what the foreseen discriminator plays for: steering it pays off no other way
            loss = -self.adversarial.discriminator(real.logits, made.logits)
        if self.auxiliary:
            loss += self.auxiliary * _classification_loss(made.classes, batch[self.context.entry])
        if self.mode_seeking:
            z = self.noise(fold_in(key, "other"), len(batch["x"]))
            other, _ = self._generate(params, state, batch, z, fold_in(key, "other"))
            apart = jnp.mean(_distances(fake, other) / _distances(self._z(batch, key), z))
            loss += self.mode_seeking / (apart + 1e-5)
            metrics["mode_distance"] = Mean.of(apart)
        return loss, ({"generator_statistics": statistics}, metrics)

    def _unrolled_discriminator(self, params: PyTree, state: State, batch: Batch, key: Array) -> PyTree:
        """The discriminator's parameters after some more steps against this generator, differentiable by it."""

        def ahead(carry, i: Array):
            discriminate, opt = carry
            now = fold_in(key, "unrolled", i)
            fake, _ = self._generate(params, state, batch, self.noise(now, len(batch["x"])), now)
            loss = lambda discriminate: self._discriminator_loss(discriminate, state, batch, fake, now)[0]
            updates, opt = self.unrolling.tx.update(jax.grad(loss)(discriminate), opt, discriminate)
            return (optax.apply_updates(discriminate, updates), opt), None

        start = state.params[DISCRIMINATOR], state.opt[DISCRIMINATOR]
        (discriminate, _), _ = lax.scan(ahead, start, jnp.arange(self.unrolling.steps))
        return discriminate

    def _generate(self, params: PyTree, state: State, batch: Batch, z: Array, key: Array) -> tuple[Array, PyTree]:
        """What is made of noise z for the contexts of the batch, and the new statistics.

        Both players make it of the same noise, by the same parameters: it is computed once per step.
        """
        variables = {"params": params, STATISTICS: state.extra["generator_statistics"]}
        rngs = {"dropout": fold_in(key, "dropout")}
        fake, new = self.generator.apply(variables, z, *self._condition(batch), mutable=[STATISTICS], rngs=rngs)
        return fake, new.get(STATISTICS, {})

    def _augmented_pair(self, real: Array, fake: Array, state: State, key: Array) -> tuple[Array, Array]:
        """Both as the discriminator sees them: augmented and packed."""
        both = (self.augmentation(x, fold_in(key, "augmentation", name), state) for x, name in ((real, 0), (fake, 1)))
        return tuple(pack(x, self.packing) for x in both)

    def _discriminator_outputs(self, params: PyTree, state: State, batch: Batch, real: Array, fake: Array, key: Array):
        """Of real and fake, each by the statistics of its own batch; those of both are remembered."""
        of_real = self._discriminator_output(params, state, batch, real, fold_in(key, "dropout", "real"))
        between = state._replace(extra={**state.extra, "discriminator_statistics": of_real.statistics})
        return of_real, self._discriminator_output(params, between, batch, fake, fold_in(key, "dropout", "fake"))

    def _discriminator_output(
        self, params: PyTree, state: State, batch: Batch, x: Array, key: Array
    ) -> DiscriminatorOutput:
        variables = {"params": params, STATISTICS: state.extra["discriminator_statistics"]}
        context = self._discriminator_condition(self._condition(batch))
        outputs, new = self.discriminator.apply(variables, x, *context, mutable=[STATISTICS], rngs={"dropout": key})
        return DiscriminatorOutput(outputs[:, 0], outputs[:, 1:], new.get(STATISTICS, {}))

    def _condition(self, batch: Batch, n: int | None = None) -> tuple[Array, ...]:
        return () if self.context is None else (embed(self.context, batch)[:n],)

    def _discriminator_condition(self, context: tuple[Array, ...]) -> tuple[Array, ...]:
        """What the discriminator is told: nothing where it is to find out the class."""
        return () if self.auxiliary else context

    def unsupported(self, batch: Batch) -> str:
        return "" if self.context is None else self.context.unsupported(batch)


def _classification_loss(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _distances(a: Array, b: Array) -> Array:
    """(B,) mean absolute differences."""
    return sum_except_batch(jnp.abs(a - b)) / math.prod(a.shape[1:])
