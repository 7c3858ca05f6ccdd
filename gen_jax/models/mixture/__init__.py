"""Mixtures, Gaussian or of any distribution, by EM or by gradient descent."""

from gen_jax.models.mixture.bayesian import BayesianGMM
from gen_jax.models.mixture.class_conditional import ClassConditional
from gen_jax.models.mixture.covariances import DIAGONAL, FULL, SPHERICAL, TIED
from gen_jax.models.mixture.gaussians import Gaussians, Prior
from gen_jax.models.mixture.gmm import GMM
from gen_jax.models.mixture.kmeans import kmeans, kmeans_plus_plus, random_from_data, random_responsibilities
from gen_jax.models.mixture.mixture import Mixture

__all__ = [
    "DIAGONAL",
    "FULL",
    "GMM",
    "SPHERICAL",
    "TIED",
    "BayesianGMM",
    "ClassConditional",
    "Gaussians",
    "Mixture",
    "Prior",
    "kmeans",
    "kmeans_plus_plus",
    "random_from_data",
    "random_responsibilities",
]
