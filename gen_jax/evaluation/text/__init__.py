"""Metrics of text: likelihood, generated texts, and targets of text-to-text models."""

from gen_jax.evaluation.text.generated import (
    distinct,
    grams,
    held_out_quality,
    longest_copies,
    self_bleu,
    text_quality,
)
from gen_jax.evaluation.text.likelihood import (
    mixture_likelihood,
    mixture_weight,
    stream_log_probs,
    text_likelihood,
)
from gen_jax.evaluation.text.targets import (
    compare_texts,
    edit_distance,
    first_sentence,
    grouped,
    text_to_text_quality,
    texts_of,
)

__all__ = [
    "compare_texts",
    "distinct",
    "edit_distance",
    "first_sentence",
    "grams",
    "grouped",
    "held_out_quality",
    "longest_copies",
    "mixture_likelihood",
    "mixture_weight",
    "self_bleu",
    "stream_log_probs",
    "text_likelihood",
    "text_quality",
    "text_to_text_quality",
    "texts_of",
]
