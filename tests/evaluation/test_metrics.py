"""Metrics and their averages."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gen_jax.algorithms import em
from gen_jax.data import Dataset
from gen_jax.data.modes import ring
from gen_jax.errors import UserError
from gen_jax.evaluation import (
    Estimate,
    Split,
    accuracy,
    active_units,
    elbo,
    importance_weighted,
    invertibility,
    latent_accuracy,
    log_integral,
    log_likelihood,
    log_likelihood_per_step,
    mode_coverage,
    reconstruction_error,
    stability,
    train_on_synthetic,
)
from gen_jax.evaluation.metric import counted, mean_over
from gen_jax.evaluation.report import as_json, find_metrics, over_seeds, table
from gen_jax.experiment import Experiment
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.plots import caption, learning_curves, show, tiled


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 1000])
def test_mean_and_standard_error_do_not_depend_on_the_batch_size(batch):
    x = np.random.default_rng(0).normal(1000, 0.1, size=(100, 1)).astype(np.float32)
    run = mean_over(lambda state, batch, key: batch["x"][:, 0])
    mean, error = run(None, Split("s", {"x": x}, batch=batch), jax.random.key(0))
    assert mean == pytest.approx(x.astype(np.float64).mean(), rel=1e-7)
    assert error == pytest.approx(x.astype(np.float64).std(ddof=1) / 10, rel=1e-3)


def test_padding_is_masked_even_where_it_would_be_nan():
    run = mean_over(
        lambda state, batch, key: jnp.where(batch["index"] == 4, jnp.log(batch["x"][:, 0]), batch["x"][:, 0])
    )
    mean, _ = run(
        None, Split("s", {"x": np.array([[1.0], [2.0], [3.0], [4.0], [1.0]], np.float32)}, batch=4), jax.random.key(0)
    )
    assert mean == pytest.approx(2.0)


def test_one_example_has_no_error():
    mean, error = mean_over(lambda s, b, k: b["x"][:, 0])(
        None, Split("s", {"x": np.ones((1, 1), np.float32)}), jax.random.key(0)
    )
    assert mean == 1.0 and math.isnan(error)


class Coin:
    def log_prob(self, state, batch):
        return jnp.full(len(batch["x"]), -math.log(2) * 6)


def test_bits_per_dim_of_integer_data():
    x = np.zeros((10, 2, 3, 1), np.uint8)
    found = log_likelihood(Coin())(None, Split("s", {"x": x}), jax.random.key(0))
    assert found["log_likelihood_bits_per_dim"].value == pytest.approx(1.0)
    assert found["log_likelihood"].unit == "nats" and found["log_likelihood"].kind == "exact"
    assert "log_likelihood_bits_per_dim" not in log_likelihood(Coin())(
        None, Split("s", {"x": x * 1.0}), jax.random.key(0)
    )


class Points:
    def __init__(self, x):
        self.x = jnp.asarray(x, jnp.float32)

    def sample(self, state, key, n):
        return {"x": self.x[jax.random.randint(key, (n,), 0, len(self.x))]}


def covered(x):
    found = mode_coverage(ring(), 0.01)(Points(x))(None, None, jax.random.key(0))
    return {name: e.value for name, e in found.items()}


def test_mode_coverage_of_the_truth_of_collapse_and_of_noise():
    rng = np.random.default_rng(0)
    truth = covered(ring()[rng.integers(8, size=20_000)] + 0.01 * rng.normal(size=(20_000, 2)))
    assert truth["modes"] == 8
    assert truth["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)  # within 3 sigma in the plane
    assert truth["reverse_kl"] < 0.01
    collapsed = covered(ring()[:2])
    assert collapsed["modes"] == 2 and collapsed["reverse_kl"] == pytest.approx(math.log(4), abs=0.01)
    assert covered(np.zeros((1, 2)))["modes"] == 0


def test_unknown_metric_lists_the_known():
    with pytest.raises(UserError, match="there are accuracy, active_units, cost, elbo"):
        find_metrics([], ["fid"])
    assert find_metrics([log_likelihood], ["log_likelihood"]) == [log_likelihood]


def test_table_and_json_show_units_and_kinds():
    found = {"elbo": Estimate(-85.5, float("nan"), "nats", "bound", 300)}
    console = Console(record=True, width=100, file=open("/dev/null", "w"))
    console.print(table("t", found))
    text = console.export_text()
    assert "-85.5 " in text and "bound" in text and "300" in text
    assert as_json(found)["elbo"]["error"] is None


def test_tiles_and_curves():
    grid = tiled(np.arange(10 * 8 * 8).reshape(10, 8, 8, 1))
    assert grid.shape == (3 * 9 - 1, 4 * 9 - 1) and grid[:8, :8].min() == 0.0
    assert np.all(grid[18:, 18:] == 1.0)  # what no image fills is white, as are the gaps
    assert tiled(np.zeros((4, 2, 2, 2))).shape == (5, 5)  # of two channels, the first
    rows = [{"step": i, "time": 0.0, "train/loss": 1.0 / i, "validation/loss": 2.0 / i} for i in range(1, 5)]
    (axis, *_) = learning_curves(rows, "run").axes
    assert len(axis.lines) == 2 and axis.get_title() == "loss"
    many = [
        {"step": i, "train/kl": [float(i), 2.0 * i], "steps_per_second": 1.0, "examples_per_second": 9.0}
        for i in range(99)
    ]
    figure = learning_curves([*many, {"step": 99, "validation/lonely": 1.0}], "run")
    titles = ["train kl (nats)", "steps per second (1/s)", "validation lonely"]
    assert [axis.get_title() for axis in figure.axes] == titles
    assert len(figure.axes[0].lines) == 4  # each seed, their mean, and that mean smoothed
    with pytest.raises(UserError, match="no metrics"):
        learning_curves([], "run")


def test_every_figure_has_the_style_and_few_ticks(tmp_path):
    rng = np.random.default_rng(0)
    figure = show({"points": rng.normal(size=(20, 2)) * 1000, "sequences": rng.normal(size=(3, 9, 1))})
    figure.draw_without_rendering()
    assert figure.dpi == 200
    for axis in figure.axes:
        assert axis.get_xlabel() and axis.get_ylabel() and not axis.spines["top"].get_visible()
        assert len([label for label in axis.get_xticklabels() if label.get_text()]) <= 7
        assert axis.title.get_fontsize() == 9
    caption(figure, "run, test split, step 3")
    caption(figure, "another")
    assert figure.get_suptitle() == "run, test split, step 3"
    figure.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes()[:4] == b"%PDF"


def test_images_are_large_enough_for_their_pixels_and_keep_the_range_of_the_data():
    images = np.full((12, 100, 80, 3), 0.25)
    figure = show({"images": images}, columns=12, limits=(0.0, 1.0), rows=["r"], heads=[*map(str, range(12))])
    (axis,) = figure.axes
    assert figure.get_figwidth() * figure.dpi >= 12 * 81 and axis.images[0].get_array()[0, 0, 0] == 0.25
    assert [label.get_text() for label in axis.get_yticklabels()] == ["r"] and len(axis.get_xticklabels()) == 12


@pytest.mark.parametrize(
    ("metric", "ability"),
    [
        (log_likelihood, "Density"),
        (log_likelihood_per_step, "Density"),
        (accuracy, "Classifier"),
        (elbo, "Bound"),
        (importance_weighted(5), "ImportanceWeighted"),
        (stability, "Adversarial"),
        (active_units, "Latent"),
        (latent_accuracy, "Latent"),
        (reconstruction_error, "Reconstructing"),
        (invertibility, "Invertible"),
        (log_integral, "FittedToDensity"),
        (train_on_synthetic(), "Conditional"),
    ],
)
def test_a_metric_says_which_ability_a_model_lacks(metric, ability):
    class Bare:
        """A model that can do nothing."""

    with pytest.raises(UserError, match=f"is {ability} .*Bare is not"):
        metric(Bare())


def test_examples_of_weight_0_and_sequences_of_length_0_count_in_no_metric():
    x = np.random.default_rng(0).normal(size=(6, 4, 1)).astype(np.float32)
    arrays = {"x": x, "length": np.array([4, 0, 3, 2, 4, 4]), "weight": np.array([1.0, 1.0, 0.0, 2.0, 1.0, 1.0])}
    arrays["x"][1:3] = 1e6
    data = Dataset("own", {"train": arrays, "test": arrays})
    model = HMM(2, Gaussian())
    batch = {"x": jnp.asarray(x[3:]), "length": jnp.asarray([2, 4, 4])}
    state = em(model).init(jax.random.key(0), batch)
    split = Experiment(model, em(model), data="own", steps=1).split(data, "test")
    assert split.size == 4 and len(split.training["x"]) == 4
    found = log_likelihood_per_step(model)(state, split, jax.random.key(0))["log_likelihood_per_step"]
    kept = {name: jnp.asarray(a[[0, 3, 4, 5]]) for name, a in arrays.items()}
    assert found.value == pytest.approx(float(model.log_prob(state, kept).sum()) / 14, rel=1e-5) and found.n == 4
    with pytest.raises(UserError, match="no example counts"):
        counted({"x": x, "weight": np.zeros(6)})


def test_seeds_are_averaged_and_notes_say_how_many_have_them():
    one = lambda value, error=math.nan, how="": Estimate(value, error, "nats", "exact", 9, how)
    found = over_seeds(
        [
            {"a": one(1.0, 0.3), "floor": one(5.0, 0.1), "b": one(1.0, how="collapsed, or nearly"), "c": one(0.0)},
            {"a": one(3.0, 0.5), "floor": one(5.0, 0.1), "b": one(2.0), "c": one(2.0), "late": one(1.0)},
        ]
    )
    assert found["floor"] == one(5.0, 0.1) and found["late"].value == 1.0
    assert found["a"].value == 2.0 and found["a"].seeds == 2
    assert found["a"].error == pytest.approx(math.hypot(1.0, 0.4))  # over seeds, and over the examples they share
    assert found["c"].error == pytest.approx(1.0)
    assert found["b"].how == "1 of 2 seeds: collapsed, or nearly"
    notes = over_seeds([{"a": one(1.0, how="10 parts, bias 1")}, {"a": one(2.0, how="10 parts, bias 2")}])
    assert notes["a"].how == "10 parts"
