"""`GaussianMixture` with scikit-learn's arguments and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from gen_jax.estimators.common import (
    KINDS,
    assign,
    at_least,
    covariance_matrices,
    numbers,
    one_of,
    points,
    probabilities,
)
from gen_jax.estimators.mixture_base import InformationCriteria, MixtureEstimator
from gen_jax.models.mixture.gaussians import Prior
from gen_jax.models.mixture.gmm import GMM
from gen_jax.models.mixture.kmeans import kmeans, kmeans_plus_plus, random_from_data, random_responsibilities

__all__ = ["STARTS", "GaussianMixture", "GaussianShapes"]

STARTS = {
    "kmeans": kmeans,
    "k-means++": kmeans_plus_plus,
    "random": random_responsibilities,
    "random_from_data": random_from_data,
}


class GaussianShapes(MixtureEstimator):
    """Base class of Gaussian mixtures: means and covariances under scikit-learn's names."""

    def _points(self, X, reset=False):
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

    def _keep(self, parameters):
        k, means, covariances = self.n_components_, parameters["means"], parameters["covariances"]
        self.means_ = means[:k]
        self.covariances_ = covariances = covariances if self.covariance_type == "tied" else covariances[:k]
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


class GaussianMixture(InformationCriteria, GaussianShapes):
    """scikit-learn's GaussianMixture; all restarts run as one compiled program.

    Beyond scikit-learn: `fit` takes `sample_weight`, of which only the ratios matter unless there is a prior; NaN in X
    marks missing values, which are integrated out exactly; `n_components` may be several numbers, among which
    `criterion` selects: "bic", "aic", "icl", or "held_out", the likelihood of a random quarter, which is then fitted
    too; `prior` turns the estimate into a MAP estimate, and `lower_bound_` into the log-posterior per sample; `params`
    holds the letters of what is fitted: "w", "m" and "c" for weights, means and covariances. float32 data is processed
    in float32, all other in float64.
    """

    fitted = {"w": "weights", "m": "means", "c": "covariances"}

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
        assign(self, locals())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _model(self, k, x):
        at_least(0, reg_covar=self.reg_covar)
        return GMM(
            int(k),
            floor=0.0,
            kind=one_of("covariance_type", self.covariance_type, KINDS),
            start=one_of("init_params", self.init_params, STARTS),
            regularization=float(self.reg_covar),
            missing=x is not None and bool(np.isnan(x).any()),
            prior=self.prior or Prior(),
            fixed=self._fixed(),
        )

    def _given(self, x, several, k):
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

    def _objective(self):
        return "log_likelihood" if (self.prior or Prior()) == Prior() else "log_posterior"

    def _attributes(self):
        return {"means": self.means_, "covariances": self._dense()}

    def _free(self, k, d):
        return self._model(k, None).free_parameters(d)
