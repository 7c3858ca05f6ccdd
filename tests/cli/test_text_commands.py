"""`generate` and `translate` from the command line: a user's session, and what is refused in one line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent


def gen_jax(*arguments, given="", expect=0, notes=False):
    found = subprocess.run(
        [sys.executable, "-m", "gen_jax", *map(str, arguments)], input=given, capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == expect, found.stderr
    if expect == 2:
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    return found.stderr if expect or notes else found.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


class Runs:
    """Short runs, trained when they are first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        if not (self.folder / name).exists():
            command = [
                sys.executable,
                "train.py",
                name,
                "--smoke",
                "--devices=1",
                "--no-progress",
                "--workdir",
                str(self.folder / name),
            ]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr
        return self.folder / name


def test_a_session_with_a_language_model(runs):
    run = runs / "gpt_tales"
    assert json.loads((run / "tokenizer.json").read_text())["kind"] == "characters"
    for picture in ("text_samples", "loss_by_position"):
        assert (run / "plots" / f"{picture}.png").stat().st_size > 2000
    lines = gen_jax("generate", run, "--prompt", "Ada the ", "Nora ", "--length", 5, "--json").splitlines()
    said = [json.loads(line) for line in lines]
    assert [one["prompt"] for one in said] == ["Ada the ", "Nora "]
    assert all(len(one["tokens"]) == len(one["log_probs"]) == 5 for one in said)
    streamed = gen_jax("generate", run, "--prompt-file", "-", "--length", 5, "--stream", given="Ada the ")
    assert streamed.rstrip("\n") == "Ada the " + said[0]["text"]


@pytest.mark.slow
def test_generate_prints_texts_that_begin_with_their_prompts(runs):
    run = runs / "gpt_tales"
    text = gen_jax("generate", run, "--prompt", "Ada the ", "--n", 2, "--length", 20, "--temperature", 0.5)
    assert text.count("Ada the ") == 2 and "-----" in text


@pytest.mark.slow
def test_translate_maps_line_by_line_and_goes_on_where_it_stopped(runs, tmp_path):
    assert (runs / "numbers" / "plots" / "text_to_text_samples.png").stat().st_size > 2000
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("one\n\ntwo hundred\n")
    gen_jax("translate", runs / "numbers", "--in", source, "--out", out, "--beams", 2, "--length", 4)
    lines = out.read_text().split("\n")
    assert len(lines) == 4 and lines[1] == ""
    out.write_text(lines[0] + "\n" + lines[1] + "\nhalf a li")  # stopped in the middle of a line
    gen_jax("translate", runs / "numbers", "--in", source, "--out", out, "--beams", 2, "--length", 4)
    assert out.read_text().split("\n") == lines
    out.write_text("of another model\n")
    again = ["translate", runs / "numbers", "--in", source, "--out", out, "--beams", 2, "--length", 4]
    assert "choose another file" in gen_jax(*again, expect=2) and out.read_text() == "of another model\n"
    for foreign in ("of another model\nwithout an end", "without an end"):  # a file that is not ours keeps every byte
        out.write_text(foreign)
        assert "choose another file" in gen_jax(*again, expect=2) and out.read_text() == foreign
    printed = gen_jax("translate", runs / "numbers", "--beams", 2, "--length", 4, "--json", given="one\n")
    said = gen_jax(
        "translate", runs / "numbers", "--beams", 1, "--length", 2, given="one\n" + "one " * 99 + "\n", notes=True
    )
    assert "line 2 has" in said and "--length limits" in said
    assert json.loads(printed)["text"] == lines[0]


@pytest.mark.slow
def test_gaps_are_filled_by_every_kind_of_model(runs):
    asked = ["--prompt", "Ada the ", "--after", " lived by the harbor.", "--length", 6, "--n", 2]
    for name, more in (("gpt_tales", ["--candidates", 8]), ("ngram", ["--candidates", 0]), ("infilling", [])):
        lines = gen_jax("generate", runs / name, *asked, *more, "--json").splitlines()
        said = [json.loads(line) for line in lines]
        assert [(one["prompt"], one["after"]) for one in said] == [("Ada the ", " lived by the harbor.")] * 2
        assert all(len(one["tokens"]) == 6 if more else len(one["tokens"]) <= 6 for one in said)
        assert said[0]["method"].split(",")[0] in ("8 candidates", "exact", "trained to fill gaps")
    printed = gen_jax("generate", runs / "ngram", *asked, "--candidates", 4)
    assert printed.count("Ada the ") == printed.count(" lived by the harbor.") == 2
    for name, more, message in (
        ("ngram", ["--candidates", 0, "--temperature", 0.5], "exact draws"),
        ("infilling", ["--presence", 1], "penalties"),
        ("infilling", ["--candidates", 4], "text-to-text"),
        ("numbers", [], "--text spans"),
        ("ngram", ["--candidates", -1], "--candidates"),
    ):
        assert message in gen_jax("generate", runs / name, *asked, *more, expect=2)
    assert "--after: the character" in gen_jax("generate", runs / "ngram", "--after", "Ä", expect=2)


@pytest.mark.slow
def test_the_mean_of_checkpoints_can_be_used(runs, tmp_path):
    from gen_jax.reopen import open_run

    run = tmp_path / "run"
    command = ["train", "numbers", "--smoke", "--steps", 20, "--no-progress", "--workdir", run]
    gen_jax(*command)
    opened, _ = open_run(run)
    with opened.folder.checkpoints(opened.experiment, write=True, identity=opened.folder.identity()) as checkpoints:
        newest = opened.state()
        doubled = newest._replace(step=newest.step + 1, params=jax.tree.map(lambda a: 2 * a, newest.params))
        checkpoints.save(int(doubled.step), doubled)
    mean = opened.state("mean:2")
    for a, b in zip(jax.tree.leaves(mean.params), jax.tree.leaves(newest.params)):
        np.testing.assert_allclose(a, 1.5 * b, rtol=1e-6)
    assert "has no 9 checkpoints" in gen_jax("evaluate", run, "--step", "mean:9", expect=2)
    assert "mean:3" in gen_jax("evaluate", run, "--step", "mean", expect=2)
    gen_jax("evaluate", run, "--step", "mean:2", "--metrics", "log_likelihood")
    assert json.loads((run / "evaluation.json").read_text())["test"]["step"] == "mean:2"


@pytest.mark.slow
def test_runs_of_texts_are_evaluated_and_compared(runs, tmp_path):
    for name, headline in (("numbers", "exact_match"), ("ngram", "bits_per_character")):
        gen_jax("evaluate", runs / name)
        found = json.loads((runs / name / "evaluation.json").read_text())["test"]
        assert {headline, "samples_per_second"} <= found.keys()
    gen_jax("compare", runs / "ngram", runs / "unigrams", "--out", tmp_path / "language")
    assert "(test text)" in (tmp_path / "language" / "compare.md").read_text()
    gen_jax("compare", runs / "numbers", "--out", tmp_path / "pairs")
    assert "numbers" in (tmp_path / "pairs" / "compare.md").read_text()
    message = gen_jax("evaluate", runs / "unigrams", "--mix", runs / "ngram", expect=2)
    assert "--mix" in message and "HMM" in message


REFUSED = {
    "n": (["--n", 0], "--n must be at least 1"),
    "top-p": (["--top-p", 0], "top_p must be in"),
    "length": (["--length", 0], "--length"),
    "stop": (["--stop", ""], "empty"),
    "character": (["--prompt", "Ärger"], "'Ä' at position 0"),
    "file": (["--prompt-file", "nowhere.txt"], "no such file"),
    "both": (["--prompt", "a", "--prompt-file", "b"], "not both"),
    "candidates": (["--candidates", 8], "--after"),
    "stream": (["--stream", "--after", "a"], "--after"),
    "minimum": (["--minimum", 2, "--after", "a"], "--after"),
    "order": (["--order", "top_k,top_p"], "order must hold"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_generate_refuses(runs, name):
    arguments, message = REFUSED[name]
    assert message in gen_jax("generate", runs / "gpt_tales", *arguments, expect=2)


@pytest.mark.slow
def test_what_translate_refuses(runs, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\ntw\xff\n")
    assert "line 2" in gen_jax("translate", runs / "numbers", "--in", tmp_path / "in.txt", expect=2)
    assert "line 1" in gen_jax("translate", runs / "numbers", given="zwölf\n", expect=2)
    assert "--best" in gen_jax("translate", runs / "numbers", "--best", 0, given="one\n", expect=2)
    assert "--groups" in gen_jax("translate", runs / "numbers", "--groups", 2, given="one\n", expect=2)
    assert "--beams" in gen_jax("translate", runs / "numbers", "--beams", 1000, given="one\n", expect=2)
    assert "gen_jax generate" in gen_jax("translate", runs / "gpt_tales", given="one\n", expect=2)
    assert "gen_jax translate" in gen_jax("generate", runs / "numbers", expect=2)


@pytest.mark.slow
def test_an_interrupted_stream_exits_with_75(runs):
    command = [sys.executable, "-u", "-m", "gen_jax", "generate", str(runs / "gpt_tales"), "--n", "500", "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ) as process:
        assert process.stdout.read(20)
        for _ in range(5):  # Python loses a KeyboardInterrupt that comes while a callback runs
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        assert process.wait(60) == 75
