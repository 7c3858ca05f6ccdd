"""Text: language models, n-grams, and text-to-text."""

from gen_jax.models.text.generation import Continuation, Generator, Row
from gen_jax.models.text.infilling import Filling, Infiller
from gen_jax.models.text.language_model import Embedding, LanguageModel
from gen_jax.models.text.ngram import NGram
from gen_jax.models.text.recipes import gpt2, modern_lm, transformer
from gen_jax.models.text.text_to_text import TextToText
from gen_jax.models.text.translation import Translation, Translator

__all__ = [
    "Continuation",
    "Embedding",
    "Filling",
    "Generator",
    "Infiller",
    "LanguageModel",
    "NGram",
    "Row",
    "TextToText",
    "Translation",
    "Translator",
    "gpt2",
    "modern_lm",
    "transformer",
]
