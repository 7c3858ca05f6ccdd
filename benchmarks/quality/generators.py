"""Generators of images at equal seconds of training: StyleGAN2 against DCGAN and WGAN-GP, growing against not growing.

python -m benchmarks.quality.generators [--seconds 300] [--seeds 3] [--only digits]

Each run trains for the same seconds on this machine, compilation not counted, with the knobs of its config. Scores are
of 2,000 samples of the averaged generator: the Fréchet distance to the training examples by the small encoder of the
data, classes that samples cover, precision and recall, and where the config has it the sliced Wasserstein distance at
each size. What has been computed is kept in `runs/generators`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import jax

from benchmarks.harness import ROOT, Report
from gen_jax.configs import load as load_config
from gen_jax.core import averaged
from gen_jax.data import load
from gen_jax.files import read_json, write_json
from gen_jax.loop import program

KEPT = ROOT / "runs" / "generators" / "scores.json"
GROUPS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {  # {title: (config, knobs)}
    "digits": {
        "DCGAN": ("dcgan_digits", {}),
        "WGAN-GP": ("wgan_gp_digits", {}),
        "StyleGAN2": ("stylegan2_digits", {}),
    },
    "digits16": {
        "growing": ("progan_digits", {"phase": 6.0, "steps": 10**6}),
        "not growing": ("progan_digits", {"growing": False, "batch": 16}),
        "not growing, skip": ("progan_digits", {"growing": False, "batch": 16, "architecture": "skip"}),
        "not growing, msg": ("progan_digits", {"growing": False, "batch": 16, "architecture": "msg"}),
    },
}
SHOWN = ("frechet_distance", "classes", "precision", "recall", "sliced_wasserstein_16", "sliced_wasserstein_8")
CHUNK = 50


def scores(config: str, knobs: dict[str, Any], seconds: float, seed: int) -> dict[str, float]:
    """Scores of a run that trains for so many seconds."""
    experiment = load_config(config, knobs).build()
    data = load(experiment.data) if isinstance(experiment.data, str) else experiment.data
    began = time.perf_counter()
    ready = program(experiment.algorithm, experiment.source(data, seed), CHUNK, experiment.layout)
    state, steps = ready.run(CHUNK, seed=seed), CHUNK
    jax.block_until_ready(state)
    found = {"compilation": time.perf_counter() - began}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        steps += CHUNK
        state = jax.block_until_ready(ready.run(steps, state=state))
    found["steps"] = steps
    split = experiment.split(data, "test")
    for metric in experiment.metrics:
        for name, estimate in metric(experiment.model)(averaged(state), split, jax.random.key(seed)).items():
            if name.partition("@")[0] in SHOWN:
                found[name.partition("@")[0]] = estimate.value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    found = read_json(KEPT) or {}
    for seed in range(chosen.seeds):
        for group in chosen.only:
            for title, (config, knobs) in GROUPS[group].items():
                key = f"{group}, {title}, {chosen.seconds:g} s, seed {seed}"
                if key not in found:
                    found[key] = scores(config, knobs, chosen.seconds, seed)
                    print(key, {name: round(value, 3) for name, value in found[key].items()}, flush=True)
                    KEPT.parent.mkdir(parents=True, exist_ok=True)
                    write_json(KEPT, found)
                    jax.clear_caches()
    report = Report("generators")
    for group, runs in GROUPS.items():
        for title in runs:
            start = f"{group}, {title}, {chosen.seconds:g} s, "
            mine = [value for key, value in found.items() if key.startswith(start)]
            if mine:
                summarize(report, f"{group}, {title}, {chosen.seconds:g} s", mine)
    report.finish()


def summarize(report: Report, title: str, mine: list[dict[str, float]]) -> None:
    """Means over seeds, with the values of each."""
    mean = lambda name: statistics.mean(one[name] for one in mine)
    for name in SHOWN:
        if name in mine[0]:
            each = ", ".join(f"{one[name]:.3g}" for one in mine)
            report.fact(f"{title}: {name} ({len(mine)} seeds: {each})", mean(name), "")
    report.fact(f"{title}: steps, after {mean('compilation'):.0f} s of compilation", mean("steps"), "")


if __name__ == "__main__":
    main()
