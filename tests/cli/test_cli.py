"""The commands a user types: what they leave, and what they say when something is wrong."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.cli.main import main as gen_jax_main
from gen_jax.errors import exits
from gen_jax.logs import read_metrics
from gen_jax.reopen import open_run

ROOT = Path(__file__).parents[2]
NAMES = ("gmm_blobs", "gan_ring8", "dcgan_digits", "vae_digits")
GMM, GAN, DCGAN, VAE = (str(next(ROOT.glob(f"configs/*/{name}.py"))) for name in NAMES)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs a command in this process and returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["gen_jax", *words])
        with pytest.raises(SystemExit) as ended:
            exits(gen_jax_main)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


def smoke(run, workdir, *more, config=GMM):
    return run("train", config, "--smoke", "--workdir", str(workdir), "--no-progress", "--devices", "1", *more)


def test_train_leaves_what_the_readme_promises(run, tmp_path):
    code, out, err = smoke(run, tmp_path / "w")
    assert code == 0, err
    assert "log_likelihood" in out and str(tmp_path / "w") in out.replace("\n", "")
    left = {f.name for f in (tmp_path / "w").iterdir()}
    assert left == {"run.json", "config.py", "metrics.jsonl", "tensorboard", "checkpoints", "plots", "evaluation.json"}
    record = json.loads((tmp_path / "w" / "run.json").read_text())
    assert record["knobs"]["components"] == 3 and record["seed"] == 0
    assert {"commit", "versions", "devices"} <= record["environment"].keys()
    assert {"density.png", "scatter.png"} <= {f.name for f in (tmp_path / "w" / "plots").iterdir()}
    evaluation = json.loads((tmp_path / "w" / "evaluation.json").read_text())
    assert evaluation["test"]["log_likelihood"]["n"] == 250 and evaluation["test"]["log_likelihood"]["error"] > 0


def test_a_workdir_is_enough_for_the_other_commands(run, tmp_path):
    workdir = tmp_path / "w"
    assert smoke(run, workdir)[0] == 0
    code, out, err = run("sample", str(workdir), "--n", "50", "--out", str(tmp_path / "f.npz"))
    assert code == 0, err
    assert np.load(tmp_path / "f.npz")["x"].shape == (50, 2)
    assert run("sample", str(workdir), "--n", "50", "--out", str(tmp_path / "f.png"))[0] == 0
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run("evaluate", str(workdir), "--split", "train[:100]", "--metrics", "log_likelihood")
    assert code == 0 and "log_likelihood" in out and "100" in out, err
    assert set(json.loads((workdir / "evaluation.json").read_text())) == {"test", "train[:100]"}
    for words, message in [
        (["evaluate", str(workdir), "--split", "test[:0]"], "is empty"),
        (["evaluate", str(workdir), "--metrics"], "one or more names"),
        (["evaluate", str(workdir), "--metrics", "elbo"], "elbo needs a model that is Bound"),
        (["plot", str(workdir), "--out", "a.gif"], "must be .png"),
        (["sample", str(workdir), "--step", "7000"], "has no checkpoint 7000"),
    ]:
        code, _, err = run(*words)
        assert code == 2 and message in err and err.count("\n") == 1, err
    assert run("plot", str(workdir))[0] == 0 and (workdir / "curves.png").exists()


def test_seeds_of_samples(run, tmp_path):
    assert smoke(run, tmp_path / "w")[0] == 0
    drawn = []
    for seed in ("0", "0", "1"):
        run("sample", str(tmp_path / "w"), "--n", "5", "--seed", seed, "--out", str(tmp_path / "f.npz"))
        drawn.append(np.load(tmp_path / "f.npz")["x"])
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_several_seeds_are_one_run(run, tmp_path):
    tiny, workdir = str(ROOT / "tests" / "configs" / "tiny.py"), tmp_path / "w"
    train = ("train", tiny, "--seeds", "3", "--devices", "1", "--no-progress", "--workdir")
    assert run(*train, str(workdir), "--steps", "25")[0] == 0
    code, out, err = run(*train, str(workdir), "--steps", "50", "--force")
    assert code == 0 and "3 seeds" in out, err
    found = json.loads((workdir / "evaluation.json").read_text())["test"]
    assert len(read_metrics(workdir / "metrics.jsonl")[0]["train/generator_loss"]) == 3
    assert run("plot", str(workdir))[0] == 0
    alone = []
    for member in "012":
        assert run("evaluate", str(workdir), "--metrics", "mode_coverage", "--member", member)[0] == 0
        measured = json.loads((workdir / "evaluation.json").read_text())
        assert measured["test"] == found  # the results of all seeds stay
        alone.append(measured[f"test, member {member}"]["reverse_kl"])
    values, errors = ([one[name] for one in alone] for name in ("value", "error"))
    assert len(set(values)) > 1 and found["reverse_kl"]["seeds"] == 3
    np.testing.assert_allclose(found["reverse_kl"]["value"], np.mean(values))
    both = np.std(values, ddof=1) / 3**0.5, np.nan_to_num(np.mean(np.array(errors, float)))
    np.testing.assert_allclose(found["reverse_kl"]["error"], np.hypot(*both))
    assert run(*train, str(tmp_path / "straight"), "--steps", "50")[0] == 0  # a run that is resumed is the same
    resumed, straight = (open_run(folder, member=2)[0].state() for folder in (workdir, tmp_path / "straight"))
    assert all(np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(s.params) for s in (resumed, straight))))
    for words, message in [
        (["sample", str(workdir), "--member", "3"], "has the seeds 0 to 2"),
        (["train", tiny, "--seeds", "2", "--workdir", str(workdir)], "seeds = 3 there, 2 here"),
        (["train", tiny, "--seeds", "0"], "seeds must be at least 1"),
    ]:
        code, _, err = run(*words)
        assert code == 2 and message in err and err.count("\n") == 1, err


def test_the_same_command_again_has_nothing_to_do(run, tmp_path):
    assert smoke(run, tmp_path / "w")[0] == 0
    before = (tmp_path / "w" / "metrics.jsonl").read_text()
    code, out, _ = smoke(run, tmp_path / "w")
    assert code == 0 and "had already finished" in out
    assert (tmp_path / "w" / "metrics.jsonl").read_text() == before


def test_another_config_in_the_same_workdir_is_refused_and_shown(run, tmp_path):
    assert smoke(run, tmp_path / "w")[0] == 0
    code, _, err = smoke(run, tmp_path / "w", "--components", "4", "--seed", "3")
    assert code == 2 and "components = 3 there, 4 here" in err and "seed = 0 there, 3 here" in err and "--force" in err
    code, _, err = smoke(run, tmp_path / "w", config=GAN)
    assert code == 2 and "config gmm_blobs there, gan_ring8 here" in err
    code, _, err = smoke(run, tmp_path / "w", "--components", "4", "--force")
    assert code == 2 and "float32[3] in the checkpoint, float32[4] in this run" in err


@pytest.mark.slow
def test_more_steps_with_force(run, tmp_path):
    assert smoke(run, tmp_path / "w", "--tolerance", "0", "--steps", "5")[0] == 0
    code, _, err = smoke(run, tmp_path / "w", "--tolerance", "0", "--steps", "9")
    assert code == 2 and "steps = 5 there, 9 here" in err
    assert smoke(run, tmp_path / "w", "--tolerance", "0", "--steps", "9", "--force")[0] == 0
    assert [
        row["step"] for row in read_metrics(tmp_path / "w" / "metrics.jsonl") if "train/log_likelihood" in row
    ] == list(range(1, 10))


def test_a_changed_config_file_is_noticed(run, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(Path(GMM).read_text())
    assert smoke(run, tmp_path / "w", config=str(config))[0] == 0
    config.write_text(config.read_text().replace("components: int = 3", "components: int = 5"))
    code, out, err = run("evaluate", str(tmp_path / "w"))
    assert code == 0 and "has changed since this run" in err and "+" in err  # the recorded knob, 3, still fits
    code, _, err = smoke(run, tmp_path / "w", "--components", "3", config=str(config))
    assert code == 2 and "the config file has changed since" in err
    config.unlink()
    code, _, err = run("evaluate", str(tmp_path / "w"))
    assert code == 2 and "is gone" in err
    assert run("evaluate", str(tmp_path / "w"), "--config", GMM)[0] == 0


BAD = [
    (["train", "configs/vae/vae_digit.py"], "there is no config"),
    (["train", VAE, "--latnet", "3"], "did you mean --latent?"),
    (["train", VAE, "--latent", "many"], "parsing --latent"),
    (["train", VAE, "--precision", "float16"], "--precision"),
    (["train", VAE, "--steps", "-5"], "--steps must be at least 1, got -5"),
    (["train", VAE, "--batch", "0"], "batch must be at least 1, got 0"),
    (["train", VAE, "--batch", "5000", "--devices", "1"], "choose 1 to 1347"),
    (["train", VAE, "--lr", "nan"], "--lr must be finite"),
    (["train", VAE, "--lr", "1e999"], "--lr must be finite"),
    (["train", VAE, "--seed", "-1"], "--seed must be between"),
    (["train", VAE, "--devices", "64"], "64 devices asked for"),
    (["train", VAE, "--devices", "3"], "cannot be divided over 3 devices"),
    (["train", VAE, "--workdir", "/proc/none"], "cannot write to the working directory"),
    (["train", VAE, "--latent", "-3"], "latent must be at least 1"),
    (["train", VAE, "--ema", "2"], "must be in [0, 1)"),
    (["train", GMM, "--components", "0"], "components must be at least 1"),
    (["train", DCGAN, "--latent", "0"], "latent must be at least 1"),
    (["train", DCGAN, "--norm", "batch"], "give the discriminator another normalizer"),
    (["train", DCGAN, "--packing", "5"], "a batch of 64 cannot be packed by 5"),
    (["train", DCGAN, "--loss", "hinge", "--smoothing", "0.1"], "has no labels to smooth"),
    (["sample", "nowhere", "--m", "3"], "--m"),
    (["sample", "nowhere", "--n", "0"], "between 1 and 1,000,000"),
    (["sample", "nowhere", "--out", "f.gif"], "must be .png"),
    (["sample", "nowhere"], "is not the working directory of a run"),
    (["evaluate", "nowhere"], "is not the working directory of a run"),
    (["evaluate", "nowhere", "--samples", "1"], "--samples must be between 2"),
    (["evaluate", "nowhere", "--encoder", "big"], "--encoder big: it is small, raw, projected, or a file"),
    (["compare"], "which runs?"),
    (["compare", "nowhere"], "is not the working directory of a run"),
    (["encoder", "train", "digits", "a.npz"], "must be .safetensors"),
    (["encoder", "train", "blobs", "a.safetensors"], "has no images with labels"),
    (["encoder", "convert", "nowhere", "a.safetensors"], "there is no file nowhere"),
    (["plot", "nowhere"], "has no metrics yet"),
    (["animate", "nowhere"], "fewer than two pictures"),
    (["animate", "nowhere", "--out", "a.mp4"], "must be .gif"),
    (["data", "prepare", "mnits"], "did you mean mnist"),
    (["data", "prepare"], "needs a name or a path"),
    (["data", "pack", "digits"], "needs a folder to pack into"),
    (["data", "show", "./nowhere"], "no file or folder"),
    (["configs", "nowhere"], "there are no configs"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[" ".join(w).replace(str(ROOT), "") for w, _ in BAD])
def test_bad_input_gets_one_clear_line_and_code_2(run, words, message, tmp_path):
    more = ["--workdir", str(tmp_path / "w")] if words[0] == "train" and "--workdir" not in words else []
    code, out, err = run(*words, *more)
    assert code == 2 and message in err, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_runs_of_two_families_in_one_table(run, tmp_path):
    gmm = str(ROOT / "configs" / "mixture" / "gmm_digits.py")
    for name, config in (("a", gmm), ("b", DCGAN), ("c", GMM)):
        assert smoke(run, tmp_path / name, config=config)[0] == 0
    words = ["--samples", "300", "--out", str(tmp_path / "table")]
    code, out, err = run("compare", str(tmp_path / "a"), str(tmp_path / "b"), *words)
    assert code == 0, err
    found = {
        row["model"]: row["found"] for row in json.loads((tmp_path / "table" / "compare.json").read_text())["rows"]
    }
    assert list(found) == ["(300 test examples)", "a", "b"]
    assert found["b"]["log_likelihood"]["kind"] == "undefined" and found["a"]["log_likelihood"]["kind"] == "exact"
    assert all(found[name]["frechet_distance@digits_cnn"]["n"] == 300 for name in "ab")
    assert found["b"]["parameters"]["value"] > 0
    assert "≤" in out and "undefined" in out
    assert "given" not in out and "bold: the best" in out
    for more, message in [
        ([str(tmp_path / "a"), str(tmp_path / "b" / ".." / "a")], "is named more than once"),
        ([str(tmp_path / "a"), "--out", str(tmp_path / "a" / "run.json")], "is a file: name a folder"),
        ([str(tmp_path / "a"), str(tmp_path / "c")], "models of different data cannot be compared"),
        ([str(tmp_path / "a"), str(tmp_path / "b"), "--split", "train"], "mean different examples by this split"),
        ([str(tmp_path / "a"), "--data", "mnist"], "is of digits, not of mnist"),
        (["--configs", GMM, "--data", "digits"], "where vectors of at most"),
    ]:
        code, _, err = run("compare", *more)
        assert code == 2 and message in err


def test_pictures_of_a_run_become_an_animation(run, tmp_path):
    (tmp_path / "plots").mkdir()
    for step in (100, 200, 300):
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(tmp_path / "plots" / f"samples_{step:07d}.png")
    code, out, err = run("animate", str(tmp_path))
    assert code == 0 and "3 pictures" in out, err
    with Image.open(tmp_path / "samples.gif") as made:
        assert made.n_frames == 3
    code, _, err = run("animate", str(tmp_path), "--name", "scatter")
    assert code == 2 and "there are samples" in err


def write_config(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\nfrom gen_jax.algorithms import em\nfrom gen_jax.data import Dataset\n"
        "from gen_jax.experiment import Experiment\nfrom gen_jax.models.mixture import GMM\n" + body
    )
    return str(path)


@pytest.mark.parametrize(
    "body, message",
    [
        ("x = 1\n", "defines no function config"),
        ("def config(steps=1): ...\n", "needs the knobs steps and smoke"),
        ("def config(steps=1, smoke=False, k=...): return 3\n", "returned int"),
        ("def config(k, steps=1, smoke=False): ...\n", "the knob k needs a default"),
        (
            "def config(steps=1, smoke=False, seed=1): ...\n",
            "seed is an option of every run",
        ),
        (
            "def config(steps=1, smoke=False):\n    return Experiment(GMM(2), em(GMM(2)), 'digitz', steps)\n",
            "did you mean digits",
        ),
        (
            "def config(steps=1, smoke=False):\n    return Experiment(GMM(2), em(GMM(2)), 'mnist', steps)\n",
            "data prepare mnist",
        ),
        (
            "def config(steps: int = 1, smoke: bool = False):\n"
            "    x = {'x': np.array([[1.0], [np.inf], [np.nan]])}\n"
            "    return Experiment(GMM(2), em(GMM(2)), Dataset('mine', dict(train=x, validation=x, test=x)), steps)\n",
            "2 NaN or infinite values, the first at (1, 0)",
        ),
    ],
)
def test_bad_configs_get_one_clear_line(run, tmp_path, body, message):
    empty = ["--data-dir", str(tmp_path)] if "mnist" in body else []
    code, _, err = run("train", write_config(tmp_path, body), "--workdir", str(tmp_path / "w"), *empty)
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "w").exists()


def test_the_users_own_arrays(run, tmp_path):
    """A data set need not be in the catalogue."""
    config = write_config(
        tmp_path,
        "def config(steps: int = 3, smoke: bool = False):\n"
        "    x = {'x': np.random.default_rng(0).normal(size=(40, 2)).astype('float32')}\n"
        "    return Experiment(GMM(2), em(GMM(2)), Dataset('mine', dict(train=x, validation=x, test=x)), steps)\n",
    )
    assert run("train", config, "--devices", "1", "--no-progress", "--workdir", str(tmp_path / "w"))[0] == 0


def test_help_lists_knobs_with_types_defaults_and_help(run):
    code, out, _ = run("train", VAE, "--help")
    assert code == 0
    assert re.search(r"--beta FLOAT\s+weight of the KL term .*default: 1.0", out), out
    assert "--precision {float32,bfloat16}" in out and "--workdir" in out and "Kingma" in out


def test_configs_and_data_are_listed(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = run("configs")
    assert code == 0
    for path in (ROOT / "configs").rglob("*.py"):
        assert path.stem in out
    code, out, _ = run("data", "list")
    assert code == 0 and "two_moons" in out and "mnist" in out


def test_default_workdirs_do_not_collide(tmp_path):
    from gen_jax.configs import load
    from gen_jax.workdir import default_workdir

    plain, other = load(VAE), load(VAE, {"beta": 4.0})
    assert str(default_workdir(plain, 0)) == "runs/vae_digits"
    assert str(default_workdir(other, 2)) == "runs/vae_digits-beta=4.0-seed=2"


def test_from_a_shell():
    """The real thing: exit codes and start-up, in processes of their own."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--knob" in done.stdout
    assert time.perf_counter() - start < 20  # 0.1 s in fact: it imports nothing heavy; see benchmarks/
    done = subprocess.run([sys.executable, "train.py", "configs/nope.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no config") and done.stderr.count("\n") == 1
    done = subprocess.run(
        [sys.executable, "-m", "gen_jax", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0 and "vae_digits" in done.stdout
