"""Trackers of experiments: what they receive, and that none of them ends a run."""

import importlib.util
import math

import pytest

from gen_jax import trackers
from gen_jax.cli.train import train
from gen_jax.errors import UserError
from gen_jax.files import read_json
from gen_jax.logs import read_metrics
from gen_jax.trackers import Guarded, check_trackers


class Recorder:
    """Keeps what it is told, and fails where it is asked to."""

    made: list = []

    def __init__(self, folder, name, settings, fail=""):
        if fail == "begin":
            raise ConnectionError("no account\nand a long explanation")
        self.rows, self.closed, self.settings, self.fail = [], 0, settings, fail
        Recorder.made.append(self)

    def write(self, step, values):
        if self.fail == "write" and step > 2:
            raise OSError("the network is gone")
        self.rows.append((step, values))

    def close(self):
        self.closed += 1
        if self.fail == "close":
            raise RuntimeError("cannot sync")


def trained(tmp_path, monkeypatch, fail="", *options):
    """The run's summary, beside a tracker that fails at some point."""
    Recorder.made = []
    make = lambda *arguments: Recorder(*arguments, fail=fail)
    monkeypatch.setattr(trackers, "NAMES", {"wandb": ("json", make), "mlflow": ("json", make)})
    fixed = ["--smoke", "--track", "wandb", "--devices=1", "--no-progress", "--workdir", str(tmp_path / "run")]
    train("gmm_blobs", [*fixed, *options])
    return read_json(tmp_path / "run" / "run.json")["summary"]


def test_a_tracker_receives_what_the_log_holds(tmp_path, monkeypatch):
    summary = trained(tmp_path, monkeypatch)
    (one,) = Recorder.made
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert one.closed == 1 and [step for step, _ in one.rows] == [row["step"] for row in rows]
    logged = [{k: v for k, v in row.items() if k not in ("step", "time") and v is not None} for row in rows]
    assert [dict(values) for _, values in one.rows] == [
        {name: pytest.approx(value) for name, value in row.items()} for row in logged
    ]
    assert one.settings["config"] == "gmm_blobs" and one.settings["seed"] == 0 and summary["step"] > 1


@pytest.mark.parametrize(
    "fail, said", [("begin", "no account"), ("write", "network is gone"), ("close", "cannot sync")]
)
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, capsys, fail, said):
    summary = trained(tmp_path, monkeypatch, fail)
    err = capsys.readouterr().err
    assert summary["step"] > 3 and err.count("wandb is left out") == 1 and said in err
    assert "long explanation" not in err


def test_seeds_have_numbers_and_what_is_not_finite_is_left_out():
    kept = Recorder(None, "", {})
    Guarded("x", lambda: kept).write(3, {"a": [1.0, math.nan], "b": 2, "c": math.inf})
    assert kept.rows == [(3, {"a/0": 1.0, "b": 2.0})]


def test_unknown_or_missing_trackers_are_named_before_training(monkeypatch):
    with pytest.raises(UserError, match="there are wandb, mlflow"):
        check_trackers(["comet"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: pip install wandb"):
        check_trackers(["wandb"])


def runs_twice(tmp_path, name):
    fixed = ["--track", name, "--devices=1", "--no-progress", "--workdir", str(tmp_path / "run")]
    for steps in ("5", "9"):
        train("realnvp_moons", ["--smoke", *fixed, "--steps", steps, "--force"])


@pytest.mark.slow
def test_mlflow_offline(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    runs_twice(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    number = (tmp_path / "run" / "mlflow.id").read_text()
    history = client.get_metric_history(number, "train/loss")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert [(m.step, m.value) for m in history] == [(row["step"], pytest.approx(row["train/loss"])) for row in rows]
    assert client.get_run(number).data.params["config"] == "realnvp_moons"
    assert client.get_run(number).info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs_twice(tmp_path, "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    number = (tmp_path / "run" / "wandb.id").read_text().strip()
    assert len(files) == 2 and all(number in path.name for path in files)  # one run, gone on with
    assert all(path.stat().st_size > 500 for path in files)
