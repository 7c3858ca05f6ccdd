"""Language models and text-to-text models of common designs, from a few numbers."""

from __future__ import annotations

from typing import Any

from gen_jax.models.common.transformer import Parts, Stack, gpt2_parts, modern_parts
from gen_jax.models.text.language_model import Embedding, LanguageModel
from gen_jax.models.text.text_to_text import TextToText

__all__ = ["gpt2", "modern_lm", "transformer"]


def gpt2(vocabulary: int, end: int, context: int, width: int, depth: int, heads: int, **more: Any) -> LanguageModel:
    """GPT-2 (Radford et al. 2019): learned positions, tied embedding. more: of `Parts`."""
    parts = gpt2_parts(width, heads, **more)
    return LanguageModel(Embedding(vocabulary, context, parts), Stack(parts, depth), end)


def modern_lm(
    vocabulary: int, end: int, context: int, width: int, depth: int, heads: int, documents: bool = False, **more: Any
) -> LanguageModel:
    """Rotary positions, normalized queries and keys, squared ReLU, untied head with bounded logits.

    more: of `Parts`. documents: see `LanguageModel`.
    """
    parts = modern_parts(width, heads, **more)
    return LanguageModel(_embedding(vocabulary, context, parts, 15.0), Stack(parts, depth), end, documents)


def transformer(
    vocabulary: int,
    end: int,
    width: int,
    depth: int,
    heads: int,
    length: int,
    smoothing: float = 0.0,
    copies: bool = False,
    **more: Any,
) -> TextToText:
    """Encoder and decoder of the same depth, with the blocks of `modern_lm`. length: tokens of a sampled target.

    smoothing, copies: see `TextToText`.
    """
    parts = modern_parts(width, heads, **more)
    encoder, decoder = Stack(parts, depth, causal=False), Stack(parts, depth, cross=True)
    return TextToText(
        _embedding(vocabulary, length, parts, 0.0), encoder, decoder, end, smoothing, length=length, copies=copies
    )


def _embedding(vocabulary: int, context: int, parts: Parts, soft_cap: float) -> Embedding:
    return Embedding(
        vocabulary, context, parts, "none", tied=False, std=1.0, head_std=0.001, normed=True, soft_cap=soft_cap
    )
