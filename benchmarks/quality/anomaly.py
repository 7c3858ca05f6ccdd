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

import jax
import numpy as np

from benchmarks.harness import ROOT, Report
from gen_jax.applications.anomaly import average_precision, roc_auc
from gen_jax.estimators import AnomalyDetector
from gen_jax.logs import read_json, write_json

KEPT = ROOT / "runs" / "anomaly" / "areas.json"
MOST, LEAST = 10_000, 1_000
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


METHODS: Mapping[str, Method] = {
    "gen_jax mixture": mixture,
    "kNN (5)": neighbors,
    "KDE": kernels,
    "isolation forest": forest,
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
