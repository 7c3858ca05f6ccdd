"""Hidden Markov models, by EM (Baum-Welch) or by gradient descent."""

from gen_jax.models.hmm.hmm import HMM, Forecast, left_right
from gen_jax.models.hmm.inference import ASSOCIATIVE, SERIAL, Scan

__all__ = ["ASSOCIATIVE", "HMM", "SERIAL", "Forecast", "Scan", "left_right"]
