"""Runs whose models draw samples with labels, for `augment` and `utility`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gen_jax.core import Conditional, averaged
from gen_jax.errors import UserError
from gen_jax.evaluation.samples.labeled import Draw, of_classes, of_label

if TYPE_CHECKING:
    from gen_jax.data.dataset import Dataset

__all__ = ["check_generators", "draw_from"]


def draw_from(runs: Sequence[Any], step: int | str | None, mean: bool = False) -> Draw:
    """Draws samples with given labels from the model of a run, or from those of one run for each class.

    mean: of models with latent vectors, the means of p(x | z).
    """
    each = [(run.experiment.model, averaged(run.state(step)), run.experiment.split(run.data, "train")) for run in runs]
    return of_label(*each[0], mean) if len(each) == 1 else of_classes(each, mean)


def check_generators(data: Dataset, runs: Sequence[Any]) -> None:
    """Raises UserError if samples of the runs are not of the kind of the data."""
    info = data.info
    if len(runs) not in (1, info.classes):
        raise UserError(f"give one run, or one for each of the {info.classes} classes, not {len(runs)}")
    for run in runs:
        theirs, model = run.data.info, run.experiment.model
        if len(theirs.shape) != len(info.shape):
            raise UserError(
                f"{run.workdir}: was trained on examples of shape {theirs.shape}, {data.name} has {info.shape}"
            )
        if theirs.levels != info.levels:
            raise UserError(f"{run.workdir}: has {theirs.levels} levels, {data.name} has {info.levels}")
        if len(runs) > 1:
            continue
        conditioning = model.conditioning if isinstance(model, Conditional) else None
        classes = None if conditioning is None else conditioning.classes
        names = theirs.class_names and info.class_names and theirs.class_names != info.class_names
        if classes is not None and (classes != info.classes or names):
            raise UserError(f"{run.workdir}: its classes are not the {info.classes} of {data.name}")
