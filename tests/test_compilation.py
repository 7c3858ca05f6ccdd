"""Functions that the next process neither traces nor compiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.compilation import Kept
from gen_jax.estimators import BayesianGaussianMixture, CategoricalHMM, GaussianHMM, GaussianMixture
from gen_jax.models.mixture import GMM, kmeans, kmeans_plus_plus, random_from_data

TRACED = []
SETTING = GMM(2, floor=2.0, start=kmeans)


def scaled(setting, times, x, more):
    TRACED.append(setting)
    return {"y": setting.floor * times * x, "more": None if more is None else more["a"] + 1}


@pytest.fixture
def fresh(tmp_path):
    """Makes the function as a new process has it, on an empty folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    TRACED.clear()
    yield lambda: Kept(scaled, 2)
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_new_process_does_not_trace(fresh):
    x, setting = jnp.arange(3.0), SETTING
    for _ in range(2):
        function = fresh()
        for _ in range(2):
            np.testing.assert_array_equal(function(setting, 3, x, {"a": x})["y"], 6 * x)
            np.testing.assert_array_equal(function(setting, 3, x, {"a": x})["more"], x + 1)
    assert len(TRACED) == 1


@pytest.mark.parametrize("other", ["static", "number", "shape", "dtype", "structure", "x64", "precision"])
def test_what_differs_is_traced_anew(fresh, other):
    x, setting, times, more = np.arange(3, dtype=np.float32), SETTING, 3, None
    fresh()(setting, times, x, more)
    if other == "static":
        setting = GMM(2, floor=2.0, start=random_from_data)
    if other == "number":
        times = 4
    if other == "shape":
        x = x[:2]
    if other == "dtype":
        x = x.astype(np.int32)
    if other == "structure":
        more = {"a": x}
    with jax.enable_x64(other == "x64"), jax.default_matmul_precision("highest" if other == "precision" else None):
        np.testing.assert_array_equal(fresh()(setting, times, x, more)["y"], 2 * times * x)
    assert len(TRACED) == 2


def test_what_is_not_of_the_package_is_jitted(fresh, tmp_path):
    x, setting = jnp.arange(3.0), GMM(2, floor=2.0, start=lambda *a: kmeans_plus_plus(*a))
    np.testing.assert_array_equal(fresh()(setting, 3, x, None)["y"], 6 * x)
    np.testing.assert_array_equal(jax.jit(partial(fresh(), SETTING, 3))(x, None)["y"], 6 * x)
    assert not list(tmp_path.glob("lowered/*"))


def test_a_file_that_cannot_be_read_is_replaced(fresh, tmp_path):
    x, setting = jnp.arange(3.0), SETTING
    fresh()(setting, 3, x, None)
    (file,) = tmp_path.glob("lowered/*")
    file.write_bytes(b"not a function")
    np.testing.assert_array_equal(fresh()(setting, 3, x, None)["y"], 6 * x)
    fresh()(setting, 3, x, None)
    assert len(TRACED) == 2


@pytest.mark.parametrize(
    "make", [GaussianMixture, BayesianGaussianMixture, GaussianHMM, CategoricalHMM], ids=lambda c: c.__name__
)
def test_fits_of_estimators_are_kept(fresh, tmp_path, make):
    x = np.random.default_rng(0).integers(3, size=(40, 1))
    make(n_components=2).fit(x)
    assert len(list(tmp_path.glob("lowered/*"))) == 1
