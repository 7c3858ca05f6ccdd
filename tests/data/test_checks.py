"""What enters training and evaluation: one form of arrays, and errors for what cannot be right."""

import numpy as np
import optax
import pytest

from gen_jax import GMM, Resident, descent, em, fit, load
from gen_jax.data.checks import as_arrays, check_arrays
from gen_jax.data.dataset import Dataset
from gen_jax.data.transforms import binarize, dequantize, on, scale
from gen_jax.errors import UserError
from gen_jax.experiment import Experiment

X = np.random.default_rng(0).normal(size=(40, 2))
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    "x",
    [X.tolist(), X.astype(">f8"), X.astype(np.longdouble), X.astype(">f4"), tuple(map(tuple, X))],
    ids=["list", "big-endian", "longdouble", "big-endian float32", "tuples"],
)
def test_arrays_of_every_form_train_alike(x):
    means = lambda data: fit(em(GMM(2)), data, steps=3).params["gmm"]["means"]
    np.testing.assert_allclose(means({"x": x}), means({"x": X}), rtol=1e-5)
    assert as_arrays({"x": x})["x"].dtype.isnative


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"x": X, "label": None}, '"label" is None: leave'),
        ({"x": X, "label": np.zeros((40, 1), int)}, r"labels\[:, 0\]"),
        ({"x": X, "label": np.eye(40)}, "argmax"),
        ({"x": X, "label": np.zeros(40)}, "holds floats"),
        ({"x": X, "label": np.full(40, -1)}, "numbered from 0"),
        ({"x": X, "label": np.where(np.arange(40) % 2, 7, 100_010)}, "100011 classes"),
        ({"x": [[1.0], [1.0, 2.0]]}, "different shapes"),
        ({"x": X, "weight": 3.0}, "single number"),
        ({"x": X, "weight": -np.ones(40)}, "goes down to -1"),
        ({"x": X, "weight": np.zeros(40)}, "is 0 everywhere"),
        ({"x": X, "weight": np.ones((40, 2))}, "one number per example"),
        ({"x": np.array(["a", "b"])}, "numbers are needed"),
        ({"x": X, "label": np.zeros(39, int)}, "differ in length"),
        ({"x": np.full((40, 2), np.nan)}, "NaN"),
    ],
)
def test_entries_that_cannot_be_right_are_refused(arrays, said):
    with pytest.raises(UserError, match=said):
        fit(em(GMM(2)), arrays, steps=1)


@pytest.mark.parametrize(
    "x, transform, said",
    [
        (IMAGES / 255, scale(), "floats from 0 to 1"),
        ((IMAGES > 127).astype(np.uint8), scale(), "no value above 1"),
        ((IMAGES > 127).astype(float), dequantize(), "no value above 1"),
        (IMAGES, dequantize(17), "values from 0 to 255"),
        (IMAGES.astype(int) - 1, binarize(), "values from -1 to 254"),
    ],
)
def test_values_that_a_transform_does_not_take_are_refused(x, transform, said):
    with pytest.raises(UserError, match=said):
        Resident({"x": x}, batch=4, transforms=(transform,)).check()
    with pytest.raises(UserError, match=said):
        Resident({"x": X, "y": x}, batch=4, transforms=(on("y", transform),)).check()


def test_values_that_a_transform_takes_pass():
    for x, transform in (
        (IMAGES, scale()),
        (IMAGES.astype(float), dequantize()),
        ((IMAGES > 127).astype(int), scale(levels=2)),
        (load("digits")["train"]["x"], scale(levels=17)),
        (np.zeros((4, 3), int), binarize()),
    ):
        check_arrays({"x": x}, 2, transforms=(transform,))
    check_arrays({"x": X, "label": np.arange(40) % 2 == 0}, 2)
    check_arrays({"x": X, "label": np.where(np.arange(40) % 2, 3, 7)}, 2)  # part of the classes


@pytest.mark.parametrize("split", ["validation", "test"])
def test_splits_for_evaluation_are_checked_before_training(split, tmp_path):
    from gen_jax.configs import load as load_config
    from gen_jax.run import Run

    (tmp_path / "own.py").write_text(
        "import numpy as np, optax\n"
        "from gen_jax import GMM, Experiment, descent\n"
        "from gen_jax.data.dataset import Dataset\n"
        "def config(steps: int = 2, smoke: bool = False):\n"
        "    x = np.random.default_rng(0).normal(size=(60, 2))\n"
        "    bad = x.copy(); bad[3, 1] = np.nan\n"
        f"    splits = dict(train=dict(x=x), validation=dict(x=x), test=dict(x=x)) | {{{split!r}: dict(x=bad)}}\n"
        "    algorithm, data = descent(GMM(2), optax.sgd(0.1)), Dataset('own', splits)\n"
        "    return Experiment(GMM(2), algorithm, data=data, steps=steps, batch=8)\n"
    )
    with pytest.raises(UserError, match=rf"own \[{split}\]: \"x\" has 1 NaN"):
        Run.prepare(load_config(tmp_path / "own.py"), tmp_path / "run")


def test_an_experiment_checks_what_its_transforms_take():
    data = Dataset("own", {"train": {"x": IMAGES / 255}, "test": {"x": IMAGES / 255}})
    one = Experiment(GMM(2), descent(GMM(2), optax.sgd(0.1)), data=data, steps=1, batch=4, transforms=[scale()])
    with pytest.raises(UserError, match="floats"):
        one.source(data).check()
