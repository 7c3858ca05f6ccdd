"""Functions that the next process neither traces nor compiles."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.compilation import Kept

TRACED = []


@dataclass(frozen=True)
class Setting:
    factor: float
    how: object = np.tanh


def named(x):
    return x + 1


def scaled(setting, times, x, more):
    TRACED.append(setting)
    return {"y": setting.factor * times * x, "more": None if more is None else more["a"] + 1}


@pytest.fixture
def fresh(tmp_path):
    """Makes the function as a new process has it, on an empty folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    TRACED.clear()
    yield lambda: Kept(scaled, 2)
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_new_process_does_not_trace(fresh):
    x, setting = jnp.arange(3.0), Setting(2.0, named)
    for _ in range(2):
        function = fresh()
        for _ in range(2):
            np.testing.assert_array_equal(function(setting, 3, x, {"a": x})["y"], 6 * x)
            np.testing.assert_array_equal(function(setting, 3, x, {"a": x})["more"], x + 1)
    assert len(TRACED) == 1


@pytest.mark.parametrize("other", ["static", "number", "shape", "dtype", "structure", "x64", "precision"])
def test_what_differs_is_traced_anew(fresh, other):
    x, setting, times, more = np.arange(3, dtype=np.float32), Setting(2.0, named), 3, None
    fresh()(setting, times, x, more)
    if other == "static":
        setting = Setting(2.0, scaled)
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


def test_what_has_no_name_is_jitted(fresh, tmp_path):
    x, setting = jnp.arange(3.0), Setting(2.0, lambda x: x)
    np.testing.assert_array_equal(fresh()(setting, 3, x, None)["y"], 6 * x)
    np.testing.assert_array_equal(jax.jit(partial(fresh(), Setting(2.0, named), 3))(x, None)["y"], 6 * x)
    assert not list(tmp_path.glob("lowered/*"))


def test_a_file_that_cannot_be_read_is_replaced(fresh, tmp_path):
    x, setting = jnp.arange(3.0), Setting(2.0, named)
    fresh()(setting, 3, x, None)
    (file,) = tmp_path.glob("lowered/*")
    file.write_bytes(b"not a function")
    np.testing.assert_array_equal(fresh()(setting, 3, x, None)["y"], 6 * x)
    fresh()(setting, 3, x, None)
    assert len(TRACED) == 2
