"""Mode collapse, remedy by remedy: the same networks and steps, ten seeds of each recipe trained as one program.

python -m benchmarks.quality.mode_collapse [--sets ring8 grid25] [--only "plain GAN" PacGAN4]

Protocol of VEEGAN (Srivastava et al. 2017) and PacGAN (Lin et al. 2018): 2,500 samples of the last generator (its
moving average where the recipe says so); a sample is of high quality within three standard deviations of a mode; modes
are those with a sample of high quality; reverse KL is over nearest modes. Of stacked digits: 26,000 samples, whose
classes a small CNN tells; at 8x8 the networks are dense, so that ten seeds are fast on a CPU, at 28x28 convolutional.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks.harness import results as harness_results
from gen_jax.algorithms import descent, with_ema
from gen_jax.data import Resident, load
from gen_jax.data.modes import grid, ring
from gen_jax.data.transforms import Transform, scale, stack_images
from gen_jax.evaluation import class_coverage, mode_coverage
from gen_jax.evaluation.metric import Metric, Split
from gen_jax.logs import machine, read_json, write_json
from gen_jax.loop import fit
from gen_jax.markdown import markdown_table
from gen_jax.models.common import normalization
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import (
    GAN,
    DCGANDiscriminator,
    DCGANGenerator,
    InstanceNoise,
    MinibatchDeviation,
    MinibatchDiscrimination,
    MLPDiscriminator,
    Unrolling,
    gradient_penalty,
    mode_seeking,
    r1,
    r2,
    relativistic,
    wasserstein,
)
from gen_jax.restarts import member, population

ImageOp = Callable[[GAN, optax.GradientTransformation], GAN]  # the latter trains the discriminator


class Game(NamedTuple):
    """A set, the plain GAN for it, and how its modes are counted."""

    model: GAN
    metric: Metric
    steps: int
    transforms: Sequence[Transform] = ()
    data: str = ""
    batch: int = 128
    rate: float = 2e-3


def _plane(centers: np.ndarray, deviation: float, steps: int) -> Game:
    model = GAN(MLP((64,) * 4, 2), MLPDiscriminator((64,) * 4), latent=2)
    return Game(model, mode_coverage(centers, deviation), steps)


def _stacked(data: str, levels: int, generator: nn.Module, discriminator: nn.Module, steps: int) -> Game:
    model = GAN(generator, discriminator, latent=64)
    transforms = (scale(0, 1, levels), stack_images(3))
    return Game(model, class_coverage(10, samples=26_000), steps, transforms, data, 64, 1e-3)


def _stacked_digits() -> Game:
    generator = nn.Sequential([MLP((256,) * 3, (8, 8, 3)), nn.sigmoid])
    return _stacked("digits", 17, generator, MLPDiscriminator((256,) * 3), 2_500)


def _stacked_mnist() -> Game:
    generator = DCGANGenerator((28, 28), (64, 64, 32), 3)
    return _stacked("mnist", 256, generator, DCGANDiscriminator((16, 32), dropout=0.0), 20_000)


GAMES = {
    "ring8": lambda: _plane(ring(8), 0.01, 12_500),
    "grid25": lambda: _plane(grid(5), 0.05, 15_000),
    "stacked_digits": _stacked_digits,
    "stacked_mnist": _stacked_mnist,  # needs MNIST, and better an accelerator
}


class Recipe(NamedTuple):
    change: ImageOp = lambda gan, tx: gan
    ema: float = 0.0
    clip: float = math.inf  # the largest norm of the generator's gradient


def _looking(look: nn.Module) -> Recipe:
    return Recipe(lambda gan, tx: replace(gan, discriminator=gan.discriminator.clone(batchwise=(look,))))


def _spectral(gan: GAN, tx: optax.GradientTransformation) -> GAN:
    return replace(gan, discriminator=gan.discriminator.clone(norm=normalization.spectral))


def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps), b1=0.5, eps_root=1e-16)


R3 = (r1(0.05), r2(0.05))
RECIPES = {
    "plain GAN": Recipe(),
    "average": Recipe(ema=0.999),
    "instance noise": Recipe(lambda gan, tx: replace(gan, augmentation=InstanceNoise(0.1, 2_000))),
    "minibatch discrimination": _looking(MinibatchDiscrimination()),
    "minibatch deviation": _looking(MinibatchDeviation()),
    "PacGAN2": Recipe(lambda gan, tx: replace(gan, packing=2)),
    "PacGAN4": Recipe(lambda gan, tx: replace(gan, packing=4)),
    "mode seeking": Recipe(lambda gan, tx: replace(gan, regularizers=(mode_seeking(),))),
    "unrolled 5": Recipe(lambda gan, tx: replace(gan, unrolling=Unrolling(5, tx)), clip=0.3),
    "spectral": Recipe(_spectral),
    "R1": Recipe(lambda gan, tx: replace(gan, regularizers=(r1(0.05),))),
    "WGAN-GP": Recipe(lambda gan, tx: replace(gan, adversarial=wasserstein(), regularizers=(gradient_penalty(0.1),))),
    "relativistic": Recipe(lambda gan, tx: replace(gan, adversarial=relativistic())),
    "relativistic + R1 + R2": Recipe(lambda gan, tx: replace(gan, adversarial=relativistic(), regularizers=R3)),
    "relativistic + R1 + R2 + average": Recipe(
        lambda gan, tx: replace(gan, adversarial=relativistic(), regularizers=R3), ema=0.999
    ),
}


def played(game: Game, name: str, recipe: Recipe, seeds: int) -> tuple[dict[str, np.ndarray], float]:
    """What each seed's generator gets, by metric, and the seconds of training all of them."""
    tx = _adam(game.rate, game.steps)
    model = recipe.change(game.model, tx)
    clipped = optax.chain(optax.clip_by_global_norm(recipe.clip), tx) if recipe.clip < math.inf else tx
    algorithm = descent(model, {"discriminator": tx, "generator": clipped})
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
    parser.add_argument("--only", nargs="*", choices=list(RECIPES), default=list(RECIPES), help="some recipes, or none")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0, help="instead of those of the set")
    chosen = parser.parse_args()
    if chosen.seeds < 2:
        parser.error("--seeds must be at least 2, for a standard error")
    return chosen


def table(recipes: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what was found of a set, in the order of RECIPES."""
    rows = []
    for title in (title for title in RECIPES if title in recipes):
        found = {name: np.array(values) for name, values in recipes[title].items() if name not in ("seconds", "date")}
        cells = [f"{v.mean():.3g} ± {v.std(ddof=1) / math.sqrt(len(v)):.1g}" for v in found.values()]
        columns = ["recipe", *found, "least " + next(iter(found))]
        rows.append([title, *cells, f"{min(next(iter(found.values()))):g}"])
    return columns, rows


def main() -> None:
    """What is not run this time stays as it was recorded, if it was with as many steps and seeds."""
    chosen = options()
    results = harness_results() / "mode_collapse.json"
    sets = (read_json(results) or {}).get("sets", {})
    where = machine()
    for name in chosen.sets if chosen.only else ():
        game = GAMES[name]()
        game = game._replace(steps=chosen.steps or game.steps)
        protocol = {"steps": game.steps, "seeds": chosen.seeds}
        if {key: sets.get(name, {}).get(key) for key in protocol} != protocol:
            sets[name] = {**protocol, "recipes": {}}
        recipes = sets[name]["recipes"]
        for title in chosen.only:
            found, seconds = played(game, name, RECIPES[title], chosen.seeds)
            measured = {"seconds": seconds, "date": time.strftime("%Y-%m-%d")}
            recipes[title] = measured | {metric: list(values) for metric, values in found.items()}
            write_json(results, {"where": where, "sets": sets})
            print(name, *table({title: recipes[title]})[1][0], sep="  ", flush=True)
    for name, one in sets.items():
        print(f"{name}:", markdown_table(*table(one["recipes"])), sep="\n\n")


if __name__ == "__main__":
    main()
