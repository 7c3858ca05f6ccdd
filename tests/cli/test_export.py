"""`gen_jax export`: a run in a folder of its own, and back."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import trained

from gen_jax.cli.export import export
from gen_jax.cli.report import report
from gen_jax.cli.train import train
from gen_jax.core import averaged
from gen_jax.errors import UserError
from gen_jax.portable import read_params
from gen_jax.reopen import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained("vae_digits", tmp_path_factory.mktemp("runs"))


def test_an_exported_run_holds_all_parameters_and_says_what_it_is(run, tmp_path, same):
    folder = tmp_path / "carried"
    export(run, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.py",
        "export.json",
        "params.safetensors",
    ]
    state = averaged(open_run(run)[0].state())
    same(jax.tree.map(np.asarray, read_params(folder)), jax.tree.map(np.asarray, dict(state.params)))
    card, about = (folder / "README.md").read_text(), json.loads((folder / "export.json").read_text())
    assert "# vae_digits" in card and "| elbo |" in card and "| `latent` |" in card
    assert about["knobs"]["steps"] == 2 and about["data"]["name"] == "digits" and str(tmp_path) not in card
    with pytest.raises(UserError, match="empty folder"):
        export(run, folder)


def test_training_begins_with_exported_parameters(run, tmp_path, same, capsys):
    export(run, tmp_path / "carried")
    options = ["--smoke", "--steps=1", "--devices=1", "--no-progress", "--from", str(tmp_path / "carried")]
    train("vae_digits", [*options, "--workdir", str(tmp_path / "next")])
    train("vae_digits", [*options[:-1], str(run), "--workdir", str(tmp_path / "other")])
    one, other = (open_run(tmp_path / name)[0].state().params for name in ("next", "other"))
    same(jax.tree.map(np.asarray, one), jax.tree.map(np.asarray, other))
    (tmp_path / "carried" / "params.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        train("vae_digits", [*options, "--workdir", str(tmp_path / "third")])


def test_a_report_shows_the_whole_run(run, tmp_path, capsys):
    report(run, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for part in ("finished at step 2", "Evaluation, test split", "Learning curves", "at the end", "latent", "optax"):
        assert part in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    with pytest.raises(UserError, match="no run.json"):
        report(tmp_path)
    with pytest.raises(UserError, match=".html"):
        report(run, tmp_path / "report.pdf")
