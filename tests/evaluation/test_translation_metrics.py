"""Metrics of image translation against independent implementations, and what needs no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from gen_jax.data import load
from gen_jax.data.transforms import on, scale
from gen_jax.errors import UserError
from gen_jax.evaluation import paired_quality, segmentation_quality, unpaired_quality
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.features import raw
from gen_jax.evaluation.translation import partners_found, psnr, ssim
from gen_jax.evaluation.translation.images import diagnose
from gen_jax.evaluation.translation.paired import feature_distances, floors
from gen_jax.evaluation.translation.segmentation import segmentation_scores, segmenter

BOTH = (scale(-1, 1), on("y", scale(-1, 1)))


def plain_ssim(a, b):
    """Wang et al. 2004 in double precision: scikit-image's settings gaussian_weights, sigma=1.5, population moments."""
    blur = lambda x: gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return found[5:-5, 5:-5].mean()


def test_ssim_and_psnr_equal_plain_implementations():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=(3, 20, 17, 3))
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), 0, 1)
    np.testing.assert_allclose(ssim(a, b), [plain_ssim(x, y) for x, y in zip(a, b)], atol=1e-5)
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)
    np.testing.assert_allclose(psnr(a, b), [-10 * np.log10(np.mean((x - y) ** 2)) for x, y in zip(a, b)], rtol=1e-5)
    assert np.all(np.asarray(psnr(a, a)) == 99)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(a[:, :8], b[:, :8])


def test_retrieval_counts_true_partners():
    truth = np.eye(4).reshape(4, 2, 2, 1)
    made = truth[[0, 1, 3, 3]]
    np.testing.assert_array_equal(partners_found(made, truth), [True, True, False, True])


class Always:
    """Translates by a function."""

    def __init__(self, f, directions=("a2b",)):
        self.f, self.directions = f, directions

    def translate(self, state, images, direction="a2b", key=None, own=False):
        return self.f(images, direction)


@pytest.fixture(scope="module")
def pairs():
    data = load("outlines")
    arrays = {split: {n: a[:60] for n, a in data[split].items()} for split in ("train", "test")}
    return Split("test", arrays["test"], BOTH, training=arrays["train"], levels=256, info=data.info)


def test_floors_are_what_they_say(pairs):
    found = floors(pairs, 1)
    x, y = (np.asarray(pairs.training[e], np.float32) / 255 for e in ("x", "y"))
    np.testing.assert_allclose(found["copy"], np.asarray(pairs.arrays["x"]) / 255, atol=1e-6)
    np.testing.assert_allclose(found["mean_image"][3], y.mean(axis=0), atol=1e-6)
    line = np.asarray(pairs.arrays["x"]) == 255
    np.testing.assert_allclose(found["colors"], np.where(line, y[x == 1].mean(), y[x == 0].mean()), atol=1e-5)
    gray = pairs._replace(arrays={"x": pairs.arrays["y"], "y": pairs.arrays["x"]})
    gray = gray._replace(training={"x": pairs.training["y"], "y": pairs.training["x"]})
    assert "colors" not in floors(gray, 1)
    own = pairs._replace(arrays=pairs.training)
    np.testing.assert_allclose(floors(own, 1)["nearest"], y, atol=1e-6)


def test_the_truth_and_a_copy_are_scored_as_they_should_be(pairs):
    truth = jnp.asarray(pairs.arrays["y"], jnp.float32) / 127.5 - 1
    x = np.asarray(pairs.arrays["x"], np.float32) / 127.5 - 1

    def known(images, direction):  # the truth of each source
        place = jnp.argmin(((images[:, None] - x[None]) ** 2).sum(axis=(2, 3, 4)), axis=1)
        return truth[place]

    found = paired_quality()(Always(known))(None, pairs, jax.random.key(0))
    assert found["l1"].value < 1e-6 and found["psnr"].value == 99 and found["ssim"].value > 0.9999
    copied = paired_quality()(Always(lambda images, direction: images))(None, pairs, jax.random.key(0))
    for name in ("l1", "ssim", "psnr", "kernel_distance"):
        suffix = "@raw" if name == "kernel_distance" else ""
        np.testing.assert_allclose(copied[name + suffix].value, copied[f"{name}_of_copy{suffix}"].value, rtol=1e-4)
    assert copied["changed"].value < 1e-6 and copied["diversity"].value == 0


def test_known_inverses_have_no_cycle_error_and_find_their_partners():
    data = load("twins?pairing=unpaired")
    part = lambda one: Split(
        "test",
        {n: a[:40] for n, a in one["test"].items()},
        (scale(-1, 1),),
        training={n: a[:40] for n, a in one["train"].items()},
        levels=256,
        info=one.info,
    )
    split = part(data)._replace(partner=part(data.partner))
    x, y = (np.asarray(one.arrays["x"], np.float32) / 127.5 - 1 for one in (split, split.partner))

    def known(images, direction):
        a, b = (x, y) if direction == "a2b" else (y, x)
        place = jnp.argmin(((images[:, None] - a[None]) ** 2).sum(axis=(2, 3, 4)), axis=1)
        return jnp.asarray(b)[place]

    found = unpaired_quality(adapted=0)(Always(known, ("a2b", "b2a")))(None, split, jax.random.key(0))
    for side in ("a2b", "b2a"):
        assert found[f"{side}_l1"].value < 1e-6 and found[f"{side}_retrieval"].value == 1
        assert found[f"{side}_cycle"].value < 1e-6 and found[f"{side}_cycle_noisy"].value < 1e-6
        assert found[f"{side}_retrieval_of_copy"].value < 0.5
    hidden = Always(lambda images, direction: images, ("a2b", "b2a"))
    found = unpaired_quality(adapted=0)(hidden)(None, split, jax.random.key(0))
    assert found["a2b_changed"].value < 1e-6 and found["a2b_cycle_noisy"].value > found["a2b_cycle"].value
    assert "equals input" in found["a2b_changed"].how and found["a2b_correlation"].value > 0.99


def test_failures_are_named():
    rng = np.random.default_rng(0)
    source, real = rng.uniform(size=(2, 20, 12, 12, 1)).astype(np.float32)
    found = diagnose(1 - source, source, real)
    assert "exchanged" in found["correlation"].how and found["correlation"].value < -0.99
    assert 0.8 < found["spread"].value < 1.2 and not found["spread"].how and not found["changed"].how
    found = diagnose(np.broadcast_to(source[:1], source.shape), source, real)
    assert "collapsed" in found["spread"].how
    assert "changed" not in diagnose(real, None, real)


def test_segmentation_scores_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    found, maps = rng.integers(0, 4, (2, 3, 5, 5))
    maps[maps == 2] = 0  # a class that does not occur
    scores = segmentation_scores(found, maps, 4)
    classes = [c for c in range(4) if (maps == c).any()]
    accuracy = [np.mean(found[maps == c] == c) for c in classes]
    iou = [np.sum((found == c) & (maps == c)) / np.sum((found == c) | (maps == c)) for c in classes]
    np.testing.assert_allclose([scores["class_accuracy"], scores["iou"]], [np.mean(accuracy), np.mean(iou)])
    assert scores["pixel_accuracy"] == np.mean(found == maps)


def test_classes_are_read_back_from_images_that_show_them(pairs):
    """Outlines as two classes: a translation that is the source itself shows them, a constant one does not."""
    split = pairs._replace(arrays={**pairs.arrays, "y": pairs.arrays["x"]}, training=None)
    split = split._replace(training=split.arrays)
    quality = segmentation_quality(steps=80, features=4, depth=2)
    good = quality(Always(lambda images, direction: images))(None, split, jax.random.key(0))
    bad = quality(Always(lambda images, direction: 0 * images))(None, split, jax.random.key(0))
    assert good["iou"].value == good["iou_of_real"].value > 0.7 > 0.6 > bad["iou"].value
    made = segmenter(split, steps=80, features=4, depth=2)(np.asarray(pairs.arrays["y"], np.float32) / 255)
    assert made.features.shape == (len(pairs.arrays["y"]), 2 * 8) and made.probabilities is None
    many = split._replace(training={"x": np.asarray(pairs.arrays["y"]), "y": np.asarray(pairs.arrays["y"])})
    with pytest.raises(UserError, match="no maps of classes"):
        quality(Always(None))(None, many, jax.random.key(0))


def test_what_each_metric_needs(pairs):
    with pytest.raises(UserError, match="unpaired_quality needs two domains"):
        unpaired_quality()(Always(None))(None, pairs, jax.random.key(0))
    alone = pairs._replace(arrays={"x": pairs.arrays["x"]})
    with pytest.raises(UserError, match='needs pairs with the entry "y"'):
        paired_quality()(Always(None))(None, alone, jax.random.key(0))
    with pytest.raises(UserError, match="ImageTranslator"):
        paired_quality()(object())


def test_a_single_image_has_no_distribution():
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    assert feature_distances(raw, images[:1], {"": images}, frechet=True) == {}
    assert list(feature_distances(raw, images, {"": images[:1], "_of_copy": images}, frechet=False)) == [
        "kernel_distance_of_copy@raw"
    ]
