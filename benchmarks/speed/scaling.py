"""How EM and descent scale over processes and devices of this machine, and on paper over accelerators.

python -m benchmarks.speed.scaling [--only GMM]

Processes are pinned to a core each: one process on one core against two on two, with the same data (strong scaling) and
with as much data for each (weak scaling). Devices of a CPU share its cores: a batch divided over them shows what
dividing costs, not what it gains.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks.harness import Report, beside, options
from gen_jax.algorithms import em
from gen_jax.data import Resident
from gen_jax.loop import program
from gen_jax.markdown import markdown_table
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.models.mixture import DIAGONAL, GMM, random_from_data
from gen_jax.profiling.measure import Case, measure_case
from gen_jax.profiling.projection import Cluster, step_work, table
from gen_jax.sharding import Layout, force_cpu_devices, start_processes

ROUNDS = 7
LARGE = ("gmm_digits", "hmm_chorales", "hvae_mnist", "sngan_mnist", "realnvp_mnist")


def problem(name: str, times: int) -> tuple[object, np.ndarray]:
    rng = np.random.default_rng(0)
    if name == "GMM EM, 50,000 x 16, K = 32":
        return GMM(32, start=random_from_data), rng.normal(size=(50_000 * times, 16)).astype(np.float32)
    return HMM(16, Gaussian(DIAGONAL)), rng.normal(size=(64 * times, 500, 4)).astype(np.float32)


PROBLEMS = ("GMM EM, 50,000 x 16, K = 32", "HMM EM, 64 x 500 x 4, K = 16")


def worker(case: str) -> None:
    """One process of several: prints the median seconds of an iteration."""
    name, times, rank = case.split("/")
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(rank)]})
    start_processes()
    model, x = problem(name, int(times))
    ready = program(em(model), Resident({"x": x}), 1, Layout())
    state, seen = ready.initial_state(), []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        state, _, token = ready.advance(state, ready.zeros(), ready.source.window(0, 1), 1)
        token.block_until_ready()
        seen.append(time.perf_counter() - start)
    print(statistics.median(seen[1:]))


def seconds(name: str, times: int, processes: int) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = []
    for rank in range(processes):
        environment = beside(
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(processes), JAX_PROCESS_ID=str(rank)
        )
        command = [sys.executable, "-m", __spec__.name, "--case", f"{name}/{times}/{rank}"]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    return max(float(process.communicate()[0].split()[-1]) for process in running)


def over_processes(report: Report, name: str) -> None:
    one, strong, weak = (seconds(name, times, processes) for times, processes in ((1, 1), (1, 2), (2, 2)))
    report.row(f"{name}: the same data over 2 processes", strong, "1 process", one)
    report.fact(f"{name}: efficiency of 2 processes, strong scaling", one / strong / 2, "")
    report.fact(f"{name}: efficiency of 2 processes, weak scaling", one / weak, "")


def over_devices(report: Report) -> None:
    numbers = [n for n in (1, 2, 4) if n <= jax.device_count()]
    for config in ("vae_digits", "gmm_digits", "hmm_gaussian"):
        one, *more = (measure_case(Case(config, devices=n)).p50 for n in numbers)
        for n, found in zip(numbers[1:], more):
            what = f"{config}: a batch divided over {n} devices on the same cores"
            report.row(what, found, "1 device", one)


def main() -> None:
    if case := options().case:
        return worker(case)
    report, only = Report("scaling"), options().only
    for name in PROBLEMS:
        if only in name:
            over_processes(report, name)
    force_cpu_devices(4)  # after the processes, which inherit what it changes
    if only in "devices":
        over_devices(report)
    if only in "accelerators":
        header, rows = table([step_work(Case(config)) for config in LARGE])
        said = "On paper, a large config of each family on H100s, by the formula of `gen_jax/profiling/projection.py`"
        report.note(f"{said} ({Cluster()}):\n\n{markdown_table(header, rows)}")
    report.finish()


if __name__ == "__main__":
    main()
