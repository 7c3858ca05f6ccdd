"""`AnomalyDetector`: any density with a threshold that keeps its promise, with scikit-learn's methods."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from gen_jax.applications.anomaly.thresholds import conformal_p_values, conformal_threshold, quantile_threshold
from gen_jax.errors import UserError
from gen_jax.estimators.common import one_of
from gen_jax.estimators.scaling import column_moments, selected_mixture

__all__ = ["AnomalyDetector"]


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """Flags rows with a low density, and normal rows among them for at most the share `level`.

    estimator: an estimator with `fit` and `score_samples`, log-densities in nats; by default a Gaussian mixture of
    standardized columns whose number of components maximizes the likelihood of held-out rows. NaN marks missing cells
    if it accepts them, as the default does, exactly.
    level: the share of new normal rows that may be flagged. calibration: the share of the rows of `fit` that only set
    the threshold. threshold: "conformal", or "quantile" of all rows of `fit`, which is optimistic.

    Fitted attributes: `estimator_`, `offset_` (of `decision_function`), `threshold_`, `calibration_scores_`; and with
    PyOD's orientation, higher for anomalies, `decision_scores_` and `labels_` (1 for anomalies) of the rows of `fit`.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        level: float = 0.1,
        calibration: float = 0.25,
        threshold: str = "conformal",
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.level = level
        self.calibration = calibration
        self.threshold = threshold
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.estimator is None or self.estimator.__sklearn_tags__().input_tags.allow_nan
        return tags

    def fit(self, X: Any, y: Any = None) -> AnomalyDetector:
        """Fits the density to most rows of X, and the threshold to the others."""
        for name in ("level", "calibration"):
            value = vars(self)[name]
            if not isinstance(value, numbers.Real) or not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
        conformal = one_of("threshold", self.threshold, {"conformal": True, "quantile": False})
        x = self._rows(X, reset=True)
        order = check_random_state(self.random_state).permutation(len(x))
        held = round(self.calibration * len(x)) if conformal else 0
        if len(x) - held < 2:
            raise ValueError(f"a density needs at least 2 rows, n_samples = {len(x)} leaves {len(x) - held}")
        fitted, judged = x[order[held:]], x[order[:held]]
        self.scale_ = column_moments(fitted)
        self.estimator_ = self._density(len(fitted)).fit(self._scaled(fitted))
        self.calibration_scores_ = -self._log_density(judged if conformal else fitted)
        make = conformal_threshold if conformal else quantile_threshold
        try:
            self.threshold_ = make(self.calibration_scores_, float(self.level))
        except UserError as error:
            raise ValueError(f"{error} (of n_samples = {len(x)})") from None
        self.offset_ = -self.threshold_.value
        self.decision_scores_ = -self._log_density(x)
        self.labels_ = self.threshold_(self.decision_scores_).astype(int)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """(N,) log-densities in nats, of the standardized columns where `estimator` is the default."""
        check_is_fitted(self)
        return self._log_density(self._rows(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """(N,) log-densities less the threshold: negative for anomalies."""
        return self.score_samples(X) - self.offset_

    def anomaly_score(self, X: Any) -> np.ndarray:
        """(N,) negative log-densities: higher for anomalies, as PyOD's `decision_function`."""
        return -self.score_samples(X)

    def p_values(self, X: Any) -> np.ndarray:
        """(N,) conformal p-values: the share of calibration rows that are at least as anomalous."""
        scores = self.anomaly_score(X)
        return conformal_p_values(self.calibration_scores_, scores)

    def predict(self, X: Any) -> np.ndarray:
        """(N,) -1 for anomalies, 1 for normal rows."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, 2) the p-value, and the share of calibration rows that are less anomalous."""
        p = self.p_values(X)
        return np.stack([p, 1 - p], axis=1)

    def _rows(self, X: Any, reset: bool = False) -> np.ndarray:
        finite = "allow-nan" if self.__sklearn_tags__().input_tags.allow_nan else True
        x = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=finite)
        empty = np.flatnonzero(np.isnan(x).all(axis=1))
        if len(empty):
            raise ValueError(f"X has {len(empty)} rows of NaN only, the first is row {empty[0]}: remove them")
        return x

    def _density(self, n: int) -> Any:
        if self.estimator is not None:
            return clone(self.estimator)
        return selected_mixture(n, 4, check_random_state(self.random_state).randint(2**31 - 1))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        mean, deviation = self.scale_
        return x if self.estimator is not None else ((x - mean) / deviation).astype(x.dtype)

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.estimator_.score_samples(self._scaled(x)), np.float64)
