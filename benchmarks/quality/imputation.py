"""Imputation of published tables: Gaussian mixtures of this project against scikit-learn's imputers.

python -m benchmarks.quality.imputation --data DIR [--sets concrete energy] [--masks 3]

DIR holds NAME.npz with `data`. Columns are standardized by all rows, the target among them. MCAR: each cell is missing
with the same probability; MAR: 30 % of the columns are always there, and the others are missing with a probability that
depends on these; MNAR: in half of the columns every value above the mean is missing. Scores are of the missing cells:
RMSE of the filled value, and of 50 draws the CRPS and the share of central 90 % intervals that cover. The forest is
fitted to one mask only. What has been computed is kept in `runs/imputation`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.harness import ROOT, Report
from gen_jax.estimators import GaussianMixture, Imputer
from gen_jax.logs import read_json, write_json

KEPT = ROOT / "runs" / "imputation" / "scores.json"
SETS = ("yacht", "energy", "breast_wisconsin", "concrete", "wine_quality_red")
MECHANISMS = ("MCAR .3", "MCAR .5", "MAR .3", "MNAR half")
DRAWS = 50


def masked(x: np.ndarray, mechanism: str, rng: np.random.Generator) -> np.ndarray:
    """(N, D) whether a cell is missing; no row is missing as a whole."""
    kind, share = mechanism.split()
    if kind == "MNAR":
        half = np.arange(x.shape[1]) < x.shape[1] // 2
        return half & (x > x.mean(axis=0))
    if kind == "MCAR":
        missing = rng.uniform(size=x.shape) < float(share)
    else:
        always = rng.permutation(x.shape[1]) < max(1, round(0.3 * x.shape[1]))
        logits = x[:, always] @ rng.normal(size=(always.sum(), (~always).sum()))
        logits = 2 * (logits - logits.mean(axis=0)) / logits.std(axis=0)
        missing = np.zeros(x.shape, bool)
        missing[:, ~always] = rng.uniform(size=logits.shape) < _shifted(logits, float(share))
    missing[missing.all(axis=1), 0] = False
    return missing


def _shifted(logits: np.ndarray, share: float) -> np.ndarray:
    """Probabilities of these logits, shifted so that each column has this mean (bisection)."""
    low, high = np.full(logits.shape[1], -20.0), np.full(logits.shape[1], 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 / (1 + np.exp(-(logits + middle)))).mean(axis=0) > share
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 1 / (1 + np.exp(-(logits + low)))


def rivals() -> dict[str, Any]:
    """Imputers of scikit-learn, and those of this project that only fill."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it is found by being imported
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    forest = RandomForestRegressor(30, random_state=0, n_jobs=1)
    return {
        "mean": SimpleImputer(),
        "MICE": IterativeImputer(max_iter=10, random_state=0),
        "kNN (5)": KNNImputer(),
        "forest": IterativeImputer(forest, max_iter=4, random_state=0),
        "gen_jax Gaussian": Imputer(GaussianMixture(1, reg_covar=1e-6), random_state=0),
        "gen_jax mixture": Imputer(random_state=0),
    }


def scores(imputer: Any, x: np.ndarray, missing: np.ndarray) -> dict[str, float]:
    """RMSE, seconds, and for imputers that draw CRPS and coverage."""
    given, began = np.where(missing, np.nan, x), time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        filled = imputer.fit_transform(given)
    found = {"RMSE": float(np.sqrt(np.mean((filled - x)[missing] ** 2))), "seconds": time.perf_counter() - began}
    if isinstance(imputer, Imputer):
        drawn, truth = np.sort(imputer.sample(given, DRAWS)[:, missing], axis=0), x[missing]
        places = 2 * np.arange(1, DRAWS + 1)[:, None] - DRAWS - 1
        spread = (places * drawn).sum(axis=0) / DRAWS**2  # half of the mean difference of two draws
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        found["CRPS"] = float(np.mean(np.abs(drawn - truth).mean(axis=0) - spread))
        found["coverage"] = float(np.mean((low <= truth) & (truth <= high)))
    return found


def measure(folder: Path, sets: list[str], masks: int) -> dict[str, Any]:
    """{set, mechanism, method, mask: scores}."""
    found = read_json(KEPT) or {}
    for name in sets:
        with np.load(folder / f"{name}.npz") as file:
            x = np.asarray(file["data"], np.float64)
        x = x[~np.isnan(x).any(axis=1)]
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        for mechanism in MECHANISMS:
            for mask in range(1 if mechanism.startswith("MNAR") else masks):
                missing = masked(x, mechanism, np.random.default_rng(mask))
                for method, imputer in rivals().items():
                    key = f"{name}, {mechanism}, {method}, {mask}"
                    if key in found or (method == "forest" and mask):
                        continue
                    found[key] = scores(imputer, x, missing)
                    print(key, {what: round(value, 3) for what, value in found[key].items()}, flush=True)
                KEPT.parent.mkdir(parents=True, exist_ok=True)
                write_json(KEPT, found)
        jax.clear_caches()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--masks", type=int, default=3)
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    found, report = measure(chosen.data, chosen.sets, chosen.masks), Report("imputation")
    for name in chosen.sets:
        for mechanism in MECHANISMS:
            for method in rivals():
                mine = [one for key, one in found.items() if key.startswith(f"{name}, {mechanism}, {method}, ")]
                if mine:
                    mean = lambda what, mine=mine: statistics.mean(one[what] for one in mine)
                    more = f", CRPS {mean('CRPS'):.3f}, 90 % cover {mean('coverage'):.3f}" if "CRPS" in mine[0] else ""
                    report.fact(f"{name}, {mechanism}: {method} ({len(mine)} masks{more})", mean("RMSE"), "RMSE")
    report.finish()


if __name__ == "__main__":
    main()
