"""`fit` and its hooks."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent, em
from gen_jax.checkpoint import Best, Checkpoints
from gen_jax.core import Mean, Objective
from gen_jax.data import Resident, Streamed
from gen_jax.errors import NonFiniteError, UserError
from gen_jax.hooks import Checkpoint, Evaluate, HaltOnNaN, Log, Plot, Preempt, Profile, StopWhen
from gen_jax.logs import Writer, read_metrics
from gen_jax.loop import Hook, fit
from gen_jax.models.mixture import GMM
from gen_jax.sharding import Layout


class Counting:
    """Reports the step it is at; its only weight counts the steps. From step `bad` on its loss is NaN."""

    def __init__(self, bad=10**9):
        self.bad = bad

    def init(self, key, batch):
        return {"it": jnp.zeros(())}, {}

    def loss(self, params, state, batch, key):
        loss = jnp.where(state.step >= self.bad, jnp.nan, -params)
        return loss, ({}, {"step": Mean.of(state.step), "index": Mean.of(batch["index"])})

    def sample(self, state, key, n):
        return {"x": jnp.zeros((n, 1))}

    @property
    def objectives(self):
        return (Objective("it", self.loss),)


def counting(**options):
    return descent(Counting(**options), {"it": optax.sgd(1.0)})


DATA = Resident({"x": np.zeros((8, 1), np.float32)}, batch=4)


class Watch(Hook):
    def __init__(self, every=0, stop_at=None):
        self.every, self.stop_at, self.seen = every, stop_at, []

    def poll(self, step):
        self.seen.append(("poll", step))

    def report(self, step, values):
        self.seen.append(("report", step, values["step"]))

    def visit(self, step, state, measured):
        self.seen.append(("visit", step, float(state.params["it"])))
        return step == self.stop_at

    def of(self, kind):
        return [event[1:] for event in self.seen if event[0] == kind]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_hooks_are_called_at_their_steps_with_the_right_averages(chunk):
    watch = Watch(every=6)
    state = fit(counting(), DATA, 20, chunk=chunk, report_every=5, hooks=[watch])
    assert float(state.params["it"]) == 20
    assert watch.of("report") == [(5, 2.0), (10, 7.0), (15, 12.0), (20, 17.0)]
    assert watch.of("visit") == [(6, 6.0), (12, 12.0), (18, 18.0), (20, 20.0)]
    if chunk == 1:
        assert watch.of("poll") == [(i,) for i in range(1, 21)]


def test_a_hook_stops_the_run_and_all_see_the_last_state():
    stopper, other = Watch(every=6, stop_at=12), Watch(every=100)
    state = fit(counting(), DATA, 50, report_every=5, hooks=[stopper, other])
    assert int(state.step) == 12
    assert other.of("visit") == [(12, 12.0)]


def test_reports_are_read_one_step_late_but_before_visits():
    watch = Watch(every=10)
    fit(counting(), DATA, 20, report_every=5, hooks=[watch])
    order = [(kind, step) for kind, step, *_ in watch.seen]
    assert order.index(("report", 5)) > order.index(("poll", 6))
    assert order.index(("report", 10)) < order.index(("visit", 10))


def test_fit_goes_on_from_a_state():
    state = fit(counting(), DATA, 3)
    assert int(fit(counting(), DATA, 7, state=state).step) == 7


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(steps=0), "at least 1"),
        (dict(chunk=0), "at least 1"),
        (dict(data={"x": np.array([[np.nan], [1.0]])}), "1 NaN or infinite values"),
        (dict(data={"y": np.zeros(3)}), 'needs an entry "x"'),
        (dict(data={"x": np.zeros(3), "label": np.zeros(2)}), "differ in length"),
        (dict(data={"x": np.zeros((0, 1))}), "is empty"),
        (dict(data={"x": np.array(["a", "b"])}), "numbers are needed"),
        (dict(data=Resident({"x": np.zeros((8, 1))}, batch=9)), "choose 1 to 8"),
        (dict(layout=Layout(data=64)), "64 devices asked for"),
        (dict(layout=Layout(data=3)), "cannot be divided over 3 devices"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_compiled(arguments, message):
    arguments = {"data": DATA, "steps": 1, **arguments}
    with pytest.raises(UserError, match=message):
        fit(counting(), **arguments)


def test_log_writes_jsonl_and_tensorboard(tmp_path):
    writer = Writer(tmp_path)
    fit(counting(), DATA, 20, report_every=10, hooks=[Log(writer, 20, 4, bar=False)])
    writer.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[1]["train/step"] == 14.5
    assert rows[0]["compile_seconds"] > 0 and "compile_seconds" not in rows[1]
    assert rows[1]["examples_per_second"] == pytest.approx(4 * rows[1]["steps_per_second"])
    assert any(f.name.startswith("events") for f in (tmp_path / "tensorboard").iterdir())


def test_writer_drops_what_lies_after_the_resumed_step(tmp_path):
    writer = Writer(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"a": float(step), "b": [1.0, float("nan")]})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "a"')  # cut short by a crash
    writer = Writer(tmp_path, resumed_at=2)
    writer.write(3, {"a": 30.0})
    writer.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["a"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert rows[0]["b"] == [1.0, None]


@pytest.mark.parametrize("chunk", [1, 5])
def test_halt_on_nan_names_metric_and_step(chunk):
    watch = Watch(every=10)
    with pytest.raises(NonFiniteError, match="loss not finite at step 10"):
        fit(counting(bad=7), DATA, 100, chunk=chunk, report_every=5, hooks=[HaltOnNaN(), watch])
    assert watch.of("visit") == []  # nothing is saved or drawn from a bad state


def test_stop_when_converged():
    rng = np.random.default_rng(0)
    data = {"x": np.concatenate([rng.normal(size=(50, 2)), 5 + rng.normal(size=(50, 2))]).astype(np.float32)}
    state = fit(em(GMM(2)), data, 200, report_every=1, hooks=[StopWhen("log_likelihood", 1e-5)])
    assert 2 <= int(state.step) < 50
    with pytest.raises(UserError, match="the metrics are log_likelihood"):
        fit(em(GMM(2)), data, 5, report_every=1, hooks=[StopWhen("los", 1e-5)])


def test_preempt_finishes_the_step_and_restores_the_handlers():
    class Kill(Hook):
        def poll(self, step):
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    preempt, watch = Preempt(), Watch(every=1000)
    saves = Watch(every=1000)
    saves.urgent = True
    state = fit(counting(), DATA, 100, hooks=[Kill(), preempt, watch, saves])
    assert preempt.received == signal.SIGTERM
    assert 7 <= int(state.step) <= 9 and saves.of("visit") == [(int(state.step), float(state.step))]
    assert watch.of("visit") == []  # there is no time to lose on what does not save
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_saves_a_run_that_keeps_its_best(tmp_path):
    """What is saved in haste has been reported but not evaluated."""

    class Kill(Hook):
        def poll(self, step):
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    writer = Writer(tmp_path)
    scores = Evaluate(lambda s: {"validation/score": 1.0}, writer, 10)
    with Checkpoints(tmp_path / "c", best=Best("validation/score")) as checkpoints:
        saving = Checkpoint(checkpoints, 10)
        state = fit(counting(), DATA, 100, hooks=[Log(writer, 100, 4, bar=False), scores, Kill(), saving, Preempt()])
    writer.close()
    assert Checkpoints(tmp_path / "c").steps == [int(state.step)]


@pytest.mark.parametrize("chunk", [1, 100])
def test_profile_writes_a_trace(tmp_path, chunk):
    fit(counting(), DATA, 8, chunk=chunk, hooks=[Profile(tmp_path, 2, 5)])
    assert list(tmp_path.rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="1 <= FIRST < LAST"):
        Profile(tmp_path, 5, 5)


def test_best_is_chosen_by_what_was_measured_at_the_saved_step(tmp_path):
    """A model that is good at step 10 and bad at step 20, saved in between too."""
    best = Best("validation/score")
    writer = Writer(tmp_path)
    scores = Evaluate(lambda s: {"validation/score": 1.0 if int(s.step) < 15 else -9.0}, writer, 10)
    with Checkpoints(tmp_path / "c", best=best) as checkpoints:
        fit(counting(), DATA, 20, hooks=[Checkpoint(checkpoints, 5), scores])  # hooks that measure come first
        checkpoints.wait()
        assert checkpoints.best_step == 10
    writer.close()
    with Checkpoints(tmp_path / "d", best=Best("validation/scroe")) as checkpoints:
        with pytest.raises(UserError, match="validation/scroe"):
            writer = Writer(tmp_path)
            scores = Evaluate(lambda s: {"validation/score": 1.0}, writer, 10)
            fit(counting(), DATA, 20, hooks=[scores, Checkpoint(checkpoints, 5)])


def test_plot_saves_pictures(tmp_path):
    from gen_jax import plots

    fit(counting(), DATA, 2, hooks=[Plot(lambda s: {"points": plots.show({"a": np.eye(2)})}, tmp_path, every=1)])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["points_0000001.png", "points_0000002.png"]


def test_resident_and_streamed_train_alike(same):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(40, 1)).astype(np.float32)}
    streamed = Streamed(lambda i: {"x": arrays["x"][i]}, size=40, batch=8, seed=3)
    resident = Resident(arrays, batch=8, seed=3)
    seen = {}
    for name, source in (("streamed", streamed), ("resident", resident)):
        watch = []

        class See(Hook):
            def report(self, step, values):
                watch.append(values["index"])

        fit(counting(), source, 12, chunk=1 if name == "resident" else 3, report_every=1, hooks=[See()])
        seen[name] = watch
    assert seen["streamed"] == seen["resident"] and len(set(seen["resident"])) > 1


def test_a_failing_reader_ends_the_run():
    def records(index):
        raise OSError("record 5 is corrupt")

    with pytest.raises(OSError, match="record 5 is corrupt"):
        fit(counting(), Streamed(records, size=8, batch=4), 3)


def test_values_in_jsonl_have_no_nan(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, {"a": float("inf")})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["a"] is None


def test_typed_key_is_constant_and_step_counts():
    state = fit(counting(), DATA, 5, seed=9)
    assert np.array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(9)))
    assert state.step.dtype == jnp.int32


def test_stop_when_remembers_the_reports_of_before_a_resume():
    from gen_jax.hooks import StopWhen

    curve = [-5.0, -3.0, -2.5, -2.49, -2.489]
    whole, resumed = StopWhen("loss", 0.1, patience=2), StopWhen("loss", 0.1, patience=2)
    whole.begin(0, ["loss"])
    stops = [whole.report(i + 1, {"loss": value}) for i, value in enumerate(curve)]
    assert stops == [False, False, False, False, True]
    for i, value in enumerate(curve[:4]):
        resumed.replay(i + 1, {"loss": value})
    resumed.begin(4, ["loss"])
    assert resumed.report(5, {"loss": curve[4]})
