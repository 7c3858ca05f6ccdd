"""Tables, arrays in files, sequences and texts."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from gen_jax.data import load
from gen_jax.data.tables import write_csv
from gen_jax.data.transforms import standardize
from gen_jax.errors import UserError

ROWS = 200


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    return {
        "height": rng.normal(170, 10, ROWS),
        "weight": np.where(np.arange(ROWS) % 20 == 0, np.nan, rng.normal(70, 9, ROWS)),
        "city, region": rng.choice(["Bonn", "Köln", "Ulm"], ROWS),
        "smokes": rng.random(ROWS) < 0.3,
        "team": rng.choice(["blue", "red"], ROWS),
    }


def stored(path, columns):
    missing = lambda a: pa.array(a, mask=np.isnan(a)) if a.dtype.kind == "f" else pa.array(a)
    table = pa.table({name: missing(a) for name, a in columns.items()})
    pa.csv.write_csv(table, path) if path.suffix == ".csv" else pa.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_becomes_vectors_with_names(tmp_path, columns, suffix):
    data = load(stored(tmp_path / f"people.{suffix}", columns), label="team")
    info = data.info
    assert info.columns == ("height", "weight", "city, region", "smokes") and info.label == "team"
    assert info.categories == ((), (), ("Bonn", "Köln", "Ulm"), ()) and info.class_names == ("blue", "red")
    assert info.shape == (4,) and info.missing
    whole = {name: np.concatenate([data[split][name] for split in data.splits]) for name in ("x", "label")}
    assert len(whole["x"]) == ROWS and 10 <= len(data["test"]["x"]) <= 35
    row = {tuple(np.nan_to_num(x)): (x, label) for x, label in zip(whole["x"], whole["label"])}
    for i in range(ROWS):
        codes = [columns["height"][i], columns["weight"][i], ["Bonn", "Köln", "Ulm"].index(columns["city, region"][i])]
        expected = np.float32([*codes, columns["smokes"][i]])
        x, label = row[tuple(np.nan_to_num(expected))]
        np.testing.assert_array_equal(x, expected)
        assert ("blue", "red")[label] == columns["team"][i]
    assert not load(tmp_path / f"people.{suffix}", label="team", missing="drop").info.missing


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_separators_are_told_by_the_header(tmp_path, separator):
    (tmp_path / "wine.csv").write_text(
        "\n".join(
            [separator.join(['"fixed; acidity, g"', "pH"]), *(separator.join(["7.5", str(i)]) for i in range(40))]
        )
    )
    data = load(tmp_path / "wine.csv")
    assert data.info.columns == ("fixed; acidity, g", "pH")
    assert sorted(np.concatenate([a["x"][:, 1] for a in data.splits.values()])) == list(range(40))


def test_columns_targets_and_parts(tmp_path, columns):
    path = stored(tmp_path / "t.csv", columns)
    data = load(path, columns="height, smokes", targets="weight")
    assert data["train"]["x"].shape[1] == 2 and data["train"]["y"].shape[1] == 1 and data.info.targets == ("weight",)
    (tmp_path / "rows.txt").write_text("3\n1\n")
    np.testing.assert_array_equal(data[f"train[@{tmp_path / 'rows.txt'}]"]["x"], data["train"]["x"][[3, 1]])
    (tmp_path / "rows.txt").write_text("3000\n")
    with pytest.raises(UserError, match="row numbers must be between 0"):
        data[f"train[@{tmp_path / 'rows.txt'}]"]


def test_splits_stay_when_rows_are_added_and_equal_rows_stay_together(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    as_sets = lambda path: {s: {row.tobytes() for row in a["x"]} for s, a in load(path).splits.items()}
    np.save(tmp_path / "a.npy", x)
    before = as_sets(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.concatenate([x[::-1], rng.normal(size=(200, 2)).astype(np.float32), x[:50]]))
    after = as_sets(tmp_path / "b.npy")
    assert all(before[split] < after[split] for split in before)
    assert not after["train"] & after["test"]


def test_a_table_per_split(tmp_path, columns):
    folder = tmp_path / "people"
    folder.mkdir()
    part = lambda rows: {name: a[rows] for name, a in columns.items()}
    stored(folder / "train.csv", part(slice(0, 150)))
    stored(folder / "test.csv", part(slice(150, 200)))
    data = load(folder, label="team")
    sizes = {split: len(arrays["x"]) for split, arrays in data.splits.items()}
    assert sizes["test"] == 50 and sizes["train"] + sizes["validation"] == 150


def test_samples_come_back_in_units_and_columns(tmp_path, columns):
    data = load(stored(tmp_path / "t.csv", columns), label="team")
    x = data["train"]["x"]
    transform = standardize(x)
    batch = transform({"x": np.asarray(x)}, None)
    z = np.asarray(batch["x"])
    np.testing.assert_allclose(np.nanmean(z, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(z, axis=0), 1, rtol=1e-4)
    back = transform.inverse(z)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)
    write_csv(tmp_path / "out.csv", {"x": back, "label": data["train"]["label"]}, data.info)
    again = pa.csv.read_csv(tmp_path / "out.csv").to_pydict()
    assert list(again) == ["height", "weight", "city, region", "smokes", "team"]
    assert again["team"] == [data.info.class_names[i] for i in data["train"]["label"]]
    assert set(again["city, region"]) == {"Bonn", "Köln", "Ulm"}
    np.testing.assert_allclose(again["height"], x[:, 0], rtol=1e-5)


def test_arrays_by_their_usual_names(tmp_path):
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (50, 11, 9), np.uint8)
    np.savez(tmp_path / "faces.npz", x=faces, subject=np.arange(50) % 5)
    data = load(tmp_path / "faces.npz", label="subject")
    assert data.info.shape == (11, 9, 1) and data.info.levels == 256 and data.info.classes == 5
    np.savez(
        tmp_path / "split.npz",
        train_x=faces[:40],
        train_y=np.arange(40) % 4,
        test_x=faces[40:],
        test_y=np.zeros(10, int),
    )
    data = load(tmp_path / "split.npz")
    assert len(data["test"]["x"]) == 10 and data.info.classes == 4 and set(data["test"]["label"]) == {0}
    np.savez(tmp_path / "table.npz", data=rng.normal(size=(60, 2)), columns=["a", "b"])
    assert load(tmp_path / "table.npz", columns="b").info.columns == ("b",)
    np.savez(tmp_path / "two.npz", photo=faces[..., None], drawing=faces[:, :, ::-1], z=np.arange(50.0))
    pairs = load(tmp_path / "two.npz", columns="photo", targets="drawing")["train"]
    np.testing.assert_array_equal(pairs["x"], pairs["y"][:, :, ::-1])
    np.savez(tmp_path / "xy.npz", x=rng.normal(size=(40, 3)), y=rng.normal(size=40))
    assert load(tmp_path / "xy.npz")["train"]["y"].dtype == np.float32


def test_sequences_with_lengths_and_as_a_long_table(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 40)
    pieces = [rng.normal(size=(n, 2)).astype(np.float32) for n in lengths]
    np.savez(tmp_path / "s.npz", X=np.concatenate(pieces), lengths=lengths)
    known = {piece.tobytes() for piece in pieces}
    order = rng.permutation(lengths.sum())
    steps = np.concatenate([np.arange(n) for n in lengths])[order]
    who, x = np.repeat([f"p{i}" for i in range(40)], lengths)[order], np.concatenate(pieces)[order]
    pa.csv.write_csv(pa.table({"who": who, "t": steps, "u": x[:, 0], "v": x[:, 1]}), tmp_path / "s.csv")
    for data in (load(tmp_path / "s.npz"), load(tmp_path / "s.csv", id="who", time="t")):
        found = [x[:n].tobytes() for a in data.splits.values() for x, n in zip(a["x"], a["length"])]
        assert len(found) == 40 and set(found) == known
        assert len({a["x"].shape[1:] for a in data.splits.values()}) == 1
        data.sequences()
    np.savez(tmp_path / "bad.npz", X=np.concatenate(pieces), lengths=lengths + 1)
    with pytest.raises(UserError, match="add up to"):
        load(tmp_path / "bad.npz")


def test_texts_as_lines_and_as_one_stream(tmp_path):
    lines = [f"line {i} of äöü{'!' * (i % 7)}" for i in range(60)]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n\n")
    data = load(tmp_path / "t.txt")
    found = [bytes(x[:n]).decode() for a in data.splits.values() for x, n in zip(a["x"], a["length"])]
    assert sorted(found) == sorted(lines) and data.info.levels == 256
    stream = load(tmp_path / "t.txt", text="stream", length=16)
    text = b"".join(bytes(x) for a in stream.splits.values() for x in a["x"])
    assert (tmp_path / "t.txt").read_bytes().startswith(text) and len(text) > 1000
    with pytest.raises(UserError, match="more than --length 10"):
        load(tmp_path / "t.txt", length=10)
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        load(tmp_path / "e.txt")


BAD = {
    "text where numbers are wanted": ("a,note\n" + "".join(f"1,text {i}\n" for i in range(40)), {}, "'note' holds 40"),
    "ragged rows": ("a,b\n1,2\n3\n", {}, "row 3 has 1 cells instead of 2"),
    "duplicate columns": ("a,a\n1,2\n", {}, "several columns named 'a'"),
    "no rows": ("a,b\n", {}, "has no rows"),
    "empty": ("", {}, "the file is empty"),
    "unknown column": ("a,b\n1,2\n", {"columns": "c"}, "no column 'c'; it has a, b"),
    "unknown label": ("a,b\n1,2\n", {"label": "c"}, "no column 'c'"),
    "fractions as labels": ("a,b\n1,2.5\n1,3\n", {"label": "b"}, "texts or whole numbers"),
    "one class": ("a,b\n1,2\n1,2\n", {"label": "b"}, "has 1 classes"),
    "too few rows": ("a\n1\n2\n", {}, "too few"),
    "infinite": ("a\n1\ninf\n2\n3\n", {}, "infinite values, the first in row 2"),
    "nothing left": ("b\n1\n2\n", {"label": "b"}, "no columns left"),
    "all missing": ("a,b\n1,\n,2\n3,\n,5\n", {"missing": "drop"}, "every row has a missing cell"),
    "time without id": ("a,t\n1,2\n", {"time": "t"}, "give --id too"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_get_one_clear_line(tmp_path, kind):
    text, options, message = BAD[kind]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path / "t.csv", **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["objects", "texts", "damaged", "lengths", "nothing"])
def test_bad_array_files_get_one_clear_line(tmp_path, kind):
    path = tmp_path / "a.npz"
    if kind == "objects":
        np.savez(path, x=np.array([{}, 1], object))
    elif kind == "texts":
        np.savez(path, x=np.array([["a"]] * 9, dtype="S1"))
    elif kind == "damaged":
        path.write_bytes(b"PK\x03\x04 no zip")
    elif kind == "lengths":
        np.savez(path, x=np.zeros((9, 2)), label=np.zeros(8, int))
    else:
        np.savez(path, image=np.zeros((9, 2, 2)))
    with pytest.raises(UserError, match=r"a\.npz") as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_objects_and_dicts(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3))
    assert len(load({"x": x})["test"]["x"]) >= 1
    data = load({"train": {"x": x}, "validation": {"x": x}, "test": {"x": x}})
    assert load(data) is data and data.info.shape == (3,)


def test_splits_do_not_depend_on_the_chosen_columns(tmp_path, columns):
    path = stored(tmp_path / "t.csv", columns)
    whole, part = load(path, columns="height,weight"), load(path, columns="height")
    np.testing.assert_array_equal(whole["test"]["x"][:, :1], part["test"]["x"])


def test_dates_order_sequences_but_are_no_numbers(tmp_path):
    days = np.datetime64("2024-01-01") + np.arange(60)[::-1] % 20
    table = pa.table({"day": days, "who": np.repeat([1, 2, 3], 20), "x": np.arange(60.0)})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", id="who", time="day")
    first = next(x for arrays in data.splits.values() for x in arrays["x"] if 0 in x)
    np.testing.assert_array_equal(first[:, 0], np.arange(20)[::-1])
    with pytest.raises(UserError, match="'day' has the type date32.*name the others with --columns"):
        load(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="labels in 'day' are of the type"):
        load(tmp_path / "t.parquet", columns="x", label="day")


def test_names_of_columns_are_not_taken_for_splits(tmp_path):
    np.savez(tmp_path / "log.npz", epoch=np.arange(30.0), train_loss=np.arange(30.0), val_loss=np.arange(30.0))
    assert load(tmp_path / "log.npz").info.columns == ("epoch", "train_loss", "val_loss")


@pytest.mark.parametrize(
    "name, arrays, options, message",
    [
        ("a.npz", {"x": np.array([2**40] * 9)}, {}, "fit in 32 bits"),
        ("a.npz", {"x": np.array(["1"] * 9)}, {}, "texts|no array|numbers"),
        ("a.npz", {"x": np.zeros((9, 2))}, {"id": "who"}, "not read with the option id"),
        ("a.npz", {"x": np.zeros((0, 2)), "lengths": np.zeros(0, int)}, {}, "a-|too few|add up"),
        ("a.npz", {"x": np.zeros((9, 2))}, {"size": "64"}, "not read with the option size"),
    ],
)
def test_array_files_that_cannot_be_read_as_asked(tmp_path, name, arrays, options, message):
    np.savez(tmp_path / name, **arrays)
    with pytest.raises(UserError, match=message):
        load(tmp_path / name, **options)


def test_incomplete_rows_are_dropped_from_sequences_and_targets(tmp_path):
    x = np.where(np.arange(60) % 7 == 0, np.nan, np.arange(60.0))
    stored(tmp_path / "t.csv", {"who": np.repeat(np.arange(6), 10), "x": x, "y": x[::-1].copy()})
    data = load(tmp_path / "t.csv", id="who", columns="x", missing="drop")
    assert not data.info.missing and sum(int(a["length"].sum()) for a in data.splits.values()) == 60 - 9
    pairs = load(tmp_path / "t.csv", columns="x", targets="y", missing="drop")
    assert all(np.isfinite(a[entry]).all() for a in pairs.splits.values() for entry in ("x", "y"))


@pytest.mark.parametrize("source", [{}, {"y": np.zeros(9)}, {"train": {"y": np.zeros(9)}}])
def test_dicts_without_observations_are_refused(source):
    with pytest.raises(UserError, match='needs an entry "x"'):
        load(source)


@pytest.mark.parametrize("name", ["my-photos", "my photos", "~nosuch/x", "imagenet_resized/64x64", "no/such/folder"])
def test_names_that_are_nothing(name, tmp_path):
    with pytest.raises(UserError):
        load(name, data_dir=tmp_path)


def test_empty_columns_are_left_out_and_named(tmp_path):
    rows = {"a": np.arange(30.0), "note": np.full(30, np.nan)}
    data = load(stored(tmp_path / "t.csv", rows))
    assert data.info.columns == ("a",) and not data.info.missing and "'note', which is empty" in data.notes[0]
    assert load(tmp_path / "t.csv", columns="a,note").info.missing
