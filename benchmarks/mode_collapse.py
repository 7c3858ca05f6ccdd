"""Mode collapse, remedy by remedy: the same networks and steps, ten seeds of each recipe trained as one program.

PYTHONPATH=. python benchmarks/mode_collapse.py [--sets ring8 grid25] [--only relativistic] [--write README.md]

Protocol of VEEGAN (Srivastava et al. 2017) and PacGAN (Lin et al. 2018): 2,500 samples of the last generator (its
moving average where the recipe says so); a sample is of high quality within three standard deviations of a mode; modes
are those with a sample of high quality; reverse KL is over nearest modes. Of stacked digits: 10,000 samples, whose
classes a small CNN tells.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from gen_jax.algorithms import descent, member, population, with_ema
from gen_jax.data import Resident, load
from gen_jax.data.modes import grid, ring
from gen_jax.data.transforms import Transform, scale, stacked
from gen_jax.evaluation import class_coverage, mode_coverage
from gen_jax.evaluation.likelihood import Metric, Split
from gen_jax.loop import fit
from gen_jax.models import normalisers
from gen_jax.models.adversarial import non_saturating, relativistic, wasserstein
from gen_jax.models.augmentations import InstanceNoise
from gen_jax.models.discriminators import (
    DCGANDiscriminator,
    MinibatchDeviation,
    MinibatchDiscrimination,
    MLPDiscriminator,
)
from gen_jax.models.gan import GAN, Unrolling
from gen_jax.models.generators import DCGANGenerator
from gen_jax.models.nets import MLP
from gen_jax.models.penalties import gradient_penalty, r1, r2

Change = Callable[[GAN], GAN]


class Game(NamedTuple):
    """A set, the plain GAN for it, and how its modes are counted."""

    model: GAN
    metric: Metric
    steps: int
    transforms: Sequence[Transform] = ()
    data: str = ""
    batch: int = 256
    rate: float = 1e-3


def _plane(centres: np.ndarray, deviation: float, steps: int) -> Game:
    model = GAN(MLP((128, 128), 2), MLPDiscriminator((128, 128)), latent=2)
    return Game(model, mode_coverage(centres, deviation), steps)


GAMES = {
    "ring8": lambda: _plane(ring(8), 0.01, 10_000),
    "grid25": lambda: _plane(grid(5), 0.05, 15_000),
    "stacked_digits": lambda: Game(
        GAN(DCGANGenerator((8, 8), (64, 64, 32), 3), DCGANDiscriminator((16, 32), dropout=0.0), latent=64),
        class_coverage(10, samples=10_000),
        2_000,
        (scale(0, 1, levels=17), stacked(3)),
        "digits",
        64,
        2e-4,
    ),
}


class Recipe(NamedTuple):
    change: Change = lambda gan: gan
    ema: float = 0.0


def _looking(look: nn.Module) -> Recipe:
    return Recipe(lambda gan: replace(gan, discriminator=gan.discriminator.clone(batchwise=(look,))))


def _spectral(gan: GAN) -> GAN:
    return replace(gan, discriminator=gan.discriminator.clone(norm=normalisers.spectral))


def _adam(rate: float) -> optax.GradientTransformation:
    return optax.adam(rate, b1=0.5)


RECIPES = {
    "plain GAN": Recipe(),
    "averaged generator": Recipe(ema=0.999),
    "label smoothing": Recipe(lambda gan: replace(gan, adversarial=non_saturating(0.1))),
    "instance noise": Recipe(lambda gan: replace(gan, augmentation=InstanceNoise(0.1, 10_000))),
    "minibatch discrimination": _looking(MinibatchDiscrimination()),
    "minibatch deviation": _looking(MinibatchDeviation()),
    "PacGAN2": Recipe(lambda gan: replace(gan, packing=2)),
    "PacGAN4": Recipe(lambda gan: replace(gan, packing=4)),
    "mode seeking": Recipe(lambda gan: replace(gan, mode_seeking=1.0)),
    "unrolled 5": Recipe(lambda gan: replace(gan, unrolling=Unrolling(5, _adam(1e-3)))),
    "spectral": Recipe(_spectral),
    "R1": Recipe(lambda gan: replace(gan, penalties=(r1(0.1),))),
    "WGAN-GP": Recipe(lambda gan: replace(gan, adversarial=wasserstein(), penalties=(gradient_penalty(0.1),), every=2)),
    "relativistic": Recipe(lambda gan: replace(gan, adversarial=relativistic())),
    "relativistic + R1 + R2": Recipe(
        lambda gan: replace(gan, adversarial=relativistic(), penalties=(r1(0.1), r2(0.1)))
    ),
    "relativistic + R1 + R2 + average": Recipe(
        lambda gan: replace(gan, adversarial=relativistic(), penalties=(r1(0.1), r2(0.1))), ema=0.999
    ),
}


def played(game: Game, name: str, recipe: Recipe, seeds: int, steps: int) -> dict[str, list[float]]:
    """What each seed's generator gets, by metric."""
    model = recipe.change(game.model)
    rates = (game.rate, game.rate)
    tx = {player: _adam(rate) for player, rate in zip(("discriminator", "generator"), rates)}
    algorithm = descent(model, tx)
    algorithm = with_ema(algorithm, "generator", recipe.ema) if recipe.ema else algorithm
    data = load(game.data or name)
    source = Resident(data["train"], game.batch, tuple(game.transforms))
    state = fit(population(algorithm, seeds), source, steps, chunk=min(500, steps))
    measure = game.metric(model)
    split = Split("test", data["test"], tuple(game.transforms), training=data["train"])
    found: dict[str, list[float]] = {}
    for i in range(seeds):
        for metric, estimate in measure(member(state, i), split, jax.random.key(i)).items():
            found.setdefault(metric, []).append(estimate.value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(GAMES), default=list(GAMES))
    parser.add_argument("--only", default="", help="only recipes whose name contains this")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--write", default="", help="file whose section <!-- modes --> the tables go to")
    args = parser.parse_args()
    for name in args.sets:
        game = GAMES[name]()
        for title, recipe in RECIPES.items():
            if args.only in title:
                start = time.perf_counter()
                found = played(game, name, recipe, args.seeds, args.steps or game.steps)
                shown = {k: f"{np.mean(v):.3f} ± {np.std(v, ddof=1) / math.sqrt(len(v)):.3f}" for k, v in found.items()}
                print(
                    name,
                    title,
                    shown,
                    [f"{v:.3g}" for v in next(iter(found.values()))],
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
