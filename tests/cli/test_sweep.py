"""`gen_jax sweep`: a grid of tiny runs, resumed, ordered and refused."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

from gen_jax.cli.sweep import sweep
from gen_jax.cli.train import train
from gen_jax.errors import Preempted, UserError
from gen_jax.files import read_json
from gen_jax.hooks import Preempt
from gen_jax.logs import read_metrics
from gen_jax.reopen import open_run

CONFIG = """
import optax
from gen_jax import GMM, Experiment, descent
from gen_jax.evaluation import Estimate

def fit(model):
    return lambda state, split, key: {"fit": Estimate(float(model.components), 0.1, "", "exact", 1, better="higher")}

def config(components: int = 2, lr: float = 0.01, steps: int = 2, smoke: bool = False):
    '''A mixture.'''
    model = GMM(components)
    return Experiment(model, descent(model, optax.sgd(lr)), data="blobs", steps=steps, batch=16, metrics=[fit],
                      evaluate_every=2, report_every=1)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(CONFIG)
    return str(path)


def test_a_grid_is_trained_once_and_ordered_by_validation(config, tmp_path, capfd):
    words = [config, "--components", "2", "3", "--lr=1e30", "--out", str(tmp_path / "out")]
    sweep([*words[:4], "--lr", "0.01", *words[5:]])
    said = capfd.readouterr().out
    assert said.count("training") == 2 and f"best by validation: {tmp_path / 'out' / 'components=3-lr=0.01'}" in said
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [run["knobs"]["components"] for run in record["runs"]] == ["3", "2"] and record["metric"] == "fit"
    assert (tmp_path / "out" / "sweep.png").is_file() and "| components=3" in (
        tmp_path / "out" / "sweep.md"
    ).read_text()
    sweep([config, "--components", "2", "3", "--lr", "0.01", "--out", str(tmp_path / "out"), "--metric", "fit:min"])
    again = capfd.readouterr().out
    assert again.count("trained before") == 2 and "components=2-lr=0.01\n" in again


@pytest.mark.slow
def test_runs_that_diverge_are_named_and_the_others_go_on(config, tmp_path, capfd):
    sweep([config, "--lr", "0.01", "1e35", "--components", "2", "--seeds", "2", "--out", str(tmp_path / "out")])
    said = capfd.readouterr()
    assert "exit code 70" in said.err and "failed: " in said.out and "lr=0.01-components=2-seeds=2" in said.out


def test_flags_are_knobs_too(config, tmp_path, capsys):
    sweep([config, "--smoke", "--components", "2", "--print", "commands"])
    sweep([config, "--smoke", "true", "false", "--print", "commands"])
    lines = capsys.readouterr().out.splitlines()
    assert "--smoke --components=2" in lines[0] and " --smoke " in lines[1] and " --no-smoke " in lines[2]


def test_commands_and_array_jobs_are_printed(config, tmp_path, capsys):
    sweep([config, "--components", "2", "3", "--print", "commands"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("python -m gen_jax train") and "--components=2" in lines[0]
    sweep([config, "--components", "2", "3", "4", "--random", "2", "--print", "slurm"])
    assert "--array=0-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "the config comes first"),
        (["--lr", "1"], "the config comes first"),
        (["CONFIG", "--component", "2"], "did you mean --components"),
        (["CONFIG", "--components", "two"], "invalid literal"),
        (["CONFIG", "--components"], "give one value or more"),
        (["CONFIG", "--components", "2", "2"], "each once"),
        (["CONFIG", "2"], "a value without a knob"),
        (["CONFIG", "--seeds", "0"], "at least 1"),
        (["CONFIG", "--print", "sbatch"], "invalid choice"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_is_trained(config, tmp_path, words, said):
    words = [config if word == "CONFIG" else word for word in words]
    with pytest.raises(UserError, match=said):
        sweep([*words, "--out", str(tmp_path / "out")] if words[:1] == [config] else words)
    assert not (tmp_path / "out").exists()


def test_runs_as_one_program_are_the_runs_by_themselves(tmp_path, capfd):
    config = tmp_path / "own.py"
    config.write_text(TOGETHER)
    sweep([str(config), "--lr", "0.001", "0.01", "--together", "--out", str(tmp_path / "out")])
    said = capfd.readouterr().out
    assert "training 2 runs as one program" in said and said.count("trained before") == 2
    for lr in ("0.001", "0.01"):
        alone, together = tmp_path / f"alone{lr}", tmp_path / "out" / f"lr={lr}"
        with contextlib.redirect_stdout(io.StringIO()):
            train(str(config), ["--lr", lr, "--devices=1", "--no-progress", "--workdir", str(alone)])
        runs = [open_run(folder)[0] for folder in (alone, together)]
        for a, b in zip(*(jax.tree.leaves(run.state().params) for run in runs)):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
        assert runs[1].workdir == together and not runs[1].folder.differences(runs[0].folder.recorded())
        rows = [read_metrics(folder / "metrics.jsonl") for folder in (alone, together)]
        losses = [[row["train/loss"] for row in some if "train/loss" in row] for some in rows]
        np.testing.assert_allclose(*losses, rtol=1e-3)
        assert (together / "checkpoints" / "8").is_dir() and "evaluation" in read_json(together / "run.json")["summary"]
    assert losses[0][-1] != pytest.approx(losses[0][0])


TOGETHER = """
from dataclasses import dataclass

import optax
from gen_jax import Experiment, Flow, descent
from gen_jax.data.transforms import Transform
from gen_jax.evaluation import log_likelihood
from gen_jax.models.bijections import Chain, Coupling, Reverse, Stack, Standardize
from gen_jax.models.flow import Normal

@dataclass(frozen=True)
class Weighed(Flow):
    weight: float = 1.0

    def loss(self, params, state, batch, key):
        loss, more = super().loss(params, state, batch, key)
        return (loss if self.weight > 0 else 0 * loss), more

def config(lr: float = 0.01, width: int = 8, scale: float = 1.0, shift: float = 0.0, weight: float = 1.0,
           steps: int = 8, smoke: bool = False):
    if scale < 0:
        raise ValueError("scale")
    moved = Transform(lambda batch, key: {**batch, "x": batch["x"] + shift})
    model = Weighed(Normal((2,)), [Stack(Chain([Coupling(), Reverse()]), 2), Standardize()], weight=weight)
    return Experiment(model, descent(model, optax.adam(lr)), data="two_moons", steps=steps, batch=64, report_every=2,
                      transforms=[moved],
                      evaluate_every=4, checkpoint_every=4, metrics=[log_likelihood])
"""


@pytest.mark.parametrize(
    "knobs, said",
    [
        (["--width", "8", "16"], "--width is no float"),
        (["--scale", "1.0", "2.0"], "--scale is used outside of the compiled step"),
        (["--shift", "0.0", "2.0"], "a knob changes the data or its transforms"),
        (["--weight", "1.0", "2.0"], "a knob decides what is computed"),
        (["--lr", "0.1", "0.01", "--seeds", "2"], "leave out --seeds"),
    ],
)
def test_knobs_that_cannot_be_traced_are_named(tmp_path, knobs, said):
    (tmp_path / "own.py").write_text(TOGETHER)
    with pytest.raises(UserError, match=said):
        sweep([str(tmp_path / "own.py"), *knobs, "--together", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out/*/checkpoints"))


def test_a_member_that_diverges_is_left_out(tmp_path, capfd):
    (tmp_path / "own.py").write_text(TOGETHER)
    sweep([str(tmp_path / "own.py"), "--lr", "0.01", "1e38", "--together", "--out", str(tmp_path / "out")])
    said = capfd.readouterr()
    assert "lr=1e38 is left out: " in said.err and "not finite at step" in said.err and "failed: " in said.out
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["best"].endswith("lr=0.01")


def test_runs_as_one_program_that_are_stopped_go_on_by_themselves(tmp_path, monkeypatch, capfd):
    """A signal at step 3, where nothing is due: all are saved, and the same command completes them."""
    (tmp_path / "own.py").write_text(TOGETHER.replace("report_every=2", "report_every=1"))
    words = [str(tmp_path / "own.py"), "--lr", "0.001", "0.01", "--together", "--out", str(tmp_path / "out")]
    poll = Preempt.poll
    monkeypatch.setattr(Preempt, "poll", lambda self, step: step == 3 and self._receive(15, None) or poll(self, step))
    with pytest.raises(Preempted, match="each run by itself"):
        sweep(words)
    assert all((tmp_path / "out" / f"lr={lr}" / "checkpoints" / "3").is_dir() for lr in ("0.001", "0.01"))
    monkeypatch.undo()
    sweep(words)
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(record["runs"]) == 2 and "one program" not in capfd.readouterr().out.split("training", 3)[-1]
