"""Data sets, sources and transforms."""

import gzip
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import GMM, em
from gen_jax.data import CATALOGUE, Dataset, Resident, Streamed, dequantize, load, prepare, scale
from gen_jax.data.modes import grid, ring
from gen_jax.data.source import epoch, permute
from gen_jax.data.transforms import binarize, binarize_once, threshold
from gen_jax.errors import UserError
from gen_jax.experiment import Experiment

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 97, 1797])
def test_permutation_is_a_bijection_for_every_size(size):
    for number in range(3):
        order = permute(np.arange(size), size, 7, number)
        assert sorted(order) == list(range(size))


def test_permutation_is_the_same_on_host_and_device():
    host = permute(np.arange(500), 500, 3, 11)
    device = jax.jit(lambda e: permute(jnp.arange(500), 500, jnp.uint32(3), e))(jnp.int32(11))
    np.testing.assert_array_equal(host, device)


def test_permutations_look_random():
    """Over many epochs each example is equally often at each place, and neighbors part."""
    size, epochs = 50, 4000
    orders = np.stack([permute(np.arange(size), size, 0, e) for e in range(epochs)])
    counts = np.stack([np.bincount(orders[:, i], minlength=size) for i in range(size)])
    expected = epochs / size
    chi2 = ((counts - expected) ** 2 / expected).sum() / (size * (size - 1))
    assert 0.9 < chi2 < 1.1  # 1 +- 0.03 for uniform permutations
    neighbors = np.mean(np.abs(np.diff(orders, axis=1)) == 1)
    assert abs(neighbors - 2 / size) < 0.003
    assert len({tuple(o) for o in orders}) == epochs


def test_every_epoch_sees_every_example_once():
    source = Resident({"x": np.arange(12.0)[:, None]}, batch=4, seed=5)
    epochs = [sorted(np.concatenate([source.batch_at(3 * e + i)["index"] for i in range(3)])) for e in range(3)]
    assert epochs == [list(range(12))] * 3
    first, second = (np.concatenate([source.batch_at(3 * e + i)["index"] for i in range(3)]) for e in range(2))
    assert not np.array_equal(first, second)


def test_seeds_shuffle_differently():
    orders = [Resident({"x": np.arange(100.0)}, batch=100, seed=s).batch_at(0)["index"] for s in range(2)]
    assert not np.array_equal(*orders)


def test_resident_traced_equals_eager_equals_streamed(same):
    x = np.arange(40, dtype=np.uint8).reshape(20, 2)
    transforms = (dequantize(256), scale(-1, 1, levels=2))
    resident = Resident({"x": x}, 6, transforms, seed=2)
    streamed = Streamed(lambda i: {"x": x[i]}, 20, 6, transforms, seed=2)
    for step in (0, 1, 2, 3, 50):
        traced = jax.jit(lambda s: resident.batch_at(s))(step)
        same(traced, resident.batch_at(step), rtol=1e-6)
        same(streamed.batch_at(step), resident.batch_at(step))
    window = streamed.window(7, 3)
    for step in (7, 8, 9):
        same(window.batch_at(step), resident.batch_at(step))
    streamed.close()


def test_shards_make_up_the_batch():
    x = np.arange(64)
    parts = [Streamed(lambda i: {"x": x[i]}, 64, 8, seed=1, shard=(p, 4)) for p in range(4)]
    whole = Resident({"x": x}, 8, seed=1)
    for step in range(5):
        assert np.array_equal(np.concatenate([p.batch_at(step)["x"] for p in parts]), whole.batch_at(step)["x"])


def test_the_reader_reads_each_batch_once_whatever_the_window():
    read = []

    def records(index):
        read.append(len(index))
        return {"x": index}

    source = Streamed(records, size=40, batch=4, prefetch=2)
    assert source.example().batch_at(0)["x"].shape == (4,) and source._reader is None
    for step, n in ((0, 3), (3, 1), (4, 6)):
        window = source.window(step, n)
        for i in range(step, step + n):
            assert np.array_equal(window.batch_at(i)["x"], source.batch_at(i)["x"])
    source.close()
    assert len(read) <= 1 + 10 + 10 + 3  # the example, the windows, the comparisons, and what was read ahead
    with pytest.raises(UserError, match="choose 1 to 40"):
        Streamed(records, size=40, batch=41)


def test_full_batch_is_in_order():
    source = Resident({"x": np.arange(5.0)})
    assert np.array_equal(source.batch_at(3)["x"], np.arange(5.0)) and source.batch_size == 5


@pytest.mark.parametrize("size, batch", [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_evaluation_epoch_covers_every_example_exactly_once(size, batch):
    seen = Counter()
    for raw, mask in epoch({"x": np.arange(size)}, batch):
        assert len(raw["x"]) == batch == len(mask)
        seen.update(raw["x"][mask > 0].tolist())
    assert seen == Counter(range(size))


def test_scale_and_threshold():
    batch = {"x": jnp.array([[0, 8, 16]], jnp.uint8), "index": jnp.arange(1)}
    assert scale(-1, 1, 17)(batch, None)["x"].tolist() == [[-1.0, 0.0, 1.0]]
    assert threshold(17)(batch, None)["x"].tolist() == [[0.0, 0.0, 1.0]]


def test_dequantized_integers_come_back():
    x = jnp.arange(17, dtype=jnp.uint8).repeat(1000).reshape(-1, 1)
    y = dequantize(17)({"x": x}, jax.random.key(0))["x"]
    assert y.min() >= 0 and y.max() < 1 and np.array_equal(np.floor(y * 17), x)
    assert abs(float((y * 17 - x).mean()) - 0.5) < 0.01


def test_stochastic_binarization_is_new_each_time_and_static_is_not():
    batch = {"x": jnp.full((4000, 1), 4, jnp.uint8), "index": jnp.arange(4000)}
    stochastic, static = binarize(17), binarize_once(17)
    a, b = (stochastic(batch, jax.random.key(i))["x"] for i in range(2))
    assert not np.array_equal(a, b)
    c, d = (static(batch, jax.random.key(i))["x"] for i in range(2))
    assert np.array_equal(c, d)
    half = {"x": batch["x"][2000:], "index": batch["index"][2000:]}
    assert np.array_equal(static(half, jax.random.key(3))["x"], c[2000:])
    for drawn in (a, c):
        assert abs(float(drawn.mean()) - 4 / 16) < 0.03


def test_embedded_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert {name: len(split["x"]) for name, split in data.splits.items()} == {
        "train": 1347,
        "validation": 150,
        "test": 300,
    }
    ours = np.concatenate([split["x"] for split in data.splits.values()]).reshape(1797, -1)
    theirs = load_digits().data.astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


@pytest.mark.parametrize("name", [name for name, row in CATALOGUE.items() if row.embedded])
def test_embedded_sets_load(name):
    data = load(name)
    assert set(data.splits) == {"train", "validation", "test"}
    for split in data.splits.values():
        assert np.isfinite(split["x"]).all() and len({len(a) for a in split.values()}) == 1


@pytest.mark.parametrize("name, centers, deviation", [("ring8", ring(), 0.01), ("grid25", grid(), 0.05)])
def test_mode_sets_have_their_modes(name, centers, deviation):
    train = load(name)["train"]
    error = train["x"] - centers[train["label"]]
    assert abs(error.std() / deviation - 1) < 0.05
    assert set(train["label"]) == set(range(len(centers)))


def test_hmm_sequences_have_the_transitions_they_claim():
    from gen_jax.data.builders.synthetic import GaussianHmm

    path = load("gaussian_hmm")["train"]["state"]
    counts = np.zeros((3, 3))
    np.add.at(counts, (path[:, :-1], path[:, 1:]), 1)
    np.testing.assert_allclose(counts / counts.sum(axis=1, keepdims=True), GaussianHmm.TRANSITION, atol=0.02)


def test_split_slices():
    data = load("digits")
    assert len(data["train[:100]"]["x"]) == 100
    assert len(data["train[90%:]"]["x"]) == 1347 - 1212
    with pytest.raises(UserError, match="it has"):
        data["trian"]
    with pytest.raises(UserError, match="is no part of a split"):
        data["train[::2]"]


def test_unknown_set_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean .*digits"):
        load("digit")


def test_sets_to_prepare_say_how(tmp_path):
    with pytest.raises(UserError, match="data prepare mnist"):
        load("mnist", tmp_path)
    with pytest.raises(UserError, match="data prepare cifar10"):
        load("cifar10", tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        prepare("mnist", tmp_path, manual_dir=tmp_path / "absent")


def test_unwritable_data_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="TFDS_DATA_DIR"):
        load("blobs", tmp_path / "file")


def test_damaged_mnist_file_is_refused(tmp_path):
    from gen_jax.data.builders.idx import FILES

    for name in FILES.values():
        (tmp_path / name).write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01\x05"))
    with pytest.raises(UserError, match="not the published one"):
        prepare("mnist", tmp_path / "data", manual_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name, mean", [("mnist", 0.13066), ("fashion_mnist", 0.28604)])
def test_idx_sets_from_their_original_files(name, mean, tmp_path):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the original files of {name} are not beside this checkout")
    prepare(name, tmp_path, manual_dir=SHARED / name)
    data = load(name, tmp_path)
    assert data["train"]["x"].shape == (60000, 28, 28, 1) and data["test"]["x"].shape == (10000, 28, 28, 1)
    assert abs(data["train"]["x"].mean() / 255 - mean) < 1e-5
    assert np.bincount(data["test"]["label"]).sum() == 10000


def test_two_processes_prepare_at_once(tmp_path):
    import subprocess
    import sys

    code = f"from gen_jax.data import load; print(len(load('blobs', {str(tmp_path)!r})['test']['x']))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True) for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0].split()[-1] for p in both] == ["250", "250"]


def test_a_part_of_the_training_split_is_held_out_where_there_is_no_validation_split():
    x = np.zeros((50, 2), np.float32)
    experiment = Experiment(GMM(2), em(GMM(2)), "mine", 1)
    bare, own = ({split: {"x": x} for split in splits} for splits in (("train", "test"), ("train", "validation")))
    held = experiment.with_validation(Dataset("mine", bare))
    assert (held.train, held.validation) == ("train[:90%]", "train[90%:]")
    assert experiment.with_validation(Dataset("mine", own)) is experiment
    chosen = replace(experiment, validation="test")
    assert chosen.with_validation(Dataset("mine", bare)) is chosen
    large = Dataset("fashion_mnist", {"train": {"x": np.zeros((60_000, 1), np.float32)}, "test": {"x": x}})
    assert experiment.with_validation(large).validation == "train[50000:]"
