"""Text: language models, n-grams, and text-to-text."""

from gen_jax.models.text.language_model import Embedding, LanguageModel
from gen_jax.models.text.ngram import NGram

__all__ = ["Embedding", "LanguageModel", "NGram"]
