"""Fits of the estimators beside scikit-learn's and hmmlearn's, and their arguments:  python -m benchmarks.quality.fits

On data that scikit-learn and gen_jax carry. From the same start both must end at the same log-likelihood; from their
own starts, the best of ten, either may find the better optimum. All in float64.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import hmmlearn.hmm
import hmmlearn.vhmm
import numpy as np
import sklearn.datasets
import sklearn.mixture
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from benchmarks.harness import results, without_paths
from gen_jax import estimators
from gen_jax.data import load
from gen_jax.files import write_json
from gen_jax.logs import environment, machine

STARTS = 10
PEERS = {
    "GaussianMixture": sklearn.mixture.GaussianMixture,
    "BayesianGaussianMixture": sklearn.mixture.BayesianGaussianMixture,
    "GaussianHMM": hmmlearn.hmm.GaussianHMM,
    "GMMHMM": hmmlearn.hmm.GMMHMM,
    "CategoricalHMM": hmmlearn.hmm.CategoricalHMM,
    "PoissonHMM": hmmlearn.hmm.PoissonHMM,
    "VariationalGaussianHMM": hmmlearn.vhmm.VariationalGaussianHMM,
    "VariationalCategoricalHMM": hmmlearn.vhmm.VariationalCategoricalHMM,
}
KINDS = ("full", "tied", "diag", "spherical")


def arguments() -> Iterator[list[str]]:
    """Rows: estimator, argument, default here, default there."""
    for name, peer in PEERS.items():
        ours = inspect.signature(getattr(estimators, name)).parameters
        theirs = inspect.signature(peer).parameters
        for argument in dict.fromkeys([*theirs, *ours]):
            yield [name, argument, *(_default(of.get(argument)) for of in (ours, theirs))]


def _default(parameter: inspect.Parameter | None) -> str:
    return "not there" if parameter is None else repr(parameter.default)


def mixtures() -> Iterator[list[Any]]:
    """Gaussian mixtures on scikit-learn's tables: mean log-likelihoods in nats."""
    for name, k in (("iris", 3), ("wine", 3), ("breast_cancer", 2)):
        x = StandardScaler().fit_transform(getattr(sklearn.datasets, f"load_{name}")().data)
        for kind in KINDS:
            start = sklearn.mixture.GaussianMixture(k, covariance_type=kind, random_state=0, max_iter=1).fit(x)
            common = dict(covariance_type=kind, tol=1e-8, max_iter=2000)
            given = dict(weights_init=start.weights_, means_init=start.means_, precisions_init=start.precisions_)
            same = [make(k, **common, **given).fit(x).score(x) for make in _both("GaussianMixture")]
            own = [
                make(k, **common, n_init=STARTS, random_state=0).fit(x).score(x) for make in _both("GaussianMixture")
            ]
            yield [f"{name}, {len(x)} x {x.shape[1]}", f"GaussianMixture({k}, {kind!r})", *same, *own]


def chains() -> Iterator[list[Any]]:
    """Chains on simulated sequences and on symbols: log-likelihoods of all steps in nats."""
    sequences = np.asarray(load("gaussian_hmm")["train"]["x"][:20], np.float64)
    x, lengths = sequences.reshape(-1, sequences.shape[2]), [sequences.shape[1]] * len(sequences)
    counts = np.floor(np.abs(x))
    symbols = np.minimum(counts[:, :1], 4).astype(int)
    priorless = dict(covars_prior=0.0, covars_weight=0.0, min_covar=0.0)
    cases = [("GaussianHMM", x, dict(covariance_type=kind, **priorless)) for kind in ("full", "tied", "diag")]
    cases += [("PoissonHMM", counts, {}), ("CategoricalHMM", symbols, {})]
    for name, data, given in cases:
        common = dict(n_iter=2000, tol=1e-6, implementation="scaling")
        start = PEERS[name](3, random_state=0, n_iter=1, tol=-np.inf, **given).fit(data, lengths)
        attributes = ["startprob_", "transmat_"]
        attributes += {"PoissonHMM": ["lambdas_"], "CategoricalHMM": ["emissionprob_"]}.get(name, ["means_", "covars_"])
        same = []
        for make in _both(name):
            model = make(3, init_params="", **common, **given)
            for attribute in attributes:
                value = getattr(start, attribute)
                setattr(
                    model, attribute, _stored(value, given.get("covariance_type")) if attribute == "covars_" else value
                )
            same.append(model.fit(data, lengths).score(data, lengths))
        ours, peer = _both(name)
        own = [ours(3, n_init=STARTS, random_state=0, **common, **given).fit(data, lengths).score(data, lengths)]
        fits = [peer(3, random_state=seed, **common, **given).fit(data, lengths) for seed in range(STARTS)]
        own.append(max(fit.score(data, lengths) for fit in fits))
        kind = f", {given['covariance_type']!r}" if given else ""
        yield [f"sequences, {len(lengths)} of {lengths[0]} steps", f"{name}(3{kind})", *same, *own]


def _both(name: str) -> tuple[Any, Any]:
    return getattr(estimators, name), PEERS[name]


def _stored(covariances: np.ndarray, kind: str) -> np.ndarray:
    """Covariances as hmmlearn takes them, from those it hands out."""
    return {"full": covariances, "tied": covariances[0], "diag": np.diagonal(covariances, axis1=1, axis2=2)}[kind]


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = [*mixtures(), *chains()]
    record = {
        "where": machine(),
        "environment": without_paths(environment()),
        "starts": STARTS,
        "arguments": list(arguments()),
        "rows": rows,
    }
    for row in rows:
        print(*row, sep="  ")
    write_json(results() / "fits.json", record)


if __name__ == "__main__":
    main()
