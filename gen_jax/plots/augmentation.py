"""Figures of augmentation: images and their changes, and the accuracy of classifiers over steps and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from gen_jax.applications.augmentation import Arm, Design
from gen_jax.data.source import apply_transforms
from gen_jax.data.transforms import scale
from gen_jax.evaluation.classifiers import accuracy_of
from gen_jax.plots.figures import tiled
from gen_jax.plots.style import new_figure, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_curves", "augmented_images"]

SHOWN = 8  # images in a row


@styled()
def augmented_images(design: Design) -> Figure:
    """Examples, random changes of them, and samples of the same classes."""
    real = design.data[design.split]
    labels = np.asarray(real["label"][:5000])
    some = np.concatenate([np.flatnonzero(labels == c)[: -(-SHOWN // design.data.info.classes)] for c in set(labels)])
    some = some[:SHOWN]
    batch = {"x": np.asarray(real["x"][some]), "label": labels[some]}
    unit = [scale(0, 1, design.data.info.levels)]
    rows = {"examples": [apply_transforms(batch, tuple(unit), 0, 0)["x"]]}
    if design.changes:
        change = jax.jit(lambda step: apply_transforms(batch, (*unit, *design.changes), design.seed, step)["x"])
        rows["geometric"] = [change(step) for step in range(4)]
    if design.pool is not None:
        made = np.asarray(design.pool["label"])
        rows["samples"] = [
            apply_transforms({"x": design.pool["x"][_of_classes(made, labels[some], turn)]}, tuple(unit), 0, 0)["x"]
            for turn in range(4)
        ]
    height = sum(map(len, rows.values()))
    ratios = [len(images) for images in rows.values()]
    figure, axes = new_figure(0.5 * SHOWN + 1, 0.5 * height + 0.4 * len(rows), len(rows), 1, height_ratios=ratios)
    for axis, (name, images) in zip(axes[:, 0], rows.items()):
        shown = np.clip(np.concatenate([np.asarray(x) for x in images]), 0, 1)
        axis.imshow(tiled(shown, SHOWN), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name)
        axis.axis("off")
    return figure


def _of_classes(made: np.ndarray, labels: np.ndarray, turn: int) -> np.ndarray:
    """One row of the pool for each label, others at each turn."""
    rng = np.random.default_rng(turn)
    return np.array([rng.choice(np.flatnonzero(made == c)) for c in labels])


@styled()
def accuracy_curves(arms: Sequence[Arm], truth: np.ndarray) -> Figure:
    """Test accuracy over training steps for each network and number of labels, and over the labels at the end.

    Bands and bars are one standard error: of the mean over seeds, and at the end of the examples too.
    """
    networks = list(dict.fromkeys(arm.network for arm in arms))
    cells = list(dict.fromkeys((arm.network, arm.labels) for arm in arms))
    ends = [name for name in networks if sum(cell[0] == name for cell in cells) > 1]
    figure, axes = panels(len(cells) + len(ends))
    for axis, (network, labels) in zip(axes, cells):
        for arm in arms:
            if (arm.network, arm.labels) == (network, labels):
                mean, spread = arm.fitted.accuracies.mean(axis=1), arm.fitted.accuracies.std(axis=1, ddof=0)
                error = spread / np.sqrt(max(arm.fitted.accuracies.shape[1] - 1, 1))
                [line] = axis.plot(arm.fitted.steps, mean, marker=".", label=arm.name)
                axis.fill_between(arm.fitted.steps, mean - error, mean + error, color=line.get_color(), alpha=0.2)
        axis.set_title(f"{network}, {labels:,} labels")
        axis.set_xlabel("step")
        axis.set_ylabel("test accuracy")
    for axis, network in zip(axes[len(cells) :], ends):
        for name in dict.fromkeys(arm.name for arm in arms):
            mine = [arm for arm in arms if (arm.network, arm.name) == (network, name)]
            found = [accuracy_of(arm.fitted.predicted, truth) for arm in mine]
            values, errors = zip(*found)
            axis.errorbar([arm.labels for arm in mine], values, errors, marker="o", capsize=3, label=name)
        axis.set_xscale("log")
        axis.set_title(f"{network}, at the end")
        axis.set_xlabel("labels")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    return figure
