"""What the README shows is run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gen_jax.cli.main import COMMANDS
from gen_jax.cli.train import train
from gen_jax.configs import load
from gen_jax.errors import exits
from gen_jax.markdown import markdown_table, write_section

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_example_runs(capsys):
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    likelihood, elbo = (float(line.rpartition(" ")[2]) for line in printed.splitlines())
    assert -4.5 < likelihood < -3.5 and -130 < elbo < -80


def test_mixtures_and_chains_fit(capsys):
    found = {}
    exec(compile(PYTHON[1], "README.md", "exec"), found)
    assert "components by BIC: 3" in capsys.readouterr().out
    assert set(found["states"]) <= {0, 1, 2} and len(found["states"]) == 100


def test_a_vae_is_put_together_and_fills_in_what_is_missing(capsys):
    found = {}
    exec(compile(PYTHON[2], "README.md", "exec"), found)
    assert -110 < float(capsys.readouterr().out.rpartition(" ")[2]) < -75
    completed, x = np.asarray(found["completed"]), found["x"]
    assert completed.shape == (16, 4, 8, 8, 1)
    np.testing.assert_array_equal(completed[:, :, :4], np.broadcast_to(x[:, :4], (16, 4, 4, 8, 1)))
    assert completed[:, :, 4:].std(axis=0).max() > 0


def test_a_flow_is_fitted_and_completed(capsys):
    found = {}
    exec(compile(PYTHON[3], "README.md", "exec"), found)
    assert -1.5 < float(capsys.readouterr().out.rpartition(" ")[2]) < 1.5
    drawn, x = np.asarray(found["drawn"]), found["x"]
    assert drawn.shape == (16, 4, 2) and np.asarray(found["upper"]).shape == (100, 2)
    np.testing.assert_array_equal(drawn[..., 0], np.broadcast_to(x[:, 0], (16, 4)))
    assert np.asarray(found["log_det"]).shape == (4,)


def test_seeds_of_a_gan_find_the_ring():
    found = {}
    exec(compile(PYTHON[4], "README.md", "exec"), found)
    radius = np.linalg.norm(np.asarray(found["points"]), axis=1)
    assert radius.shape == (1000,) and abs(np.median(radius) - 1) < 0.2


def test_the_evaluation_example_runs(capsys):
    found = {}
    exec(compile(PYTHON[5], "README.md", "exec"), found)
    assert {"log_likelihood", "precision@digits_cnn", "samples_per_second"} <= found["found"].keys()
    assert found["by_hand"]["frechet_distance@rows"].value > 0


def test_the_new_variant_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae_annealed.py").write_text(PYTHON[6])
    with pytest.raises(SystemExit) as ended:
        exits(lambda: train("vae_annealed.py", ["--steps", "20", "--devices", "1", "--no-progress"]))
    assert ended.value.code == 0
    assert (tmp_path / "runs" / "vae_annealed-steps=20" / "evaluation.json").exists()


def test_the_commands_exist(capsys):
    """Every command of the README is understood; the configs it names exist."""
    lines = [shlex.split(line, comments=True) for block in SHELL[1:] for line in block.splitlines()]
    lines = [words for words in lines if words and words[0] == "python"]
    assert len(lines) == 16
    for words in lines:
        if words[1] == "train.py":
            load(ROOT / words[2])
        else:
            assert words[:3] == ["python", "-m", "gen_jax"] and words[3] in {command.__name__ for command in COMMANDS}


def test_make_targets_exist():
    for line in SHELL[0].splitlines():
        target = line.split()[1]
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_picture_and_the_links_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:gen_jax|tests|benchmarks|configs)/[\w/.]+)`", README):
        if path != "configs/vae_annealed.py":
            assert (ROOT / path).exists(), path


def test_sections_are_replaced(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- t -->\nold\n<!-- /t -->\nafter")
    write_section(path, "t", markdown_table(["a"], [["1|2"]]))
    assert path.read_text() == "before\n<!-- t -->\n| a |\n| --- |\n| 1\\|2 |\n<!-- /t -->\nafter"
    with pytest.raises(ValueError, match="no section"):
        write_section(path, "other", "")


def test_no_address_path_or_machine_name_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed or [str(p.relative_to(ROOT)) for p in ROOT.glob("*.*")]:
        if name.endswith((".py", ".toml", ".lock", ".md", "Makefile", "run")):
            text = (ROOT / name).read_text()
            assert not re.search(r"--(extra-)?index-url|pypi\.org|/home/\w|/root/", text) or name.startswith(
                "tests/"
            ), name
    assert sys.version_info >= (3, 11)
