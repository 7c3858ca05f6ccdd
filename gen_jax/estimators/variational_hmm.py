"""Variational hidden Markov models with hmmlearn's arguments and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gen_jax.estimators.baum_welch import BaumWelchEstimator
from gen_jax.estimators.common import KINDS, assign, broadcast, covariance_matrices, one_of, points
from gen_jax.estimators.hmm import CategoricalHMM, GaussianHMM
from gen_jax.models.hmm.bayesian import BayesianHMM
from gen_jax.models.hmm.emissions import BayesianCategorical, BayesianEmission, BayesianGaussian
from gen_jax.models.mixture.covariances import ConjugatePrior

__all__ = ["VariationalCategoricalHMM", "VariationalGaussianHMM"]


class VariationalEstimator(BaumWelchEstimator):
    """Base class of hmmlearn's variational models: `fit` finds posteriors, all else uses the model at their means.

    `monitor_` and `curves_` hold the evidence lower bound with all constants.
    """

    stationary = False

    def _bayesian(self, entries: Any) -> BayesianEmission:
        """The emission with posteriors."""
        raise NotImplementedError

    def _fitted_model(self, entries):
        plain = self._hmm(self._bayesian(entries))
        return BayesianHMM(plain.states, plain.emission, plain.transitions, fixed=plain.fixed)

    def _priors(self):
        k = self.n_components
        each = lambda name, shape: _concentration(name, getattr(self, name), shape)
        initial, transition = each("startprob_prior", (k,)), each("transmat_prior", (k, k))
        self.startprob_prior_, self.transmat_prior_ = initial, transition + self.stickiness * np.eye(k)
        chain = {"initial": self.startprob_prior_, "transition": self.transmat_prior_}
        return {"prior": chain, "emission": self._emission_prior()}

    def _given(self, everything=False):
        """Parameters of the posteriors for `fit`, those at their means for all else."""
        if everything:
            return super()._given(everything=True)
        k, given = self.n_components, {}
        names = {"startprob": ("initial", (k,)), "transmat": ("transition", (k, k))}
        for name, (key, shape) in names.items():
            if self._wanted(name, f"{name}_posterior_"):
                value = getattr(self, f"{name}_posterior_")
                given[key] = _concentration(f"{name}_posterior_", value, shape)
        emission = self._posterior()
        return given | ({"emission": emission} if emission else {})

    def _wanted(self, name: str, attribute: str) -> bool:
        """Whether `fit` starts from this attribute."""
        return name[0] not in self.init_params and hasattr(self, attribute)

    def _posterior(self) -> dict[str, np.ndarray]:
        """The parameters of the emission's posteriors from which `fit` starts."""
        raise NotImplementedError

    def _keep(self, found):
        super()._keep(found)
        self.startprob_posterior_ = np.asarray(found["raw"]["initial"], np.float64)
        self.transmat_posterior_ = np.asarray(found["raw"]["transition"], np.float64)

    def _free(self):
        return self._free_of(self._model(None))


class VariationalGaussianHMM(VariationalEstimator, GaussianHMM):
    """hmmlearn's VariationalGaussianHMM; all restarts run as one compiled program.

    "full" and "tied" covariances have hmmlearn's updates; those of "diag" and "spherical" maximize the evidence lower
    bound, which hmmlearn's do not. The bound counts the constant -1/2 log(2 pi) of each number, which hmmlearn leaves
    out. A row of NaN in X is a missing step.

    Beyond hmmlearn: `n_init`, `stickiness` and `transitions`, as in `GaussianHMM`.
    """

    parts = ("means", "covars")
    min_covar = 0.0

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "full",
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        means_prior: Any = None,
        beta_prior: Any = None,
        dof_prior: Any = None,
        scale_prior: Any = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 100,
        tol: float = 1e-6,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Any = None,
    ):
        assign(self, locals())

    def _bayesian(self, entries):
        kind = one_of("covariance_type", self.covariance_type, KINDS)
        if entries is not None:
            missing = np.isnan(entries["x"])
            if (missing.any(axis=1) & ~missing.all(axis=1)).any():
                raise ValueError("X has rows of which some values are NaN: only whole rows may be missing here")
        if ("m" in self.params) != ("c" in self.params):
            raise ValueError(f"params may hold 'm' and 'c' only together, got {self.params!r}")
        return BayesianGaussian(kind)

    def _shape(self) -> tuple[int, ...]:
        k, d = self.n_components, self.n_features
        return {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[self.covariance_type]

    def _emission_prior(self):
        k, d, kind, shape = self.n_components, self.n_features, self.covariance_type, self._shape()
        whole = np.broadcast_to(1e-3 * np.eye(d), shape) if kind in ("full", "tied") else np.full(shape, 1e-3)
        scale = whole if self.scale_prior is None else broadcast("scale_prior", self.scale_prior, shape)
        covariance_matrices("scale_prior", scale, kind, k, d)  # which checks it
        degrees = broadcast("dof_prior", float(d) if self.dof_prior is None else self.dof_prior, (k,))
        if (degrees <= d - 1).any() or (kind == "tied" and len(set(degrees)) > 1):
            raise ValueError(f"dof_prior must be above {d - 1}, the same for all states if 'tied', got {degrees}")
        beta = _concentration("beta_prior", 1.0 if self.beta_prior is None else self.beta_prior, (k,))
        center = self._center if self.means_prior is None else self.means_prior
        mean = broadcast("means_prior", center, (k, d))
        self.means_prior_, self.beta_prior_, self.scale_prior_ = mean, beta, scale
        self.dof_prior_ = float(degrees[0]) if kind == "tied" else degrees
        axes = {"full": (k, 1, 1), "diag": (k, 1), "spherical": (k, 1)}
        count = self.dof_prior_ if kind == "tied" else degrees.reshape(axes[kind])
        scale = np.repeat(scale[:, None], d, axis=1) if kind == "spherical" else scale
        return {"prior": ConjugatePrior(scale, np.asarray(count), mean, beta)}

    def _points(self, X, reset=False):
        x = super()._points(X, reset)
        if reset:
            self._center = np.nanmean(x, axis=0, dtype=np.float64)
        return x

    def _posterior(self):
        if not self._wanted("means", "means_posterior_") or not self._wanted("covars", "scale_posterior_"):
            return {}
        k, d, tied = self.n_components, self.n_features, self.covariance_type == "tied"
        prior = self._emission_prior()["prior"]
        count = broadcast("beta_posterior_", self.beta_posterior_, (k,)) - prior.mean_count
        degrees = np.asarray(self.dof_posterior_, np.float64)
        expected = np.reshape(prior.count, () if tied else k) + (count.sum() if tied else count)
        if degrees.shape != expected.shape or not np.allclose(degrees, expected) or (count < 0).any():
            raise ValueError("beta_posterior_ and dof_posterior_ must exceed their priors by the same counts")
        scale = np.asarray(self.scale_posterior_, np.float64)
        covariances = scale / (degrees if tied else degrees.reshape(-1, *[1] * (scale.ndim - 1)))
        means = points(self.means_posterior_, "means_posterior_", d, missing=False)
        if len(means) != k:
            raise ValueError(f"means_posterior_ must have {k} rows, got {len(means)}")
        dense = covariance_matrices("scale_posterior_", covariances, self.covariance_type, k, d)
        return {"means": means, "covariances": dense, "count": count}

    def _keep_emission(self, found):
        super()._keep_emission(found)
        count, tied = np.asarray(found["count"], np.float64), self.covariance_type == "tied"
        self.means_posterior_, self.beta_posterior_ = self.means_, self.beta_prior_ + count
        self.dof_posterior_ = self.dof_prior_ + (count.sum() if tied else count)
        covariances = np.asarray(found["covariances"], np.float64)
        axes = () if tied else (-1, *[1] * (covariances.ndim - 1))
        self.scale_posterior_ = covariances * np.reshape(self.dof_posterior_, axes)


class VariationalCategoricalHMM(VariationalEstimator, CategoricalHMM):
    """hmmlearn's VariationalCategoricalHMM: X is a column of symbols; NaN marks missing ones.

    Beyond hmmlearn: `n_init`, `stickiness` and `transitions`, as in `GaussianHMM`.
    """

    parts = ("emissionprob",)

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        emissionprob_prior: Any = None,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 100,
        tol: float = 1e-6,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
        n_init: int = 1,
        stickiness: float = 0.0,
        transitions: Any = None,
    ):
        assign(self, locals())

    def _bayesian(self, entries):
        return BayesianCategorical(int(self._symbols))

    def _emission_prior(self):
        shape = self.n_components, self._symbols
        self.emissionprob_prior_ = _concentration("emissionprob_prior", self.emissionprob_prior, shape)
        return {"prior": self.emissionprob_prior_}

    def _posterior(self):
        if not self._wanted("emissionprob", "emissionprob_posterior_"):
            return {}
        shape = self.n_components, self._symbols
        return {"concentration": _concentration("emissionprob_posterior_", self.emissionprob_posterior_, shape)}

    def _keep_emission(self, found):
        self.emissionprob_posterior_ = np.asarray(found["concentration"], np.float64)
        self.emissionprob_ = self.emissionprob_posterior_ / self.emissionprob_posterior_.sum(axis=1, keepdims=True)


def _concentration(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Positive numbers of this shape, one per class divided by the number of classes by default."""
    value = broadcast(name, 1 / shape[-1] if value is None else value, shape)
    if (value <= 0).any():
        raise ValueError(f"{name} must be positive")
    return value
