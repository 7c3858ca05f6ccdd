"""Mistakes in what a user writes: nothing trained is lost, and the message names the mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gen_jax.cli.train import train
from gen_jax.errors import Attempts, Incomplete, NonFiniteError, UserError
from gen_jax.files import read_json

ROOT = Path(__file__).parent.parent
CONFIG = """
import math

from gen_jax import em, load
from gen_jax.checkpoint import Best
from gen_jax.evaluation import Estimate
from gen_jax.experiment import Experiment
from gen_jax.models.mixture import GMM
from gen_jax import plots
{above}

def fine(model):
    return lambda state, split, key: {{"answer": Estimate(42.0, 0.0, "", "exact", 1)}}

def broken(model):
    def measure(state, split, key):
        {metric}
    return measure

def drawn(model, state, split, key):
    {plot}

def config(steps: int = 4, smoke: bool = False) -> Experiment:
    return Experiment(GMM(2), em(GMM(2)), data="blobs", steps=steps, report_every=2, evaluate_every=2, plot_every=2,
                      checkpoint_every=2, metrics=[broken, fine], plots=[drawn, plots.density], {more})
"""
GOOD = {"above": "", "metric": "return {}", "plot": "return plots.density(model, state, split, key)", "more": ""}


def written(folder, **parts):
    path = folder / "own.py"
    path.write_text(CONFIG.format(**{**GOOD, **parts}))
    return path


def run(path, *options):
    train(str(path), ["--devices=1", "--no-progress", "--workdir", str(path.parent / "run"), *options])


@pytest.mark.representatives("both")
@pytest.mark.parametrize(
    "parts, failed",
    [
        ({"metric": "return 1 / 0"}, {"metric broken"}),
        ({"plot": "raise KeyError('x')"}, {"plot drawn"}),
        ({"metric": "return {'a': 3.0}", "plot": "return undefined"}, {"metric broken", "plot drawn"}),
    ],
    ids=["metric", "plot", "both"],
)
def test_a_metric_or_plot_that_fails_is_left_out_and_the_run_goes_on(tmp_path, capsys, parts, failed):
    path = written(tmp_path, **parts)
    with pytest.raises(Incomplete) as ended:
        run(path)
    assert ended.value.exit_code == 76 and all(name in str(ended.value) for name in failed)
    summary = read_json(tmp_path / "run" / "run.json")["summary"]
    assert summary["failed"].keys() == failed and summary["step"] == 4 and "answer" in summary["evaluation"]
    assert all(times == 3 for times in summary["failed"].values())  # at steps 2 and 4, and at the end
    said = capsys.readouterr().err
    assert (
        all(said.count(f"the {name} failed") == 1 for name in failed) and 'own.py", line' in said or "Estimate" in said
    )
    assert all(said.count(f"the {name} fails with the first parameters on 1000 examples") == 1 for name in failed)
    assert said.index("fails with the first") < said.index("the run begins nevertheless") < said.index("failed and is")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "4"]
    assert (tmp_path / "run" / "plots" / "density.png").is_file()


def test_a_mended_run_is_completed_without_training(tmp_path, capsys):
    path = written(tmp_path, plot="raise KeyError('x')")
    with pytest.raises(Incomplete):
        run(path)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    run(written(tmp_path), "--force")
    assert (tmp_path / "run" / "plots" / "drawn.png").is_file()
    assert "failed" not in read_json(tmp_path / "run" / "run.json")["summary"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_labels_that_cannot_be_typeset_are_a_plot_that_failed(tmp_path):
    text = "figure = plots.density(model, state, split, key); figure.axes[0].set_title(r'$\\\\frac{{$'); return figure"
    with pytest.raises(Incomplete, match="plot drawn"):
        run(written(tmp_path, plot=text.replace("{{", "{")))


def test_strict_runs_end_with_what_failed(tmp_path):
    later = "return 1 / 0 if int(state.step) else plots.density(model, state, split, key)"
    with pytest.raises(ZeroDivisionError):
        run(written(tmp_path, plot=later), "--strict")
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()  # saved before it was drawn


def test_a_best_checkpoint_by_a_metric_that_fails_is_still_saved(tmp_path):
    best = "best=Best('validation/lost', 'max')"
    with pytest.raises(Incomplete):
        run(written(tmp_path, metric="raise ValueError('no')", more=best))
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_a_best_checkpoint_by_an_unknown_metric_is_an_error_after_saving(tmp_path):
    with pytest.raises(UserError, match="chosen by 'validation/lost'"):
        run(written(tmp_path, more="best=Best('validation/lost', 'max')"))
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_attempts_let_errors_of_the_run_itself_through(capsys):
    attempt = Attempts()

    def diverged():
        raise NonFiniteError("loss not finite")

    with pytest.raises(NonFiniteError):
        attempt("metric x", diverged, None)
    assert attempt("metric x", lambda: {}["a"], 7) == 7 and attempt.failed == {"metric x": 1}


@pytest.mark.slow
def test_the_exit_code_is_that_of_an_incomplete_run(tmp_path):
    path = written(tmp_path, plot="return 1 / 0")
    command = [sys.executable, "train.py", str(path), "--workdir", str(tmp_path / "run"), "--no-progress"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 76 and "ZeroDivisionError" in done.stderr
    assert re.search(r"trained and saved, but these failed: plot drawn", done.stderr)


STEPS = """
import optax
from gen_jax import Experiment, descent, load
from gen_jax.checkpoint import Best
from gen_jax.evaluation import Estimate
from gen_jax.models.mixture import GMM

def falling(model):
    return lambda state, split, key: {{"fit": Estimate(-float(state.step), 0.0, "", "exact", 1)}}

def config(steps: int = 4, smoke: bool = False) -> Experiment:
    '''{doc}'''
    return Experiment(GMM(2), descent(GMM(2), optax.sgd({rate})), data="blobs", steps=steps, batch=32, report_every=2,
                      evaluate_every=2, plot_every=2, checkpoint_every=2, metrics=[falling], {more})
"""


def stepped(folder, rate="0.01", doc="Mixture.", more=""):
    path = folder / "own.py"
    path.write_text(STEPS.format(rate=rate, doc=doc, more=more))
    return path


def test_comments_and_more_steps_need_no_force(tmp_path, capsys):
    run(stepped(tmp_path))
    run(stepped(tmp_path, doc="A mixture of two Gaussians.  # edited"), "--steps=6")
    assert read_json(tmp_path / "run" / "run.json")["summary"]["step"] == 6
    assert read_json(tmp_path / "run" / "run.json")["knobs"]["steps"] == 6
    with pytest.raises(UserError, match="steps = 6 there, 4 here"):
        run(stepped(tmp_path))
    with pytest.raises(UserError, match="the config file has changed(.|\n)*sgd\\(0.02\\)"):
        run(stepped(tmp_path, rate="0.02"), "--steps=8")


def test_more_steps_under_a_schedule_need_force(tmp_path):
    rate = "optax.linear_schedule(0.01, 0.0, steps)"
    run(stepped(tmp_path, rate))
    with pytest.raises(UserError, match="each step depends on their number"):
        run(stepped(tmp_path, rate), "--steps=6")
    run(stepped(tmp_path, rate), "--steps=6", "--force")
    assert read_json(tmp_path / "run" / "run.json")["summary"]["step"] == 6


def test_results_are_those_of_the_best_checkpoint(tmp_path, capsys):
    run(stepped(tmp_path, more="best=Best('validation/fit', 'max')"))
    summary = read_json(tmp_path / "run" / "run.json")["summary"]
    assert (summary["step"], summary["evaluated_step"]) == (4, 2) and summary["evaluation"]["fit"]["value"] == -2.0
    assert "best checkpoint (step 2)" in capsys.readouterr().out


def test_a_best_checkpoint_that_is_not_there_is_an_error(tmp_path):
    from gen_jax.reopen import open_run

    run(stepped(tmp_path))
    with pytest.raises(UserError, match="no best checkpoint"):
        open_run(tmp_path / "run")[0].state("best")


def test_a_run_that_stops_early_says_why(tmp_path, capsys):
    path = stepped(tmp_path, more="hooks=[StopWhen('loss', 1e9)]")
    path.write_text("from gen_jax.hooks import StopWhen\n" + path.read_text())
    run(path, "--steps=20")
    summary = read_json(tmp_path / "run" / "run.json")["summary"]
    assert summary["stopped_early"] and summary["stopped_because"] == "loss changed by less than 1e+09"
    assert "loss changed by less than 1e+09" in " ".join(capsys.readouterr().out.split())


MODEL = """
import jax, jax.numpy as jnp, optax
from gen_jax import Experiment, descent
from gen_jax.core import Mean, Objective

class Model:
    def init(self, key, batch):
        return {{"net": {{"w": jnp.zeros(2)}}}}, {{}}

    @property
    def objectives(self):
        return (Objective("net", self.loss),)

    def loss(self, params, state, batch, key):
        value = jnp.mean((batch["x"] - params["w"]) ** 2)
        return {loss}

    def sample(self, state, key, n, condition=None):
        return {sample}

def config(steps: int = 2, smoke: bool = False):
    model = Model()
    return Experiment(model, descent(model, optax.sgd(0.1)), data="blobs", steps=steps, batch=16)
"""
FINE = {"loss": "value, ({}, {})", "sample": "{'x': jnp.zeros((n, 2))}"}


@pytest.mark.parametrize(
    "parts, said",
    [
        ({"loss": "value, {}"}, r"the loss of 'net', at own.py:14, must return .* returned \(an array \(\), \{\}\)"),
        ({"loss": "value"}, r"returned an array \(\)"),
        ({"loss": "value, ({'new': value}, {})"}, "the extra 'new', which `init` does not make"),
        ({"loss": "value, ({}, {'a': value})"}, r"metrics as Mean.of\(values\); 'a'"),
        ({"loss": "undefined"}, "own.py:16: NameError"),
        ({"loss": "batch['y']"}, "own.py:16: KeyError"),
        ({"sample": "jnp.zeros((n, 2))"}, "`sample`, at own.py:18, must return a batch"),
        ({"sample": "{'x': jnp.zeros((3, 2))}"}, "must return n samples"),
        ({"sample": "{'x': state.params['other']}"}, "own.py:19: KeyError"),
        ({"sample": "{'x': jnp.zeros(n)}"}, r"must return examples of shape \(2,\); theirs is \(\)"),
        ({"sample": "{'x': jnp.zeros((n, 3))}"}, r"must return examples of shape \(2,\); theirs is \(3,\)"),
    ],
)
def test_mistakes_of_a_model_are_named_by_their_line_before_training(tmp_path, parts, said):
    path = tmp_path / "own.py"
    path.write_text(MODEL.format(**{**FINE, **parts}))
    with pytest.raises(UserError, match=said):
        run(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "old, new, said",
    [
        (
            "    def sample(self, state, key, n, condition=None):\n        return {'x': jnp.zeros((n, 2))}\n",
            "",
            "needs `init` and `sample`",
        ),
        (
            "def sample(self, state, key, n, condition=None)",
            "def sample(self, state, key, n)",
            r"`sample`, at own.py:18, must take \(state, key, n, cond",
        ),
        (
            "def loss(self, params, state, batch, key)",
            "def loss(self, params, batch, key)",
            r"loss of 'net', at own.py:14, must take \(params, state, batch, key\)",
        ),
        (
            'return {"net": {"w": jnp.zeros(2)}}, {}',
            'return {"net": {"w": jnp.zeros(2)}}',
            r"`init`, at own.py:7, must return \(params, extra\)",
        ),
        (
            '    @property\n    def objectives(self):\n        return (Objective("net", self.loss),)\n',
            "",
            "own.py.*AttributeError: .*objectives",
        ),
        ("batch=16", "batch='16'", "batch must be a whole number, got '16'"),
        (
            "batch=16",
            "plots=['scatter']",
            "plots must be a list of functions, such as gen_jax.plots.samples; got 'scatter'",
        ),
        ("batch=16", "plots=print", "plots must be a list, got"),
        ("batch=16", "metrics=['log_likelihood']", "metrics must be a list of functions"),
        ("batch=16", "chunks=3", r"own.py:2\d: TypeError: .*unexpected keyword argument 'chunks'"),
        ("from gen_jax import Experiment", "from gen_jax import Experimnt", "own.py:3: ImportError"),
        ("    model = Model()", "    model = Model(", "own.py.*SyntaxError"),
        (
            "steps: int = 2",
            "steps: int = 2, widths: list = [3]",
            "knob widths can be changed by accident: take a tuple",
        ),
        ("descent(model, optax.sgd(0.1))", "optax.sgd(0.1)", "algorithm must be one, such as descent"),
        ("batch=16", "metrics=[Model()]", "metrics must be a list of functions, such as"),
        ("batch=16", "plots=[jax.tree_util.Partial(print)]", "plots must be a list of functions, .* which needs a def"),
        ("jnp.zeros((n, 2))}", "[1.0, 2.0]}", "must return a batch"),
    ],
)
@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_mistakes_of_a_config_are_one_line_before_training(tmp_path, old, new, said, seeds):
    path, text = tmp_path / "own.py", MODEL.format(**FINE)
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=said) as found:
        run(path, "--seeds", str(seeds))
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "metric, said",
    [
        (
            "def made(settings=1):\n    def made(model):\n        return lambda state, split, key: {}\n    return made",
            r"then write made\(\)",
        ),
        ("def made(model):\n    return 3.0", "must return a function"),
        ("def made(model):\n    return lambda state: {}", r"must take \(state, split, key\)"),
    ],
)
def test_metrics_that_are_none_are_named_before_training(tmp_path, metric, said):
    path = tmp_path / "own.py"
    path.write_text(
        MODEL.format(**FINE).replace("batch=16", "metrics=[made]").replace("class Model", f"{metric}\n\nclass Model")
    )
    with pytest.raises(UserError, match=said):
        run(path)
    assert not (tmp_path / "run" / "checkpoints" / "2").exists()


def test_a_plot_that_returns_nothing_is_named(tmp_path, capsys):
    with pytest.raises(Incomplete, match="plot drawn"):
        run(written(tmp_path, plot="return None"))
    assert "the plot drawn must return a figure" in capsys.readouterr().err


def test_all_calls_are_shown_when_asked_for(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text(MODEL.format(**{**FINE, "loss": "undefined"}))
    with pytest.raises(UserError):
        run(path, "--traceback")
    said = capsys.readouterr().err
    assert "Traceback" in said and "return undefined" in said
