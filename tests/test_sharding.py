"""Layouts: the same numbers wherever a run lies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from gen_jax.algorithms import descent, em
from gen_jax.configs import load as load_config
from gen_jax.data import Resident, Streamed
from gen_jax.errors import UserError
from gen_jax.loop import fit, program
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN
from gen_jax.models.mixture import GMM
from gen_jax.restarts import population
from gen_jax.sharding import Layout, P

ROOT = Path(__file__).parent.parent
X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


def gan(microbatches=1):
    model = GAN(MLP((64,), 2), MLP((64, 64), 1), latent=2)
    return descent(model, {"discriminator": optax.adam(1e-3), "generator": optax.adam(1e-3)}, microbatches)


LAYOUTS = {
    "data": Layout(data=4),
    "two of four devices": Layout(data=2),
    "fsdp": Layout(data=4, fsdp=True),
    "data and model": Layout(
        data=2, model=2, rules=(("Dense_1/kernel", P(None, "model")), ("Dense_0/kernel", P(None, "model")))
    ),
}


@pytest.mark.representatives("fsdp")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_trains_to_the_same_parameters(layout, same):
    one = fit(gan(), Resident({"x": X}, 16), 20)
    many = fit(gan(), Resident({"x": X}, 16), 20, layout=layout)
    same(jax.device_get(many.params), jax.device_get(one.params), rtol=1e-3, atol=1e-5)


def test_fsdp_divides_parameters_and_their_optimizer_states():
    state = fit(gan(), Resident({"x": X}, 16), 2, layout=Layout(data=4, fsdp=True))
    wide = state.params["discriminator"]["Dense_1"]["kernel"]
    assert wide.addressable_shards[0].data.shape == (16, 64)
    moments = [a for a in jax.tree.leaves(state.opt["discriminator"]) if a.shape == (64, 64)]
    assert len(moments) == 2 and all(m.sharding == wide.sharding for m in moments)
    assert state.params["discriminator"]["Dense_2"]["bias"].sharding.is_fully_replicated


def test_rules_decide_by_path():
    layout = LAYOUTS["data and model"]
    state = fit(gan(), Resident({"x": X}, 16), 1, layout=layout)
    kernel = state.params["discriminator"]["Dense_1"]["kernel"]
    assert kernel.sharding.spec == P(None, "model") and kernel.addressable_shards[0].data.shape == (64, 32)
    assert state.params["discriminator"]["Dense_1"]["bias"].sharding.is_fully_replicated


def test_em_sums_over_devices(same):
    one, four = (fit(em(GMM(2)), {"x": X}, 5, layout=Layout(data=n)) for n in (1, 4))
    same(jax.device_get(four.params), jax.device_get(one.params), rtol=1e-3, atol=1e-5)


def test_combinators_and_streams_are_sharded_too(same):
    algorithm = population(gan(microbatches=2), 3)
    streamed = lambda: Streamed(lambda i: {"x": X[i]}, size=64, batch=16)
    one = fit(algorithm, streamed(), 6, chunk=3)
    four = fit(algorithm, streamed(), 6, chunk=3, layout=Layout(data=4))
    same(jax.device_get(four.params), jax.device_get(one.params), rtol=1e-3, atol=1e-5)


def test_batches_lie_along_the_data_axis():
    source = Streamed(lambda i: {"x": X[i]}, size=64, batch=16).place(Layout(data=4).mesh())
    window = source.window(0, 2)
    assert window.batches["x"].shape == (2, 16, 2)
    assert window.batches["x"].addressable_shards[0].data.shape == (2, 4, 2)
    source.close()


@pytest.mark.optimized
def test_a_divided_step_of_splines_gathers_no_examples():
    experiment = load_config(str(ROOT / "configs/flow/nsf_checkerboard.py")).with_knobs({"smoke": True}).build()
    ready = program(experiment.algorithm, Resident({"x": X}, 64), 1, Layout(data=2))
    text = ready.advance.lower(ready.abstract_state, ready.zeros(), ready.source.window(0, 1), 1).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text


def test_too_many_devices_are_named():
    with pytest.raises(UserError, match="16 devices asked for .8 data x 2 model., 4 present .cpu."):
        Layout(data=8, model=2).mesh()


def test_all_devices_by_default():
    assert Layout().mesh().shape == {"data": 4, "model": 1}
    assert Layout(model=2).mesh().shape == {"data": 2, "model": 2}


def test_one_program_serves_all_steps_on_many_devices(compilations):
    with compilations("advance") as seen:
        fit(gan(), Resident({"x": X}, 16), 7, report_every=2, layout=Layout(data=4, fsdp=True))
    assert len(seen) == 1


def test_rules_that_do_nothing_or_cannot_be_are_refused():
    for rules, message in [
        ((("kernal", P("data")),), "'kernal' matches no leaf"),
        ((("Dense_2/kernel", P(None, "data")),), "1 is no multiple of 4"),
    ]:
        with pytest.raises(UserError, match=message):
            fit(gan(), Resident({"x": X}, 16), 1, layout=Layout(data=4, rules=rules))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset, to keep a process to two cores")
def test_em_of_four_devices_of_one_cpu_ends(tmp_path):
    """With as many threads as two cores have, XLA's programs waited for each other for ever."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    env.pop("PJRT_NPROC", None)
    words = [
        "train.py",
        "configs/mixture/gmm_digits.py",
        "--steps",
        "2",
        "--workdir",
        str(tmp_path / "run"),
        "--no-progress",
    ]
    cores = sorted(os.sched_getaffinity(0))[:2]
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["environment"]["devices"] == ["cpu"] * 4
