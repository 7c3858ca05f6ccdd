"""Hidden Markov models with hmmlearn's arguments and attributes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.estimators.baum_welch import BaumWelchEstimator
from gen_jax.estimators.common import (
    KINDS,
    at_least,
    covariance_matrices,
    one_of,
    points,
    probabilities,
)
from gen_jax.models.hmm.emissions import Categorical, Gaussian, GaussianMixture, Poisson
from gen_jax.models.hmm.hmm import Mask

__all__ = ["GMMHMM", "CategoricalHMM", "GaussianHMM", "PoissonHMM"]


class GaussianHMM(BaumWelchEstimator):
    """hmmlearn's GaussianHMM. NaN in X marks missing values, which are integrated out exactly.

    Beyond hmmlearn: `n_init` restarts as one program, `stickiness` (a Dirichlet prior on self-transitions) and
    `transitions` (the allowed ones). Unlike hmmlearn, covariances have no prior; their diagonals get `min_covar` added.
    """

    parts = ("means", "covars")

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: float = 1.0,
        transmat_prior: float = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        init_params: str = "stmc",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Mask | None = None,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.init_params = init_params
        self.n_init = n_init
        self.stickiness = stickiness
        self.transitions = transitions

    def _model(self, x):
        at_least(0, min_covar=self.min_covar)
        kind = one_of("covariance_type", self.covariance_type, KINDS)
        missing = x is not None and bool(np.isnan(x).any())
        return self._hmm(Gaussian(kind, floor=0.0, regularization=float(self.min_covar), missing=missing))

    def _emission(self):
        k = self.n_components
        means = points(self.means_, "means_", missing=False)
        if len(means) != k:
            raise ValueError(f"means_ must have {k} rows, got {len(means)}")
        covars = covariance_matrices("covars_", self.covars_, self.covariance_type, k, means.shape[1])
        gaussians = Gaussian(one_of("covariance_type", self.covariance_type, KINDS)).gaussians
        return gaussians.pack(jnp.asarray(means), jnp.asarray(covars))

    def _keep_emission(self, model, params):
        self.means_ = np.asarray(params["means"])
        self.covars_ = np.asarray(model.emission.kind.covariances(params))


class GMMHMM(BaumWelchEstimator):
    """hmmlearn's GMMHMM: `n_mix` Gaussians in each state. Attributes `weights_` (K, M), `means_` (K, M, D), `covars_`
    (K, M, D) for "diag", (K, M, D, D) for "full", (K, M) for "spherical"."""

    parts = ("weights", "means", "covars")

    def __init__(
        self,
        n_components: int = 1,
        n_mix: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: float = 1.0,
        transmat_prior: float = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        init_params: str = "stwmc",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Mask | None = None,
    ):
        self.n_components = n_components
        self.n_mix = n_mix
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.init_params = init_params
        self.n_init = n_init
        self.stickiness = stickiness
        self.transitions = transitions

    def _model(self, x):
        at_least(0, min_covar=self.min_covar)
        at_least(1, n_mix=self.n_mix)
        kinds = {name: kind for name, kind in KINDS.items() if name != "tied"}
        kind = one_of("covariance_type", self.covariance_type, kinds)
        missing = x is not None and bool(np.isnan(x).any())
        emission = GaussianMixture(
            kind, floor=0.0, regularization=float(self.min_covar), missing=missing, components=int(self.n_mix)
        )
        return self._hmm(emission)

    def _emission(self):
        k, m = self.n_components, self.n_mix
        weights = probabilities("weights_", self.weights_, (k, m))
        means = np.asarray(self.means_)
        if means.shape[:2] != (k, m) or means.ndim != 3:
            raise ValueError(f"means_ must have shape ({k}, {m}, features), got {means.shape}")
        d = means.shape[2]
        flat = np.asarray(self.covars_)
        flat = flat.reshape(k * m, *flat.shape[2:])
        covars = covariance_matrices("covars_", flat, self.covariance_type, k * m, d)
        gaussians = Gaussian(KINDS[self.covariance_type]).gaussians
        shapes = gaussians.pack(jnp.asarray(means.reshape(k * m, d)), jnp.asarray(covars))
        return {"logits": jnp.log(jnp.maximum(jnp.asarray(weights), 1e-30)), **shapes}

    def _keep_emission(self, model, params):
        k, m = self.n_components, self.n_mix
        self.weights_ = np.asarray(jax.nn.softmax(params["logits"]))
        self.means_ = np.asarray(params["means"]).reshape(k, m, -1)
        covars = np.asarray(model.emission.kind.covariances(params))
        self.covars_ = covars.reshape(k, m, *covars.shape[1:])


class CategoricalHMM(BaumWelchEstimator):
    """hmmlearn's CategoricalHMM: X is a column of symbols 0 .. n_features - 1."""

    parts = ("emissionprob",)

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: float = 1.0,
        transmat_prior: float = 1.0,
        emissionprob_prior: float = 1.0,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        init_params: str = "ste",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Mask | None = None,
    ):
        self.n_components = n_components
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.emissionprob_prior = emissionprob_prior
        self.n_features = n_features
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.init_params = init_params
        self.n_init = n_init
        self.stickiness = stickiness
        self.transitions = transitions

    def _points(self, X, reset=False):
        x = np.asarray(X)
        if x.ndim != 2 or x.shape[1] != 1 or not len(x):
            raise ValueError(f"X must be a column (n_samples, 1) of symbols, got shape {x.shape}")
        if not np.all(x == np.floor(x)) or x.min() < 0:
            raise ValueError(f"X must hold whole numbers from 0 on, got {x[(x != np.floor(x)) | (x < 0)][0]}")
        known = np.shape(self.emissionprob_)[1] if hasattr(self, "emissionprob_") and not reset else self.n_features
        if known is not None and x.max() >= known:
            raise ValueError(f"X holds the symbol {int(x.max())}, but there are {known}: 0 to {known - 1} (n_features)")
        self._symbols = int(known or x.max() + 1)
        return x[:, 0].astype(np.int32)

    def _model(self, x):
        at_least(1, emissionprob_prior=self.emissionprob_prior)
        symbols = self._symbols if x is not None else np.shape(self.emissionprob_)[1]
        return self._hmm(Categorical(int(symbols), concentration=float(self.emissionprob_prior)))

    def _emission(self):
        symbols = np.shape(self.emissionprob_)[-1]
        p = probabilities("emissionprob_", self.emissionprob_, (self.n_components, symbols))
        with np.errstate(divide="ignore"):
            return {"logits": jnp.asarray(np.log(p))}

    def _keep_emission(self, model, params):
        p = np.asarray(jax.nn.softmax(params["logits"]), np.float64)
        self.emissionprob_ = p / p.sum(axis=1, keepdims=True)


class PoissonHMM(BaumWelchEstimator):
    """hmmlearn's PoissonHMM: X holds counts. Rates have no prior."""

    parts = ("lambdas",)

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: float = 1.0,
        transmat_prior: float = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        init_params: str = "stl",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Mask | None = None,
    ):
        self.n_components = n_components
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.init_params = init_params
        self.n_init = n_init
        self.stickiness = stickiness
        self.transitions = transitions

    def _points(self, X, reset=False):
        x = super()._points(X, reset)
        if np.isnan(x).any() or (x != np.floor(x)).any() or (x < 0).any():
            raise ValueError("X must hold counts: whole numbers from 0 on")
        return x.astype(np.int32)

    def _features(self):
        return np.shape(self.lambdas_)[-1] if hasattr(self, "lambdas_") else None

    def _model(self, x):
        return self._hmm(Poisson())

    def _emission(self):
        rates = np.asarray(self.lambdas_, np.float64)
        if rates.ndim != 2 or len(rates) != self.n_components or not (rates > 0).all() or not np.isfinite(rates).all():
            raise ValueError(f"lambdas_ must be positive with {self.n_components} rows, got shape {rates.shape}")
        return {"log_rate": jnp.log(jnp.asarray(rates))}

    def _keep_emission(self, model, params):
        self.lambdas_ = np.exp(np.asarray(params["log_rate"]))
