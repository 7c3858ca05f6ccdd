"""The commands of the guide to data, run on files made for them; own data through training, resuming and sampling."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from pictures import folder_of

from gen_jax.cli.main import main, train_main
from gen_jax.errors import UserError

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/data.md").read_text()


def commands(kind):
    """The lines of the blocks of the guide with a mark."""
    blocks = re.findall(rf"<!-- {kind} -->\n```sh\n(.*?)```", GUIDE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with the files that the guide names."""
    rng = np.random.default_rng(0)
    folder_of(tmp_path / "photos", 200, size=(72, 96), classes=())
    folder_of(tmp_path / "drawings", 200, size=(64, 64), classes=(), seed=1)
    folder_of(tmp_path / "paintings", 30, size=(80, 70), classes=(), seed=2)
    folder_of(tmp_path / "sidebyside", 20, size=(16, 32), classes=(), seed=3)
    people = {"height": rng.normal(170, 9, 600), "weight": rng.normal(70, 9, 600), "age": rng.integers(9, 90, 600)}
    table = pa.table(people | {"weight": pa.array(people["weight"], mask=rng.random(600) < 0.05)})
    pa.parquet.write_table(table, tmp_path / "people.parquet")
    pa.csv.write_csv(table.append_column("team", [rng.choice(["red", "blue"], 600)]), tmp_path / "people.csv")
    np.savez(tmp_path / "arrays.npz", x=rng.normal(size=(90, 4)), y=rng.integers(0, 3, 90))
    np.savez(tmp_path / "sequences.npz", X=rng.normal(size=(400, 2)), lengths=np.full(40, 10))
    walks = {"who": np.repeat(np.arange(40), 12), "t": np.tile(np.arange(12), 40), "x": rng.normal(size=480)}
    pa.csv.write_csv(pa.table(walks | {"y": rng.normal(size=480)}), tmp_path / "walks.csv")
    (tmp_path / "book.txt").write_text("\n".join(f"line {i}, and {'more ' * (i % 5)}" for i in range(200)))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(line, monkeypatch, *more):
    words = [*shlex.split(line), *more]
    if words[1] == "train.py":
        train_main([*words[2:], "--smoke", "--steps", "2", "--no-progress", "--devices", "1"])
    else:
        monkeypatch.setattr(sys, "argv", words[2:])
        main()


def test_the_guide_shows_every_kind(workspace, monkeypatch, capsys):
    for line in commands("shown"):
        run(line, monkeypatch)
    said = capsys.readouterr().out
    for text in (
        "photos-",
        "x 64x64x3 uint8",
        "classes in train: blue",
        "y 1 float32",
        "'line ",
        "unpaired with paintings-",
        "200 examples in shards",
        "prepared from",
    ):
        assert text in said, text
    assert {"data.png", "data_y.png"} <= set(os.listdir())


@pytest.mark.parametrize("line", commands("trained"))
@pytest.mark.representatives("gmm_blobs")
def test_the_guide_trains_on_every_kind(workspace, monkeypatch, line):
    run(line, monkeypatch)
    [record] = Path("runs").glob("*/run.json")
    said = json.loads(record.read_text())
    assert said["summary"]["step"] == 2 and said["data"]["digest"] and "?" in said["knobs"]["data"]


def test_samples_of_a_table_and_resuming_on_changed_data(workspace, monkeypatch, capsys):
    line = "python train.py gmm_blobs --data people.csv --label team --workdir w"
    run(line, monkeypatch)
    run("python -m gen_jax sample w --n 30 --out samples.csv", monkeypatch)
    samples = pa.csv.read_csv("samples.csv").to_pydict()
    assert list(samples) == ["height", "weight", "age"]
    assert 100 < np.mean(samples["height"]) < 240
    run(line, monkeypatch)
    assert "had already finished" in capsys.readouterr().out
    text = Path("people.csv").read_text()
    Path("people.csv").write_text(text.rpartition("\n")[0].rpartition("\n")[0] + "\n")
    with pytest.raises(UserError, match=r"the data people-.* has changed since"):
        run(line, monkeypatch)


def test_a_run_is_opened_from_another_folder(workspace, monkeypatch):
    run("python train.py gmm_blobs --data people.csv --label team --workdir w", monkeypatch)
    monkeypatch.chdir(workspace.parent)
    run(f"python -m gen_jax sample {workspace / 'w'} --config {ROOT}/configs/mixture/gmm_blobs.py --n 9", monkeypatch)
    assert (workspace / "w" / "samples.png").is_file()


BAD = {
    "--data nowhere": "no data set 'nowhere'",
    "--data ./nowhere": "no file or folder",
    "--data photos --size 65 --fit crop": "multiples of 4",
    "--data people.csv": "images .* are needed",
    "--data digits --size 16": "digits is not read with the option size",
    "--data photos --sise 64": "no knob --sise: did you mean --size",
    "--data photos --fit squash": "fit",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_data_is_refused_before_training(workspace, monkeypatch, options):
    with pytest.raises((UserError, SystemExit), match=None if "squash" in options else BAD[options]):
        run(f"python train.py vae_digits {options}", monkeypatch)
    assert not Path("runs").exists()
