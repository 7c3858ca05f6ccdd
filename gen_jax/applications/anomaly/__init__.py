"""Anomaly detection: scores of trained models, thresholds with a guarantee, ROC and precision-recall."""

from gen_jax.applications.anomaly.detection import Ranking, average_precision, rank, roc_auc
from gen_jax.applications.anomaly.scores import SCORES, Scored, Scorer, scorers
from gen_jax.applications.anomaly.thresholds import (
    Threshold,
    benjamini_hochberg,
    conformal_p_values,
    conformal_threshold,
    false_alarm_range,
    least_calibration,
    quantile_threshold,
    tail_threshold,
)

__all__ = [
    "SCORES",
    "Ranking",
    "Scored",
    "Scorer",
    "Threshold",
    "average_precision",
    "benjamini_hochberg",
    "conformal_p_values",
    "conformal_threshold",
    "false_alarm_range",
    "least_calibration",
    "quantile_threshold",
    "rank",
    "roc_auc",
    "scorers",
    "tail_threshold",
]
