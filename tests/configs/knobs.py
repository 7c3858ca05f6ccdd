"""A mixture on a few points, with knobs of many types, for random command lines."""

import enum
from pathlib import Path
from typing import Literal

import numpy as np

from gen_jax.algorithms import em
from gen_jax.data.dataset import Dataset
from gen_jax.evaluation import log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.models.mixture import GMM


class Kind(enum.Enum):
    ROUND = "round"
    LONG = "long"


def config(
    components: int = 2,
    spread: float = 1.0,
    clip: float = float("inf"),
    no_noise: bool = False,
    kind: Kind = Kind.ROUND,
    order: Literal["up", "down"] = "up",
    where: Path | None = None,
    pair: tuple[int, int] | None = None,
    widths: tuple[float, ...] = (1.0, 2.0),
    label: str = "",
    steps: int = 2,
    smoke: bool = False,
) -> Experiment:
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32) * np.float32(spread)
    data = Dataset("points", {name: {"x": x} for name in ("train", "validation", "test")})
    model = GMM(components)
    steps = min(steps, 3)
    return Experiment(model, em(model), data=data, steps=steps, report_every=1, metrics=[log_likelihood])
