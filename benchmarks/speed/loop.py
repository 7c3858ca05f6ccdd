"""What the training loop costs:  python -m benchmarks.speed.loop

Steps of `fit` with Log and Checkpoint hooks against the bare compiled step; steps with `chunk` against step by step, as
a hand-written loop does it and as `fit` does; how fast streamed data comes; and how long a command takes to start.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import ROOT, Report, Seconds, beside, in_turns
from gen_jax.algorithms import descent
from gen_jax.checkpoint import Checkpoints
from gen_jax.configs import load as load_config
from gen_jax.core import Mean, Objective, fold_in
from gen_jax.data import Resident, load
from gen_jax.data.source import Streamed
from gen_jax.hooks import Checkpoint, Log
from gen_jax.logs import Writer
from gen_jax.loop import Hook, fit, initial_state, program
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN
from gen_jax.profiling.measure import Case, keep_programs, measure_case, step_times

ROUNDS, CHUNK = 5, 500


class Regression:
    """A step of any length: an MLP of the given width predicts x from x."""

    def __init__(self, width: int):
        self.net = MLP((width, width), 2)

    def init(self, key, batch):
        return {"net": self.net.init(fold_in(key, "net"), batch["x"])["params"]}, {}

    def loss(self, params, state, batch, key):
        error = jnp.mean((self.net.apply({"params": params}, batch["x"]) - batch["x"]) ** 2)
        return error, ({}, {"error": Mean.of(error)})

    objectives = property(lambda self: (Objective("net", self.loss),))


class Clock(Hook):
    """The time of a step, from when the first is under way, which waits for the compiler, to the end of the last."""

    def poll(self, step: int) -> None:
        self.began = getattr(self, "began", None) or time.perf_counter()
        self.steps = step

    def seconds(self) -> float:
        return (time.perf_counter() - self.began) / self.steps


def with_hooks(algorithm, source, steps: int) -> float:
    """Seconds per step of `fit` with the hooks of a real run, two saves and a report every 100 steps included."""
    import orbax.checkpoint  # noqa: F401  (or the first save would import it)

    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        clock, writer = Clock(), Writer(folder)
        hooks = [Log(writer, steps, source.batch_size, bar=False), Checkpoint(checkpoints, steps // 2), clock]
        fit(algorithm, source, steps, hooks=hooks)
        seconds = clock.seconds()
        writer.close()
    return seconds


def in_chunks(algorithm, source, steps: int, chunk: int) -> float:
    """Seconds per step of `fit` alone, which reports every CHUNK steps."""
    clock = Clock()
    fit(algorithm, source, steps, chunk=chunk, report_every=CHUNK, hooks=[clock])
    return clock.seconds()


def bare(algorithm, source, seconds: float) -> float:
    """Seconds per step of the very program of `fit` and nothing else."""
    ready = program(algorithm, source)
    return statistics.mean(step_times(ready, ready.initial_state(), 1, seconds))


def by_hand(algorithm, source, steps: int) -> float:
    """Seconds per step of the loop most people write: a batch from NumPy, a jitted step, the loss read each time."""
    x, rng = np.asarray(source.arrays["x"]), np.random.default_rng(0)
    step = jax.jit(algorithm.step, donate_argnums=0)
    state = initial_state(algorithm, source)
    for i in range(steps):
        if i == 1:
            start = time.perf_counter()
        state, metrics = step(state, {"x": x[rng.integers(len(x), size=source.batch)]})
        float(next(iter(metrics.values())).total)
    return (time.perf_counter() - start) / (steps - 1)


def medians(rivals: dict[str, Callable[[], float]]) -> dict[str, Seconds]:
    seen = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, measure in rivals.items():
            seen[name].append(measure())
    return {name: Seconds(values) for name, values in seen.items()}


def start_up() -> dict[str, float]:
    """Seconds from the shell to the help text, and to the first finished step with an empty and a full cache.

    Without TensorFlow, which is here for the peers alone: where it is installed, importing distrax imports it.
    """
    alone = "import runpy, sys; sys.modules['tensorflow'] = None; runpy.run_path('train.py', run_name='__main__')"
    command = [sys.executable, "-c", alone]

    def first_step(cache: str) -> float:
        with tempfile.TemporaryDirectory() as workdir:
            env = beside(JAX_COMPILATION_CACHE_DIR=cache)
            words = ["configs/vae/vae_digits.py", "--steps", "1", "--workdir", workdir, "--no-progress"]
            began = time.time()
            subprocess.run([*command, *words], cwd=ROOT, env=env, check=True, capture_output=True)
            rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
            return rows[0]["time"] - began

    def help_text() -> float:
        began = time.perf_counter()
        subprocess.run([*command, "--help"], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as cache:
        cold = first_step(cache)
        warm = statistics.median(first_step(cache) for _ in range(3))
    return {
        "`train.py --help`": statistics.median(help_text() for _ in range(3)),
        "first step of vae_digits, no compiled programs kept": cold,
        "first step of vae_digits, compiled programs kept": warm,
    }


def main() -> None:
    report = Report("loop")
    with tempfile.TemporaryDirectory() as folder, keep_programs(Path(folder)):  # of every run of `fit` anew
        steps(report)
    pipeline(report)
    for (what, seconds), target in zip(start_up().items(), ("< 2", "< 20", "< 8")):
        report.fact(what, seconds, "s", target)
    report.finish()


def steps(report: Report) -> None:
    plane = Resident(load("ring8")["train"], batch=256)
    slow = descent(Regression(640), {"net": optax.adam(1e-3)})
    found = medians({"fit": lambda: with_hooks(slow, plane, 1000), "bare": lambda: bare(slow, plane, 5.0)})
    report.row("fit with Log and Checkpoint", found["fit"], "bare compiled step", found["bare"], ">= 0.95")

    tx = optax.adam(1e-3)
    for name, width, batch in (("2-D GAN, 2 x 128, batch 256", 128, 256), ("2-D GAN, 2 x 32, batch 64", 32, 64)):
        source = Resident(plane.arrays, batch=batch)
        gan = descent(GAN(MLP((width,) * 2, 2), MLP((width,) * 2, 1), 2), {"discriminator": tx, "generator": tx})
        compare_chunks(report, name, gan, source)
    flow_sized = descent(Regression(16), {"net": tx})
    compare_chunks(report, "2-D regression, 2 x 16, batch 64", flow_sized, Resident(plane.arrays, batch=64))


def compare_chunks(report: Report, name: str, algorithm, source) -> None:
    found = medians(
        {
            "chunk": lambda: in_chunks(algorithm, source, 4 * CHUNK, CHUNK),
            "fit": lambda: in_chunks(algorithm, source, 2 * CHUNK, 1),
            "hand": lambda: by_hand(algorithm, source, 500),
        }
    )
    saved = 1e3 * (found["fit"] - found["chunk"])
    why = f"what a call costs, {saved:.2f} ms, is less than four times the work of the step"
    report.row(f"{name}: chunk = {CHUNK}", found["chunk"], "step by step in fit", found["fit"], ">= 5", why=why)
    report.row(f"{name}: chunk = {CHUNK}", found["chunk"], "hand-written loop", found["hand"])


def pipeline(report: Report) -> None:
    """What a streamed source of images of MNIST's size feeds, against what the step of `vae_mnist` eats."""
    experiment = load_config("configs/vae/vae_mnist.py").build()
    x = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    size, steps = experiment.batch, 400
    source = Streamed(lambda index: {"x": x[index]}, len(x), size)

    def fed() -> None:
        for step in range(steps):
            window = source.window(step, 1)
        jax.block_until_ready(window.batches)

    eaten = measure_case(Case("configs/vae/vae_mnist.py"), 2.0).p50
    seconds = in_turns({"fed": fed})["fed"] / steps
    what = f"a batch of {size} images of 28x28 from a streamed source"
    report.row(what, seconds, "step of vae_mnist", eaten, ">= 5")
    source.close()


if __name__ == "__main__":
    main()
