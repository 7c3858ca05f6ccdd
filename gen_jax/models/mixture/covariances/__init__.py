"""The four covariance types of a set of Gaussians: full, tied, diagonal, spherical.

Each type evaluates log-densities and sufficient statistics in two ways. `gemm` is a matrix product over the features
[x_i x_j, x, 1] (the natural form of an exponential family), which loses precision if a component is much narrower than
the data; `direct` uses differences from each mean. A third, `missing`, treats NaN as a missing coordinate.
"""

from gen_jax.models.mixture.covariances.diagonal import Diagonal, Spherical
from gen_jax.models.mixture.covariances.evaluation import (
    ConjugatePrior,
    Evaluation,
    Standardizer,
    Stats,
    occupied,
    ratio,
)
from gen_jax.models.mixture.covariances.full import Full, Tied

__all__ = [
    "DIAGONAL",
    "FULL",
    "SPHERICAL",
    "TIED",
    "ConjugatePrior",
    "Diagonal",
    "Evaluation",
    "Full",
    "Spherical",
    "Standardizer",
    "Stats",
    "Tied",
    "occupied",
    "ratio",
]

FULL, TIED, DIAGONAL, SPHERICAL = Full(), Tied(), Diagonal(), Spherical()
