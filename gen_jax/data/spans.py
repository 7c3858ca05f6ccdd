"""Texts with spans taken out, and those spans: pairs for models that fill in gaps (Raffel et al. 2020, 3.1.4)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gen_jax.data.dataset import Dataset
from gen_jax.data.pairs import as_pairs
from gen_jax.data.text import documents_of
from gen_jax.errors import UserError

__all__ = ["MARKS", "as_spans", "check_marks", "filled", "take_out"]

MARKS = "①②③④⑤⑥⑦⑧⑨⑩"  # of the gaps of a text, in their order
_WORDS = (8, 32)  # in a window
_COPIES, _MOST = 8, 100_000  # windows that a word is in, on average; windows in all


def as_spans(texts: Mapping[str, Sequence[str]], options: Any, name: str) -> Dataset:
    """Pairs of windows of a text with gaps, "Ada the ① lived on the ②.", and what fills them, "①weaver②hill".

    texts: documents by split, as for `as_corpus`. Windows have 8 to 32 words; each word is in 8 of them, with other
    gaps, unless these are more than 100,000.
    """
    parts, _ = documents_of(texts, name)
    check_marks((text for some in parts.values() for text in some), name)
    made = as_pairs({split: _windows(some, f"{name} {split}") for split, some in parts.items()}, options, name)
    return replace(made, described={**(made.described or {}), "gaps": True})


def check_marks(texts: Iterable[str], name: str) -> None:
    """Raises UserError for texts that contain marks of gaps."""
    if found := sorted({mark for text in texts for mark in MARKS if mark in text}):
        raise UserError(f"{name} contains {' '.join(found)}, which marks gaps: replace it")


def _windows(documents: Sequence[str], name: str) -> list[tuple[str, str]]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    split = [re.findall(r"\s*\S+", text) for text in documents]
    split = [words for words in split if len(words) >= 2]
    sizes = np.array([len(words) for words in split])
    if not len(sizes):
        raise UserError(f"{name} has no text with two words: give a longer text, or all three splits")
    count = max(1, min(_MOST, _COPIES * int(sizes.sum()) // (sum(_WORDS) // 2)))
    pairs = []
    for number in rng.choice(len(split), count, p=sizes / sizes.sum()):
        words = split[number]
        length = min(int(rng.integers(_WORDS[0], _WORDS[1] + 1)), len(words))
        start = int(rng.integers(0, len(words) - length + 1))
        pairs.append(take_out(rng, words[start : start + length]))
    return pairs


def take_out(
    rng: np.random.Generator, words: Sequence[str], density: float = 0.15, mean: float = 3.0
) -> tuple[str, str]:
    """A text with gaps, and their contents behind their marks; all places of the gaps are equally probable.

    words: at least two, with the white space before each. density: share of the words that are taken out. mean: words
    in a gap.
    """
    taken = min(max(1, round(density * len(words))), len(words) - 1)
    kept, gaps = len(words) - taken, min(max(1, round(taken / mean)), taken, len(words) - taken + 1, len(MARKS))
    sizes = np.diff([0, *np.sort(rng.choice(np.arange(1, taken), gaps - 1, replace=False)), taken])
    places = np.sort(rng.choice(kept + 1, gaps, replace=False))  # how many words are kept before each gap
    source, target, at = [], [], 0
    for mark, size, start in zip(MARKS, sizes, places + np.cumsum([0, *sizes[:-1]])):
        gap = "".join(words[start : start + size])
        content = gap.lstrip()
        source += [*words[at:start], gap[: len(gap) - len(content)], mark]
        target += [mark, content]
        at = start + size
    return "".join([*source, *words[at:]]).lstrip(), "".join(target)


def filled(source: str, target: str) -> str:
    """A text whose gaps are filled."""
    for mark, content in re.findall(f"([{MARKS}])([^{MARKS}]*)", target):
        source = source.replace(mark, content)
    return source
