"""Imputation of tables with categories and counts: mixtures and VAEs of columns by their kind.

python -m benchmarks.quality.imputation_kinds --data DIR [--sets abalone adult20k]

DIR holds NAME.npz with `data`, `columns`, `kinds` and the names of categories. A third of the cells is missing
completely at random. Scores are of the missing cells: RMSE of numbers in standard deviations, and of categories the
share that is right and the log loss in nats of 50 draws. `frequencies` fills means and draws categories by how often
they occur; `MICE` is scikit-learn's IterativeImputer on numbers and one-hot codes, of which the largest counts.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Report
from gen_jax import descent, em, fit, impute
from gen_jax.data.source import Resident
from gen_jax.evaluation.imputation import log_loss
from gen_jax.models.common.columns import Category, Columns, Count, Real
from gen_jax.models.common.networks import MLP
from gen_jax.models.hmm.emissions import Categorical, Gaussian, Poisson, Product
from gen_jax.models.mixture import Mixture
from gen_jax.models.vae import VAE, bounds
from gen_jax.restarts import best_restart

SETS, DRAWS, MOST = ("abalone", "adult20k"), 50, 5000


def table(path: Path) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Rows, standardized where they are real, and the kinds of their columns."""
    with np.load(path) as file:
        x = np.asarray(file["data"], np.float32)
        names, said = (file[entry].astype(str) for entry in ("columns", "kinds"))
        levels = {name: len(file[f"categories_{name}"]) for name in names if f"categories_{name}" in file}
    x = x[~np.isnan(x).any(axis=1)]
    x = x[np.random.default_rng(0).permutation(len(x))[:MOST]]
    of = {
        "categorical": lambda name: Category(levels[name]),
        "count": lambda name: Count(),
        "real": lambda name: Real(),
    }
    kinds = tuple(of[kind](name) for name, kind in zip(names, said))
    real = [i for i, kind in enumerate(kinds) if isinstance(kind, Real)]
    x[:, real] = (x[:, real] - x[:, real].mean(axis=0)) / x[:, real].std(axis=0)
    return x, kinds


def draws_of_mixture(given: np.ndarray, kinds: tuple[Any, ...], components: int = 20) -> np.ndarray:
    reals = tuple(i for i, kind in enumerate(kinds) if isinstance(kind, Real))
    parts: list[Any] = [(reals, Gaussian(regularization=0.01, missing=True))]
    for i, kind in enumerate(kinds):
        if i not in reals:
            parts.append(((i,), Categorical(kind.levels, 1.5) if isinstance(kind, Category) else Poisson(prior=0.1)))
    model = Mixture(components, Product(tuple(parts)))
    algorithm = best_restart(em(model), 4, "log_posterior", iterations=10)
    return draws(model, fit(algorithm, Resident({"x": given}, missing=True), 50, chunk=10), given)


def draws_of_vae(given: np.ndarray, kinds: tuple[Any, ...], latent: int = 8) -> np.ndarray:
    likelihood = Columns(kinds)
    encoder, decoder = MLP((128, 128), 2 * latent), MLP((128, 128), likelihood.outputs)
    model = VAE(encoder, decoder, likelihood, latent, bound=bounds.iwae, samples=20, missing=True)
    source = Resident({"x": given}, 128, missing=True)
    return draws(model, fit(descent(model, {"vae": optax.adam(1e-3)}), source, 4000, chunk=100), given)


def draws(model: Any, state: Any, given: np.ndarray) -> np.ndarray:
    """(DRAWS, N, D)."""
    mask, parts = ~np.isnan(given), []
    program = jax.jit(lambda x, mask, key: impute(model, state, x, mask, key, DRAWS))
    for start in range(0, len(given), 250):
        rows = np.minimum(np.arange(start, start + 250), len(given) - 1)
        made = program(jnp.nan_to_num(given[rows]), mask[rows], jax.random.key(start))
        parts.append(np.asarray(made)[:, : len(given) - start])
    return np.concatenate(parts, axis=1)


def draws_of_frequencies(given: np.ndarray, kinds: tuple[Any, ...]) -> np.ndarray:
    """Means of numbers, and categories drawn by their frequencies."""
    rng, made = np.random.default_rng(0), np.empty((DRAWS, *given.shape), np.float32)
    for i, kind in enumerate(kinds):
        known = given[~np.isnan(given[:, i]), i]
        made[:, :, i] = rng.choice(known, made.shape[:2]) if isinstance(kind, Category) else known.mean()
    return np.where(np.isnan(given), made, given)


def filled_by_chained_equations(given: np.ndarray, kinds: tuple[Any, ...]) -> np.ndarray:
    """(1, N, D)."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it is found by being imported
    from sklearn.impute import IterativeImputer

    coded, places = [], []
    for i, kind in enumerate(kinds):
        column = given[:, i]
        one = np.eye(kind.levels)[np.nan_to_num(column).astype(int)] if isinstance(kind, Category) else column[:, None]
        places.append(np.arange(one.shape[1]) + sum(map(len, places)))
        coded.append(np.where(np.isnan(column)[:, None], np.nan, one))
    with warnings.catch_warnings(action="ignore"):
        made = IterativeImputer(max_iter=10, random_state=0, keep_empty_features=True).fit_transform(np.hstack(coded))
    each = [made[:, place].argmax(axis=1) if len(place) > 1 else made[:, place[0]] for place in places]
    return np.stack(each, axis=1)[None]


METHODS = {
    "frequencies": draws_of_frequencies,
    "MICE, one-hot": filled_by_chained_equations,
    "gen_jax mixture": draws_of_mixture,
    "gen_jax VAE": draws_of_vae,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # the report has options of its own
    report = Report("imputation_kinds")
    for name in chosen.sets:
        x, kinds = table(chosen.data / f"{name}.npz")
        missing = np.random.default_rng(0).uniform(size=x.shape) < 1 / 3
        missing[missing.all(axis=1), 0] = False
        for method, make in METHODS.items():
            drawn = make(np.where(missing, np.nan, x).astype(np.float32), kinds)
            numbers, right, loss = [], [], []
            for i, kind in enumerate(kinds):
                mine, truth = drawn[:, missing[:, i], i], x[missing[:, i], i]
                if not isinstance(kind, Category):
                    numbers.append((mine.mean(axis=0) - truth) ** 2 / x[:, i].var())
                    continue
                counts = np.stack([(np.rint(mine) == c).sum(axis=0) for c in range(kind.levels)])
                right.append(counts.argmax(axis=0) == truth)
                loss.append(log_loss(mine, truth, kind.levels) if len(mine) > 1 else np.full(len(truth), np.nan))
            mean = lambda parts: float(np.concatenate(parts).mean())
            report.fact(f"{name}: {method}, numbers", mean(numbers) ** 0.5, "RMSE")
            report.fact(f"{name}: {method}, categories", mean(right), "right")
            if np.isfinite(mean(loss)):
                report.fact(f"{name}: {method}, log loss of categories", mean(loss), "nats")
            jax.clear_caches()
    report.finish()


if __name__ == "__main__":
    main()
