"""Hidden Markov models, by EM (Baum-Welch) or by gradient descent."""

from gen_jax.models.hmm.bayesian import BayesianHMM
from gen_jax.models.hmm.durations import (
    CategoricalDurations,
    Durations,
    GeometricDurations,
    NegativeBinomialDurations,
    PoissonDurations,
)
from gen_jax.models.hmm.hmm import HMM, Forecast, left_right
from gen_jax.models.hmm.inference import ASSOCIATIVE, SERIAL, Scan
from gen_jax.models.hmm.input_output import InputOutputHMM
from gen_jax.models.hmm.semi_markov import HSMM

__all__ = [
    "ASSOCIATIVE",
    "HMM",
    "HSMM",
    "SERIAL",
    "BayesianHMM",
    "CategoricalDurations",
    "Durations",
    "Forecast",
    "GeometricDurations",
    "InputOutputHMM",
    "NegativeBinomialDurations",
    "PoissonDurations",
    "Scan",
    "left_right",
]
