"""What `bench` says: operations against counts by hand, limits against what is known, and its command line."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gen_jax.cli import main as tools
from gen_jax.errors import UserError, exits
from gen_jax.loop import abstract_state, program
from gen_jax.models.common import convolutions
from gen_jax.profiling import bench, device, measure, report
from gen_jax.profiling.bench import cases
from gen_jax.profiling.cost import cost
from gen_jax.profiling.flops import counted_products, of_algorithm, products
from gen_jax.profiling.measure import Case, lay_out, measure_case
from gen_jax.profiling.projection import Cluster, Work, reduced_bytes, step_work
from gen_jax.profiling.trace import _gap, trace_steps

N = 64
PRODUCT = 2 * N**3


def flops(f, *arguments, every=1):
    return cost(jax.jit(f).trace(*arguments).jaxpr, every=every)


def test_every_turn_of_a_loop_is_counted():
    x = jnp.ones((N, N))

    def nested(x):
        body = lambda c, _: (lax.fori_loop(0, 3, lambda i, c: c @ x, c), None)
        return lax.scan(body, x, None, length=5)[0] @ x

    assert flops(nested, x).flops == pytest.approx(16 * PRODUCT, rel=0.01)
    bytes_ = flops(nested, x).bytes
    assert 16 * 3 * x.nbytes <= bytes_ <= 2 * 16 * 3 * x.nbytes


@pytest.mark.parametrize("length, unroll", [(6, 2), (7, 3), (2, 4), (5, 1)])
def test_loops_that_are_written_out_are_not_counted_twice(length, unroll):
    x = jnp.ones((N, N))
    f = lambda x: lax.scan(lambda c, _: (c @ x, None), x, None, length=length, unroll=unroll)[0]
    assert flops(f, x).flops == pytest.approx(length * PRODUCT, rel=0.01)


def test_of_branches_the_costliest_counts():
    x = jnp.ones((N, N))
    loop = lambda n: lambda x: lax.fori_loop(0, n, lambda i, c: c @ x, x)
    found = flops(lambda p, x: lax.switch(p, [loop(3), loop(9), lambda x: x], x), 1, x)
    assert found.flops == pytest.approx(9 * PRODUCT, rel=0.01) and not found.endless
    plain = lambda x: x @ x @ x @ x @ x  # which XLA counts in full, instead of a turn of the loops
    found = flops(lambda p, x: lax.switch(p, [loop(3), plain], x), 1, x)
    assert found.flops == pytest.approx(4 * PRODUCT, rel=0.01)
    found = flops(lambda p, x: lax.switch(p, [loop(9), plain], x), 1, x)
    assert found.flops == pytest.approx(9 * PRODUCT, rel=0.01)


def test_loops_of_unknown_length_are_said():
    f = lambda x, n: lax.fori_loop(0, n, lambda i, c: c @ x, x)
    found = flops(f, jnp.ones((N, N)), 3)
    assert found.endless == 1 and found.flops == pytest.approx(PRODUCT, rel=0.01)
    branch = lambda p, x, n: lax.cond(p, lambda: f(x, n), lambda: x)
    assert flops(branch, True, jnp.ones((N, N)), 3).endless == 1


@pytest.mark.representatives("gan_ring8-*", "realnvp_moons-*")
# How many times as much as the products of the formula XLA counts; a first layer needs no gradient of its input.
@pytest.mark.parametrize(
    "config, low, high",
    [
        ("vae_digits", 0.9, 1.1),
        ("realnvp_moons", 0.9, 1.1),
        pytest.param("hvae_digits", 0.9, 1.1, marks=pytest.mark.slow),
        ("gan_ring8", 0.8, 1.1),
    ],
)
def test_the_formula_of_a_family_agrees_with_xla(config, low, high, monkeypatch):
    monkeypatch.setattr(convolutions, "_is_filtered", lambda *_: False)  # which takes half of the formula's products
    experiment, source = lay_out(Case(config))
    ready = program(experiment.algorithm, source, 1)
    counted = cost(ready.advance.trace(ready.initial_state(), ready.zeros(), ready.source.window(0, 1), 1).jaxpr)
    batch = jax.eval_shape(lambda view: view.batch_at(0), ready.source.example())
    assert low < counted.flops / products(experiment.model, batch) < high


def test_the_formula_of_mixtures_and_chains():
    experiment, source = lay_out(Case("configs/mixture/gmm_digits.py"))
    k, d = experiment.model.components, 64
    batch = {"x": jax.ShapeDtypeStruct((1000, 8, 8, 1), "float32")}
    assert products(experiment.model, batch) == 4 * 1000 * k * (d * (d + 1) / 2 + d + 1)
    experiment, source = lay_out(Case("configs/hmm/hmm_gaussian.py"))
    k, batch = experiment.model.states, {"x": jax.ShapeDtypeStruct((20, 100, 2), "float32")}
    assert products(experiment.model, batch) == 20 * 100 * k * (6 * k + 4 * (3 + 2 + 1))
    assert products(object(), batch) is None


@pytest.mark.parametrize(
    "config, passes", [("tests/variants/sam_lookahead.py", 2), ("gan_grid25", 1), ("tests/variants/alternating.py", 1)]
)
def test_an_algorithm_of_two_passes_has_twice_the_products_of_the_formula(config, passes):
    experiment, source = lay_out(Case(config))
    batch = jax.eval_shape(lambda view: view.batch_at(0), source.example())
    state = jax.eval_shape(experiment.algorithm.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    found = of_algorithm(experiment.model, experiment.algorithm.step, state, batch)
    assert found == pytest.approx(passes * products(experiment.model, batch))


def test_products_are_counted_with_the_turns_of_loops():
    w = jnp.ones((8, 8))
    loop = lambda x: lax.fori_loop(0, 5, lambda _, x: x @ w, x)
    branch = lambda x: lax.cond(x[0, 0] > 0, loop, lambda x: x @ w, x)
    for function, times in ((loop, 5), (branch, 5), (lambda x: jax.vmap(lambda row: row @ w)(x), 1)):
        assert counted_products(jax.make_jaxpr(jax.jit(function))(jnp.ones((3, 8))).jaxpr) == times * 2 * 3 * 8 * 8
    image, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
    convolve = lambda x: lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert counted_products(jax.make_jaxpr(convolve)(image).jaxpr) == 2 * (2 * 4 * 4 * 4) * 3 * 3 * 3


def test_verdicts_follow_the_roofline():
    peaks = device.Peaks(100.0, 10.0)
    assert device.verdict(50.0, 1.0, 1.0, peaks) == ("compute", 0.5)
    assert device.verdict(5.0, 8.0, 1.0, peaks) == ("memory", 0.8)
    assert device.verdict(5.0, 1.0, 1.0, peaks)[0] == "latency"


def test_a_step_on_several_devices_is_held_against_all_of_them(found):
    m = replace(found[0], formula=None, flops=80.0, bytes=1.0, p50=1.0, peak_flops=100.0, peak_bandwidth=100.0)
    four = replace(m, devices=4, flops=320.0, bytes=4.0, peak_flops=400.0, peak_bandwidth=400.0)
    assert m.roofline == four.roofline == ("compute", 0.8) and m.utilization == four.utilization == 0.8


@pytest.mark.slow
def test_a_divided_step_counts_as_the_whole():
    one, two = (measure_case(Case("configs/gan/gan_ring8.py", batch=64, chunk=1, devices=n), 0.05) for n in (1, 2))
    assert two.flops == pytest.approx(one.flops, rel=0.05) and two.bytes == pytest.approx(one.bytes, rel=0.1)
    header, rows = report.division([one, two])
    assert [row[header.index("devices")] for row in rows] == ["1", "2"] and rows[0][-1] == "100 %"


def test_a_branch_that_is_seldom_taken_counts_so_often():
    x = jnp.ones((N, N))
    step = lambda p, x: lax.cond(p, lambda x: x @ x @ x @ x @ x, lambda x: x, x) @ x
    assert flops(step, True, x).flops == pytest.approx(5 * PRODUCT, rel=0.01)
    assert flops(step, True, x, every=4).flops == pytest.approx(2 * PRODUCT, rel=0.01)
    loop = lambda p, x: lax.fori_loop(0, 3, lambda i, c: step(p, c), x)
    assert flops(loop, True, x, every=4).flops == pytest.approx(6 * PRODUCT, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("chunk, steps", [(1, 15), pytest.param(3, 45, marks=pytest.mark.slow)])
def test_a_step_is_the_mean_of_the_turns_of_all_players(chunk, steps, monkeypatch):
    """`wgan_gp_digits` trains its generator on every third step: no such step, nor one without it, is the step."""
    times = [1, 1, 4] * 5 if chunk == 1 else [2] * 15
    monkeypatch.setattr(measure, "step_times", lambda *arguments: iter(times))
    found = measure_case(Case("configs/gan/wgan_gp_digits.py", chunk=chunk))
    assert (found.p50, found.p95, found.steps) == (pytest.approx(2), pytest.approx(2), steps)


@pytest.mark.slow
def test_a_batch_of_all_examples_is_all_of_them():
    """EM takes all examples as one batch: the same number of them is the same step, and another one of its kind."""
    own = measure_case(Case("configs/mixture/gmm_blobs.py"), 0.05)
    same = measure_case(Case("configs/mixture/gmm_blobs.py", batch=own.batch), 0.05)
    half = measure_case(Case("configs/mixture/gmm_blobs.py", batch=own.batch // 2), 0.05)
    assert (own.flops, own.memory) == (same.flops, same.memory)
    assert half.flops == pytest.approx(own.flops / 2, rel=0.1)


def test_a_run_does_not_write_over_what_it_is_compared_with(tmp_path):
    bench.check(1.0, tmp_path / "now", tmp_path / "bench.json")
    with pytest.raises(UserError, match="write over"):
        bench.check(1.0, tmp_path, tmp_path / "bench.json")


@pytest.mark.slow
def test_a_case_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    def failing(case, *others):
        if case.batch == 64:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
        return measure_case(case, 0.05)

    monkeypatch.setattr(bench, "measure_case", failing)
    with pytest.raises(UserError, match="batch=64.*out of memory"):
        bench.bench(cases(["configs/mixture/gmm_blobs.py"], batch=(32, 64, 128)), out=tmp_path)
    assert [m["batch"] for m in json.loads((tmp_path / "bench.json").read_text())["measurements"]] == [32, 128]
    assert (tmp_path / "roofline.png").exists()


@pytest.mark.slow
def test_a_scale_of_batches_ends_where_memory_does(tmp_path, monkeypatch, capsys):
    tried = []

    def failing(case, *others):
        tried.append(case.batch)
        if case.batch >= 64:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return measure_case(case, 0.05)

    monkeypatch.setattr(bench, "measure_case", failing)
    scale = ("batch", "32:256")
    bench.bench(cases(["configs/mixture/gmm_blobs.py"], scale), scale, out=tmp_path)
    assert tried == [32, 64]
    assert "| gmm_blobs |  |  | 64 |" in (tmp_path / "bench.md").read_text()
    with pytest.raises(UserError, match="not even the smallest batch"):
        bench.bench(cases(["configs/mixture/gmm_blobs.py"], ("batch", "64:256")), scale, out=tmp_path)


def test_known_peaks_are_found_by_the_name_of_the_device(monkeypatch):
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert device.data_sheet() is None  # of a CPU nothing is known
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert device.data_sheet("bfloat16") == (989e12, 3.35e12)
    assert device.data_sheet("int8") is None
    for kind, flops in {"TPU v5 lite": 197e12, "TPU v5": 459e12, "NVIDIA L40S": None, "NVIDIA L4": 121e12}.items():
        Device.device_kind = kind
        assert (device.data_sheet("bfloat16") or [None])[0] == flops


@pytest.fixture(scope="module")
def found():
    return [
        measure_case(Case("configs/gan/gan_ring8.py", batch=32, chunk=5), 0.05),
        measure_case(Case("configs/mixture/gmm_blobs.py"), 0.05),
    ]


def test_a_measurement_is_of_the_step_that_trains(found):
    gan, gmm = found
    assert (gan.model, gan.batch, gan.chunk, gan.dtype, gan.devices) == ("GAN", 32, 5, "float32", 1)
    assert 0 < gan.p50 <= gan.p95 and gan.steps >= 25 and gan.examples_per_second == 32 / gan.p50
    assert min(gan.tracing, gan.lowering, gan.compiling) > 0
    assert gmm.batch == len(lay_out(Case("configs/mixture/gmm_blobs.py"))[1].arrays["x"])  # all data at once
    state = abstract_state(*(lambda e, s: (e.algorithm, s))(*lay_out(Case("configs/gan/gan_ring8.py", batch=32))))
    sizes = [a.size * a.dtype.itemsize for a in jax.tree.leaves((state.params, state.opt))]
    assert gan.memory > sum(sizes)  # the state and what a step needs beside it
    assert 0 < gan.utilization < 1 and gan.words.startswith(gan.roofline[0])


@pytest.mark.slow
def test_tokens_are_steps_of_sequences():
    assert measure_case(Case("configs/hmm/hmm_gaussian.py", batch=8), 0.05).tokens == 8 * 100


def test_a_batch_larger_than_the_data_repeats_it():
    experiment, source = lay_out(Case("configs/vae/vae_digits.py", batch=4096))
    x = source.arrays["x"]
    assert len(x) == 4096 and np.array_equal(x[: 4096 - 1347], x[1347:])
    experiment, source = lay_out(Case("configs/vae/vae_mnist.py", batch=60_000))  # which trains on a part of a split
    assert len(source.arrays["x"]) == 60_000


def test_a_run_is_compared_with_an_earlier_one(found, tmp_path):
    path = tmp_path / "old.json"
    slower, faster = (
        replace(found[0], p50=10 * found[0].p95, p95=11 * found[0].p95),
        replace(found[1], p50=1e-9, p95=1e-9),
    )
    report.save(path, found)
    earlier = report.read_measurements(path)
    assert [row[-1] for row in report.against(found, earlier)[1]] == ["the same", "the same"]
    assert [row[-1] for row in report.against([slower, faster], earlier)[1]] == ["slower", "faster"]
    assert report.against([replace(found[0], batch=7)], earlier)[1][0][-1] == "not measured then"
    (tmp_path / "other.json").write_text("[1]")
    for name, said in (("other.json", "no file that `bench` wrote"), ("absent.json", "no such file")):
        with pytest.raises(UserError, match=said):
            report.read_measurements(tmp_path / name)


def test_a_trace_names_the_costliest_operations(tmp_path):
    trace = trace_steps(Case("configs/vae/vae_digits.py", batch=256), tmp_path)
    assert [o.seconds for o in trace.operations] == sorted((o.seconds for o in trace.operations), reverse=True)
    assert sum(o.share for o in trace.operations) == pytest.approx(1)
    assert 0 <= trace.host_gap < 1
    assert any("dot_general" in o.origin and "ConvDecoder" in o.origin for o in trace.operations[:10])
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_idle_time_lies_between_executions_or_between_kernels():
    event = lambda start, end, run=None: ("kernel", start, end, run)
    assert _gap([event(0, 10, 1), event(20, 30, 1), event(40, 60, 2)]) == pytest.approx(10 / 60)
    assert _gap([event(0, 10), event(5, 20), event(30, 40)]) == pytest.approx(10 / 40)
    assert _gap([event(0, 40), event(5, 10)]) == 0


def test_operations_of_an_accelerator_are_counted_beside_it(monkeypatch):
    product = jax.make_jaxpr(lambda a, b: a @ b)(np.ones((8, 16), np.float32), np.ones((16, 4), np.float32))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cost(product).flops == 2 * 8 * 16 * 4


def test_the_estimate_is_its_formula():
    cluster = Cluster(flops=1e12, utilization=0.5, link=1e9, latency=0.0)
    one = Work("some", 32, 1e12, 1e9)
    assert one.efficiency(1, cluster) == 1
    assert one.efficiency(4, cluster) == pytest.approx(2 / (2 + 1.5))  # 2 s of work, 2 (3/4) 1 s of summing
    late = cluster._replace(latency=0.25)
    assert one._replace(moved=0).efficiency(4, late) == pytest.approx(2 / (2 + 2 * 2 * 0.25))
    enough = one.batch_for(0.9, 64, cluster)
    reached = lambda n: one._replace(batch=n, flops=1e12 / 32 * n).efficiency(64, cluster)
    assert reached(enough) >= 0.9 > reached(enough - 1)


def test_what_is_summed_over_devices():
    experiment, source = lay_out(Case("configs/vae/vae_digits.py"))
    state = abstract_state(experiment.algorithm, source)
    assert reduced_bytes(state) == 4 * sum(a.size for a in jax.tree.leaves(state.params))
    experiment, source = lay_out(Case("configs/mixture/gmm_blobs.py"))
    state = abstract_state(experiment.algorithm, source)
    assert reduced_bytes(state) == sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state.opt))
    found = step_work(Case("configs/mixture/gmm_blobs.py"))
    assert found.moved == reduced_bytes(state) and found.flops == 4 * 1000 * 3 * (3 + 2 + 1)


@pytest.mark.slow
def test_devices_of_a_cpu_are_made_before_jax_begins(tmp_path):
    words = ["bench", "configs/mixture/gmm_blobs.py", "--devices", "2", "--seconds", "0.05", "--out", str(tmp_path)]
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    env = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    done = subprocess.run([sys.executable, "-m", "gen_jax", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "bench.json").read_text())["measurements"][0]["devices"] == 2


def test_cases_are_all_combinations():
    found = cases(
        ["configs/vae/vae_digits.py", "configs/mixture/gmm_blobs.py"], batch=(32, 64), chunk=(), devices=(1, 2)
    )
    assert len(found) == 8 and {(case.batch, case.devices) for case in found} == {(32, 1), (32, 2), (64, 1), (64, 2)}
    one = found[0].config
    assert [case.batch for case in cases([one], ("batch", "32:200"))] == [32, 64, 128]
    assert [case.devices for case in cases([one], ("devices",))] == [1, 2, 4]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "name one or more configs"),
        (["configs/vae/vea_digits.py"], "did you mean"),
        (["configs/vae/vae_digits.py", "--batch", "0"], "--batch must be at least 1"),
        (["configs/mixture/gmm_blobs.py", "--dtype", "bfloat16"], "no knob --precision"),
        (["configs/vae/vae_digits.py", "--scale", "batch", "9:3"], "LOW:HIGH"),
        (["configs/vae/vae_digits.py", "--scale", "width"], "--scale takes"),
        (["configs/vae/vae_digits.py", "--seconds", "0"], "--seconds must be"),
        (["configs/vae/vae_digits.py", "--compare", "nowhere.json"], "no such file"),
        (["configs/vae/vae_digits.py", "--batch", "130", "--devices", "4"], "cannot be divided over 4 devices"),
        (["configs/vae/vae_digits.py", "--devices", "64"], "64 devices asked for"),
        (["configs/vae/vae_digits.py", "--devices", "0"], "--devices must be at least 1"),
        (["configs/vae/vae_digits.py", "--batch", "32", "--scale", "batch", "32:64"], "leave --batch out"),
        (["configs/vae/vae_digits.py", "--out", "README.md/x"], "a file is in the way"),
    ],
)
def test_bad_input_is_said_in_one_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gen_jax", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        exits(tools.main)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and said in printed.err and "Traceback" not in printed.err


def test_the_command_leaves_tables_and_pictures(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["configs/mixture/gmm_blobs.py", "--seconds", "0.05", "--out", str(out), "--profile"]
    monkeypatch.setattr(sys, "argv", ["gen_jax", "bench", *words, "--scale", "batch", "100:200"])
    exits_with = 0
    try:
        exits(tools.main)
    except SystemExit as ended:
        exits_with = ended.code
    printed = capsys.readouterr().out
    assert not exits_with and "gmm_blobs" in printed
    for batch in (100, 200):
        assert f"gmm_blobs, batch {batch}, chunk 1, float32, 1 device: the costliest operations" in printed
    assert {"bench.json", "bench.md", "roofline.png", "scale_batch.png", "profile"} == {f.name for f in out.iterdir()}
    record = json.loads((out / "bench.json").read_text())
    assert [m["batch"] for m in record["measurements"]] == [100, 200]
    assert {"where", "commit", "versions", "cores", "started"} <= record.keys()
    assert "| gmm_blobs |" in (out / "bench.md").read_text()
