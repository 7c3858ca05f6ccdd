"""Metrics of text: likelihood per token, character and byte; diversity and memorization of generated text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Autoregressive, Density, LimitedContext, Seq2Seq, State, TokenDensity
from gen_jax.data.source import epoch
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, ratio_of_sums, with_group
from gen_jax.models.common.autoregressive import Sampling, feed, generate
from gen_jax.models.text.translation import Translator

__all__ = [
    "compare_texts",
    "distinct",
    "edit_distance",
    "grams",
    "grouped",
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

_EXTRACTED = 50  # tokens that are to be given back


def text_likelihood(model: Density) -> Measure:
    """The likelihood of a text, each token counted once: nats/token, perplexity, bits/character and bits/byte.

    `how` says the context of the tokens and the tokenizer. Bits are those of the original text, with the ends of
    documents counted where there are several. With subwords they are bounds, as other cuts are possible.
    Standard errors are those of a ratio of sums over windows.
    """
    ask(model, Density, "text_likelihood")
    per_token = isinstance(model, TokenDensity)
    run = jax.jit(model.log_probs if isinstance(model, TokenDensity) else partial(_of_counted, model))

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        tokenizer, how = _protocol(split)
        total, count = [], []  # (windows,) nats; (windows, 3) tokens, bytes, characters
        for raw, real in epoch(split.arrays, min(split.batch, split.size, 128)):
            counted = raw["mask"] * real[:, None]
            if not per_token:  # ends within a run are scored too: they count here
                inside = np.cumsum(counted, axis=1) * np.cumsum(counted[:, ::-1], axis=1)[:, ::-1]
                counted = (inside > 0).astype(np.float32)
            values = np.asarray(run(state, {**raw, "x": raw["x"].astype(np.int32)}), np.float64)
            total.append(np.where(counted > 0, values, 0).sum(axis=1) if per_token else values * real)
            count.append((tokenizer.counts[raw["x"]] * counted[..., None]).sum(axis=1))
        return _per_unit(np.concatenate(total), np.concatenate(count), tokenizer, how)

    return measure


def _protocol(split: Split) -> tuple[Any, str]:
    """The tokenizer of a split of text, and how it is predicted."""
    if split.info is None or not split.info.tokenizer or split.windows is None:
        raise UserError("text_likelihood needs windows of a text: an Experiment with `windows`")
    tokenizer, windows = read_tokenizer(split.info.tokenizer), split.windows
    stride = f", stride {windows.step}" if windows.step < windows.length else ", disjoint windows"
    ends = "ends counted" if split.info.documents else "no ends"
    return tokenizer, f"context {windows.length}{stride}, {ends}, {tokenizer.kind} {tokenizer.digest[:6]}"


def _of_counted(model: Density, state: State, batch: Any) -> Array:
    """(B,) log-probabilities of the counted tokens, given all before; within a window they lie together."""
    places = jnp.arange(batch["x"].shape[1])
    first = jnp.min(jnp.where(batch["mask"] > 0, places, len(places)), axis=1)
    last = jnp.max(jnp.where(batch["mask"] > 0, places + 1, 0), axis=1)
    of = lambda length: model.log_prob(state, {"x": batch["x"], "length": length})
    return jnp.where(last > first, of(jnp.maximum(last, 1)) - of(jnp.minimum(first, len(places))), 0.0)


def _per_unit(total: np.ndarray, count: np.ndarray, tokenizer: Any, how: str) -> dict[str, Estimate]:
    exact = "exact" if tokenizer.kind in ("characters", "bytes") else "bound"
    tokens = int(count[:, 0].sum())
    (nats, error), *others = (ratio_of_sums(-total, count[:, unit]) for unit in range(3))
    bits = {unit: [v / math.log(2) for v in found] for unit, found in zip(("byte", "character"), others)}
    perplexity = math.exp(min(nats, 700))
    found = {
        "nats_per_token": Estimate(nats, error, "nats/token", "exact", tokens, how),
        "perplexity": Estimate(perplexity, perplexity * error, "tokens", "exact", tokens, how),
        "bits_per_character": Estimate(bits["character"][0], bits["character"][1], "bits/char", exact, tokens, how),
        "bits_per_byte": Estimate(bits["byte"][0], bits["byte"][1], "bits/byte", exact, tokens, how),
    }
    found = with_group(found, "likelihood", nats_per_token="lower", perplexity="lower")
    return with_group(found, "likelihood", True, bits_per_character="lower", bits_per_byte="lower")


def text_quality(samples: int = 64, length: int = 256, sampling: Sampling = Sampling()) -> Metric:
    """Makes the metric of generated texts of `length` tokens, each beside the same number of held-out text.

    distinct_2: distinct pairs of words, divided by all of them. self_bleu: of each text against the others. copied_20:
    share of runs of 20 bytes that occur in the training text. longest_copy: mean length, in bytes, of the
    longest run of a text that occurs in the training text. extracted: share of runs of tokens of the training text
    whose second half, 50 tokens at most, greedy decoding gives exactly after their first half (Carlini et al. 2023).
    """

    def metric(model: Autoregressive) -> Measure:
        ask(model, Autoregressive, "text_quality")
        tokens = min(length, model.context) if isinstance(model, LimitedContext) else length
        draw = jax.jit(partial(_texts, model, samples, tokens, sampling))
        half = min(_EXTRACTED, tokens // 2)
        extract = jax.jit(partial(_continued, model, half))

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            tokenizer, how = read_tokenizer(split.info.tokenizer), f"{tokens} tokens, {sampling.protocol}"
            made = [tokenizer.decode(row) for row in np.asarray(draw(state, key))]
            stream = lambda split: np.concatenate(
                [row[m > 0] for row, m in zip(split.arrays["x"], split.arrays["mask"])]
            )
            held_out, learned = stream(split), stream(split.reference)
            training = tokenizer.decode(learned)
            human = [tokenizer.decode(run) for run in _runs(held_out, tokens, samples)]
            found, known = {}, np.unique(grams(training, 20))
            for name, texts, text in (("", made, learned), ("_of_data", human, held_out)):
                copies = longest_copies(texts, training)
                shares = [float(_among(grams(t, 20), known).mean()) for t in texts if len(t) >= 20]
                of = lambda v, unit: Estimate(float(np.mean(v)), _error(v), unit, "estimate", len(v), how)
                found |= {
                    f"distinct_2{name}": Estimate(distinct(texts, 2), math.nan, "share", "estimate", len(texts), how),
                    f"self_bleu{name}": Estimate(self_bleu(texts), math.nan, "BLEU", "estimate", len(texts), how),
                    f"copied_20{name}": of(shares or [0.0], "share"),
                    f"longest_copy{name}": of(copies, "bytes"),
                }
                exact = np.asarray(extract(state, _runs(text, 2 * half, samples)), float)
                said = f"{half} tokens after {half}, greedy"
                found[f"extracted{name}"] = of(exact, "share")._replace(how=said)
            names = ("distinct_2", "self_bleu", "copied_20", "longest_copy", "extracted")
            return with_group(found, "sample quality", **dict.fromkeys(names, ""))

        return measure

    metric.__name__ = "text_quality"
    return metric


def _runs(tokens: np.ndarray, length: int, most: int) -> np.ndarray:
    """Runs (n, length) of a stream of tokens, evenly spread; disjoint if there are enough tokens."""
    count = min(most, max(1, len(tokens) // length))
    starts = np.linspace(0, max(0, len(tokens) - length), count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def _continued(model: Any, half: int, state: State, runs: Array) -> Array:
    """(n,) whether greedy decoding after the first half of runs (n, 2 * half) of tokens gives the second."""
    runs, follow = runs.astype(jnp.int32), partial(model.next, state.params, None)
    cache, first = model.start(state.params, None, len(runs), 2 * half)
    told = jnp.concatenate([first[:, None], runs[:, : half - 1]], axis=1)
    cache = feed(follow, cache, told, jnp.full(len(runs), half))
    made = generate(follow, cache, runs[:, half - 1], state.key, half, Sampling(temperature=0))
    return jnp.all(made == runs[:, half:], axis=1)


def _texts(model: Any, samples: int, length: int, sampling: Sampling, state: State, key: Array) -> Array:
    """(samples, length) tokens from the start of a document."""
    cache, first = model.start(state.params, None, samples, length)
    return generate(partial(model.next, state.params, None), cache, first, key, length, sampling)


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def distinct(texts: Sequence[bytes], n: int) -> float:
    """Distinct n-grams of words divided by all of them (Li et al. 2016); falls with the amount of text."""
    words = [text.split() for text in texts]
    all_grams = [tuple(one[i : i + n]) for one in words for i in range(len(one) - n + 1)]
    return len(set(all_grams)) / max(1, len(all_grams))


def self_bleu(texts: Sequence[bytes], most: int = 64) -> float:
    """The mean BLEU of each text with the others as references (Zhu et al. 2018); higher is less diverse."""
    import sacrebleu

    some = [text.decode(errors="replace") for text in texts[:most]]
    if len(some) < 2:
        return math.nan
    score = lambda i: sacrebleu.sentence_bleu(some[i], some[:i] + some[i + 1 :]).score
    return float(np.mean([score(i) for i in range(len(some))]))


def grams(text: bytes, n: int) -> np.ndarray:
    """Hashes (N - n + 1,) of all runs of n bytes."""
    values = np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)
    found = np.zeros(max(0, len(values) - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):
            found = found * np.uint64(0x9E3779B97F4A7C15) + values[i : i + len(found)]
            found ^= found >> np.uint64(29)
    return found


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) which values are among those known, which are sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values


def longest_copies(texts: Sequence[bytes], training: bytes) -> list[int]:
    """For each text the length of its longest run that occurs in the training text, in bytes."""
    low, high = np.zeros(len(texts), int), np.array([len(text) for text in texts])
    known: dict[int, np.ndarray] = {}

    def occurs(i: int, n: int) -> bool:
        if n not in known:
            known[n] = np.unique(grams(training, n))
        return bool(_among(grams(texts[i], n), known[n]).any())

    while np.any(low < high):
        for i in np.flatnonzero(low < high):
            middle = int(low[i] + high[i] + 1) // 2
            if occurs(i, middle):
                low[i] = middle
            else:
                high[i] = middle - 1
    return low.tolist()


def text_to_text_quality(
    *scores: str, beams: int = 5, penalty: str = "mean", alpha: float = 1.0, examples: int | None = None
) -> Metric:
    """Makes the metric of targets found by beam search, beside those that copy their source; see `compare_texts`.

    scores: exact_match, word_error, bleu, bleu_lower, chrf, rouge_1, rouge_2, rouge_l. Several targets of one source
    are its references. examples: how many pairs, by default all.
    """
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise ValueError(f"scores of texts are {', '.join(SCORES)}, got {', '.join(unknown) or 'none'}")

    def metric(model: Seq2Seq) -> Measure:
        ask(model, Seq2Seq, "text_to_text_quality")

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            tokenizer = read_tokenizer(split.info.tokenizer)
            part = split if examples is None else split.part(0, examples)
            sources, references = grouped(*(texts_of(part.arrays, entry, tokenizer) for entry in ("x", "y")))
            translate = Translator(model, tokenizer, beams, penalty, alpha)
            found = [best[0].text for best in translate(state, sources)]
            how = f"beam {beams}, {penalty} {alpha:g}" if beams > 1 else "greedy"
            copies = compare_texts(sources, references, scores, "source copied")
            made = compare_texts(found, references, scores, how)
            made = {n: e._replace(group="use", better=SCORES[n], headline=n == scores[0]) for n, e in made.items()}
            return made | {f"{name}_of_copy": e for name, e in copies.items()}

        return measure

    metric.__name__ = "text_to_text_quality"
    return metric


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


SCORES = {"exact_match": "higher", "word_error": "lower", "bleu": "higher", "bleu_lower": "higher", "chrf": "higher"}
SCORES |= {"rouge_1": "higher", "rouge_2": "higher", "rouge_l": "higher"}


def compare_texts(
    texts: Sequence[str], references: Sequence[Sequence[str]], scores: Sequence[str], how: str = ""
) -> dict[str, Estimate]:
    """Scores of texts against one or more references each.

    exact_match: share of texts that equal a reference. word_error: edits per word of the nearest reference. bleu,
    chrf: by sacreBLEU, of the texts as they are; bleu_lower: the same in lower case. rouge_1, rouge_2, rouge_l: F1 of
    stemmed words, with the best reference; undefined outside ASCII, which the scorer drops. Signatures are in `how`.
    """
    made = {"exact_match": _exact_match, "word_error": _word_error, "bleu": _bleu, "bleu_lower": _bleu, "chrf": _bleu}
    return {name: made.get(name, _rouge)(name, texts, references, how) for name in scores}


def _exact_match(name: str, texts, references, how: str) -> Estimate:
    exact = [float(text in refs) for text, refs in zip(texts, references)]
    return Estimate(float(np.mean(exact)), _error(exact), "share", "exact", len(exact), how)


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

    if not all(text.isascii() for refs in references for text in refs):
        return Estimate(math.nan, math.nan, "points", "undefined", len(texts), "ROUGE drops all but ASCII")
    kind = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[name]
    scorer = RougeScorer([kind], use_stemmer=True)
    best = [100 * max(scorer.score(ref, text)[kind].fmeasure for ref in refs) for text, refs in zip(texts, references)]
    said = ", ".join(filter(None, [how, "F1, stemmed, best reference, rouge-score"]))
    return Estimate(float(np.mean(best)), _error(best), "points", "exact", len(best), said)


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Insertions, deletions and substitutions that turn a into b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def stream_log_probs(model: TokenDensity, state: State, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (N,) of the counted tokens of a split, in the order of the text, and those tokens (N,)."""
    ask(model, TokenDensity, "stream_log_probs")
    run, values, tokens = jax.jit(model.log_probs), [], []
    for raw, real in epoch(split.arrays, min(split.batch, split.size, 128)):
        counted = raw["mask"] * real[:, None] > 0
        found = np.asarray(run(state, {**raw, "x": raw["x"].astype(np.int32)}), np.float64)
        values.append(found[counted])
        tokens.append(np.asarray(raw["x"])[counted])
    return np.concatenate(values), np.concatenate(tokens)


def mixture_weight(a: np.ndarray, b: np.ndarray) -> float:
    """The weight w of the most probable mixture w exp(a) + (1 - w) exp(b) of log-probabilities (N,), by EM."""
    w = 0.5
    for _ in range(100):
        responsibility = 1 / (1 + (1 - w) / w * np.exp(np.clip(b - a, -700, 700)))
        w = float(np.clip(responsibility.mean(), 1e-6, 1 - 1e-6))
    return w


def mixture_likelihood(
    first: tuple[Any, State, Mapping[str, Split]], second: tuple[Any, State, Mapping[str, Split]], name: str
) -> tuple[dict[str, Estimate], float]:
    """The likelihood of a mixture of two models on the split `name`, and the weight of the first.

    first, second: (model, state, splits) with "validation", on which the weight is chosen, and `name`. Raises UserError
    if both are not of the same tokens.
    """

    def both(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (a, tokens), (b, again) = (stream_log_probs(model, s, splits[split]) for model, s, splits in (first, second))
        if not np.array_equal(tokens, again):
            raise UserError(f"a mixture needs models of the same tokens; their {split} splits differ")
        return a, b, tokens

    a, b, _ = both("validation")
    weight = mixture_weight(a, b)
    a, b, tokens = both(name)
    tokenizer, how = _protocol(first[2][name])
    values = np.logaddexp(a + np.log(weight), b + np.log1p(-weight))
    edges = np.arange(0, len(values), first[2][name].windows.length)
    sums = np.add.reduceat(values, edges), np.add.reduceat(tokenizer.counts[tokens], edges, axis=0)
    found = _per_unit(*sums, tokenizer, how)
    return {f"mixture_{unit}": estimate for unit, estimate in found.items()}, weight
