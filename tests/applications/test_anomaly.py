"""Anomaly detection: scores, thresholds against simulation, areas against scikit-learn, the estimator, the command."""

import json
import sys

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture as Theirs

from gen_jax import GMM, em, fit, load
from gen_jax.applications.anomaly import (
    SCORES,
    Scored,
    average_precision,
    benjamini_hochberg,
    conformal_p_values,
    conformal_threshold,
    false_alarm_range,
    least_calibration,
    quantile_threshold,
    rank,
    roc_auc,
    scorers,
    tail_threshold,
)
from gen_jax.applications.anomaly.detection import curves
from gen_jax.cli.main import main
from gen_jax.cli.train import train
from gen_jax.core import State
from gen_jax.data import dequantize, scale
from gen_jax.data.tables import read_rows
from gen_jax.errors import UserError
from gen_jax.estimators import AnomalyDetector, GaussianMixture
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.features import raw
from gen_jax.models.common.likelihoods import Bernoulli
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import VAE

# --- thresholds


def test_false_alarms_keep_to_the_level_whatever_the_scores():
    """Over 2,000 calibration sets of 99 scores, the rate is the level on average, and Beta distributed."""
    rng, rates = np.random.default_rng(0), []
    for _ in range(2000):
        threshold = conformal_threshold(rng.standard_t(2, 99), 0.1)
        rates.append(stats.t(2).sf(threshold.value))
    np.testing.assert_allclose(np.mean(rates), 0.1, atol=0.002)
    np.testing.assert_allclose(false_alarm_range(99, 0.1), np.quantile(rates, [0.05, 0.95]), atol=0.005)


def test_a_p_value_is_at_most_the_level_exactly_where_the_threshold_flags():
    rng = np.random.default_rng(1)
    calibration, scores = rng.integers(0, 30, 60) * 1.0, np.arange(-1.0, 32)  # with ties
    p = conformal_p_values(calibration, scores)
    np.testing.assert_allclose(p, [(1 + (calibration >= s).sum()) / 61 for s in scores])
    np.testing.assert_array_equal(conformal_threshold(calibration, 0.05)(scores), p <= 0.05)


@pytest.mark.parametrize("level, least", [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1)])
def test_too_few_calibration_examples_are_refused(level, least):
    assert least_calibration(level) == least
    conformal_threshold(np.arange(float(least)), level)
    with pytest.raises(UserError, match=f"at least {least} calibration examples"):
        conformal_threshold(np.arange(least - 1.0), level)


def test_the_tail_is_extrapolated():
    """Exponential scores: the 1 - 1e-4 quantile is log(1e4), from 5,000 of them."""
    scores = np.random.default_rng(0).exponential(size=5000)
    np.testing.assert_allclose(tail_threshold(scores, 1e-4).value, np.log(1e4), rtol=0.15)
    with pytest.raises(UserError, match="at least 20"):
        tail_threshold(scores[:100], 1e-3)
    with pytest.raises(UserError, match="below 0.1"):
        tail_threshold(scores, 0.2)
    assert quantile_threshold(scores, 0.1)(scores).mean() == pytest.approx(0.1, abs=1e-3)
    for level in (0, 1, -1):
        with pytest.raises(UserError, match="between 0 and 1"):
            quantile_threshold(scores, level)


def test_discoveries_are_those_of_scipy():
    p = np.random.default_rng(0).beta(0.3, 1, 200)
    np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), stats.false_discovery_control(p) <= 0.1)
    assert not benjamini_hochberg(np.ones(5), 0.1).any()


# --- areas


def test_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    for scores in (rng.normal(size=300), rng.integers(0, 9, 300)):
        truth = rng.uniform(size=300) < 0.2
        np.testing.assert_allclose(roc_auc(scores, truth), roc_auc_score(truth, scores))
        np.testing.assert_allclose(average_precision(scores, truth), average_precision_score(truth, scores))
        found = curves(scores, truth)
        area = np.trapezoid(np.r_[0, found.recall], np.r_[0, found.false_positive_rate])
        np.testing.assert_allclose(area, roc_auc_score(truth, scores))


def test_the_bootstrap_covers_the_true_area():
    """Normal scores a deviation apart: the area is Phi(1 / sqrt 2)."""
    rng, covered, known = np.random.default_rng(0), 0, stats.norm.cdf(1 / np.sqrt(2))
    for _ in range(100):
        scores = np.r_[rng.normal(size=200), rng.normal(1, size=40)]
        low, high = rank(scores, np.arange(240) >= 200, draws=200).roc_auc_range
        covered += low <= known <= high
    assert 88 <= covered <= 100


# --- scores


@pytest.fixture(scope="module")
def vae():
    digits = load("digits")
    model = VAE(MLP((16,), 8), MLP((16,), digits.info.shape), Bernoulli(), 4)
    split = lambda name: Split(
        name, {n: a[:80] for n, a in digits[name].items()}, (scale(0, 1, 17),), training=digits["train"], levels=17
    )
    params, extra = model.init(jax.random.key(0), split("test").head(2))
    return Scored(model, State(jnp.int32(0), jax.random.key(0), params, (), extra), split("train"), None, raw), split


def test_scores_depend_on_the_example_alone(vae):
    scored, split = vae
    found = scorers(scored, ["nll", "typicality", "latent", "reconstruction", "features"])
    assert list(found) == ["nll", "typicality", "latent", "reconstruction", "features"]
    for name, scorer in found.items():
        whole, part = scorer(split("test")), scorer(split("test").part(30, 43))
        np.testing.assert_allclose(whole[30:43], part, rtol=1e-4, err_msg=name)
        assert whole.shape == (80,) and whole.dtype == np.float64
    assert "ratio" not in scorers(scored, ["ratio", "nll"]) and "discriminator" not in scorers(
        scored, ["discriminator"]
    )


def test_the_regret_of_a_decoder_that_ignores_its_code_is_the_divergence_from_the_prior():
    class Deaf:
        def encode(self, state, batch):
            return distrax.MultivariateNormalDiag(jnp.ones((len(batch["x"]), 2)), jnp.full((len(batch["x"]), 2), 0.5))

        def decode(self, state, z, condition=None):
            return distrax.Normal(jnp.zeros((len(z), 3)), 1.0)

        def prior_of(self, state):
            return distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))

    split = Split("test", {"x": np.ones((4, 3), np.float32)}, training={"x": np.ones((60, 3), np.float32)})
    regret = scorers(Scored(Deaf(), None, split), ["regret"])["regret"](split)
    known = Deaf().encode(None, {"x": jnp.ones((1, 3))}).kl_divergence(Deaf().prior_of(None))
    np.testing.assert_allclose(regret, float(known[0]), rtol=0.25)  # with 16 samples


def test_a_model_flags_by_itself_where_it_can():
    assert list(SCORES)[0] == "nll" and list(SCORES)[-1] == "size"


def test_the_likelihood_of_a_mixture_its_ratio_and_its_latent_features():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    split = Split("test", {"x": x[100:]}, training={"x": x[:100]})
    training = split._replace(arrays=split.training)
    states = [fit(em(GMM(k)), {"x": x[:100]}, steps=5) for k in (1, 2)]
    scored = Scored(GMM(1), states[0], training, (GMM(2), states[1]), raw)
    found = scorers(scored)
    assert list(found) == ["nll", "typicality", "ratio", "features"]
    log_probs = [np.asarray(GMM(k).log_prob(state, {"x": x[100:]})) for k, state in zip((1, 2), states)]
    np.testing.assert_allclose(found["nll"](split), -log_probs[0], rtol=1e-4)
    np.testing.assert_allclose(found["ratio"](split), log_probs[1] - log_probs[0], atol=1e-3)
    away = np.sort(np.linalg.norm(x[100:, None] - x[None, :100], axis=2), axis=1)[:, 4]
    np.testing.assert_allclose(found["features"](split), away, rtol=1e-5)


def test_complexity_is_in_bits_of_the_whole_numbers():
    """A density of 1 on dequantized images in [0, 1] is 8 bits a pixel, less those of the file."""

    class Uniform:
        def log_prob(self, state, batch):
            return jnp.zeros(len(batch["x"]))

        def sample(self, state, key, n, condition=None): ...

        def init(self, key, batch): ...

    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    x[0] = 7
    split = Split("test", {"x": x}, (dequantize(256),), training={"x": x}, levels=256)
    found = scorers(Scored(Uniform(), None, split), ["complexity", "size"])
    np.testing.assert_allclose(found["complexity"](split), 8 * 64 + found["size"](split))
    assert found["size"](split)[0] > found["size"](split)[1:].max()  # a constant image is a small file


# --- the estimator


def test_a_detector_flags_what_is_far_and_keeps_its_level():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(size=(400, 2)) * [1, 100], rng.normal(6, size=(400, 2)) * [1, 100]]
    detector = AnomalyDetector(level=0.05, random_state=0).fit(x)
    fresh = rng.normal(size=(4000, 2)) * [1, 100]
    assert 0.01 < np.mean(detector.predict(fresh) == -1) < 0.11
    assert detector.predict([[30.0, 0.0]])[0] == -1 and detector.p_values([[30.0, 0.0]])[0] == 1 / 201
    np.testing.assert_array_equal(detector.predict(fresh) == -1, detector.p_values(fresh) <= 0.05)
    np.testing.assert_array_equal(detector.anomaly_score(fresh), -detector.score_samples(fresh))
    assert np.shape(detector.predict_proba(fresh)) == (4000, 2) and set(detector.labels_) == {0, 1}
    assert detector.estimator_.n_components_ > 1
    gap = detector.anomaly_score([[np.nan, 0.0], [30.0, np.nan]])
    assert gap[1] > detector.threshold_.value > gap[0]
    with pytest.raises(ValueError, match="rows of NaN only"):
        detector.predict([[np.nan, np.nan]])


def test_a_detector_takes_any_density_and_says_what_it_lacks():
    x = np.random.default_rng(0).normal(size=(60, 2))
    theirs = AnomalyDetector(Theirs(1, random_state=0), threshold="quantile", level=0.1).fit(x)
    np.testing.assert_allclose(theirs.score_samples(x), Theirs(1, random_state=0).fit(x).score_samples(x), rtol=1e-6)
    assert np.mean(theirs.predict(x) == -1) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="at least 99 calibration examples"):
        AnomalyDetector(level=0.01).fit(x)
    with pytest.raises(ValueError, match="level must be"):
        AnomalyDetector(level=2).fit(x)
    with pytest.raises(ValueError, match="threshold must be one of"):
        AnomalyDetector(threshold="best").fit(x)


def test_the_number_of_components_by_held_out_likelihood():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-5, size=(150, 2)), rng.normal(5, size=(150, 2))]
    mixture = GaussianMixture([1, 2, 8], criterion="held_out", random_state=0).fit(x)
    assert mixture.n_components_ == 2 == min(mixture.criteria_, key=mixture.criteria_.get)
    alone = GaussianMixture(2, random_state=0).fit(x)
    np.testing.assert_allclose(mixture.lower_bound_, alone.lower_bound_, rtol=1e-3)
    with pytest.raises(ValueError, match="three quarters"):
        GaussianMixture([1, 9], criterion="held_out").fit(x[:10])


# --- tables and the command


def test_rows_are_read_with_the_columns_and_categories_of_the_run(tmp_path):
    (tmp_path / "train.csv").write_text("size,color,kind\n" + "1,red,a\n2,blue,a\n3,red,a\n4,blue,b\n" * 5)
    info = load(tmp_path / "train.csv", columns="size,color").info
    (tmp_path / "new.csv").write_text("color,size,kind\nred,5,b\n,6,a\n")
    arrays, truth = read_rows(tmp_path / "new.csv", info, "kind")
    red = info.categories[1].index("red")
    np.testing.assert_array_equal(arrays["x"], [[5, red], [6, np.nan]])
    assert truth.tolist() == ["b", "a"]
    (tmp_path / "new.csv").write_text("color,size\ngreen,5\n")
    with pytest.raises(UserError, match="'green'"):
        read_rows(tmp_path / "new.csv", info)
    (tmp_path / "new.csv").write_text("size\n5\n")
    with pytest.raises(UserError, match="no column 'color'"):
        read_rows(tmp_path / "new.csv", info)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gen_jax", "anomaly", *map(str, arguments)])
    main()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A mixture of the rows of a table, and rows with anomalies."""
    folder, rng = tmp_path_factory.mktemp("anomaly"), np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    np.savetxt(folder / "normal.csv", x, "%.5f", ",", header="a,b", comments="")
    far = rng.uniform(-8, 8, (40, 2))
    rows = np.c_[np.r_[x[:100], far], np.r_[np.zeros(100), np.ones(40)]]
    np.savetxt(folder / "rows.csv", rows, ["%.5f", "%.5f", "%d"], ",", header="a,b,kind", comments="")
    (folder / "unlabeled.csv").write_text("a,b,kind\n1,2,0\n1,2,\n")
    (folder / "gaps.csv").write_text("a,b\n1,2\n,2\n")
    (folder / "far.csv").write_text("a,b\n1,2\n1e30,2\n")
    options = ["--data", str(folder / "normal.csv"), "--steps", "10", "--workdir", str(folder / "run"), "--no-progress"]
    options += ["--devices", "1"]
    train("configs/mixture/gmm_blobs.py", options)
    return folder


def test_the_command_scores_a_table_with_labels(monkeypatch, workdir, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    options = ["--label", "kind", "--normal", "0", "--level", 0.05, "--out", out]
    run(monkeypatch, workdir / "run", "--data", workdir / "rows.csv", *options)
    said, rows = capsys.readouterr().out, np.genfromtxt(out, delimiter=",", names=True)
    assert len(rows) == 140 and {"row", "nll", "features", "p_value", "anomalous", "truth"} <= set(rows.dtype.names)
    assert rows["anomalous"][100:].mean() > 0.6 and rows["anomalous"][:100].mean() < 0.15
    found = json.loads(out.with_suffix(".json").read_text())
    np.testing.assert_allclose(found["areas"]["nll"]["roc_auc"], roc_auc_score(rows["truth"], rows["nll"]), atol=1e-6)
    assert "anomalies found" in said and "9 of 10 cases" in said
    for kind in ("scores", "curves", "boundary"):
        assert (tmp_path / f"scores_{kind}.png").stat().st_size > 5000


def test_the_command_without_labels_compares_with_the_test_split(monkeypatch, workdir, tmp_path, capsys):
    options = ["--data", workdir / "rows.csv", "--scores", "nll", "--level", 0.05]
    run(monkeypatch, workdir / "run", *options, "--out", tmp_path / "a.csv")
    assert "as a whole against the test split" in " ".join(capsys.readouterr().out.split())
    run(monkeypatch, workdir / "run", "--threshold", "quantile", "--scores", "nll", "--out", tmp_path / "b.csv")
    assert "optimistic" in capsys.readouterr().out and not (tmp_path / "b_curves.png").exists()


def test_rows_with_missing_cells_are_scored_by_the_others(monkeypatch, workdir, tmp_path):
    run(monkeypatch, workdir / "run", "--data", workdir / "gaps.csv", "--level", 0.05, "--out", tmp_path / "a.csv")
    rows = np.genfromtxt(tmp_path / "a.csv", delimiter=",", names=True)
    assert np.isfinite(rows["nll"]).all() and "features" not in rows.dtype.names and rows["nll"][1] < rows["nll"][0]


def test_a_row_out_of_all_range_is_flagged(monkeypatch, workdir, tmp_path):
    options = ["--data", workdir / "far.csv", "--scores", "nll", "--level", 0.05, "--out", tmp_path / "a.csv"]
    run(monkeypatch, workdir / "run", *options)
    assert np.genfromtxt(tmp_path / "a.csv", delimiter=",", names=True)["anomalous"].tolist() == [0, 1]
    assert json.loads((tmp_path / "a.json").read_text())["flagged"] == 1


@pytest.mark.parametrize(
    "options, said",
    [
        (["--level", "0"], "between 0 and 1"),
        (["--level", "1"], "between 0 and 1"),
        (["--level", "0.0001"], "at least 9,999 calibration"),
        (["--scores", "luck"], "--scores luck"),
        (["--scores", "regret"], "has no score 'regret'"),
        (["--scores", "ratio"], "without --background"),
        (["--label", "kind"], "needs --normal"),
        (["--normal", "0"], "do not have"),
        (["--data", "rows.csv", "--label", "sort", "--normal", "0"], "no column 'sort'"),
        (["--data", "rows.csv", "--label", "kind", "--normal", "7"], "--normal 7"),
        (["--data", "digits"], "those of the run are"),
        (["--data", "rows.csv", "--out", "rows.csv"], "would be lost"),
        (["--data", "unlabeled.csv", "--label", "kind", "--normal", "0"], "row 2 has no 'kind'"),
        (["--data", "gaps.csv", "--scores", "features"], "not defined where cells are missing"),
        (["--data", "rows.csv", "--normal", "0"], "--normal needs --label"),
        (["--data", "rows.csv", "--split", "train"], "all rows of a table"),
        (["--scores", "size"], "it has nll, typicality, features"),
        (["--out", "scores.txt"], "the ending must be"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, workdir, options, said):
    monkeypatch.chdir(workdir)
    before = set(workdir.iterdir())
    with pytest.raises(UserError, match=said):
        run(monkeypatch, "run", *(["--level", "0.05"] if "--level" not in options else []), *options)
    assert set(workdir.iterdir()) == before
