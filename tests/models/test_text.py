"""Language models, text-to-text and n-grams: causality, caches, packing, sharding, and references written out."""

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import closed_form, descent
from gen_jax.core import Autoregressive, LimitedContext, Prefilled, Seq2Seq, State, TokenDensity
from gen_jax.data.pairs import pack_pairs
from gen_jax.data.tokenizers import Characters
from gen_jax.loop import program
from gen_jax.models.common.attention import attention, relative_buckets, rotate
from gen_jax.models.common.autoregressive import Sampling
from gen_jax.models.common.tokens import token_log_probs
from gen_jax.models.common.transformer import Stack, gpt2_parts, modern_parts, t5_parts
from gen_jax.models.text import Embedding, Generator, LanguageModel, NGram, Row, TextToText, Translator
from gen_jax.optimizers import muon
from gen_jax.sharding import Layout, P

V, T, END = 11, 12, 10
KEY = jax.random.key(0)
loud = {"std": 0.3, "zero_init": False}  # so that every part matters from the start
PARTS = {
    "modern": (modern_parts(16, 2, **loud), "none"),
    "grouped-window": (modern_parts(16, 4, kv_heads=2, window=5, **loud), "none"),
    "gpt2": (gpt2_parts(16, 2, bias=True, std=0.3), "learned"),
    "t5": (t5_parts(16, 2, **loud), "none"),
    "swiglu": (gpt2_parts(16, 2, activation="swiglu", std=0.3), "sinusoidal"),
}


def language_model(name="modern", **more):
    parts, positions = PARTS[name]
    return LanguageModel(Embedding(V, T, parts, positions, std=1.0), Stack(parts, 2), END, **more)


def start_of(model, batch):
    params, extra = model.init(KEY, batch)
    return State(jnp.int32(0), KEY, params, (), extra)


def texts(n=3, seed=0):
    x = np.random.default_rng(seed).integers(0, END, (n, T + 1)).astype(np.int32)
    x[:, 0] = END
    return x


@pytest.fixture(scope="module", params=PARTS)
def case(request):
    model, x = language_model(request.param), texts()
    state = start_of(model, {"x": x})
    return model, state, x, np.asarray(jax.jit(model.logits)(state, x[:, :-1]))


def test_the_model_has_the_abilities_of_a_language_model():
    model = language_model()
    for ability in (TokenDensity, Autoregressive, Prefilled, LimitedContext):
        assert isinstance(model, ability), ability
    assert isinstance(NGram(V, END), TokenDensity) and not isinstance(NGram(V, END), LimitedContext)


# --- causality: gradients by the future are exactly 0, those by the present are not


def gradients_by_position(logits_of, embedded, t):
    """The largest gradient of the logits at t by the vectors at each position."""
    grad = jax.grad(lambda h: jnp.sum(jnp.sin(logits_of(h)[:, t])))(embedded)
    return np.abs(np.asarray(grad)).max(axis=(0, 2))


@pytest.mark.representatives("modern-True", "grouped-window-False", "t5-False")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_no_logit_depends_on_the_future(name, documents):
    model, x = language_model(name, documents=documents), texts()
    x[:, 5] = END
    params = start_of(model, {"x": x}).params["lm"]
    here = jnp.arange(T)
    segments = jnp.cumsum(x[:, :-1] == END, axis=1) if documents else None
    h = model.embedding(params["embedding"], x[:, :-1], here)
    run = jax.jit(lambda h: model.stack(params["stack"], h, here, segments))
    for t in (3, 8):
        found = gradients_by_position(run, h, t)
        assert np.all(found[t + 1 :] == 0), (t, found)
        first = 5 if documents and t >= 5 else 0
        if model.stack.parts.window:  # two layers see twice as far
            first = max(first, t - 2 * (model.stack.parts.window - 1))
        assert np.all(found[first : t + 1] > 0) and np.all(found[:first] == 0), (t, found)


@pytest.mark.representatives("modern")
@pytest.mark.parametrize("name", ["modern", "gpt2", "t5"])
def test_prefill_and_cached_steps_are_causal_too(name):
    model, x = language_model(name), texts()
    params = start_of(model, {"x": x}).params["lm"]
    h = model.embedding(params["embedding"], x[:, :-1], jnp.arange(T))
    run = lambda h: model.stack.step(params["stack"], model.stack.empty(3, 16), h)[1]
    found = gradients_by_position(run, h, 4)
    assert np.all(found[5:] == 0) and np.all(found[:5] > 0)

    def one_by_one(h):
        step = lambda cache, one: model.stack.step(params["stack"], cache, one[:, None])
        return jax.lax.scan(step, model.stack.empty(3, 16), h[:, :6].swapaxes(0, 1))[1][:, :, 0].swapaxes(0, 1)

    found = gradients_by_position(one_by_one, h, 4)
    assert np.all(found[5:] == 0) and np.all(found[:5] > 0)


def test_padding_of_sources_reaches_nothing():
    model, batch = text_to_text(), pairs()
    params = start_of(model, batch).params["text_to_text"]
    segments = (jnp.arange(batch["x"].shape[1]) < batch["length"][:, None]).astype(jnp.int32)
    h = model.embedding(params["embedding"], batch["x"], jnp.arange(batch["x"].shape[1]))
    grad = jax.grad(
        lambda h: jnp.sum(
            jnp.sin(model.encoder(params["encoder"], h, jnp.arange(h.shape[1]), segments)) * segments[..., None]
        )
    )(h)
    assert np.all(np.asarray(grad)[np.asarray(segments) == 0] == 0)


# --- caches


def test_cached_logits_are_those_of_the_training_graph(case):
    model, state, x, logits = case
    step = jax.jit(partial(model.next, state.params, None))
    cache, _ = model.start(state.params, None, 3, 16)
    for t in range(T):
        cache, found = step(cache, x[:, t])
        np.testing.assert_allclose(found, logits[:, t], rtol=1e-4, atol=1e-4)


def test_a_ragged_prefill_continues_each_row_at_its_own_place(case):
    model, state, x, logits = case
    lengths = np.array([1, 5, 9])
    junk = np.where(np.arange(9) < lengths[:, None], x[:, :9], 7)
    cache, _ = model.start(state.params, None, 3, 16)
    cache = model.extend(state.params, None, cache, junk, lengths)
    for _ in range(2):
        cache, found = model.next(state.params, None, cache, x[np.arange(3), lengths])
        np.testing.assert_allclose(found, logits[np.arange(3), lengths], rtol=1e-4, atol=1e-4)
        lengths = lengths + 1


def test_documents_in_one_window_are_as_if_alone():
    model, x = language_model(documents=True), texts()
    x[:, 6] = END
    state = start_of(model, {"x": x})
    whole = model.log_probs(state, {"x": x})
    second = model.log_probs(state, {"x": x[:, 6:]})
    np.testing.assert_allclose(whole[:, 7:], second[:, 1:], rtol=1e-4, atol=1e-5)


def test_cached_steps_see_their_own_document_only():
    model, x = language_model(documents=True), texts()
    x[:, 6] = END
    state = start_of(model, {"x": x})
    logits = np.asarray(model.logits(state, x[:, :-1]))
    cache, _ = model.start(state.params, None, 3, 16)
    cache = model.extend(state.params, None, cache, x[:, :8], np.array([4, 7, 8]))
    for row, t in ((0, 4), (1, 7), (2, 8)):
        one = jax.tree.map(lambda a, row=row: a[row : row + 1], cache)
        for place in (t, t + 1):
            one, found = model.next(state.params, None, one, x[row : row + 1, place])
            np.testing.assert_allclose(found[0], logits[row, place], rtol=1e-4, atol=1e-4)


def test_attention_weights_are_those_that_are_used():
    model, x = language_model("grouped-window"), texts()
    maps = np.asarray(model.attention(start_of(model, {"x": x}), x[:, :-1]))
    assert maps.shape == (2, 3, 4, T, T)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-5)
    seen = np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -5)
    assert np.all(maps[..., ~seen] == 0) and np.all(maps[..., seen] > 0)


def test_log_probs_add_up_and_masks_count():
    model, x = language_model(), texts()
    state = start_of(model, {"x": x})
    each = np.asarray(model.log_probs(state, {"x": x}))
    assert np.all(each[:, 0] == 0)
    mask = np.zeros(x.shape, np.float32)
    mask[:, 4:8] = 1
    np.testing.assert_allclose(model.log_prob(state, {"x": x, "mask": mask}), each[:, 4:8].sum(axis=1), rtol=1e-5)
    every = np.array(list(itertools.product(range(V), repeat=2)), np.int32)
    every = np.concatenate([np.full((len(every), 1), END, np.int32), every], axis=1)
    assert np.exp(model.log_prob(state, {"x": every})).sum() == pytest.approx(1, rel=1e-4)


def test_logits_in_blocks_give_the_same_loss_and_gradient():
    model, x = language_model(), texts()
    state = start_of(model, {"x": x})
    value = lambda model: jax.value_and_grad(lambda p: model.loss(p, state, {"x": x}, KEY)[0].total)(state.params["lm"])
    (a, da), (b, db) = value(model), value(replace(model, block=7))
    assert a == pytest.approx(float(b), rel=1e-6)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-5), da, db)
    whole = jax.jit(lambda h: token_log_probs(lambda h: h @ jnp.ones((4, 30_000)), h, jnp.zeros((8, 64), int), 64)[0])
    assert "f32[512,30000]" not in whole.lower(jnp.ones((8, 64, 4))).compile().as_text()


@pytest.mark.parametrize("more", [{"remat": True}, {"unroll": 1}])
def test_how_layers_run_changes_nothing(more):
    model, x = language_model(), texts()
    state = start_of(model, {"x": x})
    other = replace(model, stack=replace(model.stack, **more))
    grad = lambda model: jax.grad(lambda p: model.loss(p, state, {"x": x}, KEY)[0].total)(state.params["lm"])
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-5), grad(model), grad(other))


def test_bfloat16_keeps_parameters_in_float32_and_comes_near():
    model, x = language_model(), texts()
    parts = replace(model.stack.parts, dtype=jnp.bfloat16)
    low = replace(model, embedding=replace(model.embedding, parts=parts), stack=replace(model.stack, parts=parts))
    state = start_of(low, {"x": x})
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low.log_prob(state, {"x": x}), model.log_prob(state, {"x": x}), rtol=0.05)


# --- attention


def test_attention_is_its_formula():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 100, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    weights = np.einsum("bthd,bshd->bhts", q, k.repeat(2, axis=2)) / np.sqrt(8)
    seen = np.tril(np.ones((100, 100), bool)) & ~np.tril(np.ones((100, 100), bool), -30)
    weights = np.exp(np.where(seen, weights, -np.inf))
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v.repeat(2, axis=2))
    np.testing.assert_allclose(attention(q, k, v, causal=True, window=30), expected, rtol=1e-4, atol=1e-5)


def test_a_query_without_keys_gets_zero_and_no_nan():
    q = jnp.ones((1, 3, 1, 4))
    mask = jnp.array([[[True, False], [False, False], [True, True]]])
    run = lambda q: attention(q, jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4)), mask=mask)
    np.testing.assert_allclose(run(q)[0, :, 0, 0], [1, 0, 1])
    assert np.isfinite(jax.grad(lambda q: run(q).sum())(q)).all()


def test_rotary_scores_depend_on_distances_only():
    q, k = jax.random.normal(KEY, (2, 1, 1, 1, 8))
    score = lambda i, j: jnp.sum(rotate(q, jnp.array([i]), 100.0) * rotate(k, jnp.array([j]), 100.0))
    assert score(3, 1) == pytest.approx(float(score(12, 10)), rel=1e-4)
    assert score(3, 1) != pytest.approx(float(score(4, 1)), rel=1e-3)


def test_relative_buckets_are_those_of_the_paper():
    causal = np.asarray(relative_buckets(-jnp.array([0, 1, 15, 16, 20, 127, 128, 1000, -5]), causal=True))
    assert causal.tolist() == [0, 1, 15, 16, 17, 31, 31, 31, 0]
    both = np.asarray(relative_buckets(jnp.array([0, -1, 1, -7, 7, 1000, -1000]), causal=False))
    assert both.tolist() == [0, 1, 17, 7, 23, 31, 15]


# --- devices


@pytest.mark.parametrize(
    "layout",
    [
        Layout(
            data=2,
            model=2,
            rules=[("(query|key|value|up)/kernel", P(None, None, "model")), ("(out|down)/kernel", P(None, "model"))],
        ),
        Layout(data=4, fsdp=True),
    ],
    ids=["tensor-parallel", "fsdp"],
)
def test_sharded_training_equals_one_device(layout, same):
    parts = modern_parts(32, 2, **loud)
    model = LanguageModel(Embedding(V, T, parts, "none", std=1.0), Stack(parts, 2), END)
    from gen_jax.data.mixing import TokenWindows

    source = TokenWindows(np.random.default_rng(0).integers(0, V, 500).astype(np.int32), T + 1, 4, overlap=1)
    algorithm = descent(model, {"lm": optax.sgd(0.1)})
    one = program(algorithm, source, layout=Layout(data=1)).run(3)
    many = program(algorithm, source, layout=layout).run(3)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many.params))
    same(jax.device_get(many.params), jax.device_get(one.params), rtol=1e-4, atol=1e-5)


def test_muon_makes_updates_of_kernels_orthogonal():
    params = {"stack": {"layers": {"up": {"kernel": jnp.zeros((2, 4, 8))}}}, "embedding": {"tokens": jnp.ones((5, 4))}}
    grads = jax.tree.map(lambda a: jax.random.normal(KEY, a.shape), params)
    tx = muon(1.0, 0.1)
    updates, _ = tx.update(grads, tx.init(params), params)
    kernel = np.asarray(updates["stack"]["layers"]["up"]["kernel"])
    for layer in kernel:
        singular = np.linalg.svd(layer, compute_uv=False)
        assert np.all(singular > 0.6 * np.sqrt(2)) and np.all(singular < 1.3 * np.sqrt(2)), singular
    size = np.abs(np.asarray(updates["embedding"]["tokens"]))  # Adam's first step, with Nesterov momentum
    np.testing.assert_allclose(size, size[0, 0], rtol=1e-4)


# --- text-to-text


def text_to_text(parts=PARTS["modern"], **more):
    parts, positions = parts
    embedding = Embedding(V, 32, parts, positions, std=1.0)
    return TextToText(embedding, Stack(parts, 2, causal=False), Stack(parts, 2, cross=True), END, length=8, **more)


def pairs(n=5, seed=0):
    rng = np.random.default_rng(seed)
    length, y_length = rng.integers(2, 8, n).astype(np.int32), rng.integers(3, 7, n).astype(np.int32)
    x, y = (rng.integers(0, END, (n, size)).astype(np.int32) for size in (8, 7))
    x[np.arange(n), length - 1] = y[:, 0] = y[np.arange(n), y_length - 1] = END
    return {"x": x, "length": length, "y": y, "y_length": y_length}


def test_copies_have_the_probability_of_their_formula():
    model, batch = text_to_text(copies=True), pairs()
    state = start_of(model, batch)
    copier, params = model._copier, start_of(model, batch).params["text_to_text"]["copier"]
    rng = np.random.default_rng(0)
    h, memory = rng.normal(size=(1, 16)).astype(np.float32), rng.normal(size=(1, 4, 16)).astype(np.float32)
    params = {**params, "gate": jnp.asarray(rng.normal(size=16), jnp.float32)}
    logits, x = rng.normal(size=(1, V)).astype(np.float32), np.array([[3, 5, 3, 7]])
    seen = np.array([[True, True, True, False]])
    found = np.exp(copier.all_log_probs(params, h, copier.keys(params, memory), x, seen, logits)[0])
    scores = (h @ params["query"]) @ (memory[0] @ params["key"]).T / 4
    weights = np.exp(scores[0, :3]) / np.exp(scores[0, :3]).sum()
    gate = 1 / (1 + np.exp(-(h[0] @ params["gate"])))
    expected = (1 - gate) * np.exp(logits[0]) / np.exp(logits[0]).sum()
    for token, weight in zip(x[0], weights):
        expected[token] += gate * weight
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert all(
        np.isfinite(a).all()
        for a in jax.tree.leaves(
            jax.grad(lambda p: model.loss(p, state, batch, None)[0].total)(state.params["text_to_text"])
        )
    )


@pytest.mark.representatives("t5", "swiglu", "copies")
@pytest.mark.parametrize("name", ["modern", "t5", "swiglu", "copies"])
def test_packed_pairs_and_cached_steps_have_the_likelihood_of_single_pairs(name):
    model, batch = (
        text_to_text(PARTS["modern"], copies=True) if name == "copies" else text_to_text(PARTS[name]),
        pairs(),
    )
    assert isinstance(model, Seq2Seq)
    state = start_of(model, batch)
    each = np.asarray(jax.jit(model.log_prob)(state, batch))
    alone = [model.log_prob(state, {n: a[i : i + 1] for n, a in batch.items()})[0] for i in range(2)]
    np.testing.assert_allclose(each[:2], alone, rtol=1e-4)
    packed = pack_pairs(batch, 20, 16)
    assert len(packed["x"]) < 5 and model.log_prob(state, packed).sum() == pytest.approx(each.sum(), rel=1e-4)
    memory = model.encode_source(state.params, batch)
    cache, token = model.start(state.params, memory, 5, 8)
    step, total = jax.jit(partial(model.next, state.params, memory)), np.zeros(5)
    for t in range(1, 7):
        cache, logits = step(cache, token)
        found = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["y"][:, t, None], axis=1)[:, 0]
        total += np.where(t < batch["y_length"], found, 0)
        token = batch["y"][:, t]
    np.testing.assert_allclose(total, each, rtol=1e-4)


def test_label_smoothing_is_in_the_loss_but_not_in_what_is_reported():
    model, batch = text_to_text(), pairs()
    state = start_of(model, batch)
    params = state.params["text_to_text"]
    plain, smooth = (replace(model, smoothing=s).loss(params, state, batch, None) for s in (0.0, 0.2))
    assert abs(smooth[0].value - plain[0].value) > 1e-3
    assert smooth[1][1]["nats_per_token"].value == pytest.approx(float(plain[0].value), rel=1e-6)


@pytest.fixture(scope="module")
def translator():
    tokenizer = Characters("abcdefghij")
    model, batch = text_to_text(), pairs()
    return model, start_of(model, batch), tokenizer


def test_targets_do_not_depend_on_their_batch_and_are_rescored_by_the_training_graph(translator):
    model, state, tokenizer = translator
    sources = ["abc", "", "jihgfed", "b", "cab"]
    make = Translator(model, tokenizer, beams=4, penalty="wu", alpha=0.6, length=6, best=3)
    found = list(make(state, sources))
    assert [one.text for one in found[1]] == [""] * 3 and len(found) == 5
    alone = list(replace(make, batch=2)(state, sources[::-1]))[::-1]
    for several, one in zip(found, alone):
        assert [t.text for t in several] == [t.text for t in one]
        np.testing.assert_allclose([t.log_prob for t in several], [t.log_prob for t in one], rtol=1e-4)
    for source, targets in zip(sources, found):
        for one in targets if source else ():
            y = np.concatenate([[END], tokenizer.encode(one.text), [END]]).astype(np.int32)
            counted = np.ones((1, len(y)), np.float32)
            counted[0, 7:] = 0  # targets of full length have no end
            x = np.append(tokenizer.encode(source), END).astype(np.int32)
            again = model.log_prob(state, {"x": x[None], "y": y[None], "y_mask": counted})[0]
            assert one.log_prob == pytest.approx(float(again), rel=1e-4, abs=1e-5)


def test_a_long_neighbor_does_not_change_how_long_a_target_may_be(translator):
    model, state, tokenizer = translator
    make = Translator(model, tokenizer, beams=2)
    [beside], [alone] = (list(make(state, sources))[0] for sources in (["abc", "abcdefghij" * 4], ["abc"]))
    assert beside.text == alone.text and beside.log_prob == pytest.approx(alone.log_prob, rel=1e-4)


def test_diverse_targets_differ_and_missing_ones_are_empty(translator):
    model, state, tokenizer = translator
    make = Translator(model, tokenizer, beams=4, length=6, best=4, groups=2, diversity=20.0)
    [targets] = make(state, ["abc"])
    texts = [one.text for one in targets if np.isfinite(one.score)]
    assert len(targets) == 4 and len(set(texts)) == len(texts) >= 2
    assert texts[0][:1] != texts[1][:1]
    [same] = Translator(model, tokenizer, beams=4, length=6, best=4, groups=4, diversity=0.0)(state, ["abc"])
    assert [np.isfinite(one.score) for one in same] == [True, False, False, False]  # four groups found the same
    assert [one.text for one in same[1:]] == [""] * 3


def test_random_targets_belong_to_their_row(translator):
    model, state, tokenizer = translator
    make = Translator(model, tokenizer, beams=0, sampling=Sampling(9.0), length=6, seed=3)
    found = [one[0].text for one in make(state, ["abc", "jih", "abc"])]
    again = [one[0].text for one in replace(make, batch=2)(state, ["abc", "jih", "abc"])]
    assert found == again and found[0] != found[2]


def test_impossible_searches_are_refused(translator):
    model, _, tokenizer = translator
    for wrong in ({"beams": 12}, {"best": 6}, {"penalty": "other"}, {"groups": 2}, {"groups": 5, "diversity": -1.0}):
        with pytest.raises(ValueError, match="beams|best|penalty|diversity"):
            Translator(model, tokenizer, **wrong)


# --- generation


@pytest.fixture(scope="module")
def writer():
    model, x = language_model(), texts()
    return model, start_of(model, {"x": x}), Characters("abcdefghij")


def test_a_row_is_the_same_in_every_batch_and_in_a_stream(writer):
    model, state, tokenizer = writer
    rows = [Row(0, []), Row(1, [1, 2, 3]), Row(7, [4, 4, 4, 4, 4, 4])]
    make = Generator(model, tokenizer, Sampling(0.9, repetition=1.2), length=30, seed=5)
    found = make(state, rows)
    for row, one in zip(rows, found):
        said = []
        alone = make(state, [row], on_text=lambda _, text: said.append(text))[0]
        assert alone.tokens == one.tokens and alone.reason == one.reason and "".join(said) == one.text
        np.testing.assert_allclose(alone.log_probs, one.log_probs, rtol=1e-4)
    assert found[0].tokens != found[1].tokens


def test_generated_log_probs_are_those_of_the_model(writer):
    model, state, tokenizer = writer
    [one] = Generator(model, tokenizer, Sampling(0.7, top_k=3), length=8, ends=False)(state, [Row(0, [1, 2])])
    x = np.array([[END, 1, 2, *one.tokens]])
    np.testing.assert_allclose(model.log_probs(state, {"x": x})[0, 3:], one.log_probs, rtol=1e-4, atol=1e-5)
    assert all(drawn > -np.log(3) - 3 for drawn in one.drawn)
    assert END not in one.tokens and one.reason == "length"


def test_stop_strings_end_a_text_before_them_and_never_leak_into_a_stream(writer):
    model, state, tokenizer = writer
    make = Generator(model, tokenizer, length=40, ends=False, seed=1)
    whole = make(state, [Row(0, [])])[0].text
    stop = whole[10:13]
    said = []
    stopped = replace(make, stop=(stop, "never there"))(state, [Row(0, [])], on_text=lambda _, text: said.append(text))[
        0
    ]
    assert stopped.reason == "stop" and stopped.text == whole[: whole.find(stop)] == "".join(said)


def test_greedy_is_temperature_zero_and_texts_longer_than_the_context_go_on(writer):
    model, state, tokenizer = writer
    make = Generator(model, tokenizer, Sampling(temperature=0), length=3 * T, ends=False)
    one, again = (make(state, [Row(i, [1])])[0] for i in (0, 9))
    assert one.tokens == again.tokens and len(one.tokens) == 3 * T
    x = np.array([[END, 1, *one.tokens[: T - 2]]])
    best = np.asarray(model.logits(state, x)).argmax(axis=-1)[0]
    assert best[1:-1].tolist() == one.tokens[: T - 2]


def test_an_end_is_not_drawn_before_the_minimum():
    class Ends:
        def start(self, params, condition, n, size):
            return jnp.zeros(n), jnp.full(n, END)

        def next(self, params, condition, cache, token):
            return cache, jnp.tile(jnp.where(jnp.arange(V) == END, 9.0, 0.0), (len(token), 1))

    tokenizer, state = Characters("abcdefghij"), State(0, KEY, {}, (), {})
    for minimum in (0, 3):
        [one] = Generator(Ends(), tokenizer, Sampling(0), length=9, minimum=minimum)(state, [Row(0, [])])
        assert one.tokens.index(END) == minimum and one.reason == "end" and len(one.text) == minimum


# --- n-grams


def kneser_ney(stream, order, end, size):
    """p(w | h) by dictionaries: Chen & Goodman (1999), with contexts that end at `end`."""
    counts = [defaultdict(Counter) for _ in range(order + 1)]
    for i in range(len(stream)):
        for k in range(1, order + 1):
            gram = tuple(stream[i - k + 1 : i + 1])
            if len(gram) == k and i - k + 1 >= 0 and end not in gram[1:-1]:
                counts[k][gram[:-1]][gram[-1]] += 1
    for k in range(1, order):  # of how many tokens before
        left = defaultdict(Counter)
        for h, words in counts[k + 1].items():
            for w in words:
                left[h[1:]][w] += 1
        for h, words in counts[k].items():
            for w in words:
                if (h + (w,))[0] != end:
                    words[w] = left[h][w]
    discounts = []
    for k in range(1, order + 1):
        n = Counter(c for words in counts[k].values() for c in words.values())
        y = n[1] / max(1, n[1] + 2 * n[2])
        d = [c - (c + 1) * y * n[c + 1] / max(1, n[c]) for c in (1, 2, 3)]
        good = all(n[c] for c in (1, 2, 3, 4)) and all(0 < v < c for c, v in enumerate(d, 1))
        discounts.append([0, *d] if good else [0, 0.5, 0.5, 0.5])

    def p(h, w, k):
        if k == 0:
            return 1 / size
        words = counts[k].get(tuple(h[len(h) - k + 1 :]) if k > 1 else ())
        below = p(h, w, k - 1)
        if len(h) < k - 1 or not words or not sum(words.values()):
            return below
        d, total = discounts[k - 1], sum(words.values())
        spared = sum(d[min(c, 3)] for c in words.values())
        return (words[w] - d[min(words[w], 3)]) / total + spared / total * below

    return lambda h, w: p(h, w, order)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_an_n_gram_model_is_kneser_ney_by_dictionaries(order):
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(6, 0.3), size=6)
    stream, token = [5], 5
    for _ in range(600):
        token = int(rng.choice(6, p=table[token]))
        stream.append(token)
    model = NGram(6, 5, order, length=9)
    state = closed_form(model).init(KEY, {"x": np.array(stream)})
    state, metrics = jax.jit(closed_form(model).step)(state, {"x": np.array(stream)})
    p = kneser_ney(stream, order, 5, 6)
    x = np.array([[5, 1, 2, 5, 0, 3, 3, 1], stream[40:48]])
    found = np.exp(model.log_probs(state, {"x": x}))
    for row, values in zip(x.tolist(), found):
        for t in range(1, len(row)):
            h = row[:t]
            h = h[max((i for i, w in enumerate(h) if w == 5), default=0) :]
            assert values[t] == pytest.approx(p(h, row[t]), rel=1e-4), (row, t)
    cache, token = model.start(state.params, None, 2, 8)
    for t in range(7):
        cache, logits = model.next(state.params, None, cache, x[:, t])
        np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.exp(logits)[np.arange(2), x[:, t + 1]], found[:, t + 1], rtol=1e-4)
    assert int(metrics["n_grams"].value) >= 6
    assert model.sample(state, KEY, 3)["x"].shape == (3, 10)
