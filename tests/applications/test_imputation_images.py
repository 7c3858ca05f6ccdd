"""Imputation of images: chains of models without a latent vector, search for the noise of a GAN, and the command."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import impute
from gen_jax.applications.imputation import chained, default_method, latent_search
from gen_jax.cli.main import main
from gen_jax.cli.train import train
from gen_jax.core import Adversarial, Resampling
from gen_jax.data import load
from gen_jax.errors import UserError


class Linear(NamedTuple):
    """x = z + noise, z ~ N(0, c), of vectors with correlated z, and its exact posterior: a model without a decoder."""

    covariance: tuple = ((1.0, 0.9), (0.9, 1.0))
    noise: float = 0.2

    def resample(self, state, batch, key):
        c, d = jnp.array(self.covariance), 2
        gain = c @ jnp.linalg.inv(c + self.noise**2 * jnp.eye(d))
        left = jnp.linalg.cholesky(c - gain @ c + 1e-9 * jnp.eye(d))
        z = batch["x"] @ gain.T + jax.random.normal(key, batch["x"].shape) @ left.T
        return z + self.noise * jax.random.normal(jax.random.fold_in(key, 1), z.shape)

    def sample(self, state, key, n, condition=None):
        return {"x": jax.random.normal(key, (n, 2))}


def test_a_chain_reaches_the_conditional_of_its_model():
    model, x = Linear(), jnp.array([[1.5, jnp.nan]])
    assert isinstance(model, Resampling) and default_method(model, np.ones((1, 2), bool)) is chained
    drawn = np.asarray(impute(model, None, x, np.array([[True, False]]), jax.random.key(0), n=20_000))[:, 0]
    total = np.array(model.covariance) + model.noise**2 * np.eye(2)
    assert (drawn[:, 0] == 1.5).all()
    assert drawn[:, 1].mean() == pytest.approx(1.5 * total[0, 1] / total[0, 0], abs=0.02)
    assert drawn[:, 1].var() == pytest.approx(total[1, 1] - total[0, 1] ** 2 / total[0, 0], rel=0.05)


class Generator(NamedTuple):
    """Images whose second row is the first one upside down."""

    adversarial: None = None
    packing: int = 1

    def init(self, key, batch): ...

    def sample(self, state, key, n, condition=None): ...

    def generate(self, state, z, condition=None):
        return jnp.stack([z, -z], axis=1)[..., None]

    def noise(self, key, n):
        return jax.random.normal(key, (n, 3))

    def discriminate(self, state, batch): ...

    def sample_logits(self, state, key, n, condition=None): ...


def test_the_noise_that_explains_what_is_known_completes_the_rest():
    model, row = Generator(), np.array([0.5, -1.0, 0.2], np.float32)
    x = np.stack([row, np.full(3, np.nan)])[None, ..., None]
    mask = np.broadcast_to(np.array([True, False])[:, None, None], (1, 2, 3, 1))
    assert isinstance(model, Adversarial) and default_method(model, mask) is latent_search
    found = np.asarray(impute(model, None, np.nan_to_num(x), mask, jax.random.key(0), n=2))
    np.testing.assert_array_equal(found[:, 0, 0, :, 0], [row, row])
    np.testing.assert_allclose(found[:, 0, 1, :, 0], [-row, -row], atol=0.02)


# --- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short run, three of its images, and masks."""
    made = tmp_path_factory.mktemp("images")
    options = ["--smoke", "--steps", "3", "--devices", "1", "--no-progress", "--workdir", str(made / "run")]
    train("configs/vae/vae_digits.py", options)
    (made / "x").mkdir()
    for i, image in enumerate(load("digits")["test"]["x"][:3]):
        save(made / "x" / f"{i}.png", np.rint(np.asarray(image, float)[..., 0] * 255 / 16))
    half = np.full((8, 8), 255)
    half[4:] = 0
    save(made / "half.png", half)
    (made / "sheets").mkdir()
    save(made / "sheets" / "sheet.png", np.full((8, 8), 255))
    save(made / "white.png", np.full((8, 8), 255))
    save(made / "large.png", np.zeros((9, 9)))
    return made


def save(path, pixels):
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gen_jax", "impute", *map(str, arguments)])
    main()


def test_the_command_completes_images_and_keeps_what_is_known(monkeypatch, folder, tmp_path, capsys):
    out = tmp_path / "done"
    run(monkeypatch, folder / "run", "--data", folder / "x", "--mask", folder / "half.png", "--n", 2, "--out", out)
    assert "3 images completed, 2 times" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [f"{i}_{k}.png" for i in range(3) for k in (1, 2)] + [
        "sheet.png"
    ]
    pixels = lambda path: np.asarray(Image.open(path))
    for i in range(3):
        whole, draws = pixels(folder / "x" / f"{i}.png"), [pixels(out / f"{i}_{k}.png") for k in (1, 2)]
        assert all((one[:4] == whole[:4]).all() for one in draws) and (draws[0] != draws[1]).any()
    options = ["--mask", folder / "half.png", "--mean", "--n", 3, "--out", out / "mean"]
    run(monkeypatch, folder / "run", "--data", folder / "x" / "0.png", *options)
    assert (out / "mean" / "0.png").is_file()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--data", "x"], "--mask FILE is needed"),
        (["--data", "x", "--mask", "white.png"], "is white everywhere"),
        (["--data", "x", "--mask", "large.png"], "large.png is 9x9, the run's images are 8x8"),
        (["--data", "large.png", "--mask", "half.png"], "large.png is 9x9"),
        (["--data", "x", "--mask", "half.png", "--out", "a.csv"], "written into a folder"),
        (["--data", "x", "--mask", "half.png", "--out", "x"], "which would be lost"),
        (["--data", "nothing", "--mask", "half.png"], "no such file or folder"),
        (["--data", "x", "--mask", "x"], "--mask x: one image is needed"),
        (["--data", "sheets", "--mask", "half.png"], "has an image sheet, the name of the sheet"),
    ],
)
def test_bad_images_are_one_line(monkeypatch, folder, options, said):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, "run", *options)
