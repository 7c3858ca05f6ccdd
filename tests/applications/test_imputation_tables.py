"""Imputation by Gaussian mixtures, exact for any mask, and the command that fills a table."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import GMM, em, fit, impute
from gen_jax.applications.imputation import default_method, exact
from gen_jax.cli.main import main
from gen_jax.cli.train import train
from gen_jax.core import Imputable
from gen_jax.errors import UserError
from gen_jax.estimators import GaussianMixture, Imputer
from gen_jax.models.mixture import DIAGONAL


@pytest.fixture(scope="module")
def mixture():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 3))
    x = np.r_[rng.normal(size=(300, 3)) @ a, [4, 0, -3] + rng.normal(size=(300, 3)) @ a.T].astype(np.float32)
    return GMM(2), fit(em(GMM(2)), {"x": x}, steps=30), x


@pytest.mark.parametrize("given", [[0], [2], [0, 2], [1, 2]])
def test_completions_have_the_moments_of_the_conditional(mixture, given):
    model, state, x = mixture
    mask = np.isin(np.arange(3), given)
    drawn = np.asarray(impute(model, state, x[:4], np.tile(mask, (4, 1)), jax.random.key(0), n=40_000), np.float64)
    np.testing.assert_array_equal(drawn[:, :, mask], np.broadcast_to(x[:4, mask], drawn[:, :, mask].shape))
    known = model.conditional(state, given, x[:4, given])
    mean, spread = np.asarray(known.mean()), np.sqrt(np.asarray(known.variance()))
    np.testing.assert_allclose(drawn[:, :, ~mask].mean(axis=0), mean, atol=0.03 * spread.max())
    np.testing.assert_allclose(drawn[:, :, ~mask].std(axis=0), spread, rtol=0.03)
    left = np.cov(drawn[:, 0, ~mask].T)
    np.testing.assert_allclose(
        left, np.cov(np.asarray(known.sample(seed=1, sample_shape=(40_000,)))[:, 0].T), atol=0.15
    )


def test_every_row_has_a_mask_of_its_own(mixture):
    """Rows with other masks beside them have the moments that they have alone; what is missing is not read."""
    model, state, x = mixture
    assert isinstance(model, Imputable) and default_method(model, np.ones((1, 3), bool)) is exact
    masks = np.array([[True, False, False], [False, True, True], [True, True, True], [False, False, True]])
    some = np.where(masks, x[:4], np.nan)
    drawn = np.asarray(impute(model, state, some, masks, jax.random.key(1), n=5000))
    np.testing.assert_array_equal(drawn[:, 2], np.broadcast_to(x[2], (5000, 3)))
    for row in (0, 1, 3):
        given = np.flatnonzero(masks[row])
        known = model.conditional(state, given, x[row : row + 1, given])
        spread = np.sqrt(np.asarray(known.variance()))[0]
        assert np.abs(drawn[:, row, ~masks[row]].mean(axis=0) - np.asarray(known.mean())[0]).max() < 0.1 * spread.max()


def test_diagonal_components_complete_each_coordinate_from_the_component_alone():
    x = np.r_[np.random.default_rng(0).normal(-9, 1, (50, 2)), np.random.default_rng(1).normal(9, 1, (50, 2))]
    model = GMM(2, kind=DIAGONAL)
    state = fit(em(model), {"x": x.astype(np.float32)}, steps=10)
    drawn = impute(model, state, jnp.array([[9.0, 0.0]]), np.array([[True, False]]), jax.random.key(0), n=100)
    assert 7 < float(drawn[..., 1].mean()) < 11


def test_an_imputer_is_calibrated_and_keeps_what_is_there():
    """Correlated normal columns with cells missing at random: the error is that of the regression, intervals cover."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.5], [0, 0, 0.2]]) * [1, 10, 100]
    missing = rng.uniform(size=x.shape) < 0.3
    missing[missing.all(axis=1), 0] = False
    holes = np.where(missing, np.nan, x)
    imputer = Imputer(GaussianMixture(1), random_state=0).fit(holes)
    filled, drawn = imputer.transform(holes), imputer.sample(holes, 60)
    np.testing.assert_array_equal(filled[~missing], x[~missing])
    np.testing.assert_array_equal(drawn[:, ~missing], np.broadcast_to(x[~missing], (60, (~missing).sum())))
    np.testing.assert_allclose(drawn.mean(axis=0)[missing], filled[missing], atol=0.6 * np.max(x.std(axis=0)))
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    assert 0.85 < np.mean(((low <= x) & (x <= high))[missing]) < 0.93
    scaled = lambda a: (a / x.std(axis=0))[missing]
    assert (
        np.sqrt(np.mean((scaled(filled) - scaled(x)) ** 2)) < 0.75 < np.sqrt(np.mean(scaled(x - x.mean(axis=0)) ** 2))
    )
    nothing = imputer.transform(np.full((1, 3), np.nan))
    np.testing.assert_allclose(nothing[0] / x.std(axis=0), 0, atol=0.15)
    with pytest.raises(ValueError, match="column 1 of X has no known value"):
        Imputer().fit([[1.0, np.nan], [2.0, np.nan]])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A mixture of a table with a color that tells the size, and the same table with gaps."""
    folder, rng = tmp_path_factory.mktemp("imputation"), np.random.default_rng(0)
    size = rng.integers(0, 2, 300)
    rows = [f"{a:.4f},{a * 2 + b:.4f},{'red' if c else 'blue'},id{i}" for i, (a, b, c) in enumerate(
        zip(size * 6 + rng.normal(size=300), rng.normal(size=300) / 10, size))]  # fmt: skip
    (folder / "whole.csv").write_text("\n".join(["a,b,color,name", *rows]) + "\n")
    lines = [row.split(",") for row in rows[:30]]
    for i, line in enumerate(lines):
        line[i % 3] = ""
    (folder / "gaps.csv").write_text("\n".join(["a,b,color,name", *map(",".join, lines)]) + "\n")
    (folder / "taken.csv").write_text("a,b,color,imputation\n1,,red,7\n")
    (folder / "other.csv").write_text("id,when,a,big,b,color,note\n007,2024-01-02,1.50,9007199254740993,,red,NA\n")
    options = ["--data", f"{folder / 'whole.csv'}?columns=a,b,color", "--steps", "15", "--devices", "1"]
    train("configs/mixture/gmm_blobs.py", [*options, "--workdir", str(folder / "run"), "--no-progress"])
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gen_jax", "impute", *map(str, arguments)])
    main()


def table(path):
    header, *lines = [line.replace('"', "").split(",") for line in path.read_text().splitlines()]
    return [dict(zip(header, line)) for line in lines]


def test_the_command_fills_a_table(monkeypatch, workdir, tmp_path, capsys):
    whole, gaps = table(workdir / "whole.csv")[:30], table(workdir / "gaps.csv")
    run(monkeypatch, workdir / "run", "--data", workdir / "gaps.csv", "--mean", "--n", 50, "--out", tmp_path / "a.csv")
    filled = table(tmp_path / "a.csv")
    assert "30 cells of 30 rows filled" in capsys.readouterr().out
    assert [row["name"] for row in filled] == [row["name"] for row in whole]
    for i, (one, truth, gap) in enumerate(zip(filled, whole, gaps)):
        kept = [name for name in gap if gap[name]]
        assert [float(one[n]) if n in "ab" else one[n] for n in kept] == [
            float(truth[n]) if n in "ab" else truth[n] for n in kept
        ]
        if i % 3 == 1:
            assert abs(float(one["b"]) - float(truth["b"])) < 1
    colors = [one["color"] == truth["color"] for one, truth in zip(filled, whole)]
    assert np.mean(colors) > 0.9
    run(monkeypatch, workdir / "run", "--data", workdir / "gaps.csv", "--n", 3, "--out", tmp_path / "b.csv")
    several = table(tmp_path / "b.csv")
    assert [row["imputation"] for row in several] == ["0"] * 30 + ["1"] * 30 + ["2"] * 30
    assert several[0]["a"] != several[30]["a"] and several[1]["a"] == several[31]["a"]


def test_everything_else_is_written_as_it_was(monkeypatch, workdir, tmp_path):
    run(monkeypatch, workdir / "run", "--data", workdir / "other.csv", "--out", tmp_path / "a.csv")
    before, after = ((p).read_text().splitlines()[1].split(",") for p in (workdir / "other.csv", tmp_path / "a.csv"))
    assert float(after.pop(4)) and before.pop(4) == "" and after == before


@pytest.mark.parametrize(
    "text, said",
    [
        ("a,b,color\n,,\n1,2,red\n", "no cell to go by in 1 of the rows, the first is row 1"),
        ("a,b,color\n1,2,red\n", "no missing cells"),
        ("a,color\n1,red\n", "no column 'b'"),
        ("a,b,color\n1,,green\n", "'green'"),
        ("a,b,color\n1,2,red\nlarge,,red\n", "row 2 has 'large' in the column 'a', where numbers are needed"),
    ],
)
def test_bad_tables_are_one_line(monkeypatch, workdir, tmp_path, text, said):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, workdir / "run", "--data", tmp_path / "bad.csv", "--out", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--data", "gaps.csv", "--n", "0"], "--n must"),
        (["--data", "gaps.csv", "--n", "1", "--mean"], "--n must be at least 2"),
        (["--data", "taken.csv", "--n", "2"], "imputation already"),
        (["--data", "gaps.csv", "--out", "gaps.csv"], "would be lost"),
        (["--data", "nothing.csv"], "no such file"),
        (["--data", "gaps.csv", "--out", "a.png"], "the ending"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, workdir, options, said):
    monkeypatch.chdir(workdir)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, "run", *options)


# --- sequences


def test_the_command_fills_steps_of_sequences_given_all_of_them(monkeypatch, tmp_path):
    """Cells of rows in any order: b is a without its noise, and a stays in one of two states for a while."""
    rng = np.random.default_rng(0)
    a = np.repeat(rng.choice([-5.0, 5.0], size=(40, 5)), 4, axis=1)
    rows = [(day, who) for who in range(40) for day in range(20)]
    line = lambda day, who, gap="": f"{day},p{who},{a[who, day] + rng.normal():.3f},{gap or a[who, day]:}"
    (tmp_path / "whole.csv").write_text("\n".join(["day,who,a,b", *(line(*row) for row in rows)]) + "\n")
    options = ["--data", str(tmp_path / "whole.csv"), "--id", "who", "--time", "day", "--states", "2", "--steps", "10"]
    run_options = ["--devices", "1", "--no-progress", "--workdir", str(tmp_path / "run")]
    train("configs/hmm/hmm_gaussian.py", [*options, *run_options])
    rng.shuffle(rows)
    some = [(day, who) for day, who in rows if who < 3]
    lines = [line(day, who, " " if day % 3 == 1 else "").replace(" ", "") for day, who in some]
    lines = [f"{day},p{who},," if day == 7 else one for one, (day, who) in zip(lines, some)]  # a whole step
    (tmp_path / "gaps.csv").write_text("\n".join(["day,who,a,b", *lines]) + "\n")
    run(
        monkeypatch, tmp_path / "run", "--data", tmp_path / "gaps.csv", "--mean", "--n", 20, "--out", tmp_path / "f.csv"
    )
    filled = table(tmp_path / "f.csv")
    assert [(int(row["day"]), row["who"]) for row in filled] == [(day, f"p{who}") for day, who in some]
    for row, (day, who) in zip(filled, some):
        assert abs(float(row["b"]) - a[who, day]) < (6 if day == 7 else 0.5)
