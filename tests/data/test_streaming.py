"""Orders, streamed and composed sources, host transforms, packed shards, and data larger than memory."""

import pickle
import signal
import subprocess
import sys
import time
from collections import Counter

import jax
import numpy as np
import pytest
from pictures import folder_of

from gen_jax import Mean, Resident, Streamed, fit
from gen_jax.core import Algorithm, State
from gen_jax.data import load
from gen_jax.data.cache import open_arrays, write_arrays
from gen_jax.data.dataset import Dataset, describe
from gen_jax.data.host import ColorJitter, RandomCrop, RandomFlip, Resize, fixed, generators
from gen_jax.data.loading import pack as pack_source
from gen_jax.data.mixing import Mixed, Unpaired, shares
from gen_jax.data.order import Balanced, InOrder, Repeated
from gen_jax.data.records import NpyRecords, columns, take
from gen_jax.data.shards import open_packed, pack
from gen_jax.data.source import epoch
from gen_jax.errors import DataError, UserError
from gen_jax.experiment import Experiment
from gen_jax.sharding import Layout

rng = np.random.default_rng(0)
IMAGES = {"x": rng.integers(0, 256, (60, 6, 8, 3), np.uint8), "label": np.repeat([0, 1, 2], [40, 15, 5])}


def summing():
    """An algorithm whose State depends on every batch and on its order."""

    def step(state, batch):
        weights = 1.0 + np.arange(len(batch["index"]))
        seen = (batch["index"] * weights).sum() + batch["x"].astype(float).mean()
        params = {"sum": {"total": 0.9 * state.params["sum"]["total"] + seen}}
        return state._replace(step=state.step + 1, params=params), {"seen": Mean.of(seen)}

    def init(key, batch):
        return State(np.int32(0), key, {"sum": {"total": np.float32(0)}}, {}, {})

    return Algorithm(init, step)


def lazy(tmp_path, arrays=IMAGES):
    for name, a in arrays.items():
        np.save(tmp_path / f"{name}.npy", a)
    return columns(NpyRecords({name: tmp_path / f"{name}.npy" for name in arrays}))


def test_columns_are_read_when_indexed(tmp_path):
    x, a = lazy(tmp_path)["x"], IMAGES["x"]
    assert x.shape == a.shape and x.dtype == a.dtype and x.nbytes == a.nbytes and len(x) == 60
    for key in (3, -1, np.array([5, 1, 1]), slice(2, 40, 3)):
        np.testing.assert_array_equal(np.asarray(x[key]), a[key])
    np.testing.assert_array_equal(np.asarray(x[10:50][5:20][np.array([3, 0])]), a[10:50][5:20][[3, 0]])
    np.testing.assert_array_equal(np.asarray(x[IMAGES["label"] == 1]), a[IMAGES["label"] == 1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(x))[:], a)
    with pytest.raises(IndexError):
        x[60]
    with pytest.raises(IndexError, match="examples only"):
        x[0, 1]


def test_what_is_in_one_record_is_read_once(tmp_path):
    arrays, calls = lazy(tmp_path), []
    records = arrays["x"].records
    read, records.read = records.read, lambda index: calls.append(len(index)) or read(index)
    part = {name: a[10:] for name, a in arrays.items()}
    taken = take(part, np.array([4, 2]))
    assert calls == [2]
    np.testing.assert_array_equal(taken["x"], IMAGES["x"][[14, 12]])


ORDERS = {"shuffled": None, "in order": InOrder(), "repeated": Repeated(3), "balanced": Balanced.of(IMAGES["label"])}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_streamed_and_resident_visit_alike_in_every_order(tmp_path, order, same):
    resident = Resident(IMAGES, 12, seed=3, order=order)
    streamed = Streamed.of(lazy(tmp_path), 12, seed=3, order=order)
    traced = jax.jit(lambda source, step: source.batch_at(step))
    for step in (0, 1, 4, 5, 1000):
        same(streamed.batch_at(step), resident.batch_at(step))
        same(traced(resident, step), resident.batch_at(step))
    same(fit(summing(), streamed, 11, chunk=3), fit(summing(), resident, 11), rtol=1e-6)
    streamed.close()


def test_balanced_batches_hold_all_classes_equally_often_and_every_example_in_turn():
    source = Resident(IMAGES, 10, order=Balanced.of(IMAGES["label"]), seed=5)
    batches = [source.batch_at(step) for step in range(60)]
    labels = np.concatenate([batch["label"] for batch in batches])
    assert Counter(labels.tolist()) == {0: 200, 1: 200, 2: 200}
    for batch in batches:
        assert max(Counter(batch["label"].tolist()).values()) <= 4  # 10 = 3 + 3 + 4
    visits = Counter(np.concatenate([batch["index"] for batch in batches]).tolist())
    assert {visits[i] for i in range(40)} == {5} and {visits[i] for i in range(55, 60)} == {40}
    first = [int(i) for batch in batches for i, label in zip(batch["index"], batch["label"]) if label == 0]
    assert sorted(first[:40]) == list(range(40)) and first[:40] != first[40:80]


def test_repeated_examples_are_in_the_same_batch():
    batch = Resident(IMAGES, 12, order=Repeated(4)).batch_at(7)
    assert sorted(Counter(batch["index"].tolist()).values()) == [4, 4, 4]
    with pytest.raises(UserError, match="choose a multiple"):
        Resident(IMAGES, 10, order=Repeated(4)).check()
    with pytest.raises(UserError, match="a label for each of 60"):
        Resident(IMAGES, 10, order=Balanced.of([0, 1])).check()


@pytest.mark.parametrize("resume", [1, 4, 9])
def test_a_resumed_stream_goes_on_where_it_stopped(tmp_path, resume, same):
    make = lambda: Streamed.of(lazy(tmp_path), 8, seed=2, host=(RandomCrop((4, 4)), RandomFlip()))
    whole = fit(summing(), make(), 12)
    same(fit(summing(), make(), 12, state=fit(summing(), make(), resume)), whole)


def test_a_stream_resumes_at_any_step_at_once(tmp_path):
    source = Streamed.of(lazy(tmp_path), 8)
    source.window(0, 1)  # imports what reads ahead
    start = time.perf_counter()
    source.window(10**6, 1)
    assert time.perf_counter() - start < 1.0
    source.close()


def test_host_transforms_are_keyed_by_seed_step_and_index(tmp_path):
    arrays, crop = lazy(tmp_path), (RandomCrop((3, 3)), RandomFlip(), ColorJitter(0.5, 0.5, 0.5))
    source = Streamed.of(arrays, 8, seed=1, host=crop)
    first, again = source._read(4), source._read(4)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert first["x"].shape == (8, 3, 3, 3)
    parts = [Streamed.of(arrays, 8, seed=1, host=crop, shard=(i, 2))._read(4)["x"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), first["x"])  # whatever the process
    draws = lambda *key: [g.random() for g in generators(*key)]
    index = np.array([3, 5, 3])
    assert len(set(draws(0, 0, index))) == 3  # copies of one example differ
    assert draws(0, 0, index) != draws(0, 1, index) != draws(1, 1, index)
    assert draws(0, 0, index)[1] == draws(0, 0, np.array([5]))[0]


def test_host_transforms_of_images():
    image = IMAGES["x"][0]
    g = lambda: np.random.default_rng(0)
    crop = RandomCrop((4, 5))(image, g())
    assert any((image[top : top + 4, left : left + 5] == crop).all() for top in range(3) for left in range(4))
    np.testing.assert_array_equal(RandomCrop((4, 4)).fixed(image), image[1:5, 2:6])
    np.testing.assert_array_equal(RandomFlip(1.0)(image, g()), image[:, ::-1])
    assert Resize((3, 4)).fixed(image).shape == (3, 4, 3) and Resize((3, 4)).fixed(image[..., :1]).shape == (3, 4, 1)
    assert ColorJitter(0.9)(image, g()).shape == image.shape
    np.testing.assert_array_equal(ColorJitter()(image[..., :1], g()), image[..., :1])
    with pytest.raises(UserError, match="does not fit"):
        RandomCrop((9, 9))(image, g())
    seen = fixed(IMAGES, (RandomCrop((4, 4)),))
    np.testing.assert_array_equal(seen["x"][:5], IMAGES["x"][:5, 1:5, 2:6])
    assert seen["label"] is IMAGES["label"]


def test_worker_processes_read_the_same(tmp_path):
    make = lambda **more: Streamed.of(lazy(tmp_path), 8, seed=1, host=(RandomFlip(),), **more)
    threads, processes = make(), make(workers=2)
    for step in range(3):
        np.testing.assert_array_equal(threads.window(step, 1).batches["x"], processes.window(step, 1).batches["x"])
    threads.close()
    processes.close()


def composed(make):
    half = {name: a[:30] for name, a in IMAGES.items()}
    return {
        "unpaired": lambda: Unpaired.of(x=make(IMAGES, 8, seed=0), y=make(half, 8, seed=1)),
        "mixed": lambda: Mixed.weighted([lambda n: make(IMAGES, n), lambda n: make(half, n)], [3, 1], 8),
        "balanced": lambda: make(IMAGES, 8, order=Balanced.of(IMAGES["label"])),
        "repeated": lambda: make(IMAGES, 8, order=Repeated(2)),
    }


@pytest.mark.parametrize("kind", ["unpaired", "mixed", "balanced", "repeated"])
def test_composed_sources_agree_streamed_chunked_and_on_two_devices(kind, same):
    resident, streamed = (composed(make)[kind] for make in (Resident, Streamed.of))
    whole = fit(summing(), resident(), 7)
    for source, options in (
        (streamed(), {}),
        (streamed(), {"chunk": 3}),
        (resident(), {"chunk": 3}),
        (streamed(), {"layout": Layout(data=2)}),
        (resident(), {"layout": Layout(data=2), "chunk": 2}),
    ):
        same(fit(summing(), source, 7, **options), whole, rtol=1e-6)
    same(fit(summing(), streamed(), 7, state=fit(summing(), streamed(), 3)), whole, rtol=1e-6)


def test_shares_of_a_mixture():
    assert shares([3, 1], 8) == [6, 2] and shares([1, 1, 1], 8) in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert shares([1000, 1], 4) == [3, 1]
    for bad in ([1, 0], [1, float("nan")], []):
        with pytest.raises(UserError):
            shares(bad, 8)
    with pytest.raises(UserError, match="no room"):
        shares([1, 1, 1], 2)


def dataset(arrays=IMAGES):
    part = lambda rows: {name: a[rows] for name, a in arrays.items()}
    splits = {"train": arrays, "validation": part(slice(9)), "test": part(slice(9, 20))}
    return Dataset("images", splits, {**describe(splits), "class_names": ("a", "b", "c")})


def test_packed_shards_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("gen_jax.data.shards.SHARD", 144 * 25)  # 25 examples each
    data = dataset()
    assert pack(data, tmp_path / "p").keys() == {"train", "validation", "test"}
    packed = load(tmp_path / "p")
    assert packed.info == data.info and len(list((tmp_path / "p").glob("train*.array_record"))) == 3
    for split, arrays in data.splits.items():
        for name, a in arrays.items():
            np.testing.assert_array_equal(np.asarray(packed[split][name]), a)
    index = np.array([59, 0, 24, 25])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(packed["train"]["x"]))[index], IMAGES["x"][index])
    pack(data, tmp_path / "p")  # again: nothing to do
    with pytest.raises(UserError, match="holds other data"):
        pack(dataset({"x": IMAGES["x"][::-1]}), tmp_path / "p")
    with pytest.raises(UserError, match="is not empty"):
        (tmp_path / "q").mkdir()
        (tmp_path / "q" / "mine.txt").write_text("x")
        pack(data, tmp_path / "q")
    next((tmp_path / "p").glob("train-00001*")).unlink()
    with pytest.raises(UserError, match="is missing"):
        load(tmp_path / "p")


def test_interrupted_packing_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("gen_jax.data.shards.SHARD", 144 * 10)
    data, calls = dataset(), []

    def stop(n):
        calls.append(n)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(data, tmp_path / "p", stop)
    with pytest.raises(UserError, match="not packed completely"):
        open_packed(tmp_path / "p")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("*.array_record")}
    assert len(done) == 3 and not list((tmp_path / "p").glob("*incomplete"))
    pack(data, tmp_path / "p")
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())
    np.testing.assert_array_equal(np.asarray(load(tmp_path / "p")["train"]["x"]), IMAGES["x"])


PACK = """
import sys, time
import numpy as np
from gen_jax.data import shards
from gen_jax.data.dataset import Dataset, describe
x = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
splits = {"train": {"x": x}, "validation": {"x": x[:9]}, "test": {"x": x[:9]}}
shards.SHARD = 12288 * 50
def progress(n):
    print(n, flush=True)
    time.sleep(float(sys.argv[2]))
shards.pack(Dataset("images", splits, describe(splits)), __import__("pathlib").Path(sys.argv[1]), progress)
"""


def packing(folder, pause=0.0, limit="unlimited"):
    command = f'ulimit -f {limit}; exec "$0" "$@"'
    words = ["bash", "-c", command, sys.executable, "-c", PACK, str(folder), str(pause)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_packing_survives_kill_9(tmp_path):
    process = packing(tmp_path / "p", 0.2)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="not packed completely"):
        load(tmp_path / "p")
    assert packing(tmp_path / "p").wait() == 0
    x = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(load(tmp_path / "p")["train"]["x"]), x)


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    full = packing(tmp_path / "p", limit=300)  # kB of a file
    _, error = full.communicate()
    assert full.returncode and "could not be written" in error
    assert not list((tmp_path / "p").glob("*.array_record*"))
    assert packing(tmp_path / "p").wait() == 0 and len(load(tmp_path / "p")["train"]["x"]) == 400


def test_damaged_shards_are_named(tmp_path):
    pack(dataset(), tmp_path / "p")
    x = load(tmp_path / "p")["train"]["x"]
    path = next((tmp_path / "p").glob("train*"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="train-00000"):
        x[np.arange(60)]


def test_packed_images_keep_their_levels(tmp_path):
    digits = load("digits")
    pack(digits, tmp_path / "p")
    pixels = [
        experiment(data).split(data, "test").pixels(data["test"]["x"][:9]) for data in (digits, load(tmp_path / "p"))
    ]
    np.testing.assert_array_equal(*pixels)


def test_damaged_images_are_left_out_of_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    folder = folder_of(tmp_path / "f", 30, size=(40, 40), classes=())
    whole = (folder / "007.png").read_bytes()
    (folder / "007.png").write_bytes(whole[: len(whole) // 2])
    packed, _ = pack_source(folder, tmp_path / "p", decode="stream")
    assert "007.png" in packed.notes[0]
    assert sum(len(a["x"]) for a in load(tmp_path / "p").splits.values()) == 29


def test_balanced_sampling_is_the_same_on_host_and_device_after_many_steps():
    order = Balanced.of(IMAGES["label"])
    traced = jax.jit(lambda step: order.rows(step, 60, 4096, jax.numpy.uint32(3)))
    for step in (10**6, 3 * 10**6, 10**7):
        np.testing.assert_array_equal(traced(step), order.rows(step, 60, 4096, 3))


def test_large_arrays_are_read_in_pieces(tmp_path, monkeypatch):
    data = dataset()
    monkeypatch.setattr("gen_jax.data.cache.MAPPED", 1000)
    write_arrays(tmp_path / "arrays", data.splits, data.described)
    opened = open_arrays("images", tmp_path / "arrays")
    assert not isinstance(opened["train"]["x"], np.ndarray) and isinstance(opened["train"]["label"], np.ndarray)
    np.testing.assert_array_equal(np.asarray(opened["train"]["x"]), IMAGES["x"])
    for (a, _), (b, _) in zip(epoch(opened["train"], 25), epoch(IMAGES, 25), strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
    assert opened.info == data.info


@pytest.mark.parametrize("failing", [1, 5])
def test_a_failed_preparation_leaves_nothing(tmp_path, failing):
    calls = []

    def progress(n):
        calls.append(n)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")

    splits = {name: {**lazy(tmp_path)} for name in "abcdef"}
    with pytest.raises(OSError, match="No space left"):
        write_arrays(tmp_path / "arrays", splits, {"shape": ()}, progress)
    assert not list(tmp_path.glob("arrays*"))


def experiment(data, **more):
    return Experiment(None, summing(), data, steps=5, batch=8, **more)


def test_an_experiment_streams_what_is_large_or_read_from_files(tmp_path, monkeypatch):
    small, files = dataset(), dataset(lazy(tmp_path))
    assert isinstance(experiment(small).source(small), Resident)
    assert isinstance(experiment(files).source(files), Streamed)
    assert isinstance(experiment(files, resident=True).source(files), Resident)
    assert isinstance(experiment(small, resident=False).source(small), Streamed)
    cropped = experiment(small, host_transforms=(RandomCrop((4, 4)),))
    assert cropped.source(small).example().batch_at(0)["x"].shape == (8, 4, 4, 3)
    assert cropped.split(small, "test").head(3)["x"].shape == (3, 4, 4, 3)
    monkeypatch.setattr("gen_jax.data.source._available", lambda: 1000)
    if not (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"):
        assert "more than a quarter" in experiment(small).streaming_reason(small)


def test_experiments_of_unpaired_and_balanced_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    folder_of(tmp_path / "a", 40)
    folder_of(tmp_path / "b", 30, classes=(), seed=1)
    unpaired = load(tmp_path / "a", partner=str(tmp_path / "b"), pairing="unpaired")
    batch = experiment(unpaired).source(unpaired).batch_at(0)
    assert batch["x"].shape == batch["y"].shape == (8, 8, 12, 3)
    small = dataset()
    labels = experiment(small, balanced=True).source(small).batch_at(0)["label"]
    assert sorted(Counter(labels.tolist()).values()) == [2, 3, 3]
    with pytest.raises(UserError, match="no labels to balance"):
        experiment(dataset({"x": IMAGES["x"]}), balanced=True).source(dataset({"x": IMAGES["x"]}))
    with pytest.raises(UserError, match="need a batch"):
        Experiment(None, summing(), small, steps=1, repeats=2)
