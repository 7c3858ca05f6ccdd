"""Utility of samples: tasks of labels and of columns, lost classes, and the command."""

import json
import sys

import numpy as np
import pytest

from gen_jax.cli.main import main
from gen_jax.cli.train import train
from gen_jax.data.dataset import DataInfo
from gen_jax.errors import UserError
from gen_jax.evaluation.utility import (
    Inputs,
    check_predictors,
    column_task,
    labeled_task,
    measure_utility,
    table_features,
)


def blobs(labels, key=None, lost=(), seed=0):
    """Points around the corners of a square; those of lost classes are elsewhere."""
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    corners = np.where(np.isin(labels, lost)[:, None], -8, np.stack([labels % 2, labels // 2], axis=1) * 4)
    return corners + rng.normal(size=(len(labels), 2))


def splits(n=400):
    return [{"x": blobs(labels, seed=i), "label": labels} for i, labels in enumerate([np.arange(n) % 4] * 2)]


@pytest.mark.parametrize("predictor", ["mlp", "linear", "boosting"])
def test_what_a_model_has_lost_shows_in_the_recall_of_the_class(predictor):
    train, test = splits()
    good = labeled_task(train, test, blobs, Inputs(4), seeds=2)
    bad = labeled_task(train, test, lambda labels, key: blobs(labels, lost=(3,)), Inputs(4), seeds=2)
    found, lost = (measure_utility(task, predictor, steps=300) for task in (good, bad))
    assert all(score.value > 0.9 for score in found.scores.values()) and found.on_samples.value > 0.9
    assert found.lost() == [] and lost.lost() == [3]
    assert lost.recalls["synthetic"][3] < 0.4 < 0.8 < lost.recalls["real"][3]
    assert lost.on_samples.value < 0.8 and lost.gains["synthetic"].value < -0.1


def test_all_arms_and_seeds_have_rows_of_their_own():
    train, test = splits()
    task = labeled_task(train, test, blobs, Inputs(4), n=100, seeds=3)
    assert task.real.shape == task.synthetic.shape == (3, 100) and len(task.rows()) == 9
    assert [len(rows) for rows in task.rows()] == [100] * 6 + [200] * 3
    assert len(np.unique(task.synthetic)) == 300 and not set(task.synthetic.ravel()) & set(task.real.ravel())
    for real, synthetic in zip(task.real, task.synthetic):
        np.testing.assert_array_equal(np.bincount(task.y[real]), np.bincount(task.y[synthetic]))


def test_samples_for_the_reverse_test_are_of_all_classes_of_sorted_data():
    labels = np.sort(np.arange(3000) % 4)
    sets = [{"x": blobs(labels, seed=i), "label": labels} for i in range(2)]
    task = labeled_task(*sets, blobs, Inputs(4), n=100)
    np.testing.assert_array_equal(np.bincount(task.held["label"]), [500] * 4)
    whole = {"x": np.arange(12).reshape(6, 2) % 5, "label": np.arange(6) % 2}
    assert labeled_task(whole, whole, lambda labels, key: whole["x"][labels], Inputs(2, 256)).transforms == ()


def rows(n, seed=0, broken=False):
    """A number, a category that tells its sign with a tenth of errors, and twice the number."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    sign = (a > 0) ^ (rng.random(n) < 0.1)
    b = 2 * (rng.permutation(a) if broken else a) + 0.1 * rng.normal(size=n)
    return np.stack([a, sign, b], axis=1).astype(np.float32)


INFO = DataInfo((3,), columns=("a", "sign", "b"), categories=((), ("no", "yes"), ()))


def test_a_number_of_a_table_is_predicted_from_the_others():
    train, test = {"x": rows(600)}, {"x": rows(300, 1)}
    good = column_task(train, test, lambda labels, key: rows(len(labels), 2), INFO, "b", seeds=2)
    bad = column_task(train, test, lambda labels, key: rows(len(labels), 2, True), INFO, "b", seeds=2)
    found, wrong = (measure_utility(task, "linear") for task in (good, bad))
    assert found.scores["synthetic"].value > 0.98 and found.recalls == {} == wrong.recalls
    assert wrong.scores["synthetic"].value < 0.1 and found.scores["real"].value > 0.98
    residual = np.linalg.lstsq(np.c_[good.x[good.real[0]], np.ones(600)], good.y[good.real[0]], rcond=None)[0]
    predicted = np.c_[good.test["x"], np.ones(300)] @ residual
    r2 = 1 - ((predicted - good.test["label"]) ** 2).mean() / good.test["label"].var()
    assert found.scores["real"].value == pytest.approx(r2, abs=1e-3)


def test_a_category_of_a_table_is_predicted_from_the_others():
    train, test = {"x": rows(600)}, {"x": rows(300, 1)}
    task = column_task(train, test, lambda labels, key: rows(len(labels), 2), INFO, "sign", seeds=2)
    assert task.classes == 2 and task.x.shape[1] == 2
    assert 0.85 < measure_utility(task, "boosting").scores["synthetic"].value < 0.95
    with pytest.raises(UserError, match="no column 'c'"):
        column_task(train, test, lambda labels, key: rows(len(labels)), INFO, "c")
    one = column_task(train, test, lambda labels, key: rows(len(labels)) * [1, 0, 1], INFO, "sign")
    with pytest.raises(UserError, match="'sign' has a single value"):
        column_task(train, {"x": rows(50) * [1, 0, 1]}, lambda labels, key: rows(len(labels)), INFO, "sign")
    with pytest.raises(UserError, match="all synthetic examples are of class 0"):
        measure_utility(one, "linear")


def test_samples_get_the_gaps_of_real_rows():
    real = np.where(np.random.default_rng(0).random((500, 3)) < 0.3, np.nan, rows(500)).astype(np.float32)
    task = column_task({"x": real}, {"x": real}, lambda labels, key: rows(len(labels), 2), INFO, "b", seeds=2)
    known = ~np.isnan(real[:, 2])
    told = task.x[:, 1]  # whether the first number is missing
    assert told[known.sum() :].mean() == pytest.approx(np.isnan(real[known, 0]).mean(), abs=0.05)
    assert not np.isnan(task.x).any() and not np.isnan(task.y).any()


def test_features_of_a_table_are_one_hot_and_standardized():
    reference = np.array([[1, 0, 5], [3, 1, 5], [np.nan, 1, 5]])
    found = table_features(np.array([[3, 1, 5], [np.nan, np.nan, 7]]), reference, ((), ("a", "b"), ()))
    np.testing.assert_allclose(found, [[1, 0, 0, 1, 0], [0, 1, 0, 0, 2]])
    assert table_features(reference, reference, (), (0, 1)).shape == (3, 1)
    with pytest.raises(UserError, match="no column to predict from"):
        table_features(reference, reference, (), (0, 1, 2))


def test_predictors_that_do_not_fit_are_refused():
    for names, dimensions, classes, said in [
        (("tree",), 1, 2, "'tree' is no predictor"),
        (("cnn",), 1, 2, "cnn predicts from images"),
        (("mlp",), 1, None, "mlp predicts classes"),
    ]:
        with pytest.raises(UserError, match=said):
            check_predictors(names, dimensions, classes)


# --- the command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("utility")
    table = [f"{a:.4f},{'yes' if sign else 'no'},{b:.4f}" for a, sign, b in rows(500)]
    (folder / "table.csv").write_text("\n".join(["a,sign,b", *table]) + "\n")
    options = ["--data", str(folder / "table.csv"), "--steps", "15", "--devices", "1", "--no-progress"]
    train("configs/mixture/mixture_table.py", [*options, "--workdir", str(folder / "run")])
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gen_jax", "utility", *map(str, arguments)])
    main()


@pytest.mark.parametrize("target, score", [("sign", "accuracy"), ("b", "R²")])
def test_the_command_judges_columns(monkeypatch, workdir, tmp_path, capsys, target, score):
    out = tmp_path / "out"
    options = ["--target", target, "--predictors", "linear", "--seeds", 2, "--out", out]
    run(monkeypatch, workdir / "run", *options)
    said, record = capsys.readouterr().out, json.loads((out / "utility.json").read_text())
    assert "copies:" in said and record["score"] == score and (out / "utility.png").stat().st_size > 10_000
    [found] = record["predictors"]
    assert found["scores"]["synthetic"]["value"] > 0.8 and set(found["gains"]) == {"synthetic", "both"}
    assert ("## Recall by class" in (out / "utility.md").read_text()) == (target == "sign")


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "has no labels to predict: name a column with --target"),
        (["--target", "c"], "the columns are a, sign, b"),
        (["--target", "b", "--predictors", "mlp"], "mlp predicts classes"),
        (["--target", "b", "--seeds", 0], "--seeds must be at least 1"),
        (["--target", "b", "--samples", 3], "--samples must be at least 10"),
        (["--target", "b", "--data", "digits"], "leave --data and other runs out"),
        (["--target", "b", "--out", "nowhere/there"], "there is no folder nowhere"),
        (["--data", "digits"], "is not conditioned on labels|was trained on examples of shape"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, workdir, options, said):
    with pytest.raises(UserError, match=said):
        run(monkeypatch, workdir / "run", *options)


def test_no_run_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="give the working directory of a run"):
        run(monkeypatch)


def test_several_runs_need_the_labeled_examples(monkeypatch, workdir):
    with pytest.raises(UserError, match="several runs need --data"):
        run(monkeypatch, workdir / "run", workdir / "run")
