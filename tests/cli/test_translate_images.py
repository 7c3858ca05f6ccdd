"""`translate` on image files, as a user would call it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent


def command(*arguments, expect=0):
    found = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == expect, found.stderr
    if expect == 2:
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    return found.stdout if expect == 0 else found.stderr


def translate(*arguments, expect=0):
    return command("-m", "gen_jax", "translate", *arguments, expect=expect)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of gray, color, deep and odd images."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    gray = rng.integers(0, 256, (3, 32, 32), np.uint8)
    for i, image in enumerate(gray):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "sub").mkdir()
    Image.fromarray(rng.integers(0, 256, (21, 30, 3), np.uint8)).save(folder / "sub" / "odd.jpg")
    Image.fromarray(gray[0].astype(np.uint16) * 257).save(folder / "deep.tiff")
    np.savez(folder / "some.npz", x=gray[..., None], label=np.arange(3))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pix2pix"
    command("train.py", "pix2pix_outlines", "--smoke", "--devices=1", "--no-progress", "--workdir", workdir)
    return workdir


def test_a_folder_is_translated_file_by_file(run, pictures, tmp_path):
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    assert "5 images" in translate(run, pictures, "--out", out, "--sheet", sheet)
    assert sheet.stat().st_size > 2000 and (run / "plots" / "translations.png").stat().st_size > 2000
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert names == ["0.png", "1.png", "2.png", "deep.tiff", "sub/odd.jpg"]
    with Image.open(out / "sub" / "odd.jpg") as odd, Image.open(out / "deep.tiff") as deep:
        assert odd.size == (30, 21) and odd.mode == "L" and deep.mode == "I;16"
        deep = np.asarray(deep)
    first = np.asarray(Image.open(out / "0.png"))
    np.testing.assert_allclose(deep / 65535, first / 255, atol=0.51 / 255)  # the same image with more bits
    (out / "1.png").unlink()
    kept = (out / "0.png").stat().st_mtime_ns
    translate(run, pictures, "--out", out, "--batch", 1)
    assert (out / "0.png").stat().st_mtime_ns == kept
    alone = tmp_path / "alone"
    translate(run, pictures / "1.png", "--out", alone, "--batch", 1)
    np.testing.assert_array_equal(np.asarray(Image.open(alone / "1.png")), np.asarray(Image.open(out / "1.png")))
    translate(run, pictures / "some.npz", "--out", alone)
    with np.load(alone / "some.npz", allow_pickle=False) as made:
        np.testing.assert_array_equal(made["x"][0, ..., 0], first)
        np.testing.assert_array_equal(made["label"], np.arange(3))


def test_nothing_of_the_users_is_overwritten(run, pictures, tmp_path):
    before = (pictures / "some.npz").read_bytes()
    assert "itself" in translate(run, pictures / "some.npz", "--out", pictures, expect=2)
    assert "itself" in translate(run, pictures / "0.png", "--out", pictures, expect=2)
    assert (pictures / "some.npz").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.png").write_bytes((pictures / "1.png").read_bytes())
    assert "another model" in translate(run, pictures, "--out", other, expect=2)
    assert (other / "0.png").read_bytes() == (pictures / "1.png").read_bytes()


def test_what_is_refused(run, pictures, tmp_path):
    assert "b2a" in translate(run, pictures, "--out", tmp_path, "--direction", "b2a", expect=2)
    assert "choose another folder" in translate(run, pictures, "--out", pictures / "out", expect=2)
    assert "no file or folder" in translate(run, tmp_path / "none", "--out", tmp_path, expect=2)
    (tmp_path / "bad.png").write_bytes((pictures / "0.png").read_bytes()[:60])
    assert "bad.png cannot be read" in translate(run, tmp_path, "--out", tmp_path.parent / "o", expect=2)
    assert not (tmp_path.parent / "o").exists()
    assert "--draws" in translate(run, pictures, "--out", tmp_path, "--draws", 0, expect=2)
    assert "neither noise nor dropout" in translate(run, pictures, "--out", tmp_path / "d", "--draws", 2, expect=2)
    assert "--sheet" in translate(run, pictures, "--out", tmp_path / "d", "--sheet", tmp_path / "a.txt", expect=2)
    (tmp_path / "cut.npz").write_bytes((pictures / "some.npz").read_bytes()[:200])
    assert "cannot be read" in translate(run, tmp_path / "cut.npz", "--out", tmp_path / "d", expect=2)
    assert "use `gen_jax translate`" in command("-m", "gen_jax", "sample", run, expect=2)
    assert "--partner" in command("train.py", "cyclegan_twins", "--data", "digits28", expect=2)
