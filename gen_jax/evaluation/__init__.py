"""Metrics for every family of models."""

from gen_jax.evaluation.flows import in_float64, invertibility, log_integral
from gen_jax.evaluation.gan import stability
from gen_jax.evaluation.latents import active_units, kl_per_dimension, latent_accuracy, reconstruction_error
from gen_jax.evaluation.likelihood import (
    accuracy,
    elbo,
    importance_weighted,
    log_likelihood,
    log_likelihood_per_step,
)
from gen_jax.evaluation.metric import Estimate, Metric, Split
from gen_jax.evaluation.modes import mode_coverage
from gen_jax.evaluation.report import evaluator
from gen_jax.evaluation.samples.classes import class_coverage, train_on_synthetic
from gen_jax.evaluation.samples.quality import sample_quality
from gen_jax.evaluation.samples.sliced import sliced_wasserstein
from gen_jax.evaluation.styles import path_smoothness, style_state, truncation_curve
from gen_jax.evaluation.suite import cost, sample_metrics, suite
from gen_jax.evaluation.text import text_likelihood, text_quality, text_to_text_quality
from gen_jax.evaluation.translation import paired_quality, segmentation_quality, unpaired_quality

iwae_50, iwae_5000 = importance_weighted(50), importance_weighted(5000)

METRICS: tuple[Metric, ...] = (  # those that need only the model; available by name on the command line
    accuracy,
    active_units,
    cost,
    elbo,
    iwae_50,
    iwae_5000,
    invertibility,
    kl_per_dimension,
    latent_accuracy,
    log_integral,
    log_likelihood,
    log_likelihood_per_step,
    reconstruction_error,
    stability,
    style_state,
    text_likelihood,
    train_on_synthetic(),
    path_smoothness(),
    sliced_wasserstein(),
    truncation_curve(),
)

__all__ = [
    "METRICS",
    "Estimate",
    "Metric",
    "Split",
    "accuracy",
    "active_units",
    "class_coverage",
    "sample_metrics",
    "cost",
    "elbo",
    "evaluator",
    "importance_weighted",
    "in_float64",
    "invertibility",
    "path_smoothness",
    "sliced_wasserstein",
    "style_state",
    "truncation_curve",
    "iwae_50",
    "iwae_5000",
    "kl_per_dimension",
    "latent_accuracy",
    "log_integral",
    "log_likelihood",
    "log_likelihood_per_step",
    "mode_coverage",
    "reconstruction_error",
    "sample_quality",
    "stability",
    "suite",
    "text_likelihood",
    "text_quality",
    "text_to_text_quality",
    "paired_quality",
    "segmentation_quality",
    "unpaired_quality",
    "train_on_synthetic",
]
