"""`GaussianMixture` with scikit-learn's arguments and attributes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr, logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from gen_jax.algorithms import em
from gen_jax.core import Batch, PyTree, State
from gen_jax.estimators.common import (
    KINDS,
    at_least,
    covariance_matrices,
    key_of,
    numbers,
    one_of,
    points,
    precision,
    probabilities,
    whole,
)
from gen_jax.estimators.packing import map_rows, pad_rows, rounded
from gen_jax.models.mixture.gaussians import Prior
from gen_jax.models.mixture.gmm import GMM, information_criteria
from gen_jax.models.mixture.kmeans import kmeans, kmeans_plus_plus, random_from_data, random_responsibilities
from gen_jax.restarts import population, until_converged

__all__ = ["STARTS", "GaussianMixture"]

STARTS = {
    "kmeans": kmeans,
    "k-means++": kmeans_plus_plus,
    "random": random_responsibilities,
    "random_from_data": random_from_data,
}


class GaussianMixture(DensityMixin, BaseEstimator):
    """scikit-learn's GaussianMixture; all restarts run as one compiled program.

    Beyond scikit-learn: `fit` takes `sample_weight`, of which only the ratios matter unless there is a prior; NaN in X
    marks missing values, which are integrated out exactly; `n_components` may be several numbers, among which
    `criterion` ("bic", "aic", "icl") selects; `prior` turns the estimate into a MAP estimate, and `lower_bound_` into
    the log-posterior per sample; `params` holds the letters of what is fitted: "w", "m" and "c" for weights, means and
    covariances. float32 data is processed in float32, all other in float64.
    """

    def __init__(
        self,
        n_components: int | Sequence[int] = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        criterion: str = "bic",
        prior: Prior | None = None,
        params: str = "wmc",
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.criterion = criterion
        self.prior = prior
        self.params = params

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GaussianMixture:
        """Runs EM until the mean objective changes by less than `tol`, from `n_init` starts; the best is kept."""
        ks = [self.n_components] if np.ndim(self.n_components) == 0 else list(self.n_components)
        if not ks:
            raise ValueError("n_components is empty: give one number or several")
        for k in ks:
            whole(1, n_components=k)
        whole(1, max_iter=self.max_iter, n_init=self.n_init, verbose_interval=self.verbose_interval)
        at_least(0, tol=self.tol, reg_covar=self.reg_covar)
        one_of("criterion", self.criterion, dict.fromkeys(("bic", "aic", "icl")))
        if set(self.params) - set(FITTED):
            raise ValueError(f"params may hold the letters {''.join(FITTED)!r}, got {self.params!r}")
        x = self._points(X, reset=True)
        weight = _weights(sample_weight, x)
        counted = weight > 0
        x, weight = (x, weight) if counted.all() else (x[counted], weight[counted])
        if len(x) < max(ks):
            raise ValueError(f"n_components = {max(ks)}, but X has {len(x)} samples: take fewer components")
        model = self._model(max(ks), bool(np.isnan(x).any()))
        given = self._given(x, len(ks), max(ks))
        restarts = 1 if self.warm_start and given else self.n_init
        size = rounded(len(x))
        with precision(x):
            members, seed = np.repeat(ks, restarts), np.uint32(key_of(self.random_state))
            batch = {"x": pad_rows(x, size), "weight": pad_rows(weight.astype(x.dtype), size)}
            found = jax.tree.map(np.asarray, _fit(model, self.max_iter, batch, members, seed, self.tol, given))
            values = np.where(np.isnan(found["objective"]), -np.inf, found["objective"])
            firsts = [i * restarts + int(np.argmax(values[i * restarts : (i + 1) * restarts])) for i in range(len(ks))]
            self.criteria_ = {}
            if len(ks) > 1:
                for k, i in zip(ks, firsts):
                    params = jax.tree.map(lambda a, i=i: a[i], found["params"])
                    joint = map_rows(partial(_log_joint, model, params), x)
                    criteria = _criteria(replace(model, components=int(k)), joint, x, weight)
                    self.criteria_[int(k)] = criteria[self.criterion]
            best = firsts[int(np.argmin(list(self.criteria_.values())))] if self.criteria_ else firsts[0]
        self.n_components_ = int(ks[best // restarts])
        self._keep(jax.tree.map(lambda a: a[best], found["parameters"]))
        self.lower_bound_ = float(values[best])
        self.curves_ = np.asarray(found["curve"], np.float64)
        self.lower_bounds_ = self.curves_[best][~np.isnan(self.curves_[best])].tolist()
        self.n_iter_, self.converged_ = int(found["iterations"][best]), bool(found["converged"][best])
        self.n_reseeded_ = int(found["reseeded"][best])
        if self.verbose:
            for i in range(0, self.n_iter_, self.verbose_interval):
                print(f"  Iteration {i + 1}\t lower bound {self.lower_bounds_[i]:.5f}")
            print(f"Initialization converged: {self.converged_}")
        if not self.converged_ and self.max_iter > 1:
            warnings.warn(
                f"not converged in {self.max_iter} iterations: raise max_iter or tol", ConvergenceWarning, stacklevel=2
            )
        if self.n_reseeded_:
            warnings.warn(
                f"{self.n_reseeded_} times a component lost all its points and was given part of another's: "
                "n_components may be too large",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        return self.fit(X, y, sample_weight).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """(N,) log-likelihoods in nats."""
        return logsumexp(self._joint(X)[0], axis=1)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean log-likelihood in nats."""
        values = self.score_samples(X)
        if sample_weight is None:
            return float(np.mean(values))
        weight = _weights(sample_weight, values)
        return float(np.average(values[weight > 0], weights=weight[weight > 0]))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, K) responsibilities of the components."""
        joint, _ = self._joint(X)
        p = np.exp(joint - joint.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        return self._joint(X)[0].argmax(axis=1)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Samples (n, D) and their components (n,)."""
        check_is_fitted(self)
        whole(1, n_samples=n_samples)
        dtype = np.asarray(self.means_).dtype
        with precision(np.zeros(0, dtype)):
            model, params = self._model(len(self.means_), False), self._parameters(dtype)
            seed = np.uint32(key_of(self.random_state))
            x, component = _sample(model, params, seed, rounded(int(n_samples)))
        return np.asarray(x)[:n_samples], np.asarray(component)[:n_samples]

    def bic(self, X: Any) -> float:
        return self._criterion(X, "bic")

    def aic(self, X: Any) -> float:
        return self._criterion(X, "aic")

    def icl(self, X: Any) -> float:
        """BIC plus twice the entropy of the responsibilities (Biernacki, Celeux & Govaert 2000)."""
        return self._criterion(X, "icl")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _criterion(self, X: Any, name: str) -> float:
        joint, x = self._joint(X)
        return _criteria(self._model(len(self.means_), False), joint, x, np.ones(len(x)))[name]

    def _points(self, X: Any, reset: bool = False) -> np.ndarray:
        x = validate_data(
            self,
            numbers(X),
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            ensure_min_samples=1,
        )
        x = points(x)
        empty = np.flatnonzero(np.isnan(x).all(axis=1))
        if len(empty):
            raise ValueError(f"X has {len(empty)} rows of NaN only, the first is row {empty[0]}: remove them")
        return x

    def _model(self, k: int, missing: bool) -> GMM:
        return GMM(
            int(k),
            floor=0.0,
            kind=one_of("covariance_type", self.covariance_type, KINDS),
            start=one_of("init_params", self.init_params, STARTS),
            regularization=float(self.reg_covar),
            missing=missing,
            prior=self.prior or Prior(),
            fixed=tuple(name for letter, name in FITTED.items() if letter not in self.params),
        )

    def _given(self, x: np.ndarray, several: int, k: int) -> dict[str, np.ndarray]:
        """Initial parameters set by the user, under the model's names."""
        d = x.shape[1]
        if self.warm_start and hasattr(self, "means_") and self.means_.shape == (k, d):
            start = {"weights": self.weights_, "means": self.means_, "covariances": self._dense()}
            return {name: np.asarray(a, x.dtype) for name, a in start.items()}
        given = {}
        if self.weights_init is not None:
            given["weights"] = probabilities("weights_init", self.weights_init, (k,))
        if self.means_init is not None:
            given["means"] = points(self.means_init, "means_init", d, missing=False)
            if len(given["means"]) != k:
                raise ValueError(f"means_init must have shape {(k, d)}, got {given['means'].shape}")
        if self.precisions_init is not None:
            precisions = covariance_matrices("precisions_init", self.precisions_init, self.covariance_type, k, d)
            given["covariances"] = np.linalg.inv(precisions)
        if given and several > 1:
            raise ValueError("weights_init, means_init and precisions_init need a single n_components")
        return {name: a.astype(x.dtype) for name, a in given.items()}

    def _keep(self, parameters: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Stores the fitted parameters of the first `n_components_` components under scikit-learn's names."""
        k = self.n_components_
        weights, means, covariances = parameters
        weights, means = weights[:k], means[:k]
        covariances = covariances if self.covariance_type == "tied" else covariances[:k]
        self.weights_, self.means_, self.covariances_ = weights / weights.sum(), means, covariances
        if covariances.ndim >= 2 and self.covariance_type in ("full", "tied"):
            factor = np.linalg.inv(np.linalg.cholesky(covariances))
            self.precisions_cholesky_ = np.swapaxes(factor, -1, -2)
            self.precisions_ = self.precisions_cholesky_ @ factor
        else:
            self.precisions_ = 1 / covariances
            self.precisions_cholesky_ = np.sqrt(self.precisions_)

    def _dense(self) -> np.ndarray:
        k, d = self.means_.shape
        return covariance_matrices("covariances_", self.covariances_, self.covariance_type, k, d)

    def _parameters(self, dtype: Any) -> dict[str, np.ndarray]:
        """Weights, means and covariances from the fitted attributes, which may have been set manually."""
        weights = probabilities("weights_", self.weights_, (len(self.means_),))
        parameters = {"weights": weights, "means": self.means_, "covariances": self._dense()}
        return {name: np.asarray(a, dtype) for name, a in parameters.items()}

    def _joint(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) log p(x, component), and the validated X."""
        check_is_fitted(self)
        x = self._points(X)
        with precision(x):
            model = self._model(len(self.means_), bool(np.isnan(x).any()))
            params = _pack(model, self._parameters(x.dtype))
            return map_rows(partial(_log_joint, model, params), x), x


FITTED = {"w": "weights", "m": "means", "c": "covariances"}


def _objective(model: GMM) -> str:
    return "log_likelihood" if model.prior == Prior() else "log_posterior"


def _weights(sample_weight: Any, x: np.ndarray) -> np.ndarray:
    if sample_weight is None:
        return np.ones(len(x))
    weight = np.asarray(sample_weight, np.float64)
    if weight.ndim == 0:
        weight = np.full(len(x), float(weight))
    if weight.shape != (len(x),):
        raise ValueError(f"sample_weight must have shape ({len(x)},), got {weight.shape}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("sample_weight must be finite and not negative")
    if not weight.sum() > 0:
        raise ValueError("all of sample_weight is zero")
    return weight


def _criteria(model: GMM, joint: np.ndarray, x: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """AIC, BIC and ICL from log p(x, component) (N, K)."""
    joint = np.asarray(joint, np.float64)
    log_prob = logsumexp(joint, axis=1)
    entropy = np.sum(weight[:, None] * entr(np.exp(joint - log_prob[:, None])))
    free, log_n = model.free_parameters(x.shape[1]), np.log(weight.sum())
    found = information_criteria(np.sum(weight * log_prob), entropy, free, log_n)
    return {name: float(value) for name, value in found.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _fit(model: GMM, iterations: int, batch: Batch, members: Any, seed: Any, tolerance: Any, given: PyTree) -> PyTree:
    """Runs every member of the population to convergence, as one program: parameters, objectives, curves of each."""
    several = population(lambda k: em(replace(model, active=k)), members)
    algorithm = until_converged(several, _objective(model), tolerance, iterations)
    state = algorithm.init(jax.random.key(seed), batch)
    if given:

        def begin(params: PyTree) -> PyTree:
            shapes = {name: a for name, a in params.items() if name != "logits"}
            logits = jnp.log(given["weights"]) if "weights" in given else params["logits"]
            covariances = given.get("covariances", model.kind.dense(shapes))
            pack = model.gaussians.pack(given.get("means", params["means"]), covariances, jax.nn.softmax(logits))
            return {"logits": logits, **pack}

        state = state._replace(params={"gmm": jax.vmap(begin)(state.params["gmm"])})
    state, metrics = algorithm.step(state, batch)
    params = state.params["gmm"]
    return {
        "params": params,
        "parameters": jax.vmap(lambda params: model.parameters(state._replace(params={"gmm": params})))(params),
        "objective": metrics[_objective(model)].value,
        "converged": metrics["converged"].total,
        "iterations": metrics["iterations"].total,
        "curve": state.extra["curve"],
        "reseeded": state.extra["reseeded"],
    }


@partial(jax.jit, static_argnums=0)
def _pack(model: GMM, parameters: PyTree) -> PyTree:
    weights = parameters["weights"]
    shapes = model.gaussians.pack(parameters["means"], parameters["covariances"], weights)
    return {"logits": jnp.log(weights), **shapes}


@partial(jax.jit, static_argnums=0)
def _log_joint(model: GMM, params: PyTree, x: Any) -> Any:
    return model.log_joint(params, x)


@partial(jax.jit, static_argnums=(0, 3))
def _sample(model: GMM, parameters: PyTree, seed: Any, n: int) -> Any:
    key = jax.random.key(seed)
    state = State(jnp.int32(0), key, {"gmm": _pack(model, parameters)}, (), {})
    drawn = model.sample(state, key, n)
    return drawn["x"], drawn["component"]
