"""Steps to be timed beside each other: of this project's configs, and of other libraries in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import beside
from gen_jax.configs import load as load_config
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.loop import initial_state

Step = Callable[[], Any]  # trains on the next batch and returns its loss, which may not be there yet


def images() -> np.ndarray:
    """(N, 28, 28, 1) in [0, 1]."""
    return load(first_available("mnist", "digits28"))["train"]["x"][:12_800].astype(np.float32) / 255


def batches(x: np.ndarray, size: int):
    """Random batches for ever."""
    rng = np.random.default_rng(0)
    while True:
        yield x[rng.integers(0, len(x), size)]


def torch_device() -> str:
    """Where PyTorch computes, in a process beside ours: as JAX does here; products on a GPU are TF32, as there."""
    import torch

    torch.set_num_threads(os.cpu_count())
    if os.environ.get("JAX_BACKEND") != "gpu":
        return "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # the fastest of its convolutions, which XLA looks for too
    return "cuda"


def compiled_step(config: str, **knobs):
    """The config's own algorithm on its own data, which lies on the device: the compiled step, the state, the data."""
    experiment = load_config(config, knobs).build()
    source = jax.tree.map(jnp.asarray, experiment.source(load(experiment.data)))
    algorithm = experiment.algorithm
    step = jax.jit(lambda state, source: algorithm.step(state, source.batch_at(state.step)), donate_argnums=0)
    return step, initial_state(algorithm, source), source


def trained(config: str, metric: str, **knobs) -> Step:
    """The step of a config, which returns this metric."""
    step, state, source = compiled_step(config, **knobs)
    held = [state]

    def run():
        held[0], metrics = step(held[0], source)
        return metrics[metric].value

    return run


class Elsewhere:
    """A rival in a process of its own, so that its threads and memory are its own too."""

    def __init__(self, module: str, name: str):
        command = [sys.executable, "-m", module, "--case", f"{name}/served"]
        pipe = subprocess.PIPE
        environment = beside(JAX_BACKEND=jax.default_backend())
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def ask(self, request: Any) -> float:
        """What it answers to a line."""
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def __call__(self) -> float:
        return self.ask(1)


def answer(reply: Callable[[str], float]) -> None:
    """In the process of a rival: a number for every line it is sent."""
    for line in sys.stdin:
        print(float(reply(line)), flush=True)


def serve(step: Step) -> None:
    """Answers a number of steps with the loss of the last."""
    answer(lambda n: several(step, int(n))())


def several(step: Step, n: int) -> Callable[[], float]:
    """n steps as one thing to time, waiting for the last."""
    if isinstance(step, Elsewhere):
        return partial(step.ask, n)

    def run():
        for _ in range(n):
            loss = step()
        return float(loss)

    return run
