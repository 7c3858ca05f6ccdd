"""Mode collapse, remedy by remedy: the same networks and steps, ten seeds of each recipe trained as one program.

PYTHONPATH=. python benchmarks/mode_collapse.py [--sets ring8 grid25] [--only relativistic] [--write README.md]

Protocol of VEEGAN (Srivastava et al. 2017) and PacGAN (Lin et al. 2018): 2,500 samples of the last generator (its
moving average where the recipe says so); a sample is of high quality within three standard deviations of a mode; modes
are those with a sample of high quality; reverse KL is over nearest modes. Of stacked digits: 26,000 samples, whose
classes a small CNN tells.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from side_by_side import ROOT

from gen_jax.algorithms import descent, member, population, with_ema
from gen_jax.data import Resident, load
from gen_jax.data.modes import grid, ring
from gen_jax.data.transforms import Transform, scale, stacked
from gen_jax.evaluation import class_coverage, mode_coverage
from gen_jax.evaluation.likelihood import Metric, Split
from gen_jax.logs import read_json, write_json
from gen_jax.loop import fit
from gen_jax.models import normalisers
from gen_jax.models.adversarial import relativistic, wasserstein
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
from gen_jax.readme import markdown_table, write_section

Change = Callable[[GAN, optax.GradientTransformation], GAN]  # the latter trains the discriminator


class Game(NamedTuple):
    """A set, the plain GAN for it, and how its modes are counted."""

    model: GAN
    metric: Metric
    steps: int
    transforms: Sequence[Transform] = ()
    data: str = ""
    batch: int = 128
    rate: float = 2e-3


def _plane(centres: np.ndarray, deviation: float, steps: int) -> Game:
    model = GAN(MLP((64,) * 4, 2), MLPDiscriminator((64,) * 4), latent=2)
    return Game(model, mode_coverage(centres, deviation), steps)


def _stacked(data: str, side: int, levels: int, steps: int) -> Game:
    model = GAN(DCGANGenerator((side, side), (64, 64, 32), 3), DCGANDiscriminator((16, 32), dropout=0.0), latent=64)
    transforms = (scale(0, 1, levels), stacked(3))
    return Game(model, class_coverage(10, samples=26_000), steps, transforms, data, 64, 1e-3)


GAMES = {
    "ring8": lambda: _plane(ring(8), 0.01, 12_500),
    "grid25": lambda: _plane(grid(5), 0.05, 15_000),
    "stacked_digits": lambda: _stacked("digits", 8, 17, 2_000),
    "stacked_mnist": lambda: _stacked("mnist", 28, 256, 20_000),  # needs MNIST, and better an accelerator
}


class Recipe(NamedTuple):
    change: Change = lambda gan, tx: gan
    ema: float = 0.0


def _looking(look: nn.Module) -> Recipe:
    return Recipe(lambda gan, tx: replace(gan, discriminator=gan.discriminator.clone(batchwise=(look,))))


def _spectral(gan: GAN, tx: optax.GradientTransformation) -> GAN:
    return replace(gan, discriminator=gan.discriminator.clone(norm=normalisers.spectral))


def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps), b1=0.5, eps_root=1e-16)


R3 = (r1(0.02), r2(0.02))
RECIPES = {
    "plain GAN": Recipe(),
    "average": Recipe(ema=0.999),
    "instance noise": Recipe(lambda gan, tx: replace(gan, augmentation=InstanceNoise(0.1, 2_000))),
    "minibatch discrimination": _looking(MinibatchDiscrimination()),
    "minibatch deviation": _looking(MinibatchDeviation()),
    "PacGAN2": Recipe(lambda gan, tx: replace(gan, packing=2)),
    "PacGAN4": Recipe(lambda gan, tx: replace(gan, packing=4)),
    "mode seeking": Recipe(lambda gan, tx: replace(gan, mode_seeking=1.0)),
    "unrolled 5": Recipe(lambda gan, tx: replace(gan, unrolling=Unrolling(5, tx))),
    "spectral": Recipe(_spectral),
    "R1": Recipe(lambda gan, tx: replace(gan, penalties=(r1(0.02),))),
    "WGAN-GP": Recipe(lambda gan, tx: replace(gan, adversarial=wasserstein(), penalties=(gradient_penalty(0.1),))),
    "relativistic": Recipe(lambda gan, tx: replace(gan, adversarial=relativistic())),
    "relativistic + R1 + R2": Recipe(lambda gan, tx: replace(gan, adversarial=relativistic(), penalties=R3)),
    "relativistic + R1 + R2 + average": Recipe(
        lambda gan, tx: replace(gan, adversarial=relativistic(), penalties=R3), ema=0.999
    ),
}


def played(game: Game, name: str, recipe: Recipe, seeds: int) -> tuple[dict[str, np.ndarray], float]:
    """What each seed's generator gets, by metric, and the seconds of training all of them."""
    tx = _adam(game.rate, game.steps)
    model = recipe.change(game.model, tx)
    algorithm = descent(model, {"discriminator": tx, "generator": tx})
    algorithm = with_ema(algorithm, "generator", recipe.ema) if recipe.ema else algorithm
    data = load(game.data or name)
    source = Resident(data["train"], game.batch, tuple(game.transforms))
    start = time.perf_counter()
    state = fit(population(algorithm, seeds), source, game.steps, chunk=math.gcd(500, game.steps))
    seconds = time.perf_counter() - start
    measure = game.metric(model)
    split = Split("test", data["test"], tuple(game.transforms), training=data["train"])
    found = [measure(member(state, i), split, jax.random.key(i)) for i in range(seeds)]
    return {metric: np.array([one[metric].value for one in found]) for metric in found[0]}, seconds


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(GAMES), default=["ring8", "grid25", "stacked_digits"])
    parser.add_argument("--only", default="", help="the recipes whose name contains this")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0, help="instead of those of the set")
    parser.add_argument("--write", type=Path, help="a Markdown file with a section for the tables")
    chosen = parser.parse_args()
    if not any(chosen.only in title for title in RECIPES) or chosen.seeds < 2:
        parser.error(f"--seeds must be at least 2, and --only part of one of: {', '.join(RECIPES)}")
    return chosen


def main() -> None:
    chosen, texts = options(), []
    results = ROOT / "benchmarks" / "results" / "mode_collapse.json"
    record = (read_json(results) or {}).get("seeds", {})
    device = jax.devices()[0].device_kind
    where = f"{device}, {os.cpu_count()} cores, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}"
    for name in chosen.sets:
        game = GAMES[name]()
        game = game._replace(steps=chosen.steps or game.steps)
        rows, table = [], Table(title=f"{name}: {game.steps:,} steps, {chosen.seeds} seeds, mean ± standard error")
        for title in (title for title in RECIPES if chosen.only in title):
            found, seconds = played(game, name, RECIPES[title], chosen.seeds)
            record.setdefault(name, {})[title] = {metric: list(values) for metric, values in found.items()}
            write_json(results, {"where": where, "seeds": record})
            cells = [f"{v.mean():.3g} ± {v.std(ddof=1) / math.sqrt(len(v)):.1g}" for v in found.values()]
            columns = ["recipe", *found, "worst seed's " + next(iter(found)), "training"]
            rows.append([title, *cells, f"{min(next(iter(found.values()))):g}", f"{seconds:.0f} s"])
            print(name, *rows[-1], sep="  ", flush=True)
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        Console(width=150).print(table)
        texts += [f"`{name}`, {game.steps:,} steps, {chosen.seeds} seeds:", markdown_table(columns, rows)]
    if chosen.write:
        write_section(chosen.write, "modes", "\n\n".join([f"{where}. Mean ± standard error over seeds.", *texts]))


if __name__ == "__main__":
    main()
