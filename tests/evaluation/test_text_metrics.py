"""Metrics of text against numbers known beforehand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.core import State
from gen_jax.data import load
from gen_jax.data.text import Windows, evaluation_windows
from gen_jax.errors import UserError
from gen_jax.evaluation import Split, text_likelihood, text_quality
from gen_jax.evaluation.text import (
    compare_texts,
    distinct,
    edit_distance,
    first_sentence,
    grams,
    grouped,
    longest_copies,
    mixture_likelihood,
    mixture_weight,
    self_bleu,
    stream_log_probs,
)
from gen_jax.evaluation.text.generated import _continued
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Categorical
from gen_jax.models.text import NGram

KEY = jax.random.key(0)


class Uniform:
    """Every token has the same probability."""

    def __init__(self, size):
        self.size = size

    def log_probs(self, state, batch):
        return jnp.full(batch["x"].shape, -math.log(self.size)).at[:, 0].set(0)

    def log_prob(self, state, batch):
        return (self.log_probs(state, batch) * batch["mask"]).sum(axis=1)


def split_of(data, name="test", windows=Windows(20, 8)):
    part, train = (evaluation_windows(data[s]["x"], windows, data.uncounted_token) for s in (name, "train"))
    return Split(name, part, (), 16, train, data.name, None, data.info, windows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "owls.txt"
    path.write_text("The öwl saw. " * 200)
    return load(path, text="tokens")


def test_bits_are_counted_per_character_and_per_byte_of_the_text(data):
    size, split = data.info.levels, split_of(data)
    found = text_likelihood(Uniform(size))(None, split, KEY)
    characters = len(data["test"]["x"]) - 1
    assert found["nats_per_token"].value == pytest.approx(math.log(size), rel=1e-5)
    assert found["nats_per_token"].n == characters and found["nats_per_token"].error == pytest.approx(0, abs=1e-4)
    assert found["perplexity"].value == pytest.approx(size, rel=1e-4)
    assert found["bits_per_character"].value == pytest.approx(math.log2(size), rel=1e-5)
    text = data.tokens().decode(data["test"]["x"])
    assert found["bits_per_byte"].value == pytest.approx(math.log2(size) * characters / len(text), rel=1e-5)
    assert "context 20, stride 8" in found["bits_per_byte"].how and found["bits_per_byte"].kind == "exact"
    with pytest.raises(UserError, match="windows of a text"):
        text_likelihood(Uniform(size))(None, split._replace(windows=None), KEY)


def test_subwords_are_said_to_be_bounds():
    data = load("tales", tokenizer="bpe", vocabulary=300)
    found = text_likelihood(Uniform(data.info.levels))(None, split_of(data), KEY)
    assert found["bits_per_byte"].kind == "bound" and found["nats_per_token"].kind == "exact"


def test_a_chain_is_scored_given_the_context(data):
    """By differences of log-likelihoods, equal to a chain that forgets: one state has no memory."""
    model, split = HMM(1, Categorical(data.info.levels), length=21), split_of(data)
    batch = {"x": jnp.asarray(np.stack(split.arrays["x"]), jnp.int32)}
    params, extra = model.init(KEY, batch)
    state = State(jnp.int32(0), KEY, params, (), extra)
    found = text_likelihood(model)(state, split, KEY)["nats_per_token"].value
    single = np.asarray(model.log_prob(state, {"x": jnp.arange(data.info.levels)[:, None]}))
    assert found == pytest.approx(-single[data["test"]["x"][1:]].mean(), rel=1e-4)


def counted(data, order):
    model = NGram(data.info.levels, data.info.levels - 1, order, length=30)
    batch = {"x": data["train"]["x"].astype(np.int32)}
    state = State(jnp.int32(0), KEY, model.init(KEY, batch)[0], (), {})
    return model, state._replace(params=model.solve(state, batch)[0])


def test_a_mixture_is_at_least_as_good_as_each_on_the_split_of_its_weight(data):
    models = [counted(data, order) for order in (1, 3)]
    split = split_of(data, "validation")
    (a, tokens), (b, again) = (stream_log_probs(*one, split) for one in models)
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(tokens, data["validation"]["x"][data["validation"]["x"] != data.info.levels - 1])
    sides = [(*one, {"validation": split}) for one in models]
    found, weight = mixture_likelihood(*sides, "validation")
    assert weight == mixture_weight(a, b)
    mixed = found["mixture_nats_per_token"].value
    assert mixed <= min(-a.mean(), -b.mean()) + 1e-6
    better = [np.logaddexp(a + np.log(w), b + np.log1p(-w)).mean() for w in (weight * 0.9, weight * 0.999)]
    assert -mixed >= max(better) - 1e-5
    assert mixture_weight(np.log([0.5, 0.5]), np.log([0.5, 0.5])) == pytest.approx(0.5)


def test_generated_text_is_measured_beside_held_out_text(data):
    model, state = counted(data, 5)
    found = text_quality(samples=3, length=60)(model)(state, split_of(data), KEY)
    for name in ("distinct_2", "self_bleu", "copied_20", "longest_copy", "extracted"):
        assert {name, f"{name}_of_data"} <= found.keys()
    assert 0 < found["copied_20"].value <= 1 and 20 < found["longest_copy"].value <= 120


def test_short_texts_are_measured_too(data):
    model, state = counted(data, 3)
    split = split_of(data)
    few = split._replace(arrays={name: a[:1] for name, a in split.arrays.items()})
    tokens = int(few.arrays["mask"].sum())
    found = text_quality(samples=3, length=4 * tokens)(model)(state, few, KEY)
    assert found["self_bleu_of_data"].how.startswith(f"{tokens} tokens,") and found["extracted_of_data"].n == 1
    one = split._replace(arrays={"x": split.arrays["x"][:1, :2], "mask": split.arrays["mask"][:1, :2]})
    assert "extracted_of_data" not in text_quality(samples=3, length=40)(model)(state, one, KEY)


def test_a_model_that_knows_its_training_text_by_heart_gives_it_back():
    rng = np.random.default_rng(0)
    unique = np.concatenate([[50], rng.permutation(50), [50]]).astype(np.int32)  # no token follows two others
    model = NGram(51, 50, 3)
    state = State(jnp.int32(0), KEY, model.init(KEY, {"x": unique})[0], (), {})
    state = state._replace(params=model.solve(state, {"x": unique})[0])
    known = np.stack([unique[1:21], unique[21:41]])
    np.testing.assert_array_equal(_continued(model, state, known), [True, True])
    known[1, -1] = 0 if known[1, -1] else 1
    np.testing.assert_array_equal(_continued(model, state, known), [True, False])


def test_copies_and_grams_are_found():
    training = b"abcdefghij" * 3 + b"klm"
    assert longest_copies([b"xxcdefxx", b"zzz", b"hijabc"], training) == [4, 0, 6]
    assert len(set(grams(b"abab", 2).tolist())) == 2 and len(grams(b"a", 2)) == 0
    assert distinct([b"a b a b"], 2) == pytest.approx(2 / 3)
    assert self_bleu([b"the same text here"] * 3) > 99 and self_bleu([b"one two three four", b"a b c d"]) < 30


def test_scores_of_texts_are_those_of_their_libraries():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "ab") == 2
    assert grouped(["a", "b", "a"], ["1", "2", "3"]) == (["a", "b"], [["1", "3"], ["2"]])
    texts, references = ["the cat sat on the mat", "a dog"], [["the cat sat on a mat"], ["a dog", "the dog"]]
    found = compare_texts(texts, references, ["exact_match", "word_error", "bleu", "chrf", "rouge_1"], "beam 5")
    import sacrebleu

    expected = sacrebleu.corpus_bleu(texts, [["the cat sat on a mat", "a dog"], [None, "the dog"]]).score
    assert found["bleu"].value == pytest.approx(expected) and "tok:13a" in found["bleu"].how
    assert found["exact_match"].value == 0.5 and found["word_error"].value == pytest.approx(1 / 8)
    assert found["rouge_1"].value == pytest.approx((100 * 5 / 6 + 100) / 2)
    refused = compare_texts(["ein Hütte"], [["eine Hütte"]], ["rouge_l"])["rouge_l"]
    assert refused.kind == "undefined" and "ASCII" in refused.how
    few = compare_texts(["two — “words”"], [["two “words”" + " again" * 1000 + " naïve"]], ["rouge_1"])["rouge_1"]
    assert few.kind == "exact"
    assert (
        first_sentence("It costs 3.5 euros. Buy it!") == "It costs 3.5 euros." and first_sentence("No end") == "No end"
    )
