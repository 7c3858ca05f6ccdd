"""`gen_jax export`: a run in a folder of its own, and back."""

import json
import re
import subprocess
import sys

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


ALONE = """
import sys
sys.modules["gen_jax"] = None  # cannot be imported
import numpy as np
from jax import export

folder, out = sys.argv[1:]
load = lambda name: export.deserialize(bytearray(open(f"{folder}/{name}.jax", "rb").read()))
x = np.asarray(load("sample").call(3))
np.savez(out, x=x, log_prob=load("log_prob").call(x[:7]), two=load("log_prob").call(x[:2]))
"""


@pytest.mark.parametrize("config", ["realnvp_moons", pytest.param("gmm_blobs", marks=pytest.mark.slow)])
def test_programs_run_without_the_package(config, tmp_path):
    workdir, folder = trained(config, tmp_path), tmp_path / "programs"
    export(workdir, folder, format="programs")
    (tmp_path / "alone.py").write_text(ALONE)
    command = [sys.executable, str(tmp_path / "alone.py"), str(folder), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, run = np.load(tmp_path / "out.npz"), open_run(workdir)[0]
    model, state = run.experiment.model, averaged(run.state())
    np.testing.assert_allclose(found["x"], model.sample(state, jax.random.key(3), 64)["x"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["log_prob"], model.log_prob(state, {"x": found["x"][:7]}), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["two"], found["log_prob"][:2], rtol=1e-4, atol=1e-4)
    text = (folder / "README.md").read_text()
    assert "| x: float32[examples,2] | float32[examples] |" in text
    [shown] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert subprocess.run([sys.executable, "-c", shown], cwd=folder, capture_output=True).returncode == 0


@pytest.mark.slow
def test_programs_of_conditional_models_take_the_condition(tmp_path):
    folder = tmp_path / "programs"
    export(trained("cvae_digits", tmp_path), folder, format="programs")
    program = jax.export.deserialize(bytearray((folder / "sample.jax").read_bytes()))
    x = program.call(0, label=np.zeros(64, np.int32))
    assert x.shape == (64, 8, 8, 1) and not (folder / "log_prob.jax").exists()
    text = (folder / "README.md").read_text()
    assert "| seed: int32[], label: int32[64] |" in text
    with pytest.raises(UserError, match="empty folder"):
        export(tmp_path / "cvae_digits", folder, format="programs")
    with pytest.raises(UserError, match="draws nothing from noise alone"):
        export(trained("pix2pix_outlines", tmp_path), tmp_path / "other", format="programs")
