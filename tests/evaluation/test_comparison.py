"""The suite of metrics, and tables of models beside each other."""

import csv
import html.parser
import io
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gen_jax.data import load
from gen_jax.data.transforms import dequantize, scale, stack_images
from gen_jax.errors import UserError
from gen_jax.evaluation import (
    class_coverage,
    cost,
    importance_weighted,
    log_likelihood_per_step,
    sample_quality,
    stability,
    suite,
    train_on_synthetic,
)
from gen_jax.evaluation.comparison import Comparison, Row, tightest
from gen_jax.evaluation.metric import Estimate, Split, rounded
from gen_jax.evaluation.samples.features import EncoderOutput, raw, small
from gen_jax.evaluation.samples.quality import examples_of, quality
from gen_jax.evaluation.suite import open_encoder
from gen_jax.models.common.conditioning import ClassLabels
from gen_jax.models.mixture import GMM
from gen_jax.models.vae import VAE
from gen_jax.plots import show


def digits(*transforms):
    data = load("digits")
    return Split("test", data["test"], transforms, training=data["train"], data="digits")


class Fixed(NamedTuple):
    """A model whose samples are given."""

    x: jnp.ndarray
    conditioning: ClassLabels | None = None
    label: jnp.ndarray | None = None

    def sample(self, state, key, n, condition=None):
        if condition is None:
            return {"x": jnp.asarray(self.x)[jax.random.randint(key, (n,), 0, len(self.x))]}
        of_class = (self.label == condition["label"][:, None]) * 1.0
        return {"x": self.x[jax.random.categorical(key, jnp.log(of_class))]}


@pytest.fixture(scope="module")
def samples():
    split = digits(scale(0, 1, 17))
    x, label = split.pixels(split.reference.head(2000)["x"]), np.asarray(split.training["label"])
    noise = np.random.default_rng(0).uniform(size=x.shape).astype(np.float32)
    return split, {"real": x, "ones": x[label == 1], "noise": noise}


# --- sample quality


def test_sample_quality_tells_copies_collapse_and_noise(samples):
    split, sets = samples
    found = {name: sample_quality(samples=1000)(Fixed(x))(None, split, jax.random.key(0)) for name, x in sets.items()}
    value = lambda name, metric: found[name][f"{metric}@digits_cnn"].value
    assert value("real", "frechet_distance") * 10 < min(value(n, "frechet_distance") for n in ("ones", "noise"))
    assert value("real", "kernel_distance") * 10 < min(value(n, "kernel_distance") for n in ("ones", "noise"))
    assert value("real", "inception_score") > 9 > 2 > value("ones", "inception_score")
    assert value("ones", "precision") > 0.9 and value("noise", "precision") < 0.3
    assert value("ones", "coverage") < 0.2 and value("noise", "coverage") < 0.1 < 0.4 < value("real", "coverage")
    assert value("real", "memorized") > 0.9 and value("real", "nearest_ratio") < 0.01
    assert value("noise", "memorized") < 0.05
    for e in found["real"].values():
        assert "small CNN, accuracy 0.99" in e.how and e.kind == "estimate" and e.n <= 1000


def test_sample_quality_has_a_seed_and_counts_every_sample(samples):
    split, sets = samples
    measure = sample_quality(raw, samples=1400, splits=5)(Fixed(sets["real"]))
    first, again, other = (measure(None, split, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again and first != other
    assert first["frechet_distance@raw"].n == 1400  # the last block of 500 in part


def test_too_few_samples_are_said():
    rng = np.random.default_rng(0)
    split = Split("test", {"x": rng.normal(size=(30, 50))}, training={"x": rng.normal(size=(40, 50))})
    found = quality(raw, EncoderOutput(rng.normal(size=(35, 50)).astype(np.float32)), split)
    assert "too few for 50 features: singular covariance" in found["frechet_distance@raw"].how
    assert "biased upward" in found["frechet_distance@raw"].how and math.isnan(found["frechet_infinity@raw"].value)
    many = quality(raw, EncoderOutput(rng.normal(size=(1000, 50))), split)
    assert "bias about" in many["frechet_distance@raw"].how
    assert many["frechet_infinity@raw"].value < many["frechet_distance@raw"].value
    with pytest.raises(UserError, match="at least two samples"):
        quality(raw, EncoderOutput(rng.normal(size=(1, 50))), split)
    with pytest.raises(UserError, match="without the training examples"):
        quality(raw, EncoderOutput(rng.normal(size=(9, 50))), split._replace(training=None))


# --- classes


def test_class_coverage_tells_diverse_from_collapsed_and_sharp_from_noise(samples):
    split, sets = samples
    found = {name: class_coverage(samples=1000)(Fixed(x))(None, split, jax.random.key(1)) for name, x in sets.items()}
    value = lambda name, metric: found[name][metric].value
    assert value("real", "classes") == 10 and value("real", "class_kl") < 0.02 and value("real", "confidence") > 0.95
    assert value("ones", "classes") <= 2 and value("ones", "class_kl") > 2
    assert value("noise", "confidence") < 0.9


def test_class_coverage_counts_the_numbers_of_stacked_digits(samples):
    split, sets = samples
    x = sets["real"][:999]
    triples = np.concatenate([x, np.roll(x, 1, axis=0), np.roll(x, 2, axis=0)], axis=-1)
    stack = split._replace(transforms=(scale(0, 1, 17), stack_images(3)))
    found = class_coverage(samples=1000)(Fixed(jnp.asarray(triples)))(None, stack, jax.random.key(0))
    assert found["classes"].unit == "of 1000" and 300 < found["classes"].value < 1000


@pytest.mark.slow
@pytest.mark.optimized
def test_what_samples_teach(samples):
    split, sets = samples
    label = jnp.asarray(split.training["label"])
    right = Fixed(jnp.asarray(sets["real"]), ClassLabels(10), label)
    wrong = right._replace(label=(label + 1) % 10)
    metric = train_on_synthetic(1000, seeds=2, steps=300)
    good, bad = (metric(m)(None, split, jax.random.key(0)) for m in (right, wrong))
    value = lambda found, name: found[name].value
    assert value(good, "train_on_synthetic") > 0.93 and value(bad, "train_on_synthetic") < 0.1
    assert value(good, "test_on_synthetic") > 0.95 and value(bad, "test_on_synthetic") < 0.1
    assert value(good, "train_on_real") > 0.93 and value(good, "worst_recall") > 0.7 > value(bad, "worst_recall")
    assert 0.3 < value(bad, "train_on_both") < value(good, "train_on_both")


# --- sequences


class Coin:
    def log_prob(self, state, batch):
        return -math.log(4) * batch["length"].astype(jnp.float32)


def test_symbols_have_perplexity_and_bits_per_character():
    arrays = {"x": np.zeros((3, 9), np.int32), "length": np.array([2, 9, 4])}
    found = log_likelihood_per_step(Coin())(None, Split("test", arrays), jax.random.key(0))
    assert found["perplexity"].value == pytest.approx(4) and found["bits_per_character"].value == pytest.approx(2)
    arrays["x"] = np.zeros((3, 9, 5), np.float32)
    assert set(log_likelihood_per_step(Coin())(None, Split("test", arrays), jax.random.key(0))) == {
        "log_likelihood_per_step"
    }


# --- the suite


class Unnormalized:
    """Has weights, but of its own samples."""

    def log_weights(self, params, key):
        raise NotImplementedError


def names(metrics):
    return [metric.__name__ for metric in metrics]


def test_the_suite_is_what_applies():
    images, points = digits(scale(0, 1, 17)), load("blobs")
    points = Split("test", points["test"], training=points["train"])
    sequences = Split("test", {"x": np.zeros((4, 5, 2)), "length": np.full(4, 5)})
    assert names(suite(GMM(3), points)) == ["log_likelihood", "sample_quality", "cost"]
    assert names(suite(GMM(3), sequences)) == ["log_likelihood", "log_likelihood_per_step", "cost"]
    gan = names(suite(Fixed(jnp.zeros((1, 8, 8, 1)), ClassLabels(10)), images))
    assert gan == ["undefined", "sample_quality", "class_coverage", "train_on_synthetic", "cost"]
    assert names(suite(VAE, images))[:3] == ["elbo", "iwae_50", "sample_quality"]
    mine = class_coverage(10, 7)  # of a config: with other samples than asked for
    again = suite(Fixed(jnp.zeros((1, 8, 8, 1))), images, (mine, stability))
    assert names(again).count("class_coverage") == 1 and mine not in again and stability in again
    assert "iwae_50" not in names(suite(VAE, images, (importance_weighted(5),)))
    assert names(suite(Unnormalized(), points))[0] == "undefined"
    found = suite(Fixed(jnp.zeros(1)), images)[0](Fixed(1))(None, images, None)["log_likelihood"]
    assert found.kind == "undefined" and "Fixed has no density" in found.how


def test_cost_counts_parameters_and_times_samples():
    class OfState(NamedTuple):
        params: dict

    found = cost(Fixed(jnp.zeros((4, 2))))(OfState({"a": np.zeros((3, 4)), "b": np.zeros(2)}), None, jax.random.key(0))
    assert found["parameters"].value == 14 and found["samples_per_second"].value > 0


def test_encoders_of_the_command_line():
    assert open_encoder("") is None and open_encoder("raw") is raw and open_encoder("small") is small
    with pytest.raises(UserError, match="small, raw, projected, or a file"):
        open_encoder("nowhere")


# --- tables


QUALITY = ("sample quality", "lower", True)  # group, better, headline


def shown(estimate):
    """As `tightest` files it."""
    return estimate._replace(group="likelihood", better="lower" if "bits" in estimate.unit else "higher")


def exact(value, unit="nats", kind="exact", how="", error=0.01):
    return Estimate(value, error, unit, kind, 100, how)


def comparison():
    fd = lambda v: {
        "frechet_distance@raw": Estimate(v, 0.1, "features^2", "estimate", 9, "against 5 examples", *QUALITY)
    }
    nothing = Estimate(math.nan, math.nan, "nats", "undefined", 0, "GAN has no density")
    rows = [
        Row("(test examples)", "data", fd(0.5), competes=False),
        Row("flow<1>", "Flow", {"log_likelihood_bits_per_dim": exact(2.5, "bits/dim"), **fd(3.0)}),
        Row("vae|2", "VAE", {"elbo_bits_per_dim": exact(2.1, "bits/dim", "bound"), **fd(2.0)}),
        Row(
            "gan",
            "GAN",
            {
                "log_likelihood": nothing,
                **fd(9.0),
                "parameters": exact(12345, "", error=math.nan)._replace(group="speed and cost", better="lower"),
            },
        ),
    ]
    return Comparison("digits", "test", rows)


def test_a_bound_does_not_beat_an_exact_number():
    groups = comparison().groups()
    (likelihood,) = groups["likelihood"]
    assert likelihood.name == "likelihood (bits/dim)" and likelihood.best is None
    assert [likelihood.text(i) for i in range(4)] == ["", "= 2.500 ± 0.010", "≤ 2.100 ± 0.010", "undefined"]
    (distance,) = groups["sample quality"]
    assert distance.best == 2  # data does not compete
    assert groups["speed and cost"][0].text(3) == "12,345" and groups["speed and cost"][0].text(0) == ""


def test_numbers_of_different_units_or_protocols_have_columns_of_their_own():
    rows = [
        Row("a", "A", {"elbo": exact(-90.0, kind="bound", how="statically binarized")}),
        Row("b", "B", {"elbo": exact(-99.0, kind="bound", how="stochastically binarized")}),
        Row("c", "C", {"elbo": exact(-98.0, kind="bound", how="stochastically binarized")}),
    ]
    columns = Comparison("mnist", "test", rows).groups()["likelihood"]
    assert [c.name for c in columns] == [f"likelihood (nats, {p} binarized)" for p in ("statically", "stochastically")]
    assert columns[0].best is None and columns[1].best == 2 and columns[1].text(2) == "≥ -98.000 ± 0.010"


def test_bounds_of_unlike_kinds_and_metrics_of_unlike_numbers_are_not_ranked():
    bits = lambda value, how: {"elbo_bits_per_dim": exact(value, "bits/dim", "bound", how)}
    of = lambda *found: Comparison("d", "test", [Row(str(i), "M", f) for i, f in enumerate(found)]).groups()
    (one,) = of(bits(2.0, "50 samples"), bits(2.1, ""), bits(2.2, "dequantized"))["likelihood"]
    assert one.best is None
    (one,) = of(bits(2.0, "50 samples"), bits(2.1, "50 samples"))["likelihood"]
    assert one.best == 0
    embed, untold = of(bits(1.9, "given label"), bits(2.0, ""))["likelihood"]
    assert embed.name == "likelihood (bits/dim, given label)" and untold.best is None
    quality = lambda value, how: {
        "frechet_distance@raw": Estimate(value, 0.1, "features^2", "estimate", 9, how, *QUALITY)
    }
    made = of(quality(2.0, "10 against 5, bias about 1"), quality(3.0, "10 against 5, bias about 2"))
    (one,) = made["sample quality"]
    assert one.best == 0
    assert one.note == "10 against 5"
    (one,) = of(quality(2.0, "10 against 5, of a"), quality(3.0, "20 against 5, of a"))["sample quality"]
    assert one.best is None and one.note == "of a; 10 against 5 | 20 against 5"
    (one,) = of(quality(2.0, ""), quality(2.2, ""))["sample quality"]
    assert one.best is None  # within two standard errors
    unknown = {name: e._replace(error=math.nan) for name, e in quality(9.0, "").items()}
    (one,) = of(quality(2.0, ""), unknown)["sample quality"]
    assert one.best is None  # whose error is not known


@pytest.mark.parametrize(
    "value, error, said",
    [
        (-0.34321, 0.0262, ("-0.34", "0.03")),
        (2.0171, 0.0149, ("2.017", "0.015")),
        (1234.5, 12.3, ("1,234", "12")),
        (1234.5, 345.0, ("1,200", "300")),
        (0.0000123, 0.0000041, ("0.000012", "0.000004")),
        (3e-9, 2e-10, ("3.0e-09", "2e-10")),
        (12.3456789, 1e-8, ("1.2345678900e+01", "1.0e-08")),
        (-0.004, 0.3, ("0.0", "0.3")),
        (-0.3, 300.0, ("0", "300")),
        (5.0, 0.0999, ("5.0", "0.1")),
        (999.96, 0.05, ("999.96", "0.05")),
        (1e30, math.nan, ("1e+30", "")),
        (1e30, 1e28, ("1.000e+30", "1.0e+28")),
        (1.0, -1.0, ("1", "")),
        (0.0, 1e-9, ("0", "1.0e-09")),
        (0.00012346, math.nan, ("0.0001235", "")),
        (12_345.6, math.nan, ("12,346", "")),
        (10.0, 0.0, ("10", "0")),
        (math.nan, 1.0, ("", "")),
        (-math.inf, math.nan, ("-inf", "")),
    ],
)
def test_numbers_are_rounded_to_their_errors(value, error, said):
    assert rounded(value, error) == said


def test_the_tightest_bound_is_shown():
    found = {
        "elbo": exact(-100.0, kind="bound"),
        "iwae_50": exact(-97.0, kind="bound", how="50 samples"),
        "iwae_5": exact(-98.0, kind="bound", how="5 samples"),
    }
    assert tightest(found) == {"likelihood (nats)": shown(found["iwae_50"])}
    assert tightest({**found, "log_likelihood": exact(-120.0)})["likelihood (nats)"].kind == "exact"
    assert tightest({"log_likelihood_per_step": exact(-3.0, "nats/step"), "log_likelihood": exact(-300.0)}) == {
        "likelihood (nats/step)": shown(exact(-3.0, "nats/step"))
    }


def test_reports_hold_all_of_it(tmp_path):
    made = comparison()
    made = Comparison(
        made.data,
        made.split,
        [*made.rows[:3], Row("gan", "GAN", made.rows[3].found, {"s": show({"s": np.arange(8.0).reshape(4, 2)})})],
    )
    paths = made.write(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "new" / "compare.csv").read_text())))
    assert len(lines) == 8 and lines[1]["model"] == "flow<1>" and float(lines[1]["value"]) == 2.5
    rows = json.loads((tmp_path / "new" / "compare.json").read_text())["rows"]
    assert (
        rows[3]["found"]["log_likelihood"]["kind"] == "undefined"
        and rows[3]["found"]["log_likelihood"]["value"] is None
    )
    text = (tmp_path / "new" / "compare.md").read_text()
    assert "| vae\\|2 | **2.00 ± 0.10** |" in text and "against 5 examples" in text
    page = (tmp_path / "new" / "compare.html").read_text()
    assert "flow&lt;1&gt;" in page and "data:image/png;base64,iVBOR" in page and "http" not in page

    class Balanced(html.parser.HTMLParser):
        open_tags = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    Balanced().feed(page)
    assert not Balanced.open_tags
    console = Console(file=io.StringIO(), width=160)
    for table in made.tables():
        console.print(table)
    assert "flow<1>" in console.file.getvalue()


def test_the_test_split_in_the_place_of_samples_is_near_the_data(samples):
    split, _ = samples
    found = quality(small(split), small(split)(examples_of(split, 1000)), split)
    assert found["memorized@digits_cnn"].value == pytest.approx(0.01, abs=0.01)
    assert found["nearest_ratio@digits_cnn"].value == pytest.approx(1)
    assert examples_of(digits(dequantize(17)), 5).max() <= 1


def test_a_comparison_comes_back_from_its_record(tmp_path):
    made = comparison()
    made.write(tmp_path)
    again = Comparison.of(json.loads((tmp_path / "compare.json").read_text()))
    assert again.markdown() == made.markdown() and "frechet_distance@raw" in again.short()
