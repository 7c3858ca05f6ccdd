"""Decoding of image files, and folders of them."""

import io
import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import encoded, folder_of, noise, write
from PIL import Image

from gen_jax.data import load
from gen_jax.data.folders import fraction, index_folder
from gen_jax.data.images import ImageFormat, decode, read_header
from gen_jax.errors import DataError, UserError

rng = np.random.default_rng(0)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
KINDS = {"PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}, "JPEG": {"L", "RGB", "CMYK"}, "WEBP": {"RGB", "RGBA"}}
KINDS["TIFF"] = {"1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"}


def picture(mode, height, width, seed=0):
    local = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(local.integers(0, 65536, (height, width), np.uint16))
    image = Image.fromarray(local.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([(kind, mode) for kind, modes in KINDS.items() for mode in sorted(modes)]),
    st.integers(1, 400),
    st.integers(1, 60),
    st.sampled_from(["crop", "pad", "stretch"]),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([8, 16]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_every_kind_of_image_is_decoded_to_the_format(kind, height, width, fit, channels, bits, size):
    form, mode = kind
    to = ImageFormat(size, channels, bits, fit)
    data = encoded(picture(mode, height, width), form)
    header = read_header(data)
    assert (header.height, header.width) == (height, width)
    assert header.gray == (mode in ("1", "L", "LA", "I;16"))
    [a] = decode(data, to)
    assert a.shape == (*size, channels) and a.dtype == to.dtype


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpegs_are_decoded_as_by_pillow(mode, subsampling):
    smooth = Image.fromarray(noise(rng, 12, 16)).resize((96, 64), Image.Resampling.BICUBIC).convert(mode)
    data = encoded(smooth, "JPEG", quality=90, **({"subsampling": subsampling} if mode == "RGB" else {}))
    channels = 1 if mode == "L" else 3
    [a] = decode(data, ImageFormat((64, 96), channels))
    np.testing.assert_array_equal(a, np.asarray(Image.open(io.BytesIO(data))).reshape(64, 96, channels))


def test_large_jpegs_are_scaled_down_without_aliasing():
    """Decoding at a smaller scale, then resizing, is close to resizing all pixels."""
    x = np.add.outer(np.sin(np.arange(512) / 9), np.cos(np.arange(768) / 7))
    image = Image.fromarray(np.uint8(127.5 + 60 * x)).convert("RGB")
    [a] = decode(encoded(image, "JPEG", quality=95), ImageFormat((64, 96)))
    exact = np.asarray(image.resize((96, 64), Image.Resampling.BICUBIC))
    assert np.abs(a.astype(int) - exact).mean() < 2.0
    stripes = Image.fromarray(np.tile(np.uint8([[0, 255]]), (256, 128)))  # one pixel wide: gray from afar
    [a] = decode(encoded(stripes), ImageFormat((16, 16), 1))
    assert abs(a.astype(int) - 127).max() < 12


def test_sixteen_bits_keep_their_depth_or_are_rounded_to_eight():
    deep = rng.integers(0, 65536, (6, 9), np.uint16)
    data = encoded(Image.fromarray(deep), "TIFF")
    [kept], [rounded] = decode(data, ImageFormat((6, 9), 1, 16)), decode(data, ImageFormat((6, 9), 1))
    np.testing.assert_array_equal(kept[..., 0], deep)
    np.testing.assert_array_equal(rounded[..., 0], np.rint(deep / 257))
    [widened] = decode(encoded(Image.fromarray(np.uint8([[0, 255]]))), ImageFormat((1, 2), 1, 16))
    assert widened.ravel().tolist() == [0, 65535]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied(form, orientation):
    upright = Image.fromarray(noise(rng, 4, 6)).resize((48, 32), Image.Resampling.NEAREST)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the tag undoes
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    assert read_header(data)[:2] == (32, 48)
    [a] = decode(data, ImageFormat((32, 48)))
    assert np.abs(a.astype(int) - np.asarray(upright)).mean() < 3


def test_transparent_pixels_are_put_on_white_or_kept():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    [rgb], [rgba] = decode(encoded(clear), ImageFormat((2, 2))), decode(encoded(clear), ImageFormat((2, 2), 4))
    assert (rgb == 255).all() and (rgba[..., 3] == 0).all()


def test_fits():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle third is white
    data = encoded(Image.fromarray(wide))
    crop, pad, stretch = (decode(data, ImageFormat((10, 10), fit=fit))[0] for fit in ("crop", "pad", "stretch"))
    assert (crop == 255).mean() > 0.95
    assert (pad[:3] == 0).all() and pad[5, 5, 0] == 255
    assert 0.2 < (stretch > 127).mean() < 0.45
    left, right = decode(encoded(Image.fromarray(np.hstack([wide, 255 - wide]))), ImageFormat((10, 30)), halves=True)
    np.testing.assert_array_equal(left, 255 - right)


def test_decompression_bombs_stay_unread(tmp_path, monkeypatch):
    folder_of(tmp_path / "f", 6, classes=())
    write(tmp_path / "f" / "bomb.png", np.zeros((300, 300), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    index = index_folder(tmp_path / "f", tmp_path / "data")
    assert list(index.unreadable) == ["bomb.png"] and "decompression bomb" in index.unreadable["bomb.png"]


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_folder_becomes_a_data_set(tmp_path, data_dir):
    folder = folder_of(tmp_path / "my pets äöü")
    data = load(folder)
    assert data.info.shape == (8, 12, 3) and data.info.levels == 256 and data.info.class_names == ("cat", "dog")
    rows = {split: len(arrays["x"]) for split, arrays in data.splits.items()}
    assert list(rows) == ["train", "validation", "test"] and sum(rows.values()) == 40 and min(rows.values()) >= 1
    known = {np.asarray(Image.open(path)).tobytes(): path.parent.name for path in folder.rglob("*.png")}
    for arrays in data.splits.values():
        for x, label in zip(arrays["x"], arrays["label"]):
            assert known.pop(x.tobytes()) == data.info.class_names[label]
    assert not known
    cats = data["train[label=cat]"]
    assert set(cats["label"]) == {0} and 0 < len(cats["x"]) < rows["train"]


def test_decoded_once_equals_decoded_whenever_read(tmp_path, data_dir):
    folder = folder_of(tmp_path / "f")
    options = {"size": "6", "fit": "crop", "channels": 1}
    once, streamed = load(folder, **options), load(folder, decode="stream", **options)
    assert isinstance(once["train"]["x"], np.memmap) and not isinstance(streamed["train"]["x"], np.ndarray)
    for split in once.splits:
        np.testing.assert_array_equal(once[split]["x"], np.asarray(streamed[split]["x"]))
        np.testing.assert_array_equal(once[split]["label"], streamed[split]["label"])
    assert once.info == streamed.info
    assert load(f"{folder}?size=6&fit=crop&channels=1").info == once.info
    assert load(folder, size="6", fit="pad").info.digest != once.info.digest


def test_splits_by_content_stay_when_files_are_added_or_renamed(tmp_path, data_dir):
    folder = folder_of(tmp_path / "f", 60, classes=())
    before = {split: {x.tobytes() for x in arrays["x"]} for split, arrays in load(folder).splits.items()}
    os.rename(folder / "000.png", folder / "zzz.png")
    added = np.random.default_rng(1).integers(0, 256, (60, 8, 12, 3), np.uint8)  # some for every split
    for i, x in enumerate(added):
        write(folder / f"new{i}.png", x)
    after = {split: {x.tobytes() for x in arrays["x"]} for split, arrays in load(folder).splits.items()}
    for split in before:
        assert before[split] < after[split]


def test_named_splits_are_kept_and_missing_ones_taken_from_training(tmp_path, data_dir):
    folder_of(tmp_path / "f" / "train", 30)
    folder_of(tmp_path / "f" / "test", 10, seed=1)
    data = load(tmp_path / "f")
    sizes = {split: len(arrays["x"]) for split, arrays in data.splits.items()}
    assert sizes["test"] == 10 and sizes["train"] + sizes["validation"] == 30 and sizes["validation"] >= 1
    assert data.info.class_names == ("cat", "dog")


def test_the_first_examples_of_a_split_are_of_all_classes(tmp_path, data_dir):
    labels = load(folder_of(tmp_path / "f", 80))["train"]["label"]
    assert 4 <= labels[:20].sum() <= 16


def test_unreadable_and_duplicate_files_are_named_and_left_out(tmp_path, data_dir):
    folder = folder_of(tmp_path / "f", 30, classes=())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    whole = encoded(Image.fromarray(noise(rng, 8, 12)), "JPEG")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])  # its header is fine
    (folder / "copy.png").write_bytes((folder / "001.png").read_bytes())
    (folder / "notes.txt").write_text("hello")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "loop").symlink_to(folder)
    data = load(folder)
    assert sum(len(arrays["x"]) for arrays in data.splits.values()) == 30
    said = "\n".join(data.notes)
    for text in ("3 unreadable files", "broken.png", "cut.jpg", "1 duplicate file: copy.png = 001.png", "notes.txt"):
        assert text in said
    assert load(folder).notes == data.notes


def test_duplicates_across_splits_stay_in_the_test_split(tmp_path, data_dir):
    folder_of(tmp_path / "f" / "train", 30, classes=())
    folder_of(tmp_path / "f" / "test", 5, classes=(), seed=1)
    (tmp_path / "f" / "train" / "leak.png").write_bytes((tmp_path / "f" / "test" / "002.png").read_bytes())
    data = load(tmp_path / "f")
    assert len(data["test"]["x"]) == 5 and "train/leak.png = test/002.png" in data.notes[0]


def test_files_damaged_while_reading_are_skipped_up_to_a_limit(tmp_path, data_dir):
    folder = folder_of(tmp_path / "f", 60, classes=())
    x = load(folder, decode="stream")["train"]["x"]
    names = [folder / name for name, *_ in x.records.files["x"]]
    names[0].write_bytes(b"gone bad")
    with pytest.warns(UserWarning, match=f"{names[0].name} is skipped: it has changed"):
        first = x[0]
    np.testing.assert_array_equal(first, x[1])
    with pytest.raises(DataError, match=r"11 files could not be read, and 10 may be skipped"):
        for name in names[:30]:
            name.write_bytes(b"gone bad")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x[np.arange(30)]


def test_pairs_by_name_by_halves_and_unpaired(tmp_path, data_dir):
    folder_of(tmp_path / "a", 20, classes=())
    folder_of(tmp_path / "b", 20, size=(16, 24), classes=(), seed=1)
    pairs = load(tmp_path / "a", partner=str(tmp_path / "b"))
    assert pairs["train"]["x"].shape[1:] == (8, 12, 3) and pairs["train"]["y"].shape[1:] == (16, 24, 3)
    by_x = {np.asarray(Image.open(p)).tobytes(): p.name for p in (tmp_path / "a").iterdir()}
    for x, y in zip(pairs["train"]["x"], pairs["train"]["y"]):
        np.testing.assert_array_equal(y, np.asarray(Image.open(tmp_path / "b" / by_x[x.tobytes()])))
    unpaired = load(tmp_path / "a", partner=str(tmp_path / "b"), pairing="unpaired")
    assert unpaired.partner.info.shape == (16, 24, 3) and "y" not in unpaired["train"]
    halves = load(folder_of(tmp_path / "ab", 20, size=(8, 24), classes=()), pairing="halves")
    both = np.concatenate([halves["train"]["x"], halves["train"]["y"]], axis=2)
    assert {np.asarray(Image.open(p)).tobytes() for p in (tmp_path / "ab").iterdir()} >= {a.tobytes() for a in both}
    (tmp_path / "b" / "003.png").unlink()
    with pytest.raises(UserError, match=r"1 images? ha.* no partner.*003"):
        load(tmp_path / "a", partner=str(tmp_path / "b"))


def bad_folder(kind, folder):
    folder.mkdir()
    if kind == "text":
        (folder / "a.txt.bak").write_text("x")
    elif kind == "broken":
        (folder / "a.png").write_bytes(b"x")
    elif kind == "sizes":
        for i in range(5):
            write(folder / f"{i}.png", noise(rng, 8, 8 + i))
    elif kind == "proportions":
        folder_of(folder, 5, classes=())
    elif kind == "classes":
        folder_of(folder, 5, classes=tuple("abcde"))
    elif kind == "few":
        folder_of(folder, 2, classes=())
    elif kind == "no train":
        folder_of(folder / "test", 5)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("empty", {}, "there are no images"),
        ("text", {}, "it has 1 other files, such as a.txt.bak"),
        ("broken", {}, "none of the 1 images .* can be read; a.png"),
        ("sizes", {}, "5 sizes, from 8x8 to 8x12: give --size"),
        ("proportions", {"size": "8"}, "other proportions than 8x8, such as 8x12: give --fit"),
        ("proportions", {"size": "8y"}, "size takes a number of pixels or HEIGHTxWIDTH"),
        ("proportions", {"fit": "squash"}, "fit is one of crop, pad, stretch"),
        ("proportions", {"channels": 2}, "channels must be 1"),
        ("proportions", {"channels": "many"}, "channels takes a whole number"),
        ("proportions", {"colour": 1}, "no data option 'colour'"),
        ("proportions", {"pairing": "unpaired"}, "needs a second folder"),
        ("classes", {}, "each of the 5 subfolders .* holds one image"),
        ("few", {}, "too few"),
        ("no train", {}, "has no train/"),
    ],
)
def test_bad_folders_get_one_clear_line(tmp_path, data_dir, kind, options, message):
    bad_folder(kind, tmp_path / "f")
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path / "f", **options)
    assert "\n" not in str(raised.value)
    assert not list(data_dir.glob("gen_jax/prepared/*/*/arrays*"))


def test_a_missing_folder_and_archives(tmp_path, data_dir):
    with pytest.raises(UserError, match="there is no file or folder"):
        load(str(tmp_path / "nowhere" / "f"))
    (tmp_path / "f.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="unpack it"):
        load(tmp_path / "f.zip")


def test_many_files_are_indexed_once(tmp_path, data_dir, monkeypatch):
    folder = folder_of(tmp_path / "f", 200, size=(2, 2), classes=())
    first = index_folder(folder)
    monkeypatch.setattr("gen_jax.data.folders.read_header", lambda data: pytest.fail("read again"))
    assert index_folder(folder).files == first.files
    assert 0 <= min(map(lambda file: fraction(file.digest), first.files)) < 0.1


def test_a_class_may_be_called_train(tmp_path, data_dir):
    data = load(folder_of(tmp_path / "vehicles", 60, classes=("bus", "car", "train")))
    assert data.info.class_names == ("bus", "car", "train")
    assert sum(len(arrays["x"]) for arrays in data.splits.values()) == 60


def test_a_replaced_image_is_of_the_same_class(tmp_path, data_dir):
    folder = tmp_path / "f"
    for i in range(60):
        write(folder / ("dark", "light")[i % 2] / f"{i}.png", rng.integers(0, 100, (4, 4, 3), np.uint8) + 150 * (i % 2))
    train = load(folder, decode="stream")["train"]
    for name, *_ in train["x"].records.files["x"][:8]:
        (folder / name).write_bytes(b"gone bad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bright = np.asarray(train["x"]).mean(axis=(1, 2, 3)) > 120
    np.testing.assert_array_equal(bright, train["label"] == 1)


def test_what_could_not_be_read_is_tried_again(tmp_path, data_dir, monkeypatch):
    folder, opened = folder_of(tmp_path / "f", 10, classes=()), open
    refuse = lambda path, *more, **options: (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(path)))
    monkeypatch.setattr(
        "builtins.open", lambda p, *m, **o: (refuse if str(p).endswith("003.png") else opened)(p, *m, **o)
    )
    assert index_folder(folder).unreadable == {"003.png": "Permission denied"}
    monkeypatch.undo()
    assert not index_folder(folder, data_dir).unreadable


def test_equal_images_may_have_different_partners(tmp_path, data_dir):
    folder_of(tmp_path / "a", 20, classes=())
    for i in range(20):
        write(tmp_path / "b" / f"{i:03d}.png", np.zeros((8, 12, 3), np.uint8))
    data = load(tmp_path / "a", partner=str(tmp_path / "b"))
    assert sum(len(arrays["y"]) for arrays in data.splits.values()) == 20


def test_lists_beside_folders_of_splits_are_no_data(tmp_path, data_dir):
    folder_of(tmp_path / "f" / "train", 20)
    (tmp_path / "f" / "train.txt").write_text("000.png\n")
    (tmp_path / "f" / "self").symlink_to("self")
    assert load(tmp_path / "f").info.shape == (8, 12, 3)


def catalogue_set(folder):
    """A set with images of several sizes, as a builder of tensorflow-datasets prepares it."""
    import tensorflow_datasets as tfds

    class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, downloads):
            return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

        def _generate_examples(self, count):
            for i in range(count):
                image = Image.fromarray(noise(np.random.default_rng(i), 20 + i % 3, 30))
                yield i, {"image": io.BytesIO(encoded(image)), "label": i % 2}

    builder = Pets(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_sets_of_the_catalogue_have_images_of_any_size(tmp_path, data_dir):
    folder = catalogue_set(tmp_path / "tfds")
    with pytest.raises(UserError, match="images of several sizes: give --size"):
        load(folder)
    once, streamed = (load(folder, size="8x12", fit="crop", decode=decode) for decode in ("once", "stream"))
    assert once.info == streamed.info and once.info.class_names == ("cat", "dog")
    for split, size in (("train", 36), ("validation", 4), ("test", 10)):
        assert once[split]["x"].shape == (size, 8, 12, 3)
        np.testing.assert_array_equal(once[split]["x"], np.asarray(streamed[split]["x"]))
        np.testing.assert_array_equal(once[split]["label"], streamed[split]["label"])
    with pytest.raises(UserError, match="not read with the option partner"):
        load(folder, size="8", fit="crop", partner="x")


def test_saved_hugging_face_sets(tmp_path, data_dir):
    datasets = pytest.importorskip("datasets", reason="the library Hugging Face Datasets is not installed")
    images = [Image.fromarray(noise(rng, 10 + i % 2, 10)) for i in range(30)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": images, "label": [i % 2 for i in range(30)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", size="8", fit="crop")
    assert data.info.class_names == ("cat", "dog") and data["train"]["x"].shape[1:] == (8, 8, 3)
    assert sum(len(arrays["x"]) for arrays in data.splits.values()) == 30
