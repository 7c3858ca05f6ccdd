"""Data augmentation: geometric changes and samples of trained models, and whether they help a classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from gen_jax.core import fold_in
from gen_jax.data.dataset import Dataset, content_digest
from gen_jax.data.geometry import contrast, cutmix, cutout, geometric, mixup
from gen_jax.data.source import Arrays
from gen_jax.data.subsets import stratified_rows
from gen_jax.data.transforms import Transform, flip, scale
from gen_jax.errors import UserError
from gen_jax.evaluation.classifiers import Accuracy, Fitted, accuracy_of, difference, fit_classifiers, mcnemar
from gen_jax.evaluation.samples.features import MANY, fit_classifier, intensities
from gen_jax.evaluation.samples.labeled import Draw, draw_labels
from gen_jax.models.common.classification import ConvNet, Perceptron

__all__ = [
    "BASE",
    "CHANGES",
    "NETWORKS",
    "Arm",
    "Design",
    "augment",
    "count_copies",
    "keep_confident",
    "parse_changes",
    "steps_for",
    "train_arms",
]

NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {"mlp": Perceptron, "cnn": ConvNet}
BASE = "none"  # the arm without augmentation

CHANGES: Mapping[str, Callable[[], Transform]] = {
    "keras": lambda: geometric(10, 0.1, 0.1),
    "flip": flip,
    "contrast": lambda: contrast(0.1, 0.2),
    "mixup": mixup,
    "cutmix": cutmix,
}


def parse_changes(texts: Sequence[str], side: int) -> list[Transform]:
    """The random changes of images in [0, 1] that texts name.

    A text is a name, of `CHANGES` or cutout (a quarter of the side, or cutout=PIXELS), or ranges of one affine map:
    "rotation=10,shift=0.1,zoom=0.1,shear=5". side: of the images. Raises UserError.
    """
    if {"mixup", "cutmix"} <= set(texts):
        raise UserError("examples are mixed once: give mixup or cutmix, not both")
    return [_change(text, side) for text in texts]


def _change(text: str, side: int) -> Transform:
    if text in CHANGES:
        return CHANGES[text]()
    ranges = dict(part.partition("=")[::2] for part in text.split(","))
    known = ("rotation", "shift", "zoom", "shear")
    try:
        if list(ranges) == ["cutout"]:
            return cutout(int(ranges["cutout"]) if ranges["cutout"] else max(1, side // 4))
        if set(ranges) <= set(known):
            return geometric(**{name: float(value) for name, value in ranges.items()})
    except ValueError as error:
        raise UserError(f"{text!r} names no change of images: {error}") from None
    raise UserError(
        f"{text!r} names no change of images: there are {', '.join([*CHANGES, 'cutout'])}, or ranges such as "
        f"rotation=10,shift=0.1 of {', '.join(known)}"
    )


def keep_confident(draw: Draw, training: Arrays, test: Arrays, levels: int, least: float, rounds: int = 20) -> Draw:
    """Keeps the samples that a classifier of the training examples gives at least this probability of their label.

    It is trained on up to 20,000 examples with their labels.
    """
    rows = stratified_rows(np.asarray(training["label"]), min(MANY, len(training["label"])), 1)[0]
    seen = {name: np.asarray(training[name][np.sort(rows)]) for name in ("x", "label")}
    encoder = fit_classifier(intensities(seen, levels - 1), intensities(test, levels - 1, 2000), "real").encoder()

    def kept(labels: np.ndarray, key: Array) -> np.ndarray:
        x, missing = None, np.arange(len(labels))
        for turn in range(rounds):
            made = draw(labels[missing], fold_in(key, "turn", turn))
            x = np.empty((len(labels), *made.shape[1:]), made.dtype) if x is None else x
            seen = np.asarray(made, np.float32) / np.float32(levels - 1)
            sure = encoder(seen).probabilities[np.arange(len(made)), labels[missing]]
            x[missing[sure >= least]] = made[sure >= least]
            missing = missing[sure < least]
            if not len(missing):
                return x
        worst = np.bincount(labels[missing]).argmax()
        raise UserError(
            f"{len(missing):,} of {len(labels):,} samples do not reach a confidence of {least} in {rounds} draws, most "
            f"of class {worst}: lower --confidence"
        )

    return kept


def augment(data: Dataset, draw: Draw, share: float = 1.0, seed: int = 0, split: str = "train") -> Dataset:
    """The data set with samples added to its training split: `share` times as many, with the frequencies of classes.

    A column "synthetic" tells them from the examples. The other splits are unchanged.
    """
    arrays = data[split]
    if "label" not in arrays:
        raise UserError(f"{data.name} has no labels to draw samples for")
    if share <= 0:
        raise UserError(f"the share of samples must be positive, got {share}")
    real = {name: np.asarray(arrays[name]) for name in ("x", "label")}
    labels = draw_labels(real["label"], round(share * len(real["label"])), seed)
    made = {"x": draw(labels, jax.random.key(seed)), "label": labels.astype(real["label"].dtype)}
    if made["x"].shape[1:] != real["x"].shape[1:]:
        raise UserError(f"samples have the shape {made['x'].shape[1:]}, {data.name} has {real['x'].shape[1:]}")
    both = {name: np.concatenate([real[name], made[name].astype(real[name].dtype)]) for name in real}
    both["synthetic"] = np.arange(len(both["x"])) >= len(real["x"])
    splits = {**data.splits, split: both}
    described = {**vars(data.info), "digest": content_digest(splits)}
    return replace(data, name=f"{data.name}+samples", splits=splits, described=described)


def count_copies(data: Dataset, split: str, test: str = "test") -> int:
    """The number of test examples that are in the training split too, byte for byte."""
    digests = lambda name: [hashlib.sha1(np.ascontiguousarray(x)).digest() for x in np.asarray(data[name]["x"])]
    seen = set(digests(split))
    return sum(one in seen for one in digests(test))


class Design(NamedTuple):
    """The design of an experiment: classifiers with and without augmentation."""

    data: Dataset
    split: str  # labeled examples are drawn from
    changes: Sequence[Transform] = ()  # of images in [0, 1]
    pool: Arrays | None = None  # samples "x" with their "label"
    labels: Sequence[int] = (100, 1000)
    shares: Sequence[float] = (1.0,)  # of samples to examples
    networks: Sequence[str] = ("mlp", "cnn")
    seeds: int = 5
    epochs: int | None = None
    batch: int = 128
    seed: int = 0

    def arms(self) -> list[tuple[str, bool, float]]:
        """Names, whether images are changed, and the share of samples: without augmentation first."""
        shares = list(self.shares) if self.pool is not None else []
        named = lambda name, share: name if len(shares) == 1 else f"{name} x{share:g}"
        found = [(BASE, False, 0.0)]
        found += [("geometric", True, 0.0)] * bool(self.changes)
        found += [(named("generative", share), False, share) for share in shares]
        found += [(named("both", share), True, share) for share in shares if self.changes]
        return found

    def check(self) -> None:
        """Raises UserError for what cannot be trained."""
        info, size = self.data.images(labels=True), len(self.data[self.split]["x"])
        for n in self.labels:
            if n < info.classes:
                raise UserError(f"--labels {n}: give at least one for each of the {info.classes} classes")
            if n > size:
                raise UserError(f"--labels {n}: {self.data.name} has {size:,} labeled examples in {self.split}")
        if len(self.arms()) == 1:
            raise UserError("nothing to compare: give --geometric, --from, or both")


class Arm(NamedTuple):
    """The classifiers of one arm, on the test split."""

    network: str
    labels: int
    name: str
    examples: int  # with samples
    fitted: Fitted
    accuracy: Accuracy
    gain: Accuracy | None  # over the arm without augmentation
    p: float | None  # of McNemar's test against it


def steps_for(labels: int, batch: int, epochs: int | None) -> int:
    """Training steps: those of the epochs, by default of 5, but at least 1,000."""
    each = max(1, labels // min(batch, labels))
    return epochs * each if epochs else max(5 * each, 1000)


def train_arms(design: Design) -> Iterator[Arm]:
    """Trains the classifiers of all arms for each network and number of labels, all with as many steps."""
    design.check()
    real, test, info = design.data[design.split], design.data["test"], design.data.info
    arrays = {name: np.asarray(real[name]) for name in ("x", "label")}
    size = len(arrays["x"])
    if design.pool is not None:
        arrays = {name: np.concatenate([a, design.pool[name].astype(a.dtype)]) for name, a in arrays.items()}
    truth, rng = np.asarray(test["label"]), np.random.default_rng(design.seed)
    for network in design.networks:
        for n in design.labels:
            chosen = stratified_rows(arrays["label"][:size], n, design.seeds, design.seed)
            base = None
            for name, changed, share in design.arms():
                rows = (
                    chosen if not share else np.concatenate([chosen, _of_pool(arrays, size, n, share, design, rng)], 1)
                )
                fitted = fit_classifiers(
                    NETWORKS[network](info.classes),
                    arrays,
                    rows,
                    test,
                    steps_for(n, design.batch, design.epochs),
                    min(design.batch, n),
                    [scale(0, 1, info.levels), *(design.changes if changed else ())],
                    seed=design.seed,
                )
                base = fitted.predicted if base is None else base
                against = name != BASE
                yield Arm(
                    network,
                    n,
                    name,
                    rows.shape[1],
                    fitted,
                    accuracy_of(fitted.predicted, truth),
                    difference(fitted.predicted, base, truth) if against else None,
                    mcnemar(fitted.predicted, base, truth) if against else None,
                )


def _of_pool(arrays: Arrays, size: int, n: int, share: float, design: Design, rng: np.random.Generator) -> np.ndarray:
    """(seeds, share * n) rows of samples, each at most once as long as there are enough."""
    wanted, there = max(1, round(share * n)), len(arrays["x"]) - size
    return np.stack([size + rng.choice(there, wanted, replace=wanted > there) for _ in range(design.seeds)])
