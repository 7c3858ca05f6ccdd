"""Scores of the targets of text-to-text models, beside copies of their sources."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array

from gen_jax.core import Seq2Seq, State
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, standard_error
from gen_jax.models.text.translation import Translator

__all__ = [
    "compare_texts",
    "edit_distance",
    "first_sentence",
    "grouped",
    "text_to_text_quality",
    "texts_of",
]

SCORES = {"exact_match": "higher", "word_error": "lower", "bleu": "higher", "bleu_lower": "higher", "chrf": "higher"}
SCORES |= {"rouge_1": "higher", "rouge_2": "higher", "rouge_l": "higher"}
_OUTSIDE_ASCII = 0.001  # share of words of which ROUGE may drop letters


def text_to_text_quality(
    *scores: str,
    beams: int = 5,
    penalty: str = "mean",
    alpha: float = 1.0,
    examples: int | None = None,
    often: int | None = None,
    lead: bool = False,
) -> Metric:
    """Makes the metric of targets found by beam search, beside those that copy their source; see `compare_texts`.

    scores: exact_match, word_error, bleu, bleu_lower, chrf, rouge_1, rouge_2, rouge_l. Several targets of one source
    are its references. examples: how many pairs, by default all; often: how many of splits other than "test", which are
    looked at during training. lead: only the first sentence of the source is copied, the usual baseline of summaries.
    """
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise ValueError(f"scores of texts are {', '.join(SCORES)}, got {', '.join(unknown) or 'none'}")

    def metric(model: Seq2Seq) -> Measure:
        ask(model, Seq2Seq, "text_to_text_quality")

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            tokenizer = read_tokenizer(split.info.tokenizer)
            most = min(examples or split.size, split.size if split.name == "test" else often or split.size)
            part = split.part(0, most)
            sources, references = grouped(*(texts_of(part.arrays, entry, tokenizer) for entry in ("x", "y")))
            translate = Translator(model, tokenizer, beams, penalty, alpha)
            found = [best[0].text for best in translate(state, sources)]
            how = f"beam {beams}, {penalty} {alpha:g}" if beams > 1 else "greedy"
            copied = [first_sentence(source) for source in sources] if lead else sources
            said, suffix = ("first sentence of the source", "_of_lead") if lead else ("source copied", "_of_copy")
            copies = compare_texts(copied, references, scores, said)
            made = compare_texts(found, references, scores, how)
            made = {n: e._replace(group="use", better=SCORES[n], headline=n == scores[0]) for n, e in made.items()}
            return made | {f"{name}{suffix}": e for name, e in copies.items()}

        return measure

    metric.__name__ = "text_to_text_quality"
    return metric


def first_sentence(text: str) -> str:
    """A text up to the first end of a sentence before white space."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def texts_of(arrays: Any, entry: str, tokenizer: Any) -> list[str]:
    """The texts of an entry, without the ends around them."""
    first, length = int(entry == "y"), arrays["length" if entry == "x" else f"{entry}_length"]
    return [tokenizer.text(row[first : n - 1]) for row, n in zip(np.asarray(arrays[entry]), np.asarray(length))]


def grouped(sources: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Distinct sources, and all targets of each."""
    found: dict[str, list[str]] = {}
    for source, target in zip(sources, targets):
        found.setdefault(source, []).append(target)
    return list(found), list(found.values())


def compare_texts(
    texts: Sequence[str], references: Sequence[Sequence[str]], scores: Sequence[str], how: str = ""
) -> dict[str, Estimate]:
    """Scores of texts against one or more references each.

    exact_match: share of texts that equal a reference. word_error: edits per word of the nearest reference. bleu,
    chrf: by sacreBLEU, of the texts as they are; bleu_lower: the same in lower case. rouge_1, rouge_2, rouge_l: F1 of
    stemmed words, with the best reference; the scorer drops letters outside ASCII, so these scores are undefined if
    more than one word in 1,000 has one. Signatures are in `how`.
    """
    made = {"exact_match": _exact_match, "word_error": _word_error, "bleu": _bleu, "bleu_lower": _bleu, "chrf": _bleu}
    return {name: made.get(name, _rouge)(name, texts, references, how) for name in scores}


def _exact_match(name: str, texts, references, how: str) -> Estimate:
    exact = [float(text in refs) for text, refs in zip(texts, references)]
    return Estimate(float(np.mean(exact)), standard_error(exact), "share", "exact", len(exact), how)


def _word_error(name: str, texts, references, how: str) -> Estimate:
    edits = np.zeros(2)
    for text, refs in zip(texts, references):
        edits += min((edit_distance(text.split(), ref.split()), len(ref.split())) for ref in refs)
    return Estimate(float(edits[0] / max(1, edits[1])), math.nan, "share", "exact", len(texts), how)


def _bleu(name: str, texts, references, how: str) -> Estimate:
    import sacrebleu

    score = {"bleu": sacrebleu.BLEU(), "bleu_lower": sacrebleu.BLEU(lowercase=True), "chrf": sacrebleu.CHRF()}[name]
    most = max(map(len, references))
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    value = score.corpus_score(list(texts), streams).score
    said = ", ".join(filter(None, [how, str(score.get_signature())]))
    return Estimate(value, math.nan, "points", "exact", len(texts), said)


def _rouge(name: str, texts, references, how: str) -> Estimate:
    from rouge_score.rouge_scorer import RougeScorer

    words = [word for refs in references for text in refs for word in re.findall(r"\w+", text)]
    if sum(not word.isascii() for word in words) > _OUTSIDE_ASCII * len(words):
        return Estimate(math.nan, math.nan, "points", "undefined", len(texts), "ROUGE drops letters outside ASCII")
    kind = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[name]
    scorer = RougeScorer([kind], use_stemmer=True)
    best = [100 * max(scorer.score(ref, text)[kind].fmeasure for ref in refs) for text, refs in zip(texts, references)]
    said = ", ".join(filter(None, [how, "F1, stemmed, best reference, rouge-score"]))
    return Estimate(float(np.mean(best)), standard_error(best), "points", "exact", len(best), said)


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Insertions, deletions and substitutions that turn a into b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]
