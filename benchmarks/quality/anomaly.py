"""Anomaly detection on 20 published tables: a mixture of this project against nearest neighbors, forests and kernels.

python -m benchmarks.quality.anomaly --data DIR [--seeds 5]

DIR holds the files of ADBench (Han et al. 2022), NAME.npz with X and y. Half of the normal rows, shuffled, is for
training; the rest and all anomalies are the test. Columns are standardized by the training rows; of sets above 10,000
rows a random 10,000 are used. No method sees labels. "published" is the protocol of Livernoche et al. 2024 (DTE): sets
below 1,000 rows are filled with copies first, and the first half of the normal rows in the order of the file is for
training. What has been computed is kept in `runs/anomaly` and not computed again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from benchmarks.harness import ROOT, Report
from gen_jax import Flow, descent, fit
from gen_jax.applications.anomaly import average_precision, roc_auc
from gen_jax.core import State
from gen_jax.data.source import Resident
from gen_jax.estimators import AnomalyDetector
from gen_jax.files import read_json, write_json
from gen_jax.models.bijections import MaskedAutoregressive, Reverse, Standardize
from gen_jax.models.common.columns import Columns, Real
from gen_jax.models.common.networks import MLP
from gen_jax.models.flow import Normal
from gen_jax.models.vae import VAE
from gen_jax.optimizers import adamw

KEPT = ROOT / "runs" / "anomaly" / "areas.json"
MOST, LEAST = 10_000, 1_000
STEPS = 2000  # of flows and VAEs
Method = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # (training, test, seed) -> scores of the test rows


def mixture(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """The density of `AnomalyDetector`, fitted to all training rows."""
    detector = AnomalyDetector(threshold="quantile", random_state=seed)
    return detector.fit(training.astype(np.float32)).anomaly_score(test.astype(np.float32))


def neighbors(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=5).fit(training).kneighbors(test)[0][:, -1]


def kernels(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """A Gaussian kernel density whose bandwidth maximizes the likelihood of a quarter of the training rows."""
    from sklearn.neighbors import KernelDensity

    fitted, held = np.split(training, [len(training) * 3 // 4])
    widths = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    best = max(widths, key=lambda width: KernelDensity(bandwidth=width).fit(fitted[:3000]).score(held[:1000]))
    return -KernelDensity(bandwidth=best).fit(training).score_samples(test)


def forest(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=seed).fit(training).score_samples(test)


def tails(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """ECOD (Li et al. 2022, arXiv:2201.00382): sums of -log tail probabilities of single columns."""
    ordered, n = np.sort(training, axis=0), len(training)
    ranks = np.stack([np.searchsorted(ordered[:, i], test[:, i], "right") for i in range(test.shape[1])], axis=1)
    before = np.stack([np.searchsorted(ordered[:, i], test[:, i], "left") for i in range(test.shape[1])], axis=1)
    left, right = -np.log(np.maximum(ranks, 1) / n), -np.log(np.maximum(n - before, 1) / n)
    skewed = scipy.stats.skew(training, axis=0)
    sides = [left, right, np.where(skewed < 0, left, right)]
    return np.maximum.reduce([side.sum(axis=1) for side in sides])


def flow(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """A masked autoregressive flow of five layers; its density."""
    width = training.shape[1]
    layers = [part for _ in range(5) for part in (MaskedAutoregressive(hidden=(64, 64)), Reverse())]
    model = Flow(Normal((width,)), [*layers[:-1], Standardize()])
    state = _trained(model, "flow", training, seed)
    return -np.asarray(jax.jit(model.log_prob)(state, {"x": jnp.asarray(test, jnp.float32)}))


def autoencoder(training: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """A VAE; its importance-weighted bound with 50 samples."""
    latent, likelihood = max(2, training.shape[1] // 4), Columns((Real(least=0.1),) * training.shape[1])
    model = VAE(MLP((64, 64), 2 * latent), MLP((64, 64), likelihood.outputs), likelihood, latent)
    state = _trained(model, "vae", training, seed)

    @jax.jit
    def bound(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(model.log_weights(state, {"x": x}, jax.random.key(0), 50), axis=0)

    blocks = np.array_split(test.astype(np.float32), max(1, len(test) // 500))
    return -np.concatenate([np.asarray(bound(block)) for block in blocks])


def _trained(model: Any, player: str, training: np.ndarray, seed: int) -> State:
    source = Resident({"x": training.astype(np.float32)}, min(128, len(training)))
    return fit(descent(model, {player: adamw(1e-3, STEPS, 1.0)}), source, STEPS, seed=seed, chunk=100)


METHODS: Mapping[str, Method] = {
    "gen_jax mixture": mixture,
    "kNN (5)": neighbors,
    "KDE": kernels,
    "isolation forest": forest,
    "ECOD": tails,
    "gen_jax flow": flow,
    "gen_jax VAE": autoencoder,
}
PUBLISHED = ("gen_jax mixture", "kNN (5)")


def halves(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows and which of these are anomalies. seed: -1 for the published protocol."""
    with np.load(path) as file:
        x, y = np.asarray(file["X"], np.float64), np.asarray(file["y"]).ravel().astype(bool)
    rng = np.random.default_rng(max(seed, 0))
    if seed < 0 and len(x) < LEAST:
        rows = rng.choice(len(x), LEAST)
        x, y = x[rows], y[rows]
    if len(x) > MOST:
        rows = np.sort(rng.permutation(len(x))[:MOST])
        x, y = x[rows], y[rows]
    normal = np.flatnonzero(~y) if seed < 0 else rng.permutation(np.flatnonzero(~y))
    training, rest = np.split(normal, [len(normal) // 2])
    test = np.concatenate([rest, np.flatnonzero(y)])
    mean, deviation = x[training].mean(axis=0), x[training].std(axis=0)
    x = (x - mean) / np.where(deviation > 0, deviation, 1)
    return x[training], x[test], y[test]


def measure(folder: Path, seeds: int) -> dict[str, dict[str, list[float]]]:
    """{set: {"METHOD, seed N" or "METHOD, published": [AUROC, AP]}} of the sets in the folder."""
    found, names = read_json(KEPT) or {}, []
    for path in sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_size):
        name = path.stem.partition("_")[2] or path.stem
        names.append(name)
        for seed in (*range(seeds), -1):
            todo = [m for m in METHODS if seed >= 0 or m in PUBLISHED]
            key = lambda method, seed=seed: f"{method}, published" if seed < 0 else f"{method}, seed {seed}"
            todo = [method for method in todo if key(method) not in found.get(name, {})]
            if not todo:
                continue
            training, test, anomalous = halves(path, seed)
            for method in todo:
                with warnings.catch_warnings(action="ignore"):
                    scores = METHODS[method](training, test, max(seed, 0))
                areas = [roc_auc(scores, anomalous), average_precision(scores, anomalous)]
                found.setdefault(name, {})[key(method)] = areas
                print(f"{name}, {key(method)}: AUROC {areas[0]:.4f}, AP {areas[1]:.4f}", flush=True)
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            write_json(KEPT, found)
        jax.clear_caches()  # each program holds mappings of memory, of which a process may have 65,530
    return {name: found[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    found, report = measure(chosen.data, chosen.seeds), Report("anomaly")
    for method in METHODS:
        summarize(report, found, method, [f"{method}, seed {seed}" for seed in range(chosen.seeds)])
    for method in PUBLISHED:
        summarize(report, found, f"{method}, published protocol", [f"{method}, published"])
    report.finish()


def summarize(report: Report, found: Mapping[str, Mapping[str, list[float]]], title: str, keys: list[str]) -> None:
    """Means over seeds for each set, and over all sets, with the standard error over seeds."""
    for which, place in (("AUROC", 0), ("AP", 1)):
        each = {name: [100 * areas[key][place] for key in keys] for name, areas in found.items()}
        means = [statistics.mean(values) for values in zip(*each.values())]  # over sets, of each seed
        error = f" ± {statistics.stdev(means) / len(means) ** 0.5:.2f}" if len(means) > 1 else ""
        sets = ", ".join(f"{name} {statistics.mean(values):.1f}" for name, values in each.items())
        report.fact(f"{title}: mean {which} of {len(each)} sets{error} ({sets})", statistics.mean(means), "%")


if __name__ == "__main__":
    main()
