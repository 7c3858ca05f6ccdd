"""Samples with given labels: of one model conditioned on them, or of one model for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from gen_jax.core import Conditional, Latent, State, fold_in
from gen_jax.data.subsets import stratified_rows
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split

__all__ = ["Draw", "draw_labels", "of_classes", "of_label", "of_rows", "with_progress"]

Draw = Callable[[np.ndarray, Array], np.ndarray]  # (labels (n,), key) -> examples (n, ...) in the units of the data
DRAWN = 500  # samples drawn at once


def of_label(model: Any, state: State, split: Split, mean: bool = False) -> Draw:
    """Makes a function that draws examples with given labels from a model conditioned on them.

    split: of the data the model was trained on, whose transforms are undone. mean: of models with latent vectors, the
    mean of p(x | z) instead of a draw from it, which has independent noise in each value.
    """
    conditioning = model.conditioning if isinstance(model, Conditional) else None
    if conditioning is None or conditioning.classes is None:
        raise UserError(
            f"{type(model).__name__} is not conditioned on labels: give a run of a conditional model, or one run for "
            "each class"
        )
    return _drawn(model, state, split, conditioning.entry, mean)


def of_classes(draws: Sequence[tuple[Any, State, Split]], mean: bool = False) -> Draw:
    """Makes a function that draws examples from one model for each class, in the order of the classes."""
    each = [_drawn(*one, "", mean) for one in draws]

    def draw(labels: np.ndarray, key: Array) -> np.ndarray:
        if labels.max() >= len(each):
            raise UserError(f"there are {len(each)} runs, one for each class, and class {int(labels.max())} is asked")
        found = {c: each[c](labels[labels == c], fold_in(key, int(c))) for c in np.unique(labels)}
        x = np.empty((len(labels), *next(iter(found.values())).shape[1:]), next(iter(found.values())).dtype)
        for c, made in found.items():
            x[labels == c] = made
        return x

    return draw


def of_rows(model: Any, state: State, split: Split, mean: bool = False) -> Draw:
    """Makes a function that draws examples from an unconditional model, as many as there are labels.

    mean: as in `of_label`.
    """
    if isinstance(model, Conditional) and model.conditioning is not None:
        raise UserError(f"the model is conditioned on {model.conditioning.entry!r}: use an unconditional one")
    return _drawn(model, state, split, "", mean)


def _drawn(model: Any, state: State, split: Split, entry: str, mean: bool) -> Draw:
    if mean and not isinstance(model, Latent):
        raise UserError(f"{type(model).__name__} has no latent vectors whose mean image could be taken")

    @jax.jit
    def program(state: State, key: Array, labels: Array) -> Array:
        given = {entry: labels} if entry else None
        if not mean:
            return model.sample(state, key, DRAWN, given)["x"]
        z = model.prior_of(state).sample(seed=key, sample_shape=(DRAWN,))
        return model.decode(state, z, given).mean()

    training = split.reference.arrays["x"]

    def draw(labels: np.ndarray, key: Array) -> np.ndarray:
        blocks = []
        for i, start in enumerate(range(0, len(labels), DRAWN)):
            asked = np.resize(labels[start : start + DRAWN], DRAWN).astype(np.int32)
            x = np.asarray(program(state, fold_in(key, i), jnp.asarray(asked)))[: len(labels) - start]
            blocks.append(_stored(split.untransformed(x), training, split.levels))
        return np.concatenate(blocks)

    return draw


def _stored(x: np.ndarray, training: Any, levels: int | None) -> np.ndarray:
    """Samples in the type and range of the training examples."""
    if training.dtype.kind in "iu":
        return np.rint(np.clip(x, 0, (levels or 256) - 1)).astype(training.dtype)
    return np.asarray(x, training.dtype)


def draw_labels(labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """n labels with the frequencies of classes of these, and each class at least once."""
    classes = np.unique(labels)
    n = max(n, len(classes))
    times, rest = divmod(n, len(labels))
    some = [labels] * times + ([labels[stratified_rows(labels, rest, 1, seed)[0]]] if rest else [])
    drawn = np.random.default_rng(seed).permutation(np.concatenate(some))
    lacking = np.setdiff1d(classes, drawn)
    drawn[: len(lacking)] = lacking
    return drawn


def with_progress(draw: Draw) -> Draw:
    """Draws 2,000 samples at a time, with a progress bar where it takes long."""

    def drawn(labels: np.ndarray, key: Array) -> np.ndarray:
        starts = tqdm(range(0, len(labels), 2000), "drawing samples", leave=False, delay=2, dynamic_ncols=True)
        return np.concatenate([draw(labels[start : start + 2000], fold_in(key, start)) for start in starts])

    return drawn
