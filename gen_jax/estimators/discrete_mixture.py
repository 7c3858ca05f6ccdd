"""Mixtures of bits, symbols and counts with scikit-learn's methods: latent class models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gen_jax.estimators.common import assign, at_least, points, probabilities
from gen_jax.estimators.mixture_base import InformationCriteria, MixtureEstimator
from gen_jax.models.hmm.emissions import Bernoulli, Categorical, Emission, Poisson
from gen_jax.models.mixture.mixture import Mixture

__all__ = ["BernoulliMixture", "CategoricalMixture", "PoissonMixture"]


class DiscreteMixture(InformationCriteria, MixtureEstimator):
    """Base class: independent coordinates given the component, of which NaN marks missing ones.

    The arguments are those of `GaussianMixture`, without covariances. `prior`: pseudo-observations, which turn the
    estimate into a MAP estimate; 0 is maximum likelihood.
    """

    fitted = {"w": "weights", "p": "component"}
    part: str  # the model's name of the parameters; the fitted attribute has an underscore behind it

    def __init__(
        self,
        n_components: int | Sequence[int] = 1,
        *,
        tol: float = 1e-4,
        max_iter: int = 200,
        n_init: int = 5,
        weights_init: Any = None,
        parameters_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        criterion: str = "bic",
        prior: float = 0.0,
        params: str = "wp",
    ):
        assign(self, locals())

    def _points(self, X, reset=False):
        x = points(X, features=None if reset else self.n_features_in_)
        if reset:
            self.n_features_in_ = x.shape[1]
        known = x[~np.isnan(x)]
        if (known != np.floor(known)).any() or (known < 0).any():
            wrong = known[(known != np.floor(known)) | (known < 0)][0]
            raise ValueError(f"X must hold whole numbers from 0 on, got {wrong}")
        return self._checked(x, reset)

    def _checked(self, x: np.ndarray, reset: bool) -> np.ndarray:
        return x

    def _component(self) -> Emission:
        raise NotImplementedError

    def _model(self, k, x):
        at_least(0, prior=self.prior)
        return Mixture(int(k), self._component(), fixed=self._fixed())

    def _given(self, x, several, k):
        if self.warm_start and len(getattr(self, "weights_", ())) == k:
            return self._parameters(x.dtype)
        given = {}
        if self.weights_init is not None:
            given["weights"] = probabilities("weights_init", self.weights_init, (k,)).astype(x.dtype)
        if self.parameters_init is not None:
            given["component"] = {self.part: self._valid("parameters_init", self.parameters_init, k).astype(x.dtype)}
        if given and several > 1:
            raise ValueError("weights_init and parameters_init need a single n_components")
        return given

    def _valid(self, name: str, value: Any, k: int) -> np.ndarray:
        """Parameters (K, D, ...) in the range of their kind."""
        value, shape = np.asarray(value, np.float64), (k, self.n_features_in_)
        if value.shape[:2] != shape:
            raise ValueError(f"{name} must begin with the axes {shape}, got shape {value.shape}")
        if not np.isfinite(value).all() or (value < 0).any():
            raise ValueError(f"{name} must be finite and not negative")
        return value

    def _keep(self, parameters):
        setattr(self, f"{self.part}_", parameters["component"][self.part][: self.n_components_])

    def _attributes(self):
        value = vars(self)[f"{self.part}_"]
        return {"component": {self.part: self._valid(f"{self.part}_", value, len(self.weights_))}}

    def _objective(self):
        return "log_posterior" if self.prior else "log_likelihood"

    def _free(self, k, d):
        return ("w" in self.params) * (k - 1) + ("p" in self.params) * k * d


class BernoulliMixture(DiscreteMixture):
    """Mixture of independent bits (Bishop 2006, section 9.3.3): `probabilities_` (K, D) of a 1.

    `prior`: pseudo-observations of either value.
    """

    part = "probabilities"

    def _checked(self, x, reset):
        if np.nanmax(x) > 1:
            raise ValueError(f"X must hold 0 and 1, got {np.nanmax(x):g}: compare it with a threshold")
        return x

    def _component(self):
        return Bernoulli(float(self.prior))


class PoissonMixture(DiscreteMixture):
    """Mixture of independent counts: `rates_` (K, D). `prior`: pseudo-observations of the mean of the data."""

    part = "rates"

    def _component(self):
        return Poisson(float(self.prior))


class CategoricalMixture(DiscreteMixture):
    """Latent class analysis (Lazarsfeld & Henry 1968): X holds symbols from 0 on, `probabilities_` (K, D, symbols).

    Columns with fewer symbols than others have probabilities of 0 for the rest, which are not free. `prior`:
    pseudo-observations of every symbol.
    """

    part = "probabilities"

    def _checked(self, x, reset):
        if reset:
            self.n_symbols_ = np.nan_to_num(np.nanmax(x, axis=0), nan=0).astype(int) + 1
        elif (above := np.nanmax(x, axis=0) >= self.n_symbols_).any():
            column = int(np.flatnonzero(above)[0])
            raise ValueError(f"column {column} of X has symbols beyond the {self.n_symbols_[column]} of the fit")
        return x

    def _component(self):
        return Categorical(int(self.n_symbols_.max()), 1.0 + float(self.prior))

    def _keep(self, parameters):
        found = np.asarray(parameters["component"][self.part], np.float64)[: self.n_components_]
        found = found.reshape(len(found), self.n_features_in_, -1)
        found = np.where(np.arange(found.shape[2]) < self.n_symbols_[:, None], found, 0)
        self.probabilities_ = found / found.sum(axis=2, keepdims=True)

    def _attributes(self):
        value = self._valid("probabilities_", self.probabilities_, len(self.weights_))
        return {"component": {self.part: value[:, 0] if value.shape[1] == 1 else value}}

    def _free(self, k, d):
        return ("w" in self.params) * (k - 1) + ("p" in self.params) * k * int(np.sum(self.n_symbols_ - 1))
