"""Metrics for every family of models."""

from gen_jax.evaluation.likelihood import Estimate, Metric, Split, elbo, log_likelihood
from gen_jax.evaluation.modes import mode_coverage
from gen_jax.evaluation.report import evaluator

METRICS = ("elbo", "log_likelihood")  # those that need nothing but the model
