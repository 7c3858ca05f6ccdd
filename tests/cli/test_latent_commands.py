"""`interpolate`, `mix`, `project`, `edit` and `sample --seeds`, on tiny runs."""

import numpy as np
import pytest
from PIL import Image
from tiny_runs import trained

from gen_jax.cli.latent_space import edit, interpolate, mix
from gen_jax.cli.project import project
from gen_jax.cli.sample import sample
from gen_jax.errors import UserError


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    return trained("stylegan2_digits", tmp_path_factory.mktemp("styled"), "--conditional")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return trained("vae_digits", tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(path)
    return path


def test_a_sample_depends_on_its_own_seed_alone(styled, tmp_path):
    drawn = []
    for seeds in ("3,5,7", "5", "0-9"):
        sample(styled, seeds=seeds, out=tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as file:
            drawn.append((file["x"], file["label"]))
    np.testing.assert_allclose(drawn[0][0][1], drawn[1][0][0], atol=1e-5)
    np.testing.assert_allclose(drawn[2][0][5], drawn[1][0][0], atol=1e-5)
    assert drawn[0][1].tolist() == [3, 5, 7] and len(drawn[2][0]) == 10


def test_truncated_samples_of_a_class_are_alike(styled, tmp_path, capsys):
    sample(styled, n=5, psi=0.0, label=2, out=tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert file["label"].tolist() == [2] * 5
        np.testing.assert_allclose(file["x"], file["x"][:1].repeat(5, axis=0), atol=0.1)  # but for the noise
    sample(styled, n=2, psi=2.0, out=tmp_path / "x.npz")
    assert "warning: --psi 2" in capsys.readouterr().err


def test_pictures_are_drawn(styled, vae, digit, tmp_path, capsys):
    mix(styled, rows="0-1", columns="2-4", layers="0-1", out=tmp_path / "mix.png")
    for run in (styled, vae):
        interpolate(run, seeds="1,2", frames=3, out=tmp_path / "between.png")
        interpolate(run, seeds="1,2", frames=3, loop=True, out=tmp_path / "loop.gif")
        with Image.open(tmp_path / "loop.gif") as film:
            assert film.size == (256, 256)
        label = 3 if run == styled else None
        project(run, digit, steps=30, label=label, out=tmp_path / "projected")
        points = tmp_path / "projected" / "points.npz"
        edit(run, points=points, n=2, draws=100, label=label, out=tmp_path / "edits.png")
        if run == vae:
            edit(run, seeds="0", directions="classes", n=1, draws=200, out=tmp_path / "edits.png")
        assert "PSNR" in capsys.readouterr().out
    assert all((tmp_path / name).stat().st_size > 2000 for name in ("mix.png", "between.png", "edits.png"))
    with pytest.raises(UserError, match="holds points of z"):
        edit(styled, points=points)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda style, vae, image: mix(vae), "styles are mixed by StyleGAN only"),
        (lambda style, vae, image: mix(style, layers="9"), "numbers from 0 to 3"),
        (lambda style, vae, image: mix(style, layers="some"), "coarse, middle, fine"),
        (lambda style, vae, image: sample(style, seeds="5000000000"), "below 2"),
        (lambda style, vae, image: sample(style, seeds="0-3", n=5), "leave out --n"),
        (lambda style, vae, image: sample(style, psi=float("nan")), "--psi must be a number"),
        (lambda style, vae, image: edit(style, reach=float("inf")), "--reach must be"),
        (lambda style, vae, image: edit(style, directions="classes"), "is told the class"),
        (lambda style, vae, image: project(style, image), "say with --label"),
        (lambda style, vae, image: mix(style, rows="3-1"), "goes backwards"),
        (lambda style, vae, image: interpolate(style, seeds="1"), "at least two --seeds"),
        (lambda style, vae, image: interpolate(vae, space="w"), 'no latent space "w"'),
        (lambda style, vae, image: interpolate(style, label=12), "between 0 and 9"),
        (lambda style, vae, image: interpolate(vae, psi=0.5), "are for StyleGAN"),
        (lambda style, vae, image: sample(style, cutoff=7), "between 0 and 4"),
        (lambda style, vae, image: sample(style, seeds="x"), "numbers and ranges"),
        (lambda style, vae, image: edit(vae, layers="fine"), "has a style for each layer"),
        (lambda style, vae, image: edit(style, points=image), "no points that"),
        (lambda style, vae, image: edit(style, points=image.parent / "none.npz"), "no such file"),
        (lambda style, vae, image: edit(style, space="z"), "varies alike in all directions"),
        (lambda style, vae, image: project(vae, image.parent / "none.png"), "none.png"),
        (lambda style, vae, image: project(style, image, steps=0), "--steps must be"),
    ],
)
def test_bad_input_is_one_line(styled, vae, digit, call, said):
    with pytest.raises(UserError, match=said):
        call(styled, vae, digit)


def test_images_of_another_size_are_refused(styled, tmp_path):
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "tall.png")
    with pytest.raises(UserError, match="9x8, the run's images are 8x8"):
        project(styled, tmp_path / "tall.png", label=0)


def test_runs_of_points_have_no_images(tmp_path):
    run = trained("gmm_blobs", tmp_path)
    with pytest.raises(UserError, match="not trained on images"):
        interpolate(run)
