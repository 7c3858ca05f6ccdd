"""Metrics of samples against pytorch-fid and prdc: the same features, the same numbers, then seconds and memory.

python -m benchmarks.speed.metrics [--only Frechet]          (needs the `bench` extra)
"""

from __future__ import annotations

import contextlib
import os
import time

import jax
import numpy as np
import scipy.linalg
from prdc import compute_prdc

from benchmarks.harness import (  # before PyTorch: it keeps TensorFlow out
    Report,
    growth,
    in_turns,
    options,
    peak_megabytes,
)

from pytorch_fid.fid_score import calculate_frechet_distance  # isort: skip

from gen_jax.evaluation.samples.distances import Moments, frechet, manifold
from gen_jax.evaluation.samples.inception import Inception, prepared
from gen_jax.profiling.device import matmul_peak

N, DIMENSIONS, NEIGHBORS = 10_000, 512, 5


def features(n: int, d: int, seed: int) -> np.ndarray:
    """Correlated ones, as those of networks are: of a spectrum that falls like 1 / rank, beside each other."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(d, d)))[0]
    x = rng.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1)) * (1 + 0.1 * seed)
    return (x @ turn + 0.02 * seed).astype(np.float32)


def theirs_frechet(a: Moments, b: Moments) -> float:
    """That of pytorch-fid, whose call of sqrtm SciPy has taken another sign since."""
    try:
        return float(calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance))
    except (TypeError, ValueError):
        root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
        between = np.sum((a.mean - b.mean) ** 2)
        return float(between + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root.real))


def distance(report: Report) -> None:
    x, y = features(N, 2048, 0), features(N, 2048, 1)
    a, b = Moments.of(x), Moments.of(y)
    ours, theirs = frechet(a, b), theirs_frechet(a, b)
    apart = abs(ours - theirs) / theirs
    seconds = in_turns({"ours": lambda: frechet(a, b), "theirs": lambda: theirs_frechet(a, b)}, rounds=3)
    quality = f"relative difference {apart:.1e}"
    report.row("Frechet distance, D = 2,048", seconds["ours"], "pytorch-fid", seconds["theirs"], ">= 5", quality, 0.0)
    moments = lambda: Moments.of(x)
    plain = lambda: (x.mean(axis=0), np.cov(x, rowvar=False))
    quality = f"relative difference {np.abs(moments().covariance - plain()[1]).max() / np.abs(plain()[1]).max():.1e}"
    seconds = in_turns({"ours": moments, "theirs": plain}, rounds=3)
    report.row("moments of 10,000 x 2,048", seconds["ours"], "numpy.cov", seconds["theirs"], "", quality, 0.0)


def theirs_manifold(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return compute_prdc(x, y, NEIGHBORS)


def neighbors(report: Report) -> None:
    x, y = features(N, DIMENSIONS, 0), features(N, DIMENSIONS, 1)
    start = time.perf_counter()
    found = manifold(x, y, NEIGHBORS)
    compiling = time.perf_counter() - start
    ours = {
        "precision": found.covered.mean(),
        "recall": found.reached.mean(),
        "density": found.balls.mean() / NEIGHBORS,
        "coverage": found.occupied.mean(),
    }
    apart = max(abs(ours[name] - value) for name, value in theirs_manifold(x, y).items())
    calls = {"ours": lambda: manifold(x, y, NEIGHBORS), "theirs": lambda: theirs_manifold(x, y)}
    seconds = in_turns(calls, rounds=3)
    what = "precision, recall, density, coverage, 10,000 x 10,000 x 512"
    quality = f"largest difference {apart:.1e}"
    row = what, seconds["ours"], "prdc", seconds["theirs"], ">= 5", quality, compiling - seconds["ours"]
    products = 4 * N * N * DIMENSIONS / matmul_peak() / seconds["ours"]  # of two sets with each other, half of each
    report.row(*row, why=f"their matrix products at this machine's peak take {100 * products:.0f} % of our time")
    grown = {name: peak_megabytes(__spec__.name, name) for name in MEMORY}
    report.note("Memory of those four: " + ", ".join(f"{name} {value:.0f} MB" for name, value in grown.items()) + ".")


def memory_of(name: str) -> None:
    x, y = features(N, DIMENSIONS, 0), features(N, DIMENSIONS, 1)
    MEMORY[name](x[:512], y[:512])
    print(growth(lambda: MEMORY[name](x, y)))


MEMORY = {"gen_jax": lambda x, y: manifold(x, y, NEIGHBORS), "prdc": theirs_manifold}


def encoder(report: Report) -> None:
    """Random weights: the time is the same. Only where both compute on the CPU."""
    if jax.default_backend() != "cpu":
        return
    import pytorch_fid.inception as peer
    import torch

    blank = peer._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    peer._inception_v3 = lambda **options: blank
    torch.nn.Module.load_state_dict = lambda self, state: None
    peer.load_state_dict_from_url = lambda *words, **options: {}
    network = peer.InceptionV3([3]).eval()
    x = np.random.default_rng(0).uniform(size=(32, 32, 32, 3)).astype(np.float32)
    params = jax.jit(Inception().init)(jax.random.key(0), prepared(x[:1]))
    see = jax.jit(lambda x: Inception().apply(params, prepared(x))[0])

    def theirs() -> None:
        with torch.no_grad():
            network(torch.tensor(x.transpose(0, 3, 1, 2)))

    seconds = in_turns({"ours": lambda: see(x), "theirs": theirs}, rounds=3)
    report.row("Inception features of 32 images", seconds["ours"], "pytorch-fid", seconds["theirs"])


CASES = {"Frechet": distance, "neighbors": neighbors, "Inception": encoder}


def main() -> None:
    chosen = options()
    if chosen.case:
        return memory_of(chosen.case)
    report = Report("metrics")
    for name, case in CASES.items():
        if chosen.only in name:
            case(report)
    report.finish()


if __name__ == "__main__":
    main()
