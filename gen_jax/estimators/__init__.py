"""Estimators with the scikit-learn and hmmlearn interfaces, argument by argument; thin wrappers of `gen_jax.models`."""

from gen_jax.estimators.anomaly_detector import AnomalyDetector
from gen_jax.estimators.bayesian_mixture import BayesianGaussianMixture
from gen_jax.estimators.discrete_mixture import BernoulliMixture, CategoricalMixture, PoissonMixture
from gen_jax.estimators.hmm import GMMHMM, CategoricalHMM, GaussianHMM, PoissonHMM
from gen_jax.estimators.imputer import Imputer
from gen_jax.estimators.mixture import GaussianMixture
from gen_jax.estimators.variational_hmm import VariationalCategoricalHMM, VariationalGaussianHMM

__all__ = [
    "GMMHMM",
    "AnomalyDetector",
    "BayesianGaussianMixture",
    "BernoulliMixture",
    "CategoricalHMM",
    "CategoricalMixture",
    "GaussianHMM",
    "GaussianMixture",
    "Imputer",
    "PoissonHMM",
    "PoissonMixture",
    "VariationalCategoricalHMM",
    "VariationalGaussianHMM",
]
