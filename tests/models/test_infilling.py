"""Gaps in texts: exact posteriors against enumeration, and a known HMM as the oracle of trained models."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.algorithms import closed_form, descent
from gen_jax.core import Infilling, State
from gen_jax.data.spans import MARKS, filled, take_out
from gen_jax.data.tokenizers import Characters
from gen_jax.errors import UserError
from gen_jax.models.common.autoregressive import Sampling
from gen_jax.models.hmm import HMM, left_right
from gen_jax.models.hmm.emissions import Categorical, Gaussian, LinearRegression
from gen_jax.models.text import Infiller, NGram, modern_lm, transformer
from gen_jax.optimizers import muon, warm_down

KEY = jax.random.key(0)
TOKENIZER = Characters("abc")
V, END = TOKENIZER.size, TOKENIZER.end


def hidden_markov(states=3, vocabulary=V, sharp=2.0, seed=1):
    """An HMM with random parameters, of tokens below the last one."""
    model, rng = HMM(states, Categorical(vocabulary), length=64), np.random.default_rng(seed)
    params, extra = model.init(KEY, {"x": jnp.zeros((2, 8), jnp.int32).at[1].set(vocabulary - 1)})
    draw = lambda a: jnp.asarray(sharp * rng.normal(size=a.shape), a.dtype)
    params = {"hmm": {**jax.tree.map(draw, params["hmm"])}}
    logits = jax.tree.map(lambda a: a.at[..., -1].set(-30.0), params["hmm"]["emission"])
    params["hmm"]["emission"] = logits
    return model, State(jnp.int32(0), KEY, params, (), extra)


def counted(order=3, tokens=400):
    """An n-gram model of random text."""
    model, rng = NGram(V, END, order), np.random.default_rng(0)
    x = rng.choice(V - 1, tokens, p=[0.5, 0.3, 0.2]).astype(np.int32)
    x[2::3] = x[1::3][: len(x[2::3])]  # so that tokens depend on each other
    algorithm, batch = closed_form(model), {"x": np.concatenate([[END], x])}
    state = algorithm.init(KEY, batch)
    return model, algorithm.step(state, batch)[0]


CASES = {
    "hmm": hidden_markov,
    "bigram": lambda: counted(2),
    "trigram": lambda: counted(3),
    "unigram": lambda: counted(1),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


def enumerated(model, state, x, gap):
    """{contents of the gap: probability given the rest}, and the log-probability of the rest."""
    contents = list(itertools.product(range(V), repeat=len(gap)))
    rows = np.repeat(x, len(contents), axis=0)
    rows[:, gap] = contents
    log_probs = np.asarray(model.log_prob(state, {"x": rows}), np.float64)
    total = np.logaddexp.reduce(log_probs)
    return dict(zip(contents, np.exp(log_probs - total))), total


def test_draws_for_a_gap_have_the_enumerated_posterior(case):
    model, state = case
    assert isinstance(model, Infilling)
    x, gap = np.array([[END, 0, 1, 0, 0, 2, 1]], np.int32), [3, 4]
    expected, evidence = enumerated(model, state, x, gap)
    observed = np.ones(x.shape, bool)
    observed[:, gap] = False
    batch = {"x": x, "observed": observed}
    np.testing.assert_allclose(model.log_prob(state, batch)[0], evidence, rtol=1e-4)
    n = 4000
    many = {name: np.repeat(a, n, axis=0) for name, a in batch.items()}
    rows = np.asarray(jax.jit(model.fill)(state, many, KEY))
    np.testing.assert_array_equal(np.delete(rows, gap, axis=1), np.delete(many["x"], gap, axis=1))
    for content, p in expected.items():
        share = np.mean(np.all(rows[:, gap] == content, axis=1))
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-3, (content, share, p)


@pytest.mark.parametrize("order", [1, 3])
def test_the_evidence_of_whole_rows_is_their_likelihood_however_they_begin(order):
    model, state = counted(order)
    for kind in (np.int32, np.uint8):
        x = np.array([[END, 0, 1, 0], [0, 2, 1, 2], [1, END, 0, 1]], kind)
        found = model.log_prob(state, {"x": x, "observed": np.ones(x.shape)})
        np.testing.assert_allclose(found, model.log_prob(state, {"x": x}), rtol=1e-4)
        short = {"x": x, "length": np.array([3, 3, 4], np.int32)}
        found = model.log_prob(state, {**short, "observed": np.ones(x.shape)})
        np.testing.assert_allclose(found, model.log_prob(state, short), rtol=1e-4)


def test_gaps_of_autoregressive_emissions_are_refused():
    model = HMM(1, LinearRegression(lags=1))
    x = np.random.default_rng(0).normal(size=(3, 20, 1)).astype(np.float32)
    params, extra = model.init(KEY, {"x": x})
    with pytest.raises(ValueError, match="independent"):
        model.fill(State(jnp.int32(0), KEY, params, (), extra), {"x": x, "observed": np.ones((3, 20))}, KEY)


def test_gaps_of_gaussian_chains_lie_where_their_states_are():
    model = HMM(2, Gaussian())
    x = np.repeat(np.array([[-5.0, -5, -5, 5, 5, 5]], np.float32), 8, axis=0)[..., None]
    params, extra = model.init(KEY, {"x": x + np.random.default_rng(0).normal(size=x.shape).astype(np.float32) / 10})
    emission = {**params["hmm"]["emission"], "means": jnp.array([[-5.0], [5.0]])}
    sticky = jnp.array([[6.0, 0.0], [0.0, 6.0]])
    state = State(jnp.int32(0), KEY, {"hmm": {**params["hmm"], "transition": sticky, "emission": emission}}, (), extra)
    observed = np.ones((8, 6), bool)
    observed[:, 1] = observed[:, 4] = False
    found = np.asarray(model.fill(state, {"x": x, "observed": observed}, KEY))
    np.testing.assert_array_equal(np.sign(found), np.sign(x))
    assert np.all(found[:, 1] != x[:, 1]) and np.all(found[:, 0] == x[:, 0])


def test_importance_resampling_comes_close_to_the_posterior():
    model, state = counted(3)
    x = np.array([[END, 0, 1, 0, 0, 2, 1]], np.int32)
    expected, _ = enumerated(model, state, x, [3, 4])
    expected = {content: p for content, p in expected.items() if END not in content}
    n, total = 600, sum(expected.values())
    for sampling in (Sampling(), Sampling(temperature=2.0)):
        fill = Infiller(model, TOKENIZER, sampling, length=2, candidates=64)
        found = fill(state, [0, 1], [2, 1], range(n))
        assert found[3] == fill(state, [0, 1], [2, 1], [3])[0]
        for content, p in expected.items():
            share = np.mean([tuple(one.tokens) == content for one in found])
            assert abs(share - p / total) < 4 * np.sqrt(p * (1 - p) / n) + 0.02, (content, share, p)
        assert 1 < np.mean([one.effective for one in found]) < 9  # of the nine contents that there are
    with jax.enable_x64(True):
        assert len(Infiller(model, TOKENIZER, length=2, candidates=8)(state, [0, 1], [2, 1], [0])[0].tokens) == 2


def test_exact_fillings_know_their_log_probability():
    model, state = counted(3)
    expected, _ = enumerated(model, state, np.array([[END, 0, 1, 0, 0, 2, 1]], np.int32), [3, 4])
    for one in Infiller(model, TOKENIZER, length=2)(state, [0, 1], [2, 1], range(5)):
        assert one.log_prob == pytest.approx(np.log(expected[tuple(one.tokens)]), rel=1e-3)


def test_a_large_table_and_a_model_without_posterior_are_refused():
    model = NGram(60, 59, 7)
    state = State(jnp.int32(0), KEY, model.init(KEY, {"x": np.zeros(50, np.int32)})[0], (), {})
    with pytest.raises(UserError, match="--order"):
        Infiller(model, TOKENIZER)(state, [0], [1], [0])
    with pytest.raises(UserError, match="--candidates"):
        Infiller(modern_lm(V, END, 16, 8, 1, 2), TOKENIZER)


def test_spans_that_were_taken_out_fit_back_in():
    rng, words = np.random.default_rng(0), re.findall(r"\s*\S+", "\n".join(f"w{i} v{i}" for i in range(20)))
    counts, gaps = np.zeros(len(words)), []
    for _ in range(400):
        source, target = take_out(rng, words)
        assert filled(source, target) == "".join(words)
        gaps.append(sum(mark in source for mark in MARKS))
        counts += [word.strip() in re.split(rf"[\s{MARKS}]", target) for word in words]
    assert set(gaps) == {2}
    assert counts.sum() == 400 * 6 and np.all(counts[4:-4] > 30)
    for n in (2, 3):
        source, target = take_out(rng, words[:n])
        assert filled(source, target) == "".join(words[:n])


def test_a_chain_that_never_leaves_its_first_state_is_a_mixture_of_unigrams():
    model = HMM(3, Categorical(V), left_right(3, 0))
    params, extra = model.init(KEY, {"x": jnp.arange(8).reshape(2, 4) % V})
    x = np.random.default_rng(0).integers(0, V, (5, 7)).astype(np.int32)
    mixture = jax.nn.log_softmax(params["hmm"]["initial"])
    tokens = Categorical(V).log_prob(params["hmm"]["emission"], extra["emission"], {"x": x}).sum(axis=1)
    found = model.log_prob(State(jnp.int32(0), KEY, params, (), extra), {"x": x})
    np.testing.assert_allclose(found, jax.nn.logsumexp(mixture + tokens, axis=1), rtol=1e-5)


# --- text from a known HMM: no model can do better, and trained ones come close


@pytest.fixture(scope="module")
def oracle():
    model, state = hidden_markov(4, V, 2.0, seed=3)
    text = np.asarray(model.sample(state, jax.random.key(5), 1, length=60_000)["x"][0], np.int32)
    return model, state, np.concatenate([[END], text])


def windows(text, length):
    return text[: len(text) // length * length].reshape(-1, length)


def exact(oracle, rows):
    """Nats per token of rows after their first 16 tokens, given those."""
    model, state, _ = oracle
    total = model.log_prob(state, {"x": rows}) - model.log_prob(state, {"x": rows[:, :16]})
    return -float(np.mean(np.asarray(total))) / (rows.shape[1] - 16)


def test_regret_of_n_grams_falls_with_the_text_and_is_never_negative(oracle):
    rows, regrets = windows(oracle[2][50_001:], 64), []
    for tokens in (1_000, 8_000, 50_000):
        model = NGram(V, END, 6)
        algorithm, batch = closed_form(model), {"x": oracle[2][:tokens]}
        state = algorithm.step(algorithm.init(KEY, batch), batch)[0]
        found = -float(np.mean(np.asarray(model.log_probs(state, {"x": rows}))[:, 16:]))
        regrets.append((found - exact(oracle, rows)) / np.log(2))
    assert regrets[0] > regrets[1] > regrets[2] > 0, regrets
    assert regrets[2] < 0.02, regrets  # bits per character


def trained(model, player, batch_at, steps):
    """A State after `steps` steps of Muon on batches of a function."""
    tx = muon(warm_down(0.02, steps), warm_down(0.005, steps))
    algorithm = descent(model, {player: tx})
    state, step = algorithm.init(KEY, batch_at(0)), jax.jit(algorithm.step)
    for i in range(steps):
        state, _ = step(state, batch_at(i))
    return state


@pytest.mark.slow
def test_regret_of_a_transformer_is_small(oracle):
    model, rng = modern_lm(V, END, 64, 32, 2, 2), np.random.default_rng(0)
    rows = lambda i: np.stack([oracle[2][s : s + 65] for s in rng.integers(0, 50_000, 32)])
    state = trained(model, "lm", lambda i: {"x": rows(i)}, 300)
    test = windows(oracle[2][50_001:], 65)
    found = -float(np.mean(np.asarray(jax.jit(model.log_probs)(state, {"x": test}))[:, 16:]))
    regret = (found - exact(oracle, test)) / np.log(2)
    assert 0 < regret < 0.03, regret


@pytest.mark.slow
def test_a_model_trained_on_gaps_comes_close_to_the_exact_posterior(oracle):
    """Spans of four tokens between ten on each side, with a mark in their place."""
    mark, end = V, V + 1
    hmm, truth, text = oracle
    model, rng = transformer(V + 2, end, 48, 2, 2, 8), np.random.default_rng(0)

    def pairs(starts):
        rows = np.stack([text[s : s + 24] for s in starts])
        ends = np.full((len(rows), 1), end)
        x = np.concatenate([rows[:, :10], np.full_like(ends, mark), rows[:, 14:], ends], axis=1)
        return rows, {"x": x, "y": np.concatenate([ends, rows[:, 10:14], ends], axis=1)}

    state = trained(model, "text_to_text", lambda i: pairs(rng.integers(1, 50_000, 128))[1], 600)
    rows, batch = pairs(np.arange(50_001, 59_900, 24))
    observed = np.ones(rows.shape, bool)
    observed[:, 10:14] = False
    best = hmm.log_prob(truth, {"x": rows}) - hmm.log_prob(truth, {"x": rows, "observed": observed})
    found = np.asarray(jax.jit(model.log_prob)(state, batch))
    regret = float(np.mean(np.asarray(best) - found)) / 4
    blind = -exact(oracle, rows)  # by the text before alone
    assert 0 < regret < 0.04, regret
    assert np.mean(found) / 4 > blind
