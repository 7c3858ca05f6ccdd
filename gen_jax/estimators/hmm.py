"""Hidden Markov models with hmmlearn's arguments and attributes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gen_jax.estimators.baum_welch import BaumWelchEstimator
from gen_jax.estimators.common import (
    KINDS,
    assign,
    at_least,
    broadcast,
    covariance_matrices,
    numbers,
    one_of,
    points,
    probabilities,
    whole,
)
from gen_jax.models.hmm.emissions import Categorical, Gaussian, GaussianMixture, Poisson
from gen_jax.models.hmm.hmm import HMM
from gen_jax.models.mixture.covariances import ConjugatePrior

__all__ = ["GMMHMM", "CategoricalHMM", "GaussianHMM", "PoissonHMM"]


class GaussianHMM(BaumWelchEstimator):
    """hmmlearn's GaussianHMM. NaN in X marks missing values, which are integrated out exactly.

    Beyond hmmlearn: `n_init` restarts as one program, `stickiness` (a Dirichlet prior on self-transitions),
    `transitions` (the allowed ones) and `stationary` (`startprob_` is the stationary distribution of `transmat_`).
    `min_covar` is added to the first covariances only, as in hmmlearn; `implementation` is ignored.
    """

    parts = ("means", "covars")

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        means_prior: Any = 0.0,
        means_weight: Any = 0.0,
        covars_prior: Any = 1e-2,
        covars_weight: float = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Any = None,
        stationary: bool = False,
    ):
        assign(self, locals())

    @property
    def covars_(self) -> np.ndarray:
        """(K, D, D) covariances; they may be set in the shape of their type."""
        d = np.shape(self.means_ if self.covariance_type == "spherical" else self._covars_)[-1]
        return covariance_matrices("covars_", self._covars_, self.covariance_type, self.n_components, d)

    @covars_.setter
    def covars_(self, value: Any) -> None:
        self._covars_ = np.asarray(value)

    def _model(self, entries):
        at_least(0, min_covar=self.min_covar)
        kind = one_of("covariance_type", self.covariance_type, KINDS)
        missing = entries is not None and bool(np.isnan(entries["x"]).any())
        return self._hmm(Gaussian(kind, 0.0, missing=missing, fixed=self._held()))

    def _start(self, model):
        return _regularized(model, self.min_covar)

    def _emission(self, names):
        k, given = self.n_components, {}
        if "means" in names:
            given["means"] = points(self.means_, "means_", missing=False)
            if len(given["means"]) != k:
                raise ValueError(f"means_ must have {k} rows, got {len(given['means'])}")
            self.n_features = given["means"].shape[1]
        if "covars" in names:
            given["covariances"] = covariance_matrices(
                "covars_", self._covars_, self.covariance_type, k, self.n_features
            )
        return given

    def _emission_prior(self):
        k, d, narrow = self.n_components, self.n_features, self.covariance_type in ("diag", "spherical")
        shape = {"full": (k, d, d), "tied": (d, d)}.get(self.covariance_type, (k, d))
        at_least(0, covars_weight=self.covars_weight)
        scale = broadcast("covars_prior", self.covars_prior, shape, 0)
        mean_count = broadcast("means_weight", self.means_weight, (k, 1), 0)[:, 0]
        count = np.asarray(max(self.covars_weight - (1 if narrow else d), 0), np.float64)
        mean = broadcast("means_prior", self.means_prior, (k, d))
        return _gaussian_prior(scale, count, mean, mean_count)

    def _keep_emission(self, found):
        self.means_, self.covars_ = found["means"], found["covariances"]


class GMMHMM(BaumWelchEstimator):
    """hmmlearn's GMMHMM: `n_mix` Gaussians in each state.

    Attributes `weights_` (K, M), `means_` (K, M, D), `covars_` (K, M, D) for "diag", (K, M, D, D) for "full", (K, M)
    for "spherical". "tied" covariances are not offered; `implementation` is ignored.
    """

    parts = ("weights", "means", "covars")

    def __init__(
        self,
        n_components: int = 1,
        n_mix: int = 1,
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        weights_prior: Any = 1.0,
        means_prior: Any = 0.0,
        means_weight: Any = 0.0,
        covars_prior: Any = None,
        covars_weight: Any = None,
        algorithm: str = "viterbi",
        covariance_type: str = "diag",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmcw",
        init_params: str = "stmcw",
        implementation: str = "log",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Any = None,
        stationary: bool = False,
    ):
        assign(self, locals())

    def _model(self, entries):
        at_least(0, min_covar=self.min_covar)
        whole(1, n_mix=self.n_mix)
        kinds = {name: kind for name, kind in KINDS.items() if name != "tied"}
        kind = one_of("covariance_type", self.covariance_type, kinds)
        missing = entries is not None and bool(np.isnan(entries["x"]).any())
        emission = GaussianMixture(kind, 0.0, missing=missing, fixed=self._held(), components=int(self.n_mix))
        return self._hmm(emission)

    def _start(self, model):
        return _regularized(model, self.min_covar)

    def _emission(self, names):
        k, m, given = self.n_components, self.n_mix, {}
        if "weights" in names:
            given["weights"] = probabilities("weights_", self.weights_, (k, m))
        if "means" in names:
            means = np.asarray(self.means_, np.float64)
            if means.shape[:2] != (k, m) or means.ndim != 3:
                raise ValueError(f"means_ must have shape ({k}, {m}, features), got {means.shape}")
            self.n_features = means.shape[2]
            given["means"] = points(means.reshape(k * m, -1), "means_", missing=False)
        if "covars" in names:
            flat = np.asarray(self.covars_)
            if flat.shape[:2] != (k, m):
                raise ValueError(f"covars_ must begin with the axes ({k}, {m}), got {flat.shape}")
            flat = flat.reshape(k * m, *flat.shape[2:])
            given["covariances"] = covariance_matrices("covars_", flat, self.covariance_type, k * m, self.n_features)
        return given

    def _emission_prior(self):
        """The inverse-Wishart or inverse-gamma priors of hmmlearn, which are flat by default."""
        k, m, d, kind = self.n_components, self.n_mix, self.n_features, self.covariance_type
        mean = broadcast("means_prior", self.means_prior, (k, m, d)).reshape(k * m, d)
        mean_count = broadcast("means_weight", self.means_weight, (k, m), 0).reshape(k * m)
        prior, weight = self.covars_prior, self.covars_weight
        if kind == "full":  # Psi and nu
            scale = broadcast("covars_prior", 0.0 if prior is None else prior, (k, m, d, d)).reshape(k * m, d, d)
            weight = broadcast("covars_weight", -(d + 2.0) if weight is None else weight, (k, m))
            count = (weight + d + 2).reshape(k * m, 1, 1)
        else:  # alpha and beta
            shape, each = ((k, m, d), 1.0) if kind == "diag" else ((k, m, 1), float(d))
            flat = -1.5 if kind == "diag" else -(d + 2.0) / 2
            alpha = broadcast("covars_prior", flat if prior is None else _columns(prior, kind), shape)
            beta = broadcast("covars_weight", 0.0 if weight is None else _columns(weight, kind), shape)
            scale, count = ((a.reshape(k * m, -1)) for a in (2 * beta / each, 1 + 2 * (alpha + 1) / each))
        emission = _gaussian_prior(scale, count, mean, mean_count)
        weights = broadcast("weights_prior", self.weights_prior, (k, m), 0) - 1
        return emission | ({"weights_prior": weights} if weights.any() else {})

    def _keep_emission(self, found):
        k, m, covars = self.n_components, self.n_mix, found["covariances"]
        self.weights_, self.means_ = found["weights"], found["means"].reshape(k, m, -1)
        self.covars_ = covars.reshape(k, m, *covars.shape[1:])


class CategoricalHMM(BaumWelchEstimator):
    """hmmlearn's CategoricalHMM: X is a column of symbols 0 .. n_features - 1; NaN marks missing ones.

    `implementation` is ignored.
    """

    parts = ("emissionprob",)

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        emissionprob_prior: Any = 1.0,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Any = None,
        stationary: bool = False,
    ):
        assign(self, locals())

    def _entries(self, X, reset=False):
        x = np.asarray(numbers(X))
        if x.ndim != 2 or x.shape[1] != 1 or not len(x):
            raise ValueError(f"X must be a column (n_samples, 1) of symbols, got shape {x.shape}")
        x = points(x)[:, 0]
        observed = ~np.isnan(x)
        x = np.where(observed, x, 0)
        if not np.all(x == np.floor(x)) or x.min() < 0:
            raise ValueError(f"X must hold whole numbers from 0 on, got {x[(x != np.floor(x)) | (x < 0)][0]}")
        known = np.shape(self.emissionprob_)[1] if hasattr(self, "emissionprob_") and not reset else self.n_features
        if known is not None and x.max() >= known:
            raise ValueError(f"X holds the symbol {int(x.max())}, but there are {known}: 0 to {known - 1} (n_features)")
        self._symbols = int(known or x.max() + 1)
        entries = {"x": x.astype(np.int32)}
        return entries if observed.all() else {**entries, "observed": observed}

    def _model(self, entries):
        symbols = self._symbols if entries is not None else np.shape(self.emissionprob_)[1]
        return self._hmm(Categorical(int(symbols)))

    def _emission(self, names):
        if not names:
            return {}
        symbols = np.shape(self.emissionprob_)[-1]
        return {"probabilities": probabilities("emissionprob_", self.emissionprob_, (self.n_components, symbols))}

    def _emission_prior(self):
        shape = self.n_components, self._symbols
        prior = broadcast("emissionprob_prior", self.emissionprob_prior, shape, 0) - 1
        return {"prior": prior} if prior.any() else {}

    def _keep_emission(self, found):
        p = np.asarray(found["probabilities"], np.float64)
        self.emissionprob_ = p / p.sum(axis=1, keepdims=True)


class PoissonHMM(BaumWelchEstimator):
    """hmmlearn's PoissonHMM: X holds counts; NaN marks missing ones, which are integrated out.

    The prior of the rates is Gamma: `lambdas_prior` is added to the sum of the counts of a state, `lambdas_weight` to
    the number of its steps (hmmlearn adds it to the number of all steps). `implementation` is ignored.
    """

    parts = ("lambdas",)

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        lambdas_prior: Any = 0.0,
        lambdas_weight: Any = 0.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stl",
        init_params: str = "stl",
        implementation: str = "log",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Any = None,
        stationary: bool = False,
    ):
        assign(self, locals())

    def _points(self, X, reset=False):
        x = super()._points(X, reset)
        known = x[~np.isnan(x)]
        if (known != np.floor(known)).any() or (known < 0).any():
            raise ValueError("X must hold counts: whole numbers from 0 on")
        return x.astype(np.float64)

    def _features(self):
        return np.shape(self.lambdas_)[-1] if hasattr(self, "lambdas_") else None

    def _model(self, entries):
        return self._hmm(Poisson())

    def _emission(self, names):
        if not names:
            return {}
        rates = np.asarray(self.lambdas_, np.float64)
        if rates.ndim != 2 or len(rates) != self.n_components or not (rates > 0).all() or not np.isfinite(rates).all():
            raise ValueError(f"lambdas_ must be positive with {self.n_components} rows, got shape {rates.shape}")
        return {"rates": rates}

    def _emission_prior(self):
        shape = self.n_components, self.n_features
        total = broadcast("lambdas_prior", _column(self.lambdas_prior), shape, 0)
        count = broadcast("lambdas_weight", _column(self.lambdas_weight), (self.n_components, 1), 0)
        return {"prior": {"total": total, "count": count}} if total.any() or count.any() else {}

    def _keep_emission(self, found):
        self.lambdas_ = found["rates"]


def _column(value: Any) -> Any:
    """An array (K,) as (K, 1), all else as it is."""
    return np.asarray(value)[:, None] if np.ndim(value) == 1 else value


def _columns(value: Any, kind: str) -> Any:
    """An array (K, M) of spherical covariances as (K, M, 1), all else as it is."""
    return np.asarray(value)[..., None] if kind == "spherical" and np.ndim(value) == 2 else value


def _gaussian_prior(scale: np.ndarray, count: np.ndarray, mean: np.ndarray, mean_count: np.ndarray) -> dict[str, Any]:
    """The prior of Gaussian emissions, {} if it is flat."""
    if not (scale.any() or count.any() or mean_count.any()):
        return {}
    return {"prior": ConjugatePrior(scale, count, mean, mean_count)}


def _regularized(model: HMM, min_covar: float) -> HMM:
    """The model whose first covariances have `min_covar` added to their diagonals."""
    return replace(model, emission=replace(model.emission, regularization=float(min_covar)))
