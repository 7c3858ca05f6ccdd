"""Augmentation: classifiers of several seeds as one program, samples as training examples, and the command."""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import Resident, descent, fit, load
from gen_jax.applications.augmentation import (
    Design,
    augment,
    count_copies,
    keep_confident,
    parse_changes,
    steps_for,
    train_arms,
)
from gen_jax.cli.main import main
from gen_jax.data import Dataset, scale
from gen_jax.data.geometry import mixup
from gen_jax.data.subsets import Subsets, stratified_rows
from gen_jax.errors import UserError
from gen_jax.evaluation.classifiers import difference, fit_classifiers, mcnemar
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.labeled import draw_labels, of_classes, of_label
from gen_jax.models.common.classification import Classification, ConvNet, Perceptron


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_rows_are_stratified_and_differ_between_members():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    rows = stratified_rows(labels, 20, 3)
    assert rows.shape == (3, 20) and not np.array_equal(np.sort(rows[0]), np.sort(rows[1]))
    for one in rows:
        assert len(set(one)) == 20
        np.testing.assert_array_equal(np.bincount(labels[one]), [10, 6, 4])
    with pytest.raises(UserError, match="not 101"):
        stratified_rows(labels, 101, 1)


def test_a_member_sees_only_its_rows_each_once_an_epoch():
    rows = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    source = Subsets({"x": np.arange(8.0)[:, None]}, rows, 2)
    source.check()
    seen = np.concatenate([np.asarray(source.batch_at(step)["x"])[..., 0] for step in (0, 1)], axis=1)
    np.testing.assert_array_equal(np.sort(seen, axis=1), rows)
    with pytest.raises(UserError, match="a batch of 5"):
        Subsets({"x": np.arange(8.0)[:, None]}, rows, 5).check()


def test_a_population_of_classifiers_is_each_trained_alone(digits):
    """The first of three members predicts as it does in a population of its own."""
    rows, test = stratified_rows(digits["train"]["label"], 64, 3), digits["test"]
    train = lambda rows: fit_classifiers(
        Perceptron(10, 16), digits["train"], rows, test, 30, 32, [scale(0, 1, 17)], lr=0.02, tests=3
    )
    found, again = train(rows), train(rows[:1])
    assert found.steps.tolist() == [10, 20, 30] and found.accuracies.shape == (3, 3)
    np.testing.assert_allclose(found.accuracies[-1], (found.predicted == test["label"]).mean(axis=1))
    assert np.mean(again.predicted[0] == found.predicted[0]) > 0.99
    assert found.accuracies[-1].mean() > 0.6


def test_mixed_labels_count_by_their_share():
    model, x = Classification(Perceptron(3, 4)), jnp.ones((2, 5))
    params, _ = model.init(jax.random.key(0), {"x": x})
    loss = lambda **more: float(model.loss(params["classifier"], None, {"x": x, **more}, None)[0])
    first, second = loss(label=jnp.array([0, 0])), loss(label=jnp.array([2, 2]))
    mixed = loss(label=jnp.array([0, 0]), mixed_label=jnp.array([2, 2]), share=jnp.array([0.3, 0.3]))
    np.testing.assert_allclose(mixed, 0.3 * first + 0.7 * second, rtol=1e-5)
    assert ConvNet(4, (2, 3), 5).init_with_output(jax.random.key(0), jnp.ones((2, 7, 9, 1)))[0][1].shape == (2, 4)


def test_differences_and_mcnemar_are_paired():
    labels = np.zeros(100, int)
    base, better = np.ones((1, 100), int), np.ones((1, 100), int)
    base[:, :60] = 0
    better[:, :60], better[:, 60:70] = 0, 0  # ten more, none lost
    gain = difference(better, base, labels)
    np.testing.assert_allclose(gain.value, 0.1)
    np.testing.assert_allclose(gain.error, np.std([1] * 10 + [0] * 90, ddof=1) / 10)
    np.testing.assert_allclose(mcnemar(better, base, labels), 2 * 0.5**10)
    assert mcnemar(base, base, labels) == 1


class Bright:
    """A model conditioned on labels whose samples show the label as their brightness."""

    class conditioning:
        entry, classes = "label", 10

    def sample(self, state, key, n, condition=None):
        label = jnp.zeros(n) if condition is None else condition["label"]
        return {"x": jnp.broadcast_to(label[:, None, None, None] / 16, (n, 8, 8, 1))}


def test_samples_become_training_examples_in_the_units_of_the_data(digits):
    split = Split("train", digits["train"], (scale(0, 1, 17),), training=digits["train"], levels=17)
    draw = of_label(Bright(), None, split)
    grown = augment(digits, draw, 0.5)
    x, label, synthetic = (grown["train"][name] for name in ("x", "label", "synthetic"))
    assert x.dtype == digits["train"]["x"].dtype and synthetic.sum() == round(0.5 * len(digits["train"]["x"]))
    np.testing.assert_array_equal(x[synthetic, 0, 0, 0], label[synthetic])
    np.testing.assert_array_equal(x[~synthetic], digits["train"]["x"])
    assert grown["test"] is digits["test"] and grown.info == replace(digits.info, digest=grown.info.digest)
    shares = [np.bincount(part, minlength=10) / len(part) for part in (label[synthetic], label[~synthetic])]
    np.testing.assert_allclose(*shares, atol=0.01)
    by_class = of_classes([(Bright(), None, split)] * 10)  # unconditional: all black
    assert by_class(np.arange(10), jax.random.key(0)).max() == 0
    state = fit(
        descent(Classification(Perceptron(10, 8)), {"classifier": optax.adam(1e-3)}),
        Resident(grown["train"], 64, [scale(0, 1, 17)]),
        2,
    )
    assert int(state.step) == 2
    with pytest.raises(UserError, match="one for each class"):
        by_class(np.array([11]), jax.random.key(0))
    with pytest.raises(UserError, match="not conditioned on labels"):
        of_label(Classification(Perceptron(10)), None, split)


def test_only_samples_that_a_classifier_is_sure_of_are_kept(digits):
    rng = np.random.default_rng(0)
    train = {name: np.asarray(a) for name, a in digits["train"].items()}

    def draw(labels, key):  # half of the examples have a wrong label
        wrong = rng.uniform(size=len(labels)) < 0.5
        shown = np.where(wrong, (labels + 3) % 10, labels)
        return np.stack([train["x"][rng.choice(np.flatnonzero(train["label"] == c))] for c in shown])

    kept = keep_confident(draw, train, digits["test"], 17, 0.8)
    labels = rng.integers(0, 10, 60)
    rows = {x.tobytes(): c for x, c in zip(train["x"], train["label"])}
    found = np.array([rows[x.tobytes()] for x in kept(labels, jax.random.key(0))])
    assert np.mean(found == labels) > 0.95
    with pytest.raises(UserError, match="lower --confidence"):
        keep_confident(lambda labels, key: np.zeros((len(labels), 8, 8, 1)), train, digits["test"], 17, 0.99)(
            labels, jax.random.key(0)
        )


def test_drawn_labels_repeat_the_frequencies():
    np.testing.assert_array_equal(np.bincount(draw_labels(np.repeat([0, 1], [6, 2]), 20)), [15, 5])
    assert sorted(draw_labels(np.repeat([0, 1, 2], [98, 1, 1]), 0)) == [0, 1, 2]


def test_arms_share_their_steps_and_examples(digits):
    pool = {"x": digits["validation"]["x"], "label": digits["validation"]["label"]}
    design = Design(digits, "train", parse_changes(["keras", "cutout"], 8), pool, [20], [2.0], ["mlp"], 2, epochs=12)
    arms = list(train_arms(design))
    assert [arm.name for arm in arms] == ["none", "geometric", "generative", "both"]
    assert [arm.examples for arm in arms] == [20, 20, 60, 60]
    curve = [name for name, _, _ in design._replace(shares=[0.5, 1.0]).arms()]
    assert curve == ["none", "geometric", "generative x0.5", "generative x1", "both x0.5", "both x1"]
    assert {int(arm.fitted.steps[-1]) for arm in arms} == {steps_for(20, 128, 12)} == {12}
    assert arms[0].gain is None and all(0 <= arm.p <= 1 for arm in arms[1:])
    assert steps_for(60_000, 128, None) == 5 * 468 and steps_for(100, 128, None) == 1000


def test_copies_of_test_examples_are_counted():
    x = np.arange(12).reshape(4, 3)
    assert count_copies(Dataset("mine", {"train": {"x": x[:3]}, "test": {"x": x[2:]}}), "train") == 1


@pytest.mark.parametrize(
    "text, said",
    [("spin", "names no change"), ("rotation=much", "names no change"), ("zoom=2", "zoom"), ("rotation", "no change")],
)
def test_unknown_changes_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_changes([text], 8)
    assert len(parse_changes(["rotation=5,shift=0.2", "cutout=3", "flip"], 8)) == 3


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gen_jax", "augment", *map(str, arguments)])
    main()


def test_the_command_writes_a_table_and_figures(monkeypatch, tmp_path, capsys):
    options = ["--geometric", "rotation=10", "--networks", "mlp", "--labels", 20, "--seeds", 2, "--epochs", 5]
    run(monkeypatch, *options, "--out", tmp_path / "found")
    record = json.loads((tmp_path / "found" / "augmentation.json").read_text())
    assert [arm["augmentation"] for arm in record["arms"]] == ["none", "geometric"]
    assert np.shape(record["arms"][0]["accuracies"]) == (2, 5) and record["arms"][1]["gain"]["error"] > 0
    table = (tmp_path / "found" / "augmentation.md").read_text()
    assert "| mlp | 20 | geometric |" in table and "standard error" in table
    for name in ("curves.png", "images.png"):
        assert (tmp_path / "found" / name).stat().st_size > 5000
    assert "McNemar" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "nothing to compare"),
        (["--geometric", "mixup", "cutmix"], "mixed once"),
        (["--geometric", "keras", "--seed", "-1"], "--seed"),
        (["--geometric", "keras", "--labels", "5"], "--labels 5"),
        (["--geometric", "keras", "--labels", "5000"], "--labels 5000"),
        (["--geometric", "keras", "--networks", "vit"], "--networks vit"),
        (["--from", "nowhere", "--share", "0"], "--share"),
        (["--geometric", "keras", "--share", "2"], "give --from"),
        (["--from", "nowhere", "--confidence", "1"], "--confidence"),
        (["--geometric", "keras", "--data", "blobs"], "images"),
        (["--from", "nowhere"], "nowhere is not the working directory"),
        (["--geometric", "keras", "--out", "no/such/folder"], "there is no folder"),
    ],
)
def test_bad_input_is_refused_before_any_training(monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, *options)
    assert not list(tmp_path.iterdir())


def test_mixup_needs_no_more_than_labels(digits):
    rows = stratified_rows(digits["train"]["label"], 40, 2)
    found = fit_classifiers(
        Perceptron(10, 8), digits["train"], rows, digits["test"], 3, 20, [scale(0, 1, 17), mixup()], tests=1
    )
    assert found.predicted.shape == (2, len(digits["test"]["x"]))
