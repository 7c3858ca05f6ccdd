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
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.harness import results as harness_results
from gen_jax.configs import load as load_config
from gen_jax.core import averaged
from gen_jax.data import load
from gen_jax.files import read_json, write_json
from gen_jax.logs import machine
from gen_jax.loop import fit
from gen_jax.markdown import markdown_table
from gen_jax.restarts import member, population

SETS = {  # steps, batch and learning rate of each data set of the config gan_grid25
    "ring8": (12_500, 128, 2e-3),
    "grid25": (15_000, 128, 2e-3),
    "stacked_digits": (2_500, 64, 1e-3),
    "stacked_mnist": (20_000, 64, 1e-3),  # needs MNIST, and better an accelerator
}
RECIPES = {  # titles of the remedies of the config gan_grid25
    "plain GAN": "none",
    "average": "average",
    "instance noise": "instance_noise",
    "minibatch discrimination": "minibatch_discrimination",
    "minibatch deviation": "minibatch_deviation",
    "PacGAN2": "pacgan2",
    "PacGAN4": "pacgan4",
    "mode seeking": "mode_seeking",
    "unrolled 5": "unrolled",
    "spectral": "spectral",
    "R1": "r1",
    "WGAN-GP": "wgan_gp",
    "relativistic": "relativistic",
    "relativistic + R1 + R2": "r3",
    "relativistic + R1 + R2 + average": "r3_average",
}


def train_seeds(name: str, remedy: str, steps: int, seeds: int) -> tuple[dict[str, np.ndarray], float]:
    """The metrics of each seed's generator, and the seconds of training all of them as one program."""
    _, batch, lr = SETS[name]
    knobs = {"data": name, "remedy": remedy, "steps": steps, "batch": batch, "lr": lr}
    experiment = load_config("gan_grid25", knobs).build()
    data = load(experiment.data)
    start = time.perf_counter()
    algorithm = population(experiment.algorithm, seeds)
    state = fit(algorithm, experiment.source(data), steps, chunk=math.gcd(500, steps))
    seconds = time.perf_counter() - start
    measure, split = experiment.metrics[0](experiment.model), experiment.split(data, "test")
    found = [measure(averaged(member(state, i)), split, jax.random.key(i)) for i in range(seeds)]
    return {metric: np.array([one[metric].value for one in found]) for metric in found[0]}, seconds


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["ring8", "grid25", "stacked_digits"])
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
        steps = chosen.steps or SETS[name][0]
        protocol = {"steps": steps, "seeds": chosen.seeds}
        if {key: sets.get(name, {}).get(key) for key in protocol} != protocol:
            sets[name] = {**protocol, "recipes": {}}
        recipes = sets[name]["recipes"]
        for title in chosen.only:
            found, seconds = train_seeds(name, RECIPES[title], steps, chosen.seeds)
            measured = {"seconds": seconds, "date": time.strftime("%Y-%m-%d")}
            recipes[title] = measured | {metric: list(values) for metric, values in found.items()}
            write_json(results, {"where": where, "sets": sets})
            print(name, *table({title: recipes[title]})[1][0], sep="  ", flush=True)
    for name, one in sets.items():
        print(f"{name}:", markdown_table(*table(one["recipes"])), sep="\n\n")


if __name__ == "__main__":
    main()
