"""Emission distributions of hidden Markov models."""

from gen_jax.models.hmm.emissions.bayesian import (
    BayesianCategorical,
    BayesianEmission,
    BayesianGaussian,
    BayesianPoisson,
)
from gen_jax.models.hmm.emissions.discrete import Bernoulli, Categorical, Poisson
from gen_jax.models.hmm.emissions.emission import Emission
from gen_jax.models.hmm.emissions.gaussian import Gaussian, GaussianMixture
from gen_jax.models.hmm.emissions.product import Product
from gen_jax.models.hmm.emissions.regression import LinearRegression

__all__ = [
    "BayesianCategorical",
    "BayesianEmission",
    "BayesianGaussian",
    "BayesianPoisson",
    "Bernoulli",
    "Categorical",
    "Emission",
    "Gaussian",
    "GaussianMixture",
    "LinearRegression",
    "Poisson",
    "Product",
]
