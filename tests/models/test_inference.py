"""Inference in Markov chains against the enumeration of all K^T paths, in every way of walking through time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.models.hmm import ASSOCIATIVE, SERIAL, Scan, inference
from gen_jax.models.hmm.inference import in_chunks
from gen_jax.models.hmm.logspace import log_forward

SCANS = {
    "serial": SERIAL,
    "chunked": in_chunks(2),
    "uneven": in_chunks(4),
    "associative": ASSOCIATIVE,
    "both": Scan(3, True),
}
TOLERANCE = {1: 2e-6, 30: 2e-5, 1000: 1e-3}  # of probabilities, by the size of log-likelihoods in float32


def enumerated(log_initial, log_transition, log_likelihood):
    """log Z, marginals, pairs, best path and its log-probability of one sequence."""
    time, k = log_likelihood.shape
    paths = np.array(list(itertools.product(range(k), repeat=time)))
    score = log_initial[paths[:, 0]] + log_likelihood[np.arange(time), paths].sum(axis=1)
    score = score + log_transition[paths[:, :-1], paths[:, 1:]].sum(axis=1)
    evidence = np.logaddexp.reduce(score)
    probability = np.exp(score - evidence)
    marginals = np.stack([[probability[paths[:, t] == i].sum() for i in range(k)] for t in range(time)])
    both = lambda i, j: ((paths[:, :-1] == i) & (paths[:, 1:] == j)).sum(axis=1)
    pairs = np.array([[np.sum(probability * both(i, j)) for j in range(k)] for i in range(k)])
    return evidence, marginals, pairs, paths[score.argmax()], score.max()


def chain(size=1.0, zeros=False, batch=3, time=6, k=3, seed=0):
    """A random chain; with zeros, one that moves from left to right only."""
    rng = np.random.default_rng(seed)
    initial, transition = rng.dirichlet(np.ones(k)), rng.dirichlet(np.ones(k), size=k)
    if zeros:
        initial, transition = np.eye(k)[0], np.triu(transition)
        transition /= transition.sum(axis=1, keepdims=True)
    log_likelihood = size * rng.normal(size=(batch, time, k))
    log_likelihood[1, 3] = 0  # a step that was not observed
    with np.errstate(divide="ignore"):
        return np.log(initial), np.log(transition), log_likelihood


def single(arrays):
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


@pytest.mark.representatives("1-dense-serial", "1-dense-both", "1000-left-right-*")
@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "left-right"])
@pytest.mark.parametrize("size", [1, pytest.param(30, marks=pytest.mark.slow), 1000])
def test_everything_equals_the_enumeration_of_paths(scan, zeros, size):
    exact = chain(size, zeros)
    given = single(exact)
    expected = [enumerated(*exact[:2], x) for x in exact[2]]
    evidence, marginals, pairs, paths, scores = (np.stack(a) for a in zip(*expected))
    found = jax.jit(lambda *a: inference.posterior(*a, scan))(*given)
    best = jax.jit(lambda *a: inference.most_probable(*a, scan))(*given)
    np.testing.assert_allclose(inference.log_evidence(*given, scan), evidence, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(found.marginals, marginals, atol=TOLERANCE[size])
    np.testing.assert_allclose(found.pairs, pairs, atol=4 * TOLERANCE[size])
    np.testing.assert_array_equal(best.states, paths)
    np.testing.assert_allclose(best.log_joint, scores, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("zeros", [False, True])
def test_the_gradient_is_the_posterior_and_autodiffs(zeros):
    given = single(chain(2.0, zeros))
    slow = lambda *a: log_forward(*a)[1].sum()  # differentiated step by step
    by_hand = jax.grad(lambda *a: inference.log_evidence(*a).sum(), argnums=2)(*given)
    np.testing.assert_allclose(by_hand, inference.posterior(*given).marginals, atol=1e-6)
    if not zeros:
        expected = jax.grad(slow, argnums=(0, 1, 2))(*given)
        found = jax.grad(lambda *a: inference.log_evidence(*a).sum(), argnums=(0, 1, 2))(*given)
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("size", [1, 1000])
def test_gradients_are_finite_whatever_the_zeros(scan, size):
    given = single(chain(size, zeros=True))
    grads = jax.grad(lambda *a: inference.log_evidence(*a, scan).sum(), argnums=(0, 1, 2))(*given)
    assert all(np.isfinite(g).all() for g in grads)


def test_evidence_that_comes_back_after_underflow():
    """Two chains that never meet: the one that looks impossible at first explains the end by far better."""
    with np.errstate(divide="ignore"):
        log_initial, log_transition = np.log([0.5, 0.5]), np.log(np.eye(2))
    log_likelihood = np.zeros((1, 40, 2))
    log_likelihood[0, :20, 1], log_likelihood[0, 20:, 0] = -30.0, -60.0  # -600 against -1200 nats in all
    expected = np.log(0.5) - 600
    for scan in SCANS.values():
        given = single((log_initial, log_transition, log_likelihood))
        evidence = jax.jit(lambda *a: inference.log_evidence(*a, scan))
        marginals = jax.jit(lambda *a: inference.posterior(*a, scan).marginals)
        assert float(evidence(*given)[0]) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(marginals(*given)[0, 5], [0, 1], atol=1e-6)


def test_impossible_sequences_have_probability_zero():
    log_initial, log_transition, log_likelihood = chain()
    log_likelihood[0, 2] = -np.inf
    found = inference.log_evidence(*single((log_initial, log_transition, log_likelihood)))
    assert found[0] == -np.inf and np.isfinite(found[1:]).all()


def test_single_steps_and_long_sequences():
    one = chain(time=4)
    for x in (one[2][:, :1], one[2][:, :2]):
        expected = [enumerated(*one[:2], s) for s in x]
        for scan in SCANS.values():
            found = jax.jit(lambda *a: inference.posterior(*a, scan))(*single((*one[:2], x)))
            np.testing.assert_allclose(found.log_evidence, [e[0] for e in expected], rtol=1e-5)
            best = jax.jit(lambda *a: inference.most_probable(*a, scan))(*single((*one[:2], x)))
            np.testing.assert_array_equal(best.states, [e[3] for e in expected])
    long = chain(3.0, batch=2, time=100_000, k=4)
    with jax.enable_x64(True):
        exact = np.asarray(log_forward(*(jnp.asarray(a) for a in long))[1].sum(axis=0))
    found = np.asarray(inference.log_evidence(*single(long)))
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_masks_hide_what_lies_behind_the_end():
    log_initial, log_transition, log_likelihood = chain(2.0, batch=2, time=7)
    lengths = np.array([4, 7])
    mask = np.arange(7) < lengths[:, None]
    padded = np.where(mask[..., None], log_likelihood, 0)
    for scan in SCANS.values():
        found = jax.jit(lambda *a: inference.posterior(*a, scan, mask=mask))(
            *single((log_initial, log_transition, padded))
        )
        best = jax.jit(lambda *a: inference.most_probable(*a, scan, mask=jnp.asarray(mask)))(
            *single((log_initial, log_transition, padded))
        )
        for b, length in enumerate(lengths):
            expected = enumerated(log_initial, log_transition, log_likelihood[b, :length])
            np.testing.assert_allclose(found.log_evidence[b], expected[0], rtol=1e-5)
            np.testing.assert_allclose(found.marginals[b, :length], expected[1], atol=1e-5)
            np.testing.assert_allclose(found.pairs[b], expected[2], atol=1e-5)
            np.testing.assert_array_equal(best.states[b, :length], expected[3])
            np.testing.assert_allclose(best.log_joint[b], expected[4], rtol=1e-5)


def test_filtering_looks_back_only():
    exact = chain(2.0)
    log_initial, log_transition, log_likelihood = single(exact)
    forward_filter = np.exp(inference.forward_filter(log_initial, log_transition, log_likelihood))
    for t in range(6):
        upto = inference.posterior(log_initial, log_transition, log_likelihood[:, : t + 1])
        np.testing.assert_allclose(forward_filter[:, t], upto.marginals[:, -1], atol=2e-6)


def test_posterior_samples_have_the_posteriors_frequencies():
    given = single(chain(1.5, batch=2))
    drawn = np.asarray(inference.posterior_sample(*given, jax.random.key(0), 20_000))
    expected = inference.posterior(*given)
    assert drawn.shape == (20_000, 2, 6)
    frequencies = np.stack([(drawn == i).mean(axis=0) for i in range(3)], axis=-1)
    np.testing.assert_allclose(frequencies, expected.marginals, atol=0.015)
    pairs = [
        [((drawn[..., :-1] == i) & (drawn[..., 1:] == j)).sum(axis=2).mean(axis=0) for j in range(3)] for i in range(3)
    ]
    np.testing.assert_allclose(np.moveaxis(pairs, 2, 0), expected.pairs, atol=0.03)


def test_pieces_need_a_step():
    with pytest.raises(ValueError, match="at least one step"):
        in_chunks(0)


@pytest.mark.representatives("log-space-associative")
@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("size, zeros", [(1, False), (1000, True)], ids=["products", "log-space"])
def test_sequences_in_one_row_are_as_apart(scan, size, zeros):
    log_initial, log_transition, values = single(chain(size, zeros, batch=2, time=12))
    lengths = [[5, 1, 4], [2, 7, 3]]  # ten steps and two of padding; twelve steps
    starts, mask = np.zeros((2, 12), bool), np.ones((2, 12), bool)
    for row, cut in enumerate(lengths):
        starts[row, np.cumsum(cut)[:-1]] = True
        mask[row, sum(cut) :] = False
    values = jnp.where(mask[..., None], values, 0)
    found = inference.posterior(log_initial, log_transition, values, scan, jnp.asarray(mask), jnp.asarray(starts))
    path = inference.most_probable(log_initial, log_transition, values, scan, jnp.asarray(mask), jnp.asarray(starts))
    total = inference.log_evidence(log_initial, log_transition, values, scan, jnp.asarray(starts))
    np.testing.assert_allclose(total, found.log_evidence, rtol=1e-5)
    for row, cut in enumerate(lengths):
        parts = [values[row : row + 1, end - n : end] for n, end in zip(cut, np.cumsum(cut))]
        alone = [inference.posterior(log_initial, log_transition, part) for part in parts]
        paths = [inference.most_probable(log_initial, log_transition, part) for part in parts]
        stay = slice(0, sum(cut))
        expected = float(sum(one.log_evidence[0] for one in alone))
        assert float(found.log_evidence[row]) == pytest.approx(expected, rel=1e-5)
        marginals = np.concatenate([one.marginals[0] for one in alone])
        np.testing.assert_allclose(found.marginals[row, stay], marginals, atol=TOLERANCE[size])
        pairs = sum(np.asarray(one.pairs[0]) for one in alone)
        np.testing.assert_allclose(found.pairs[row], pairs, atol=10 * TOLERANCE[size])
        np.testing.assert_array_equal(path.states[row, stay], np.concatenate([one.states[0] for one in paths]))
        joint = float(sum(one.log_joint[0] for one in paths))
        assert float(path.log_joint[row]) == pytest.approx(joint, rel=1e-5)


@pytest.mark.representatives("chunked")
@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_filters_gradients_and_samples_of_sequences_in_one_row_are_as_apart(scan):
    log_initial, log_transition, values = single(chain(batch=2, time=7))
    values = values[:1]
    starts = jnp.zeros((1, 7), bool).at[0, 3].set(True)
    parts = [values[:, :3], values[:, 3:]]
    given = log_initial, log_transition
    found = inference.forward_filter(*given, values, scan, starts)[0]
    np.testing.assert_allclose(
        found, np.concatenate([inference.forward_filter(*given, p)[0] for p in parts]), atol=1e-5
    )
    packed = lambda *a: inference.log_evidence(*a, scan, starts).sum()
    apart = lambda i, t, v: sum(inference.log_evidence(i, t, p).sum() for p in (v[:, :3], v[:, 3:]))
    for a, b in zip(jax.grad(packed, (0, 1, 2))(*given, values), jax.grad(apart, (0, 1, 2))(*given, values)):
        np.testing.assert_allclose(a, b, atol=2e-6)
    drawn = inference.posterior_sample(*given, values, jax.random.key(0), 20_000, scan, starts)[:, 0]
    marginals = np.concatenate([inference.posterior(*given, p).marginals[0] for p in parts])
    np.testing.assert_allclose(jax.nn.one_hot(drawn, 3).mean(axis=0), marginals, atol=0.015)
    both = np.histogram2d(drawn[:, 2], drawn[:, 3], bins=3, range=[[0, 3], [0, 3]])[0] / len(drawn)
    np.testing.assert_allclose(both, np.outer(marginals[2], marginals[3]), atol=0.015)  # independent across the border
