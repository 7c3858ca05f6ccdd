"""Plots of image translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from gen_jax.core import State
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.translation.images import like, transformed, translator_of
from gen_jax.models.translation.direction import BACK
from gen_jax.plots.figures import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["rows_of_images", "translations"]

_EXAMPLES = 10


def translations(model: Any, state: State, split: Split, key: Array) -> Figure:
    """Rows of images of the split, their translations, and the truth or the way back, in each direction."""
    translate, panels = translator_of(model), {}
    if split.partner is None:
        x, y = (transformed(split, entry, _EXAMPLES) for entry in ("x", "y"))
        panels["source, translation, truth"] = [
            split.pixels(x),
            split.pixels(translate(state, x), "y"),
            split.pixels(y, "y"),
        ]
    else:
        for side in model.directions:
            source, target = (split, split.partner) if side == "a2b" else (split.partner, split)
            x = transformed(source, n=_EXAMPLES)
            made = translate(state, x, side)
            rows, title = [source.pixels(x), target.pixels(made)], f"{side}: source, translation"
            if "b2a" in model.directions:
                rows.append(source.pixels(translate(state, made, BACK[side])))
                title += ", way back"
            if source.info is not None and source.info.aligned:
                rows.append(target.pixels(transformed(target, n=_EXAMPLES)))
                title += ", truth"
            panels[title] = rows
    return rows_of_images({title: [_colored(a) for a in rows] for title, rows in panels.items()})


def rows_of_images(panels: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Panels side by side, each of rows of images (N, H, W, C) with the same N, large enough to show every pixel."""
    n = len(next(iter(panels.values()))[0])
    return show({title: np.concatenate(rows) for title, rows in panels.items()}, columns=n)


def _colored(x: np.ndarray) -> np.ndarray:
    """Images with three channels; of other numbers the first one in gray."""
    colored = like(x, 3)
    return like(x[..., :1], 3) if colored is None else colored
