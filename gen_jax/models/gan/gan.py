"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661).

A GAN combines an architecture (`generators`, `discriminators`), a loss (`losses`), `regularizers`, normalization layers
(`common.normalization`) and `augmentations`. Remedies for mode collapse are regularizers, fields of `GAN` or modules of
its discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from gen_jax.core import Batch, ComparesExamples, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.arrays import pack
from gen_jax.models.common.conditioning import Conditioning, embed, resolve_condition
from gen_jax.models.common.normalization import STATISTICS, mixes_examples
from gen_jax.models.gan.augmentations import Augmentation, Controlled
from gen_jax.models.gan.losses import AdversarialLoss, non_saturating
from gen_jax.models.gan.regularizers import DISCRIMINATOR, GENERATOR, Regularizer, Turn

__all__ = ["GAN", "DiscriminatorOutput", "Unrolling"]


class Unrolling(NamedTuple):
    """Unrolls `steps` discriminator steps with `tx` in the generator's loss (Metz et al. 2017, arXiv:1611.02163).

    The generator then maximizes the discriminator's own loss, including real examples (eq. 4 to 6): with its usual
    loss, on generated examples only, it would lead the discriminator astray instead of fooling it.

    tx: the same transformation that trains the discriminator; unrolling starts from its state. Its square roots must be
    differentiable: `optax.adam(rate, eps_root=1e-16)`.
    """

    steps: int
    tx: optax.GradientTransformation


class DiscriminatorOutput(NamedTuple):
    """Outputs of the discriminator on a batch."""

    logits: Array  # (B / packing, ...) logits of being real, of the whole or of each patch
    classes: Array  # (B, classes) logits; (B, 0) without an auxiliary classifier
    statistics: PyTree


@dataclass(frozen=True)
class GAN:
    """A generator and a discriminator, each a player.

    generator: a module (B, latent) -> (B, *x). discriminator: a module (B, *x) -> (B, 1) logits.
    adversarial: the losses of both players, see `losses`. regularizers: additional terms, see `regularizers`.
    every: discriminator steps per generator step.
    conditioning: both networks receive its output as a second argument (conditional GAN).
    auxiliary: weight of the auxiliary classification of `conditioning.classes`: the discriminator, with 1 + classes
    outputs, predicts the class instead of receiving it (AC-GAN, Odena et al. 2017).
    augmentation: applied to real and generated examples before the discriminator.
    packing: examples per discriminator input (PacGAN, Lin et al. 2018).
    unrolling: see `Unrolling`.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: int
    adversarial: AdversarialLoss = non_saturating()
    regularizers: Sequence[Regularizer] = ()
    every: int = 1
    conditioning: Conditioning | None = None
    auxiliary: float = 0.0
    augmentation: Augmentation = Augmentation()
    packing: int = 1
    unrolling: Unrolling | None = None

    def __post_init__(self):
        for name, value in (("latent", self.latent), ("every", self.every), ("packing", self.packing)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.auxiliary < 0:
            raise ValueError(f"auxiliary is a weight and must not be negative, got {self.auxiliary}")
        if self.packing > 1 and self.conditioning is not None:
            raise ValueError("packs have no single condition: use packing=1 in a conditional GAN")
        if self.conditioning is not None and self.conditioning.learned:
            raise ValueError(
                f"{type(self.conditioning).__name__} has parameters, which belong to neither player of a GAN"
            )
        if self.auxiliary and (self.conditioning is None or self.conditioning.classes is None):
            raise ValueError("an auxiliary classifier needs classes: conditioning=ClassLabels(n)")
        if self.unrolling and self.unrolling.steps < 1:
            raise ValueError(f"unroll at least 1 step, got {self.unrolling.steps}")
        names = [regularizer.name for regularizer in self.regularizers]
        if len(set(names)) < len(names):
            raise ValueError(f"each regularizer counts once, got {names}")

    @property
    def compares_examples(self) -> bool:
        """Whether the discriminator looks at several examples at once, by packs or within the batch."""
        judge = self.discriminator
        return self.packing > 1 or (isinstance(judge, ComparesExamples) and judge.compares_examples)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x, condition = batch["x"][: self.packing], self._condition(batch, self.packing)
        if len(batch["x"]) % self.packing:
            raise ValueError(
                f"a batch of {len(batch['x'])} cannot be packed by {self.packing}: choose a multiple of it"
            )
        z = jnp.zeros((self.packing, self.latent))
        fake, generator = self.generator.init_with_output(fold_in(key, GENERATOR), z, *condition)
        if fake.shape != x.shape:
            raise ValueError(f"the generator makes examples {fake.shape[1:]}, but those of the data are {x.shape[1:]}")
        logits, discriminator = self.discriminator.init_with_output(
            fold_in(key, DISCRIMINATOR), pack(x, self.packing), *self._discriminator_condition(condition)
        )
        outputs = 1 + (self.conditioning.classes if self.auxiliary else 0)
        if logits.shape[-1] != outputs or (self.auxiliary and logits.ndim > 2):
            raise ValueError(f"the discriminator must have {outputs} outputs, but it has {logits.shape[1:]}")
        stats = {GENERATOR: generator.get(STATISTICS, {}), DISCRIMINATOR: discriminator.get(STATISTICS, {})}
        wrong = [regularizer.name for regularizer in self.regularizers if regularizer.per_example]
        if wrong and mixes_examples(stats[DISCRIMINATOR]):
            raise ValueError(
                f"{wrong[0]} is made of the gradient of each example's logit, but batch normalization lets it "
                "depend on the others: give the discriminator another normalizer (none, instance, pixel, spectral)"
            )
        memory = {r.name: r.memory for r in self.regularizers if jax.tree.leaves(r.memory)}
        params = {DISCRIMINATOR: discriminator["params"], GENERATOR: generator["params"]}
        return params, {
            "batch_stats": stats,
            "augmentation": self.augmentation.init(),
            "regularizers": jax.tree.map(jnp.asarray, memory),
        }

    @property
    def objectives(self) -> Sequence[Objective]:
        lazy = [r for r in self.regularizers if r.every > 1]
        return (
            Objective(DISCRIMINATOR, self._discriminator_turn, name=DISCRIMINATOR),
            *(Objective(r.player, self._lazy_regularizer(r), r.every, r.name) for r in lazy),
            Objective(GENERATOR, self._generator_turn, self.every),
        )

    def prepare(self, state: State, batch: Batch, key: Array) -> Batch:
        """Adds the noise from which both players' generated examples are made."""
        return {**batch, "noise": self._z(batch, key)}

    def _z(self, batch: Batch, key: Array) -> Array:
        return batch["noise"] if "noise" in batch else self.noise(fold_in(key, "fake"), len(batch["x"]))

    def generate(self, state: State, z: Array, condition: Batch | None = None) -> Array:
        """(B, *x) from noise (B, latent)."""
        condition = self._condition(resolve_condition(self.conditioning, len(z), condition))
        variables = {"params": state.params[GENERATOR], STATISTICS: state.extra["batch_stats"][GENERATOR]}
        return self.generator.apply(variables, z, *condition, **self._stage(state)[GENERATOR])

    def _stage(self, state: State) -> Mapping[str, Mapping[str, Any]]:
        """Further arguments of each network at this state; none, unless the networks grow."""
        return {GENERATOR: {}, DISCRIMINATOR: {}}

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        condition = resolve_condition(self.conditioning, n, condition)
        return {**condition, "x": self.generate(state, self.noise(key, n), condition)}

    def noise(self, key: Array, n: int) -> Array:
        """(n, latent) standard normal noise."""
        return jax.random.normal(fold_in(key, "z"), (n, self.latent), jnp.float32)

    def discriminate(self, state: State, batch: Batch) -> Array:
        """(B / packing,) logits of being real; of patches their mean."""
        condition = self._discriminator_condition(self._condition(batch))
        variables = {"params": state.params[DISCRIMINATOR], STATISTICS: state.extra["batch_stats"][DISCRIMINATOR]}
        stage = self._stage(state)[DISCRIMINATOR]
        logits = self.discriminator.apply(variables, pack(batch["x"], self.packing), *condition, **stage)[..., 0]
        return logits.reshape(len(logits), -1).mean(axis=1)

    def sample_logits(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Array:
        """(n / packing,) logits of the samples that `sample` draws with the same arguments."""
        made = self.sample(state, key, n, condition)
        return self.discriminate(state, {**(condition or {}), **made})

    def diagnose(self, metrics: Mapping[str, np.ndarray]) -> str:
        """A message if the discriminator always wins, always loses, or overfits for all augmentation, else ""."""
        controlled = isinstance(self.augmentation, Controlled) and self.augmentation.target is not None
        limit = self.augmentation.limit if controlled else np.inf
        if np.mean(metrics.get("augmentation_probability", 0.0)) > 0.99 * limit:
            return (
                f"the probability of augmentation has reached its limit of {limit:g} and the discriminator still "
                "overfits: take more examples, a smaller discriminator or a larger weight of r1"
            )
        if not self.adversarial.saturates or not {"real_accuracy", "fake_accuracy"} <= metrics.keys():
            return ""
        real, fake = (np.mean(metrics[name]) for name in ("real_accuracy", "fake_accuracy"))
        if min(real, fake) > 0.99:
            return (
                "the discriminator overpowers the generator: it recognizes all real and all generated examples, and "
                "the generator learns little from it. Give the discriminator a lower learning rate, a regularizer "
                "such as r1(), spectral normalization, instance noise or an augmentation"
            )
        if max(real, fake) < 0.01:
            return "the discriminator takes all real examples for generated ones: is its learning rate too high?"
        return ""

    def _discriminator_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The discriminator's loss on real and generated examples."""
        made = lambda params: self.forward(params, state, batch, self._z(batch, key), fold_in(key, "fake"))[0]
        fake, _ = jax.vjp(made, state.params[GENERATOR])  # same operations as in the generator's turn, shared by XLA
        return self.discriminator_loss(params, state, batch, fake, key)

    def discriminator_loss(self, params: PyTree, state: State, batch: Batch, fake: Array, key: Array):
        """The discriminator's loss on given examples, with its regularizers; new extras and metrics."""
        before = batch["x"], fake
        pair = self._augmented_pair(*before, state, key)
        real, fake = self._discriminator_outputs(params, state, batch, *pair, key)
        loss = self.adversarial.of(DISCRIMINATOR, real.logits, fake.logits, fold_in(key, "loss"))
        correct = self.adversarial.correct(real.logits, fake.logits)
        metrics = {"real_accuracy": Mean.of(correct[0]), "fake_accuracy": Mean.of(correct[1])}
        if self.auxiliary:
            labels = batch[self.conditioning.entry]
            loss += self.auxiliary * (
                _classification_loss(real.classes, labels) + _classification_loss(fake.classes, labels)
            )
            metrics["class_accuracy"] = Mean.of(real.classes.argmax(axis=-1) == labels)
        extra = {"batch_stats": {**state.extra["batch_stats"], DISCRIMINATOR: fake.statistics}}
        turn = Turn(self, DISCRIMINATOR, params, state, batch, key, self._z(batch, key), *pair, before)
        loss, extra, metrics = self._regularize(turn, loss, extra, metrics)
        threshold = self.adversarial.threshold
        margins = real.logits - (fake.logits.mean() if threshold is None else threshold)
        memory = self.augmentation.adapt(state.extra["augmentation"], jnp.repeat(margins, self.packing, axis=0))
        metrics |= {f"augmentation_{name}": Mean.of(value) for name, value in memory.items() if value.ndim == 0}
        return loss, ({**extra, "augmentation": memory}, metrics)

    def _regularize(self, turn: Turn, loss: Array, extra: Extra, metrics: dict[str, Mean]):
        """The loss plus the player's non-lazy regularizers, with their memory and metrics."""
        memory = turn.state.extra["regularizers"]
        for regularizer in self.regularizers:
            if regularizer.every == 1 and regularizer.player == turn.player:
                value, memory = regularizer(turn, memory)
                loss, metrics = loss + value, {**metrics, regularizer.name: Mean.of(value)}
        return loss, {**extra, "regularizers": memory}, metrics

    def _lazy_regularizer(self, regularizer: Regularizer):
        """The loss of a lazy regularizer, scaled by `every`."""

        def loss(params: PyTree, state: State, batch: Batch, key: Array):
            z, generator = self._z(batch, key), state.params[GENERATOR]
            generator = params if regularizer.player == GENERATOR else generator
            fake, _ = self.forward(generator, state, batch, z, fold_in(key, "fake"))
            before = pair = batch["x"], fake
            if regularizer.player == DISCRIMINATOR:
                pair = self._augmented_pair(*before, state, key)
            turn = Turn(self, regularizer.player, params, state, batch, key, z, *pair, before)
            value, memory = regularizer(turn, state.extra["regularizers"])
            return regularizer.every * value, ({"regularizers": memory}, {})

        return loss

    def critic(self, turn: Turn, x: Array, name: str) -> Array:
        """Logits on other examples in a discriminator's turn, with dropout keyed by `name`."""
        key = fold_in(turn.key, "dropout", name)
        return self._discriminator_output(turn.params, turn.state, turn.batch, x, key).logits

    def augmented_critic(self, turn: Turn, x: Array, which: int, name: str) -> Array:
        """Like `critic`, on examples that are augmented as the real (0) or generated (1) ones of the turn are."""
        changed = self.augmentation(x, fold_in(turn.key, "augmentation", which), turn.state)
        return self.critic(turn, pack(changed, self.packing), name)

    def _generator_turn(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The generator's loss on its examples."""
        fake, stats = self.forward(params, state, batch, self._z(batch, key), fold_in(key, "fake"))
        loss, (extra, metrics) = self.generator_loss(params, state, batch, fake, key)
        return loss, ({"batch_stats": {**state.extra["batch_stats"], GENERATOR: stats}, **extra}, metrics)

    def generator_loss(self, params: PyTree, state: State, batch: Batch, fake: Array, key: Array):
        """The generator's loss on examples it has made, with its regularizers; new extras and metrics."""
        discriminator = state.params[DISCRIMINATOR]
        if self.unrolling:
            discriminator = self._unrolled_discriminator(params, state, batch, key)
        pair = self._augmented_pair(batch["x"], fake, state, key)
        real, made = self._discriminator_outputs(discriminator, state, batch, *pair, key)
        if self.unrolling:  # maximize the unrolled discriminator's own objective, see `Unrolling`
            loss = -self.adversarial.of(DISCRIMINATOR, real.logits, made.logits, fold_in(key, "loss"))
        else:
            loss = self.adversarial.of(GENERATOR, real.logits, made.logits, fold_in(key, "loss"))
        if self.auxiliary:
            loss += self.auxiliary * _classification_loss(made.classes, batch[self.conditioning.entry])
        before = batch["x"], fake
        turn = Turn(self, GENERATOR, params, state, batch, key, self._z(batch, key), *before, before)
        loss, extra, metrics = self._regularize(turn, loss, {}, {})
        return loss, (extra, metrics)

    def _unrolled_discriminator(self, params: PyTree, state: State, batch: Batch, key: Array) -> PyTree:
        """Discriminator parameters after the unrolled steps, differentiable with respect to the generator."""

        def ahead(carry, i: Array):
            discriminator, opt = carry
            now = fold_in(key, "unrolled", i)
            fake, _ = self.forward(params, state, batch, self.noise(now, len(batch["x"])), now)
            loss = lambda discriminator: self.discriminator_loss(discriminator, state, batch, fake, now)[0]
            updates, opt = self.unrolling.tx.update(jax.grad(loss)(discriminator), opt, discriminator)
            return (optax.apply_updates(discriminator, updates), opt), None

        start = state.params[DISCRIMINATOR], state.opt[DISCRIMINATOR]
        (discriminator, _), _ = lax.scan(ahead, start, jnp.arange(self.unrolling.steps))
        return discriminator

    def forward(self, params: PyTree, state: State, batch: Batch, z: Array, key: Array) -> tuple[Array, PyTree]:
        """Examples from noise z given the conditions of the batch, and the new batch statistics.

        Both players use the same noise and parameters, so they are computed once per step.
        """
        variables = {"params": params, STATISTICS: state.extra["batch_stats"][GENERATOR]}
        rngs = {"dropout": fold_in(key, "dropout")}
        condition, stage = self._condition(batch), self._stage(state)[GENERATOR]
        fake, new = self.generator.apply(variables, z, *condition, **stage, mutable=[STATISTICS], rngs=rngs)
        return fake, new.get(STATISTICS, {})

    def _augmented_pair(self, real: Array, fake: Array, state: State, key: Array) -> tuple[Array, Array]:
        """Real and fake examples, augmented and packed for the discriminator."""
        both = (
            self.augmentation(x, fold_in(key, "augmentation", which), state) for which, x in enumerate((real, fake))
        )
        return tuple(pack(x, self.packing) for x in both)

    def _discriminator_outputs(self, params: PyTree, state: State, batch: Batch, real: Array, fake: Array, key: Array):
        """Outputs on real and fake examples, each with its own batch statistics; running ones are updated by both."""
        of_real = self._discriminator_output(params, state, batch, real, fold_in(key, "dropout", "real"))
        stats = {**state.extra["batch_stats"], DISCRIMINATOR: of_real.statistics}
        between = state._replace(extra={**state.extra, "batch_stats": stats})
        return of_real, self._discriminator_output(params, between, batch, fake, fold_in(key, "dropout", "fake"))

    def _discriminator_output(
        self, params: PyTree, state: State, batch: Batch, x: Array, key: Array
    ) -> DiscriminatorOutput:
        variables = {"params": params, STATISTICS: state.extra["batch_stats"][DISCRIMINATOR]}
        condition = self._discriminator_condition(self._condition(batch))
        stage, rngs = self._stage(state)[DISCRIMINATOR], {"dropout": key}
        outputs, new = self.discriminator.apply(variables, x, *condition, **stage, mutable=[STATISTICS], rngs=rngs)
        return DiscriminatorOutput(outputs[..., 0], outputs[..., 1:], new.get(STATISTICS, {}))

    def _condition(self, batch: Batch, n: int | None = None) -> tuple[PyTree, ...]:
        if self.conditioning is None:
            return ()
        return (jax.tree.map(lambda a: a[:n], embed(self.conditioning, batch)),)

    def _discriminator_condition(self, condition: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """The discriminator's second argument: empty if it predicts the class itself."""
        return () if self.auxiliary else condition

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lacks the conditions that the model needs, else ""."""
        return "" if self.conditioning is None else self.conditioning.unsupported(batch)


def _classification_loss(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
