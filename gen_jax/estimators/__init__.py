"""Estimators with the scikit-learn and hmmlearn interfaces, argument by argument; thin wrappers of `gen_jax.models`."""

from gen_jax.estimators.hmm import GMMHMM, CategoricalHMM, GaussianHMM, PoissonHMM
from gen_jax.estimators.mixture import GaussianMixture

__all__ = ["GMMHMM", "CategoricalHMM", "GaussianHMM", "GaussianMixture", "PoissonHMM"]
