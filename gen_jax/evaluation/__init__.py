"""Metrics for every family of models."""

from gen_jax.evaluation.likelihood import (
    Estimate,
    Metric,
    Split,
    accuracy,
    elbo,
    log_likelihood,
    log_likelihood_per_step,
)
from gen_jax.evaluation.modes import mode_coverage
from gen_jax.evaluation.report import evaluator

METRICS = ("accuracy", "elbo", "log_likelihood", "log_likelihood_per_step")  # those that need nothing but the model
