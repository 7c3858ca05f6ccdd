"""The algorithms and what wraps them, against the same thing done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import chunk, descent, em, first_examples, staged, with_ema
from gen_jax.core import Mean, Objective, averaged, fold_in
from gen_jax.data import Resident
from gen_jax.loop import Hook, fit
from gen_jax.models.mixture import GMM, ClassConditional, Prior
from gen_jax.restarts import member, population
from gen_jax.sharding import Layout

KEY = jax.random.key(0)


class Line:
    """Least squares y = w x, with the batch's mean kept in `extra`; and an adversary that moves every third step."""

    def __init__(self, every=1, players=1):
        self.every, self.players = every, players

    def init(self, key, batch):
        return {f"p{i}": {"w": jax.random.normal(fold_in(key, i), (2,))} for i in range(self.players)}, {
            "seen": jnp.zeros(())
        }

    def loss(self, params, state, batch, key):
        error = batch["x"] @ params["w"] - batch["y"]
        return jnp.mean(error**2), ({"seen": state.extra["seen"] + batch["x"].sum()}, {"error": Mean.of(error**2)})

    def second(self, params, state, batch, key):
        return jnp.sum((params["w"] - state.params["p0"]["w"]) ** 2), ({}, {"gap": Mean.of(jnp.ones(3))})

    def sample(self, state, key, n):
        return {"x": jnp.zeros((n, 2))}

    @property
    def objectives(self):
        return [Objective("p0", self.loss), Objective("p1", self.second, self.every)][: self.players]


def batch(n=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(x @ np.array([1.0, -2.0], np.float32))}


def test_descent_is_optax(same):
    """One player: the same numbers as the textbook loop."""
    algorithm = descent(Line(), {"p0": optax.adam(0.1)})
    state = algorithm.init(KEY, batch())
    w, opt = state.params["p0"], optax.adam(0.1).init(state.params["p0"])
    for i in range(5):
        b = batch(seed=i)
        grads = jax.grad(lambda p: jnp.mean((b["x"] @ p["w"] - b["y"]) ** 2))(w)
        updates, opt = optax.adam(0.1).update(grads, opt, w)
        w = optax.apply_updates(w, updates)
        state, metrics = algorithm.step(state, b)
    same(state.params["p0"], w, rtol=1e-6)
    assert int(state.step) == 5
    np.testing.assert_allclose(metrics["grad_norm"].value, optax.tree.norm(grads), rtol=1e-6)


def test_players_move_in_turn_and_on_their_steps():
    """The second player sees what the first has just become, moves on every third step, and reports only then."""
    algorithm = descent(Line(every=3, players=2), {"p0": optax.sgd(0.1), "p1": optax.sgd(0.5)})
    state = algorithm.init(KEY, batch())
    for i in range(1, 7):
        before = state
        state, metrics = algorithm.step(state, batch(seed=i))
        moved = not np.array_equal(before.params["p1"]["w"], state.params["p1"]["w"])
        assert moved == (i % 3 == 0)
        assert float(metrics["gap"].count) == (3 if moved else 0)
        if moved:  # a step of 0.5 down (a - b)^2 lands on b, which is p0 after its own turn
            np.testing.assert_allclose(state.params["p1"]["w"], state.params["p0"]["w"], rtol=1e-5)


def test_descent_checks_its_players():
    with pytest.raises(ValueError, match="one entry per player"):
        descent(Line(), {"other": optax.sgd(0.1)})

    class Twice(Line):
        objectives = [Objective("p0", Line.loss), Objective("p0", Line.loss)]

    with pytest.raises(ValueError, match="different names"):
        descent(Twice(), {"p0": optax.sgd(0.1)})


def test_microbatches_equal_the_whole_batch(same):
    plain = descent(Line(), {"p0": optax.adam(0.1)})
    parts = descent(Line(), {"p0": optax.adam(0.1)}, microbatches=4)
    state = plain.init(KEY, batch())
    a, b = plain.step(state, batch()), parts.step(state, batch())
    same(b[0], a[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b[1]["error"].value, a[1]["error"].value, rtol=1e-5)
    with pytest.raises(ValueError, match="into 5 microbatches"):
        descent(Line(), {"p0": optax.adam(0.1)}, microbatches=5).step(state, batch())


@pytest.mark.optimized
def test_microbatches_stay_on_their_devices():
    """Every device works on its share of every part: no batch travels, and gradients are summed over devices."""
    from gen_jax.sharding import Layout, P, over_data

    mesh = Layout(data=4).mesh()
    algorithm = over_data(descent(Line(), {"p0": optax.sgd(0.1)}, microbatches=4), mesh)
    state = algorithm.init(KEY, batch(64))
    divided = jax.device_put(batch(64), jax.sharding.NamedSharding(mesh, P("data")))
    program = jax.jit(algorithm.step).lower(state, divided).compile().as_text()
    assert "all-gather" not in program and "all-to-all" not in program and "all-reduce" in program


def test_cadences_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        descent(Line(every=0, players=2), {"p0": optax.sgd(0.1), "p1": optax.sgd(0.1)})
    with pytest.raises(ValueError, match="at least 1"):
        em(GMM(2), every=0)


def points(n=96, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 2)) + 4 * rng.integers(0, 3, size=(n, 1))).astype(np.float32)


def test_em_over_microbatches_equals_em(same):
    plain, parts = em(GMM(3)), em(GMM(3), microbatches=4)
    state = jax.jit(plain.init)(KEY, {"x": points()})
    a, b = (jax.jit(algorithm.step)(state, {"x": points()}) for algorithm in (plain, parts))
    same(b[0].params, a[0].params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [GMM(2), ClassConditional(GMM(2), 2)], ids=["GMM", "ClassConditional"])
def test_microbatches_weigh_examples_as_the_whole_batch_does(model, same):
    """One part holds nearly all of the weight: means of means would weigh both parts alike."""
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    weighted = {"x": x, "weight": np.float32([9, 0, 9, 0, 9, 0, 9, 0.5]), "label": np.arange(8) % 2}
    whole, parts = (descent(model, {"gmm": optax.sgd(1.0)}, microbatches=n) for n in (1, 2))
    state = jax.jit(whole.init)(KEY, weighted)
    (a, first), (b, second) = (jax.jit(algorithm.step)(state, weighted) for algorithm in (whole, parts))
    same(b.params, a.params, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second["loss"].value, first["loss"].value, rtol=1e-5)


def test_scaled_weights_change_no_gradient(same):
    x = {"x": points(8), "weight": np.float32([1, 2, 0, 1, 3, 1, 1, 1])}
    algorithm = descent(GMM(2), {"gmm": optax.sgd(0.1)})
    state = algorithm.init(KEY, x)
    scaled = {**x, "weight": 1e-3 * x["weight"]}
    step = jax.jit(algorithm.step)
    same(step(state, scaled)[0].params, step(state, x)[0].params, rtol=1e-4, atol=1e-6)


def test_stages_follow_each_other_on_one_state():
    """Two learning rates and batch sizes, in one program."""
    slow, fast = (descent(Line(), {"p0": optax.sgd(rate)}) for rate in (0.1, 0.5))
    algorithm = staged([first_examples(slow, 4), fast], boundaries=[2])
    state = algorithm.init(KEY, batch())
    step = jax.jit(algorithm.step)
    for i in range(4):
        expected, _ = (slow if i < 2 else fast).step(state, batch() if i >= 2 else first(batch(), 4))
        state, metrics = step(state, batch())
        np.testing.assert_allclose(state.params["p0"]["w"], expected.params["p0"]["w"], rtol=1e-6)
        assert metrics["error"].count == (4 if i < 2 else 12)
    with pytest.raises(ValueError, match="2 stages need 1 increasing"):
        staged([slow, fast], boundaries=[3, 2])


def first(batch, n):
    return {name: a[:n] for name, a in batch.items()}


def test_averages_change_what_is_evaluated():
    """What evaluation reads is the average, of every player that keeps one; the run itself keeps the current values."""
    algorithm = with_ema(
        with_ema(descent(Line(players=2), {"p0": optax.sgd(0.1), "p1": optax.sgd(0.1)}), "p0", lambda step: 0.9),
        "p1",
        lambda step: 0.5,
    )
    state = algorithm.step(algorithm.init(KEY, batch()), batch())[0]
    for player, decay in (("p0", 0.9), ("p1", 0.5)):
        before = algorithm.init(KEY, batch()).params[player]["w"]
        expected = decay * before + (1 - decay) * state.params[player]["w"]
        np.testing.assert_allclose(averaged(state).params[player]["w"], expected, rtol=1e-6)
    assert "ema" not in averaged(state).extra and averaged(averaged(state)) is not None


def test_streamed_em_equals_em(same):
    """em(every=4) over a quarter of the data at a time is EM on all of it."""
    x = points()
    whole, streamed = em(GMM(3)), em(GMM(3), every=4)
    state = jax.jit(whole.init)(KEY, {"x": x})
    expected, step = state, jax.jit(streamed.step)
    for _ in range(2):
        expected, _ = jax.jit(whole.step)(expected, {"x": x})
    for i in range(8):
        before = state.params["gmm"]["means"]
        state, _ = step(state, {"x": x[24 * (i % 4) : 24 * (i % 4 + 1)]})
        assert np.array_equal(state.params["gmm"]["means"], before) == (i % 4 != 3)  # only the last of four moves
    same(state.params, expected.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [0.25, lambda step: 1 / (2 + step)])
def test_ema_is_the_average(given):
    """With a decay of .25, which (1 + step) / (10 + step) reaches at the third step, or a schedule."""
    decay = given if callable(given) else lambda step: min(given, (1 + step) / (10 + step))
    algorithm = with_ema(descent(Line(), {"p0": optax.sgd(0.1)}), "p0", given)
    state = algorithm.init(KEY, batch())
    average = state.params["p0"]["w"]
    for i in range(4):
        state, _ = algorithm.step(state, batch(seed=i))
        d = decay(i)
        average = d * average + (1 - d) * state.params["p0"]["w"]
    np.testing.assert_allclose(averaged(state).params["p0"]["w"], average, rtol=1e-6)


def test_population_members_are_runs_of_their_own(same):
    make = lambda lr: with_ema(descent(Line(), {"p0": optax.adam(lr)}), "p0", 0.9)
    rates = np.array([0.01, 0.1, 0.3], np.float32)
    many = population(make, rates)
    state = many.init(KEY, batch())
    alone = [make(lr).init(fold_in(KEY, "member", i), batch()) for i, lr in enumerate(rates)]
    for s in range(3):
        state, metrics = many.step(state, batch(seed=s))
        alone = [make(lr).step(one, batch(seed=s))[0] for lr, one in zip(rates, alone)]
    assert metrics["loss"].value.shape == (3,) and state.step.shape == ()
    for i, one in enumerate(alone):
        same(member(state, i), one, rtol=1e-5, atol=1e-6)


def test_population_of_seeds_differs_and_fits():
    algorithm = population(descent(Line(), {"p0": optax.adam(0.1)}), 4)
    source = Resident(batch(64), batch=16)
    state = fit(algorithm, source, 300, chunk=50)
    w = np.asarray(state.params["p0"]["w"])
    assert w.shape == (4, 2)
    np.testing.assert_allclose(w, np.tile([1.0, -2.0], (4, 1)), atol=1e-2)
    start = algorithm.init(KEY, batch()).params["p0"]["w"]
    assert len(np.unique(np.asarray(start)[:, 0])) == 4


def test_chunk_takes_a_traced_length(same):
    algorithm = descent(Line(), {"p0": optax.adam(0.1)})
    source = Resident(batch(48), batch=8)
    state = algorithm.init(KEY, source.batch_at(0))
    many = jax.jit(lambda state, n: chunk(algorithm, n).step(state, source))
    a, metrics = many(state, 7)
    b = state
    for _ in range(7):
        b, _ = many(b, 1)
    same(a, b, rtol=1e-6)
    assert float(metrics["error"].count) == 7 * 8 and many._cache_size() == 1


def test_mean_adds_over_masks():
    a = Mean.of(jnp.array([1.0, 2.0, 30.0]), jnp.array([1.0, 1.0, 0.0]))
    b = Mean.of(jnp.array([6.0]))
    assert float(jax.tree.map(jnp.add, a, b).value) == 3.0
    assert float(Mean.of(jnp.array([1.0, jnp.nan]), jnp.array([1.0, 0.0])).value) == 1.0


def test_the_prior_counts_once_however_a_batch_is_divided():
    """The log-posterior of one batch, of four microbatches and of four devices."""
    model, x = GMM(2, prior=Prior(pseudo_counts=5.0, mode=0.5)), {"x": points(8)}
    algorithms = [em(model, microbatches=n) for n in (1, 4)]
    state = jax.jit(algorithms[0].init)(KEY, x)
    whole, parts = (jax.jit(algorithm.step)(state, x)[1]["log_posterior"] for algorithm in algorithms)
    expected = model.log_prob(state, x).sum() + model.log_prior(state)
    np.testing.assert_allclose([whole.total, parts.total], expected, rtol=1e-5)
    assert whole.count == parts.count == 8

    class See(Hook):
        def report(self, step, values):
            self.value = values["log_posterior"]

    see = See()
    fit(algorithms[0], x, 1, state=jax.tree.map(jnp.copy, state), hooks=[see], layout=Layout(data=4))
    np.testing.assert_allclose(see.value, expected / 8, rtol=1e-5)
