"""What must hold whatever happens: kills, signals, several processes, long runs."""

import gc
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gen_jax.checkpoint import Checkpoints, digest
from gen_jax.configs import load
from gen_jax.errors import CheckpointError, Preempted, exits
from gen_jax.files import read_json
from gen_jax.hooks import Checkpoint, HaltOnNaN, Log
from gen_jax.logs import Writer, read_metrics
from gen_jax.loop import Hook, fit
from gen_jax.run import Run

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "configs" / "tiny.py"


STARTED = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def start(*words, devices=1, **environment):
    """A command in a process of its own."""
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    env = {**os.environ, "XLA_FLAGS": flags, **environment, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def train(workdir, *words, **options):
    return start("train.py", TINY, "--workdir", workdir, "--no-progress", *words, **options)


def finish(process, seconds=120):
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def wait_for(condition, seconds=60):
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "waited too long"
        time.sleep(0.02)


def final(workdir, **knobs):
    return Run.prepare(load(TINY, knobs), workdir, devices=1).state()


def curve(workdir):
    """The metrics without what differs between any two runs: times and speeds."""
    ignored = ("time", "steps_per_second", "examples_per_second", "compile_seconds")
    return [{k: v for k, v in row.items() if k not in ignored} for row in read_metrics(workdir / "metrics.jsonl")]


def straight(tmp_path, **knobs):
    """A run without interruption, in this process."""
    run = Run.prepare(load(TINY, knobs), tmp_path / "straight", devices=1)
    run.train(bar=False)
    return run.workdir


def test_same_seed_same_bits_another_seed_others(tmp_path):
    runs = [
        Run.prepare(load(TINY, {"steps": 50}), tmp_path / str(i), seed=seed, devices=1)
        for i, seed in enumerate((0, 0, 1))
    ]
    for run in runs:
        run.train(bar=False)
    a, b, c = (digest(run.state()) for run in runs)
    assert a == b != c
    assert curve(tmp_path / "0") == curve(tmp_path / "1") != curve(tmp_path / "2")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_resumes(tmp_path, number):
    """Durable within 5 s, exit code 75, and the resumed run ends with the bits of one that never stopped."""
    workdir = tmp_path / "w"
    process = train(workdir, SLEEP="0.02")
    wait_for(lambda: len(curve(workdir)) >= 2)
    sent = time.time()
    process.send_signal(number)
    code, out = finish(process)
    assert code == 75 and time.time() - sent < 5, out
    assert f"stopped by {number.name} at step" in out and "the same command resumes it" in out
    stopped = int(out.partition("at step ")[2].partition(",")[0])
    assert int(final(workdir).step) == stopped < 400
    code, out = finish(train(workdir))
    assert code == 0, out
    reference = straight(tmp_path)
    assert digest(final(workdir)) == digest(final(reference))
    here = {row["step"]: row for row in curve(workdir) if "train/generator_loss" in row}
    there = {row["step"]: row for row in curve(reference) if "train/generator_loss" in row}
    partial = {stopped, (stopped // 25 + 1) * 25}  # the two reports that share one interval
    assert {s: r for s, r in here.items() if s not in partial} == {s: r for s, r in there.items() if s not in partial}


class Asked(Hook):
    """Receives a signal while the last step is looked at."""

    every = 1000

    def visit(self, step, state, measured):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_leaves_only_the_evaluation(tmp_path, monkeypatch):
    run = Run.prepare(load(TINY, {"steps": 25}), tmp_path / "w", devices=1)
    asked = replace(run, experiment=replace(run.experiment, hooks=[Asked()]))
    with pytest.raises(Preempted, match="at step 25, saved .* the same command evaluates it"):
        asked.train(bar=False)
    assert not read_json(tmp_path / "w" / "evaluation.json") and int(run.state().step) == 25

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Preempted, match="stopped during the evaluation"):
        patch.setattr(Run, "_draw", interrupted)
        run.train(bar=False)
    assert run.train(bar=False)["evaluation"]


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path):
    process = train(tmp_path / "w", SLEEP="3")
    wait_for(lambda: (tmp_path / "w" / "metrics.jsonl").exists())
    time.sleep(8)  # by now in the first steps
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    sent = time.time()
    code, out = finish(process)
    assert code == 130 and time.time() - sent < 2 and "SIGINT: finishing the step" in out, out


def kill_and_resume(tmp_path, kills, seed):
    process = start(ROOT / "tests" / "zygote.py", tmp_path / "w", kills, seed, SLEEP="0.004", STEPS="1000000")
    code, out = finish(process, 60 + 15 * kills)
    assert code == 0, out
    steps = [int(line) for line in out.splitlines() if line.isdigit()]
    assert len(steps) == kills and steps == sorted(steps) and steps[-1] > steps[0] > 0, out
    # From where the last kill left it, the run goes on to exactly what an uninterrupted run reaches.
    end = (steps[-1] // 25 + 2) * 25
    run = Run.prepare(load(TINY, {"steps": end}), tmp_path / "w", devices=1)
    run.train(bar=False, force=True)
    reference = Run.prepare(load(TINY, {"steps": end, "checkpoint_every": 10_000}), tmp_path / "straight", devices=1)
    reference.train(bar=False)
    assert digest(run.state()) == digest(reference.state())
    reports = lambda path: [row for row in curve(path) if "train/generator_loss" in row]
    assert reports(run.workdir) == reports(reference.workdir)
    assert not list((tmp_path / "w" / "checkpoints").glob("damaged-*"))


@pytest.mark.slow
def test_six_kills_lose_nothing_that_was_finished(tmp_path):
    kill_and_resume(tmp_path, kills=6, seed=0)


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_that_was_finished(tmp_path):
    kill_and_resume(tmp_path, kills=200, seed=1)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pair(workdir, *words, **environment):
    port = free_port()
    return [
        train(
            workdir,
            "--distributed",
            *words,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
            **environment,
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_agree_with_one_and_one_resumes_them(tmp_path, same):
    outcomes = [finish(p, 240) for p in pair(tmp_path / "w", "--steps", "100")]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert "finished at step 100" in outcomes[0][1] and "finished at step" not in outcomes[1][1]
    together, alone = final(tmp_path / "w", steps=100), final(straight(tmp_path, steps=100), steps=100)
    same(together.params, alone.params, rtol=1e-3, atol=1e-5)
    assert len(curve(tmp_path / "w")) == len(curve(tmp_path / "straight"))  # only one of the two writes
    code, out = finish(train(tmp_path / "w", "--steps", "150", "--force"))
    assert code == 0 and int(final(tmp_path / "w", steps=150).step) == 150, out


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 2])
def test_two_processes_read_their_parts_of_a_stream(tmp_path, same, repeats):
    words = ("--steps", "50", "--no-resident", "--repeats", str(repeats))
    outcomes = [finish(p, 240) for p in pair(tmp_path / "w", *words)]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    knobs = {"steps": 50, "repeats": repeats}
    same(
        final(tmp_path / "w", **knobs, resident=False).params,
        final(straight(tmp_path, **knobs), **knobs).params,
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_run_killed_before_its_summary_is_finished_by_the_same_command(tmp_path):
    workdir = straight(tmp_path, steps=50)
    record = json.loads((workdir / "run.json").read_text())
    summary = record.pop("summary")
    (workdir / "run.json").write_text(json.dumps(record))
    (workdir / "evaluation.json").unlink()
    again = Run.prepare(load(TINY, {"steps": 50}), workdir, devices=1).train(bar=False)
    assert again["evaluation"] == summary["evaluation"] and (workdir / "evaluation.json").exists()
    forced = Run.prepare(load(TINY, {"steps": 50}), workdir, devices=1).train(bar=False, force=True)
    assert forced["already_finished"]


def test_checkpoints_of_other_settings_are_not_taken_over(tmp_path, capsys):
    workdir = straight(tmp_path, steps=50)
    (workdir / "run.json").unlink()
    run = Run.prepare(load(TINY, {"steps": 50, "lr": 0.5}), workdir, devices=1)
    assert exit_code(lambda: run.train(bar=False)) == 2
    assert "is of other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_both(tmp_path):
    both = pair(tmp_path / "w", "--steps", "100000", SLEEP="0.01")
    wait_for(lambda: len(curve(tmp_path / "w")) >= 1, 120)
    both[1].send_signal(signal.SIGTERM)
    outcomes = [finish(p, 60) for p in both]
    assert [code for code, _ in outcomes] == [75, 75], outcomes
    assert int(final(tmp_path / "w", steps=100000).step) >= 25


@pytest.mark.slow
def test_the_death_of_a_process_ends_the_other_within_20_seconds(tmp_path):
    both = pair(tmp_path / "w", "--steps", "100000", SLEEP="0.01")
    wait_for(lambda: Checkpoints(tmp_path / "w" / "checkpoints").steps, 120)
    both[1].kill()
    begun = time.time()
    code, out = finish(both[0], 60)
    assert code != 0 and time.time() - begun < 20, out
    reached = int(final(tmp_path / "w", steps=100000).step)
    code, out = finish(train(tmp_path / "w", "--steps", str(reached + 25), "--force"))
    assert code == 0, out


@pytest.mark.slow
def test_an_absent_process_is_named_not_waited_for(tmp_path):
    process = train(
        tmp_path / "w",
        "--distributed",
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_port()}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID="0",
        GEN_JAX_JOIN_SECONDS="5",
    )
    code, out = finish(process, 60)
    assert code == 2 and "not all processes of the run came within 5 s" in out, out


def exit_code(main):
    with pytest.raises(SystemExit) as ended:
        exits(main)
    return ended.value.code


def test_nan_ends_with_70_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    run = Run.prepare(load(TINY, {"steps": 400, "lr": 1e37}), tmp_path / "w", devices=1)
    assert exit_code(lambda: run.train(bar=False)) == 70
    said = capsys.readouterr().err
    assert "not finite at step 25" in said and "loss" in said
    assert Checkpoints(tmp_path / "w" / "checkpoints").steps == []


def test_a_save_that_fails_ends_with_74(tmp_path, monkeypatch):
    def fail(self, step, state, metrics=None):
        raise CheckpointError("no space left on the device")

    monkeypatch.setattr(Checkpoints, "save", fail)
    run = Run.prepare(load(TINY, {"steps": 50}), tmp_path / "w", devices=1)
    assert exit_code(lambda: run.train(bar=False)) == 74
    assert "summary" not in json.loads((tmp_path / "w" / "run.json").read_text())


def test_two_trainers_on_one_workdir(tmp_path, capsys):
    run = Run.prepare(load(TINY, {"steps": 50}), tmp_path / "w", devices=1)
    with run.folder.checkpoints(run.experiment, write=True):
        assert exit_code(lambda: run.train(bar=False)) == 2
    assert f"another run (process {os.getpid()})" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_falls_back(tmp_path):
    workdir = straight(tmp_path, steps=100)
    before = digest(final(workdir, steps=100))
    largest = max(
        (f for f in (workdir / "checkpoints" / "100").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    with pytest.warns(UserWarning, match="checkpoint 100 .* is damaged"):
        Run.prepare(load(TINY, {"steps": 100}), workdir, devices=1).train(bar=False)
    assert digest(final(workdir, steps=100)) == before


def soak(tmp_path, steps):
    """Memory, open files and compiled programs stay as they are."""
    run = Run.prepare(load(TINY, {"steps": steps}), tmp_path / "w", devices=1)
    writer = Writer(run.workdir if run.workdir.mkdir(parents=True) is None else run.workdir)
    samples = []

    class Sample(Log):
        def report(self, step, values):
            super().report(step, values)
            if step % (steps // 10) == 0:
                gc.collect()  # what earlier tests left behind may go at any time
                memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
                samples.append((memory, len(os.listdir("/proc/self/fd"))))

    with run.folder.checkpoints(run.experiment, write=True) as checkpoints:
        hooks = [Sample(writer, steps, 16, bar=False), HaltOnNaN(), Checkpoint(checkpoints, steps // 10)]
        fit(run.experiment.algorithm, run.program.source, steps, hooks=hooks, report_every=steps // 100)
    writer.close()
    memory, files = np.array(samples[2:]).T
    assert memory[-1] / memory[0] < 1.05
    half = len(files) // 2  # a save in flight holds files open for a while, a leak holds them for good
    assert files[half:].min() - files[:half].min() <= 3
    return samples


@pytest.mark.slow
def test_short_soak(tmp_path):
    soak(tmp_path, 2000)


@pytest.mark.slow
def test_long_soak(tmp_path):
    soak(tmp_path, 10_000)


def test_no_pickle_eval_or_unsafe_loading():
    """Nothing in the package can be made to run code by a file it reads, except a config, which is code."""
    banned = ("import pickle", "allow_pickle=True", "yaml.load", "eval(", "exec(", "shell=True", "joblib", "torch.load")
    allowed = {
        ("configs.py", "exec("),  # spec.loader.exec_module, for configs
        ("weights_io.py", "import pickle"),  # a reader that knows four names, see test_nothing_that_a_file_holds_is_run
    }
    for path in (ROOT / "gen_jax").rglob("*.py"):
        text = path.read_text().replace("exec_module(", "exec(")
        found = {(path.name, word) for word in banned if word in text}
        assert found <= allowed, found


@pytest.mark.slow
def test_environment_does_not_matter(tmp_path):
    """Another folder, a path with spaces and letters, the C locale, no HOME."""
    workdir = tmp_path / "où est le chat"
    workdir.mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "LANG")}
    env |= {"LC_ALL": "C", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(TINY), "--steps", "25", "--no-progress"],
        cwd=workdir,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (workdir / "runs" / "tiny-steps=25" / "run.json").exists()
