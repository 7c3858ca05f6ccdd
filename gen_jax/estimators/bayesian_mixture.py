"""`BayesianGaussianMixture` with scikit-learn's arguments and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gen_jax.estimators.common import KINDS, assign, at_least, broadcast, one_of
from gen_jax.estimators.mixture import STARTS, GaussianShapes
from gen_jax.models.mixture.bayesian import BayesianGMM
from gen_jax.models.mixture.covariances import ConjugatePrior

__all__ = ["BayesianGaussianMixture"]

PROCESS = {"dirichlet_process": True, "dirichlet_distribution": False}


class BayesianGaussianMixture(GaussianShapes):
    """scikit-learn's BayesianGaussianMixture; all restarts run as one compiled program.

    `lower_bound_` is the evidence lower bound per sample, with all constants. "full" covariances have scikit-learn's
    updates; those of the other types maximize that bound, which scikit-learn's do not. `fit` takes `sample_weight`: a
    row of weight 2 counts as two.
    """

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ):
        assign(self, locals())

    def _model(self, k, x):
        at_least(0, reg_covar=self.reg_covar)
        d, kind = self.n_features_in_, one_of("covariance_type", self.covariance_type, KINDS)
        shape = {"full": (d, d), "tied": (d, d), "diag": (d,), "spherical": ()}[self.covariance_type]
        mean, scale = self.mean_prior, self.covariance_prior
        if x is not None and np.isnan(x).any():
            raise ValueError("X has NaN, which a Bayesian mixture cannot take: GaussianMixture integrates them out")
        return BayesianGMM(
            int(k),
            floor=0.0,
            kind=kind,
            start=one_of("init_params", self.init_params, STARTS),
            regularization=float(self.reg_covar),
            concentration=_positive("weight_concentration_prior", self.weight_concentration_prior, 0.0),
            process=one_of("weight_concentration_prior_type", self.weight_concentration_prior_type, PROCESS),
            mean_precision=_positive("mean_precision_prior", self.mean_precision_prior, 0.0) or 1.0,
            degrees=_positive("degrees_of_freedom_prior", self.degrees_of_freedom_prior, d - 1.0),
            mean=None if mean is None else tuple(broadcast("mean_prior", mean, (d,)).tolist()),
            covariance=None if scale is None else _tuples(broadcast("covariance_prior", scale, shape).tolist()),
        )

    def _given(self, x, several, k):
        start = self.warm_start and np.shape(getattr(self, "means_", None)) == (k, x.shape[1])
        return self._parameters(x.dtype) if start else {}

    def _keep(self, parameters):
        super()._keep(parameters)
        model, count = self._model(self.n_components_, None), parameters["count"]
        prior = parameters["prior"]
        self.weight_concentration_prior_ = model.weight_concentration
        self.mean_precision_prior_ = model.mean_precision
        self.mean_prior_, self.degrees_of_freedom_prior_ = prior.mean[0], float(prior.count)
        self.covariance_prior_ = prior.scale[0] if self.covariance_type == "spherical" else prior.scale
        self.mean_precision_ = model.mean_precision + count
        self.degrees_of_freedom_ = prior.count + (count.sum() if self.covariance_type == "tied" else count)
        self.weight_concentration_ = parameters["weight_concentration"]

    def _parameters(self, dtype):
        check_is_fitted(self)
        count = np.asarray(self.mean_precision_) - self.mean_precision_prior_
        parameters = {"count": count, "means": self.means_, "covariances": self._dense()}
        return {name: np.asarray(a, dtype) for name, a in parameters.items()}

    def _extra(self, dtype):
        k, d = self.means_.shape
        scale = self.covariance_prior_ * np.ones(d if self.covariance_type == "spherical" else ())
        mean_count = np.full(k, self.mean_precision_prior_)
        prior = scale, self.degrees_of_freedom_prior_, np.broadcast_to(self.mean_prior_, (k, d)), mean_count
        return {"prior": ConjugatePrior(*(np.asarray(a, dtype) for a in prior))}

    def _objective(self):
        return "log_posterior"


def _positive(name: str, value: float | None, above: float) -> float | None:
    if value is not None and not value > above:
        raise ValueError(f"{name} must be above {above:g}, got {value!r}")
    return None if value is None else float(value)


def _tuples(value: Any) -> Any:
    """Nested lists as tuples, which can be hashed."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
