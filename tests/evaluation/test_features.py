"""Encoders, and the files they come from."""

import collections
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.data import load
from gen_jax.data.dataset import Dataset
from gen_jax.data.transforms import binarize, dequantize, dequantize_once, scale
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples import features, inception
from gen_jax.evaluation.samples.features import (
    Classifier,
    Encoder,
    TrainedClassifier,
    _packaged,
    fit_small_cnn,
    load_small_cnn,
    raw,
    save_small_cnn,
    small,
)
from gen_jax.evaluation.samples.quality import examples_of
from gen_jax.evaluation.samples.weights_io import kind_of, read_pytorch, read_tensors, write_tensors


def digits(*transforms):
    data = load("digits")
    return Split("test", data["test"], transforms, training=data["train"], data="digits")


def with_torch(*modules):
    """Skips where PyTorch is missing, or cannot share the process."""
    if "tensorflow" in sys.modules:
        pytest.skip("PyTorch and TensorFlow, which tensorflow_probability imports where it is, crash in one process")
    return [pytest.importorskip(name, reason=f"{name} is not installed") for name in ("torch", *modules)]


# --- images as encoders see them


@pytest.mark.parametrize("transform", [scale(0, 1, 17), scale(-1, 1, 17), dequantize(17), dequantize_once(17), None])
def test_pixels_are_the_intensities_of_the_data_whatever_the_model_sees(transform):
    split = digits(*filter(None, [transform]))
    np.testing.assert_allclose(examples_of(split, 50), np.asarray(split.arrays["x"][:50]) / 16, atol=1e-6)


def test_pixels_of_samples_are_held_to_the_range_and_levels_of_the_data():
    split = digits(dequantize(17))
    np.testing.assert_allclose(
        split.pixels(np.array([-3.0, 0.0, 0.999 / 17, 1.5 / 17, 1.0, 9.0])), [0, 0, 0, 1 / 16, 1, 1]
    )
    assert set(np.unique(examples_of(digits(binarize(17)), 20))) == {0, 1}


# --- the small encoder


def test_the_packaged_encoder_is_as_accurate_as_it_says():
    split, made = digits(), load_small_cnn(features.PACKAGED / "digits.safetensors")
    found = small(split)(examples_of(split, 1000)).probabilities.argmax(axis=1)
    accuracy = np.mean(found == np.asarray(split.arrays["label"]))
    assert accuracy == pytest.approx(made.accuracy) and accuracy > 0.98
    assert small(split).name == "digits_cnn" and f"{accuracy:.3f}" in small(split).detail


def test_features_do_not_depend_on_the_size_of_blocks():
    x, encode = examples_of(digits(), 50), small(digits())
    for block in (1, 7, 50):
        np.testing.assert_allclose(encode._replace(block=block)(x).features, encode(x).features, rtol=1e-5, atol=1e-5)


def test_a_small_encoder_comes_back_from_its_file(tmp_path):
    network = Classifier(3, (2,), 4)
    params = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    made = TrainedClassifier("made", network, params, (4, 4, 1), 0.5)
    path = tmp_path / "mine.safetensors"
    save_small_cnn(made, path)
    back = load_small_cnn(path)
    x = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(back.encoder()(x).features, made.encoder()(x).features)
    assert (back.name, back.accuracy, back.side) == ("mine_cnn", 0.5, (4, 4, 1))
    assert os.listdir(tmp_path) == ["mine.safetensors"]
    flat, about = read_tensors(path, features.KIND)
    for other, message in [
        ((flat, {"kind": features.KIND}), "does not say what its network is"),
        (({**flat, "more": np.ones(2)}, dict(about)), "holds other arrays than its network has"),
    ]:
        write_tensors(path, *other)
        with pytest.raises(UserError, match=message):
            load_small_cnn(path)


def test_a_small_encoder_is_trained_once_and_named_after_what_it_has_seen():
    x = np.arange(64)[:, None, None, None] % 2 * np.ones((1, 4, 4, 1))
    arrays = {"x": (x * 3).astype(np.uint8), "label": np.arange(64) % 2}
    split = Split("test", {name: a[:10] for name, a in arrays.items()}, training=arrays, data="bars")
    made = fit_small_cnn(split)
    assert made.name == "bars_cnn_64" and made.accuracy == 1
    assert fit_small_cnn(split._replace(name="validation")).params is made.params
    assert small(split) is small(split)  # and so compiled once
    with pytest.raises(UserError, match="bars has no images with labels"):
        fit_small_cnn(split._replace(training={"x": arrays["x"]}))
    with pytest.raises(UserError, match="tell 2,001 classes apart, and 1,000 are the most"):
        fit_small_cnn(split._replace(training={**arrays, "label": arrays["label"] * 2000}))


def test_an_encoder_is_of_the_pixels_and_not_of_the_name_of_the_data():
    rng = np.random.default_rng(0)
    label = np.arange(256) % 2
    bright = {"x": (label[:, None, None, None] * 200 + rng.integers(0, 50, (256, 4, 4, 1))).astype(np.uint8)}
    dark = {"x": 250 - bright["x"]}
    encoders = []
    for arrays in (bright, dark):
        data = Dataset("same", {"train": {**arrays, "label": label}})
        split = Split("test", data["train"], training=data["train"], data="same", info=data.info)
        seen = small(split)(split.pixels(arrays["x"])).probabilities.argmax(axis=1)
        assert np.mean(seen == label) == 1.0
        encoders.append(small(split))
    assert encoders[0] is not encoders[1]


def test_the_packaged_encoder_is_of_its_data_alone():
    data = load("digits")
    split = lambda data: Split("test", data["test"], training=data["train"], data="digits", info=data.info)
    assert small(split(data)).name == "digits_cnn"
    other = {name: {**arrays, "x": 16 - arrays["x"]} for name, arrays in data.splits.items()}
    assert _packaged(split(data)) is not None and _packaged(split(Dataset("digits", other))) is None


def test_any_function_is_an_encoder():
    seen = Encoder("mean", lambda x: x.mean(axis=(1, 2)))(np.ones((1100, 4, 4, 3), np.float32))
    assert seen.features.shape == (1100, 3) and seen.probabilities is None
    assert raw(np.ones((7, 2))).features.shape == (7, 2)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((3, 9, 9, 1)), "takes images of 8 x 8 x 1"),
        (np.full((3, 8, 8, 1), 16.0), "in [0, 1], these go from 16 to 16"),
        (np.full((3, 8, 8, 1), np.nan), "3 of 3 examples hold NaN"),
        (np.zeros((0, 8, 8, 1)), "no images"),
    ],
)
def test_wrong_images_get_a_clear_error(x, message):
    with pytest.raises(UserError) as error:
        small(digits())(x)
    assert message in str(error.value)


def test_an_encoder_that_makes_nan_is_found_out():
    with pytest.raises(UserError, match="of the encoder log are not finite"):
        Encoder("log", lambda x: jnp.log(x))(np.zeros((3, 2)))


# --- files


def torch_file(path, state, monkeypatch, legacy=False, short=False):
    """What torch.save writes, without torch: its pickles hold names, and storages by persistent ids."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    class FloatStorage:
        pass

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("only named, never called")

    for thing, module in ((FloatStorage, torch), (_rebuild_tensor_v2, utils)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Storage:
        def __init__(self, key, a):
            self.key, self.a = key, np.ones(1, np.float32) if short else np.ascontiguousarray(a, np.float32)

    class Tensor:
        def __init__(self, storage, shape, strides):
            self.arguments = (storage, 0, shape, strides, False, collections.OrderedDict())

        def __reduce__(self):
            return _rebuild_tensor_v2, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                return ("storage", FloatStorage, thing.key, "cpu", thing.a.size, *([None] if legacy else []))

    storages = {name: Storage(str(i), a) for i, (name, a) in enumerate(state.items())}
    tensors = collections.OrderedDict(
        (name, Tensor(storages[name], a.shape, tuple(s // a.itemsize for s in a.strides))) for name, a in state.items()
    )
    if legacy:
        with open(path, "wb") as file:
            for thing in (
                0x1950A86A20F9469CFC6C,
                1001,
                {"little_endian": True},
                tensors,
                [s.key for s in storages.values()],
            ):
                Pickler(file, protocol=2).dump(thing)
            for storage in storages.values():
                file.write(np.int64(storage.a.size).tobytes() + storage.a.tobytes())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("archive/data.pkl", "w") as file:
                Pickler(file, protocol=2).dump(tensors)
            for storage in storages.values():
                archive.writestr(f"archive/data/{storage.key}", storage.a.tobytes())
    monkeypatch.undo()


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files_are_read_without_torch(tmp_path, monkeypatch, legacy):
    state = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float32([7, 8]),
        "c": np.zeros((0, 2), np.float32),
    }
    torch_file(tmp_path / "m.pth", state, monkeypatch, legacy)
    found = read_pytorch(tmp_path / "m.pth")
    assert found.keys() == state.keys()
    for name, a in state.items():
        np.testing.assert_array_equal(found[name], a)
    whole = (tmp_path / "m.pth").read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="damaged or no PyTorch file|is no PyTorch file"):
            read_pytorch(tmp_path / "cut.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files_of_torch_itself(tmp_path, legacy):
    (torch,) = with_torch()
    a = torch.arange(24.0).reshape(2, 3, 4)
    state = {"a": a.transpose(0, 2), "half": a.half()[1:], "n": torch.tensor(3), "p": torch.nn.Parameter(a[0])}
    torch.save(state, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    found = read_pytorch(tmp_path / "m.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value.detach().numpy())


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_file_holds_is_run(tmp_path, zipped):
    harm = pickle.dumps({"a": Harm(str(tmp_path / "made"))})
    path = tmp_path / "harm.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", harm)
    else:
        path.write_bytes(harm)
    with pytest.raises(UserError, match="wants to use posix.mkdir"):
        read_pytorch(path)
    assert not (tmp_path / "made").exists()


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path, monkeypatch):
    wide = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (1000, 1000), (0, 0))
    torch_file(tmp_path / "m.pth", {"a": wide}, monkeypatch, short=True)
    with pytest.raises(UserError, match="beyond its storage"):
        read_pytorch(tmp_path / "m.pth")


def test_files_of_another_kind_get_a_clear_error(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones(3, np.float32)}, {"kind": "something"})
    assert kind_of(path) == "something"
    with pytest.raises(UserError, match="no file of the kind 'gen_jax inception 1', but 'something'"):
        inception.inception(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        read_tensors(path, "something")
    with pytest.raises(UserError, match="there is no file"):
        read_tensors(tmp_path / "none", "x")
    with pytest.raises(UserError, match="cannot write"):
        write_tensors(tmp_path / "none" / "a.safetensors", {}, {})


# --- Inception


@pytest.mark.parametrize("size", [1, 28, 299, 320])
def test_resizing_is_that_of_the_original_graph(size):
    """ResizeBilinear of TensorFlow 1, written out for one row."""
    x = np.random.default_rng(0).uniform(size=size).astype(np.float32)
    expected = []
    for i in range(299):
        at = np.float32(i) * np.float32(size / 299)
        low = int(at)
        high = min(low + 1, size - 1)
        expected.append(x[low] + (x[high] - x[low]) * (at - low))
    np.testing.assert_allclose(inception.interpolation(size, half_pixels=False) @ x, expected, atol=1e-6)


def test_gray_and_colored_images_are_prepared_alike():
    x = np.random.default_rng(0).uniform(size=(2, 8, 9, 1)).astype(np.float32)
    gray, colored = inception.prepared(x), inception.prepared(np.repeat(x, 3, axis=-1))
    assert gray.shape == (2, 299, 299, 3)
    np.testing.assert_allclose(gray, colored, atol=1e-6)
    np.testing.assert_allclose(inception.prepared(np.ones((1, 4, 4, 3)))[0, 0, 0], 127 / 128, rtol=1e-6)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    state = {"fc.weight": np.zeros((1000, 2048), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    torch_file(tmp_path / "m.pth", state, monkeypatch)
    with pytest.raises(UserError, match="other weights than those of the FID's Inception"):
        inception.convert(tmp_path / "m.pth", tmp_path / "m.safetensors")
    torch_file(tmp_path / "m.pth", {"a": np.zeros(3, np.float32)}, monkeypatch)
    with pytest.raises(UserError, match="'fc.weight' is not there"):
        inception.convert(tmp_path / "m.pth", tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["m.pth"]


def test_inception_is_pytorch_fids_layer_by_layer(tmp_path, monkeypatch):
    """With random weights, in the construction of pytorch-fid."""
    torch, peer = with_torch("pytorch_fid.inception")
    torch.manual_seed(0)

    def random(module):
        for p in module.parameters():
            if p.ndim == 4:
                torch.nn.init.normal_(p, std=(2 / np.prod(p.shape[1:])) ** 0.5)
        for b in module.modules():
            if isinstance(b, torch.nn.BatchNorm2d):
                b.running_mean.normal_(0, 0.1)
                b.running_var.uniform_(0.5, 1.5)
                b.weight.data.uniform_(0.5, 1.5)
                b.bias.data.normal_(0, 0.1)
        return module.eval()

    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *a, **k: {})
    load_state = torch.nn.Module.load_state_dict
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, s, *a: load_state(self, s, *a) if s else None)
    network = random(peer.fid_inception_v3())
    monkeypatch.setattr(peer, "fid_inception_v3", lambda: network)
    whole = peer.InceptionV3([3]).eval()
    torch.save(network.state_dict(), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    inception.convert(tmp_path / "m.pth", tmp_path / "m.safetensors", "pytorch_fid")

    layers = {}

    def keep(name):
        return lambda module, given, out: layers.update({name: out.numpy().copy()})  # before ReLU overwrites it

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(keep(name.removesuffix(".bn").replace(".", "_")))
    x = np.random.default_rng(0).uniform(size=(2, 40, 33, 3)).astype(np.float32)
    with torch.no_grad():
        expected = whole(torch.tensor(x.transpose(0, 3, 1, 2)))[0][:, :, 0, 0]
        logits = network.fc(expected)
    flat, _ = read_tensors(tmp_path / "m.safetensors", inception.KIND)
    params = features.unflatten_dict(flat, sep=".")
    encode = jax.jit(lambda x: inception.Inception().apply({"params": params}, x, capture_intermediates=True))
    (found, scores), kept = encode(inception.prepared(x, "pytorch_fid"))
    assert len(layers) == 94
    for name, a in layers.items():
        ours = np.asarray(kept["intermediates"][name]["__call__"][0]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(ours, a, atol=2e-5 * np.abs(a).max(), err_msg=name)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected.numpy()).max())
    np.testing.assert_allclose(scores, logits, atol=1e-5 * np.abs(logits.numpy()).max())
    encode = inception.inception(tmp_path / "m.safetensors")
    assert encode.name == "inception_pytorch_fid"
    np.testing.assert_allclose(encode(x).features, found, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="1 or 3 channels"):
        encode(x[..., :2])
