"""Decoding against enumeration: a Markov chain whose every sequence can be listed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.core import Autoregressive
from gen_jax.models.common.autoregressive import Sampling, generate, log_likelihood
from gen_jax.models.common.beams import beam_search
from gen_jax.models.common.likelihoods import Categorical
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import VQVAE

V, T = 4, 3
LOGITS = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32) * 1.5
LOG_P = np.asarray(jax.nn.log_softmax(LOGITS))


def next_token(cache, token):
    """A Markov chain: the logits depend on the last token; the cache counts the tokens so far."""
    return cache + 1, jnp.asarray(LOGITS)[token]


def enumerated(first):
    paths = list(itertools.product(range(V), repeat=T))
    return {path: sum(LOG_P[a, b] for a, b in zip((first, *path), path)) for path in paths}


def start(n, first=0):
    return jnp.zeros(n, jnp.int32), jnp.full(n, first)


def test_samples_follow_the_chain():
    cache, first = start(20_000)
    tokens = np.asarray(generate(next_token, cache, first, jax.random.key(0), T))
    counts = {path: 0 for path in enumerated(0)}
    for path in map(tuple, tokens):
        counts[path] += 1
    for path, log_prob in enumerated(0).items():
        p = np.exp(log_prob)
        assert abs(counts[path] / 20_000 - p) < 5 * np.sqrt(p / 20_000) + 1e-4, path


def test_log_likelihoods_are_those_of_the_chain():
    paths = np.array(list(enumerated(2)))
    cache, first = start(len(paths), 2)
    np.testing.assert_allclose(log_likelihood(next_token, cache, first, paths), list(enumerated(2).values()), rtol=1e-5)


def test_a_wide_beam_finds_the_best_sequences():
    best = sorted(enumerated(1).items(), key=lambda item: -item[1])[:5]
    found = beam_search(next_token, *start(2, 1), steps=T, beams=V**T)
    for row in range(2):
        np.testing.assert_array_equal(found.tokens[row, :5], [path for path, _ in best])
        np.testing.assert_allclose(found.log_probs[row, :5], [log_prob for _, log_prob in best], rtol=1e-5)
    greedy = generate(next_token, *start(1, 1), jax.random.key(0), T, Sampling(temperature=0))
    np.testing.assert_array_equal(beam_search(next_token, *start(1, 1), T, 1).tokens[0], greedy)


def test_a_sequence_that_has_ended_costs_no_more():
    found = beam_search(next_token, *start(1), steps=T, beams=V**T, end=3)
    tokens, log_probs = np.asarray(found.tokens[0]), np.asarray(found.log_probs[0])
    ended = [i for i, path in enumerate(tokens) if path[0] == 3 and np.isfinite(log_probs[i])]
    assert len(ended) == 1 and np.all(tokens[ended[0]] == 3)
    assert log_probs[ended[0]] == pytest.approx(LOG_P[0, 3], rel=1e-5)


def searched_in_groups(first, groups, width, diversity, end):
    """Diverse beam search by lists: (tokens, log-probability) of each group, best first."""
    live = [[((), 0.0)] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    for _ in range(T):
        taken = np.zeros(V)
        for g in range(groups):
            grown = [((*path, v), p + LOG_P[(first, *path)[-1], v], v) for path, p in live[g] for v in range(V)]
            finished[g] += [(path, p) for path, p, v in grown if v == end]
            going = [(path, p, p - diversity * taken[v]) for path, p, v in grown if v != end]
            live[g] = [(path, p) for path, p, _ in sorted(going, key=lambda one: -one[2])[:width]]
            for path, _ in live[g]:
                taken[path[-1]] += 1
    found = [sorted(live[g] + finished[g], key=lambda one: -one[1])[:width] for g in range(groups)]
    return [found[g][rank] for rank in range(width) for g in range(groups)]


@pytest.mark.parametrize("diversity", [0.0, 0.7, 50.0])
def test_diverse_beams_are_those_of_a_search_by_lists(diversity):
    found = beam_search(next_token, *start(2, 2), steps=T, beams=4, end=3, groups=2, diversity=diversity)
    expected = searched_in_groups(2, 2, 2, diversity, end=3)
    for row in range(2):
        for tokens, log_prob, (path, p) in zip(found.tokens[row], found.log_probs[row], expected):
            assert (*path, *[3] * (T - len(path))) == tuple(tokens.tolist())
            assert log_prob == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(), [0, 1, 2, 3]),
        (Sampling(temperature=0), [1]),
        (Sampling(top_k=2), [0, 1]),
        (Sampling(top_p=0.6), [0, 1]),
        (Sampling(top_p=0.4), [1]),
        (Sampling(min_p=0.5), [0, 1]),
        (Sampling(temperature=10.0, min_p=0.5), [0, 1, 2, 3]),
    ],
)
def test_truncation_keeps_the_right_tokens(sampling, left):
    logits = jnp.log(jnp.array([[0.3, 0.5, 0.15, 0.05]]))
    found = sampling.filter(logits)
    assert np.flatnonzero(np.isfinite(np.asarray(found[0]))).tolist() == left
    drawn = jax.vmap(lambda i: sampling.draw(logits, jax.random.fold_in(jax.random.key(0), i)))(jnp.arange(200))
    assert set(np.unique(drawn)) <= set(left)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=-1)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0)


def test_the_prior_of_a_vqvae_decodes_as_it_scores():
    """Codes drawn greedily are the most probable ones, one after the other, by the model's own prior."""
    likelihood = Categorical(2)
    model = VQVAE(MLP((8,), (2, 2, 3)), MLP((8,), (4, 4, likelihood.channels)), likelihood, (2, 2), codes=4)
    assert isinstance(model, Autoregressive)
    import optax

    from gen_jax.algorithms import descent

    state = descent(model, {"vqvae": optax.adam(1e-2)}).init(
        jax.random.key(0), {"x": np.random.default_rng(0).integers(0, 2, (16, 4, 4, 1))}
    )
    codes = np.asarray(model.sample(state, jax.random.key(1), 3, sampling=Sampling(temperature=0))["codes"])
    logits = model.prior.apply({"params": state.params["vqvae"]["prior"]}, codes.reshape(3, -1))
    np.testing.assert_array_equal(codes.reshape(3, -1), logits.argmax(axis=-1))
