"""The models behind scikit-learn's and hmmlearn's interfaces, argument by argument; thin over `gen_jax.models`."""

from gen_jax.estimators.hmm import GMMHMM, CategoricalHMM, GaussianHMM, PoissonHMM
from gen_jax.estimators.mixture import GaussianMixture
