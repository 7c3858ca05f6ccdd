"""Imputation of published tables: mixtures and VAEs of this project against scikit-learn's imputers.

python -m benchmarks.quality.imputation --data DIR [--sets concrete energy] [--masks 3] [--mechanisms "MNAR half"]

DIR holds NAME.npz with `data`. Columns are standardized by all rows, the target among them. MCAR: each cell is missing
with the same probability; MAR: 30 % of the columns are always there, and the others are missing with a probability that
depends on these; MNAR: in half of the columns every value above the mean is missing. Scores are of the missing cells:
RMSE of the filled value, and of 50 draws the CRPS, the energy score of a row, and the shares of central 50 % and 90 %
intervals that cover. The forest and VAEs are fitted to one mask only; a VAE that models the mask (not-MIWAE) is told
under MNAR that high values are missing. What has been computed is kept in `runs/imputation`, and all of it of the
chosen sets is reported; `--mechanisms` and `--methods` choose what else is computed. White wine under MNAR is the
setting of the paper of not-MIWAE (Ipsen et al. 2021, table 1: 1.035), which trains for 100,000 steps.
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
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import ROOT, Report
from gen_jax import descent, fit
from gen_jax.applications.imputation import importance
from gen_jax.data.source import Resident
from gen_jax.estimators import GaussianMixture, Imputer
from gen_jax.evaluation.imputation import coverage, crps, energy_score
from gen_jax.files import read_json, write_json
from gen_jax.models.common.columns import Columns, Real
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import VAE, bounds
from gen_jax.models.vae.masks import SelfMasking

KEPT = ROOT / "runs" / "imputation" / "scores.json"
SETS = ("yacht", "energy", "breast_wisconsin", "concrete", "wine_quality_red")
LONG = ("wine_quality_white",)  # sets on which the mask is modeled for 100,000 steps, too
MECHANISMS = ("MCAR .3", "MCAR .5", "MAR .3", "MNAR half")
DRAWS = 50
MOST = 5000  # rows of a table that are used


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
        "gen_jax VAE": Autoencoder(),
        "gen_jax VAE, mask": Autoencoder(high=True),
        "gen_jax VAE, mask, 100,000 steps": Autoencoder(high=True, steps=100_000),
    }


ONCE = ("forest", "gen_jax VAE", "gen_jax VAE, mask", "gen_jax VAE, mask, 100,000 steps")  # on one mask only


class Autoencoder:
    """A VAE of the known cells (MIWAE), or of them and of which are known (not-MIWAE).

    As Ipsen et al. 2021: two hidden layers of 128, a latent space of one dimension less than the rows, 20 samples.
    """

    def __init__(self, high: bool = False, steps: int = 20_000, batch: int = 16):
        self.high, self.steps, self.batch = high, steps, batch

    def fit_transform(self, given: np.ndarray) -> np.ndarray:
        x, d = given.astype(np.float32), given.shape[1]
        likelihood = Columns((Real(least=0.05),) * d)
        some = tuple(np.flatnonzero(np.isnan(x).any(axis=0)).tolist())
        self.model = VAE(
            MLP((128, 128), 2 * (d - 1), jnp.tanh),
            MLP((128, 128), likelihood.outputs, jnp.tanh),
            likelihood,
            d - 1,
            bound=bounds.iwae,
            samples=20,
            missing=True,
            mask=SelfMasking("high", some) if self.high else None,
        )
        source = Resident({"x": x}, min(self.batch, len(x)), missing=True)
        self.state = fit(descent(self.model, {"vae": optax.adam(1e-3)}), source, self.steps, chunk=1000)
        return self.sample(given, DRAWS).mean(axis=0)

    def sample(self, given: np.ndarray, n: int) -> np.ndarray:
        x, mask = np.nan_to_num(given).astype(np.float32), ~np.isnan(given)
        program = jax.jit(lambda state, x, mask, key: importance(self.model, state, {"x": x}, mask, key, n))
        parts = []
        for start in range(0, len(x), 256):
            rows = np.minimum(np.arange(start, start + 256), len(x) - 1)
            drawn = np.asarray(program(self.state, x[rows], mask[rows], jax.random.key(start)))
            parts.append(drawn[:, : len(x) - start])
        return np.where(mask, given, np.concatenate(parts, axis=1))


def scores(imputer: Any, x: np.ndarray, missing: np.ndarray) -> dict[str, float]:
    """RMSE, seconds, and for imputers that draw CRPS, energy score and coverage."""
    given, began = np.where(missing, np.nan, x), time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        filled = imputer.fit_transform(given)
    found = {"RMSE": float(np.sqrt(np.mean((filled - x)[missing] ** 2))), "seconds": time.perf_counter() - began}
    if isinstance(imputer, (Imputer, Autoencoder)):
        drawn = imputer.sample(given, DRAWS)
        found["energy"] = float(energy_score(drawn, x, missing).mean())
        drawn, truth = drawn[:, missing], x[missing]
        found["CRPS"] = float(crps(drawn, truth).mean())
        found |= {f"cover {level}": float(coverage(drawn, truth, level).mean()) for level in (0.5, 0.9)}
    return found


def measure(folder: Path, sets: list[str], masks: int, mechanisms: list[str], methods: list[str]) -> dict[str, Any]:
    """{set, mechanism, method, mask: scores}."""
    found = read_json(KEPT) or {}
    for name in sets:
        with np.load(folder / f"{name}.npz") as file:
            x = np.asarray(file["data"], np.float64)
        x = x[~np.isnan(x).any(axis=1)]
        x = x[np.random.default_rng(0).permutation(len(x))[:MOST]]
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        for mechanism in mechanisms:
            for mask in range(1 if mechanism.startswith("MNAR") else masks):
                missing = masked(x, mechanism, np.random.default_rng(mask))
                for method, imputer in rivals().items():
                    key = f"{name}, {mechanism}, {method}, {mask}"
                    if key in found or (method in ONCE and mask) or (methods and method not in methods):
                        continue
                    if "mask" in method and not mechanism.startswith("MNAR"):
                        continue
                    if "100,000" in method and name not in LONG:
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
    parser.add_argument("--mechanisms", nargs="+", default=list(MECHANISMS), choices=MECHANISMS)
    parser.add_argument("--methods", nargs="+", default=[], choices=list(rivals()), help="all by default")
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    found = measure(chosen.data, chosen.sets, chosen.masks, chosen.mechanisms, chosen.methods)
    report = Report("imputation")
    for name in chosen.sets:
        for mechanism in MECHANISMS:
            for method in rivals():
                keys = (f"{name}, {mechanism}, {method}, {mask}" for mask in range(chosen.masks))
                mine = [found[key] for key in keys if key in found]
                if mine:
                    mean = lambda what, mine=mine: statistics.mean(one[what] for one in mine)
                    more = ""
                    if "CRPS" in mine[0]:
                        covers = f"50 % cover {mean('cover 0.5'):.3f}, 90 % {mean('cover 0.9'):.3f}"
                        more = f", CRPS {mean('CRPS'):.3f}, energy {mean('energy'):.3f}, {covers}"
                    report.fact(f"{name}, {mechanism}: {method} ({len(mine)} masks{more})", mean("RMSE"), "RMSE")
    report.finish()


if __name__ == "__main__":
    main()
