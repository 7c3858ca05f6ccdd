"""Tokenizers, streams of tokens and pairs: lossless, deterministic, each token counted once."""

import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax.data import load, pairs
from gen_jax.data.mixing import TokenWindows
from gen_jax.data.pairs import pack_pairs
from gen_jax.data.text import Windows, evaluation_windows
from gen_jax.data.tokenizers import Bytes, Characters, read_tokenizer, train_tokenizer
from gen_jax.errors import UserError

TEXT = (
    "The owl saw the fox. The fox, \t however, saw naïve owls!\r\n\r\n" * 40
    + "1789 ½ ﬁ 中文 </s> <unk>\u2028\x00 e\u0301"
)
SUBWORDS = ("bpe", "unigram", "words")


@pytest.fixture(scope="module", params=("characters", "bytes", *SUBWORDS))
def tokenizer(request):
    return train_tokenizer(request.param, [TEXT], 300)


def test_ids_give_back_the_text_and_json_the_tokenizer(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32 and 0 <= ids.min() and ids.max() < tokenizer.end == tokenizer.size - 1
    assert tokenizer.text(ids) == TEXT and tokenizer.decode(ids) == TEXT.encode()
    assert read_tokenizer(tokenizer.to_json()) == tokenizer
    lengths = tokenizer.lengths[ids].sum(axis=0)
    assert lengths.tolist() == [len(TEXT.encode()), len(TEXT)]
    assert tokenizer.decode([tokenizer.end]) == b""


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_every_text_is_given_back(text):
    for made in every_text():
        assert made.text(made.encode(text)) == text


@cache
def every_text():
    return [Bytes(), *(train_tokenizer(kind, [TEXT], 300) for kind in SUBWORDS)]


def test_training_is_the_same_in_another_process_with_one_thread(tokenizer):
    code = "import json, sys; from gen_jax.data.tokenizers import train_tokenizer as t; "
    code += f"print(t({tokenizer.kind!r}, [json.load(sys.stdin)], 300).digest)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXT),
        env={**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == tokenizer.digest


def test_unknown_characters_and_small_vocabularies_are_refused():
    with pytest.raises(UserError, match="'z' at position 2"):
        Characters("ab").encode("abz")
    with pytest.raises(UserError, match="257"):
        train_tokenizer("bpe", [TEXT], 100)


@pytest.mark.parametrize("size", [2, 3, 10, 17, 40, 41])
@pytest.mark.parametrize("windows", [Windows(8), Windows(8, 4), Windows(8, 1), Windows(64, 16)])
def test_every_token_but_the_first_is_counted_once_with_its_context(size, windows):
    tokens = np.arange(100, 100 + size)
    found = evaluation_windows(tokens, windows)
    counted = np.concatenate([x[m > 0] for x, m in zip(found["x"], found["mask"])])
    np.testing.assert_array_equal(counted, tokens[1:])
    for number, (x, mask, length) in enumerate(zip(found["x"], found["mask"], found["length"])):
        np.testing.assert_array_equal(np.diff(x[:length]), 1)
        assert mask[length:].sum() == 0 and mask[0] == 0
        if number:
            assert np.argmax(mask) >= windows.length + 1 - windows.step


def test_ends_of_a_single_document_are_not_counted():
    found = evaluation_windows(np.array([9, 1, 2, 9, 3]), Windows(3), uncounted=9)
    assert found["mask"].sum() == 3


def test_training_windows_predict_each_token_once_an_epoch():
    source = TokenWindows(np.arange(101), 11, 2, seed=1, overlap=1)
    predicted = np.concatenate(
        [np.asarray(source.batch_at(step)["x"])[:, 1:].ravel() for step in range(source.windows // 2)]
    )
    assert len(set(predicted.tolist())) == len(predicted) >= 80
    masked = TokenWindows(np.array([9, 1, 2, 9, 3, 4]), 4, 1, shuffle=False, overlap=1, uncounted=9).batch_at(0)
    assert masked["mask"].tolist() == [[0, 1, 1, 0]]


def test_a_text_file_is_split_by_place_and_documents_by_content(tmp_path):
    letters = "".join(chr(97 + i % 26) for i in range(5000))
    (tmp_path / "one.txt").write_text(letters)
    one = load(tmp_path / "one.txt", text="tokens")
    tokenizer = one.tokens()
    assert tokenizer.text(one["test"]["x"]) == letters[4500:] and not one.info.documents
    assert sum(len(tokenizer.text(one[split]["x"])) for split in one.splits) == 5000
    held_out = tokenizer.text(one["validation"]["x"])
    assert 80 <= len(held_out) <= 100 and one.uncounted_token == tokenizer.end
    assert len(one["train+validation"]["x"]) == len(one["train"]["x"]) + len(one["validation"]["x"])

    folder = tmp_path / "letters"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"letter {i}\n" * 3)
    several = load(folder, text="tokens", tokenizer="bytes")
    assert several.info.documents and several.uncounted_token is None
    documents = [
        bytes(part.tolist()).decode()
        for part in np.split(several["train"]["x"], np.flatnonzero(several["train"]["x"] == 256))
        if len(part) > 1
        for part in [part[1:]]
    ]
    assert all(text.startswith("letter ") and text.endswith("\n") for text in documents) and len(documents) >= 15
    (tmp_path / "joined.txt").write_text("<|endoftext|>".join(f"letter {i}" for i in range(30)))
    assert load(tmp_path / "joined.txt", text="tokens").info.documents


def test_the_digest_of_a_text_covers_its_tokenizer(tmp_path):
    for name, letters in (("a", "abc"), ("b", "xyz")):
        (tmp_path / f"{name}.txt").write_text(letters * 500)
    a, b = (load(tmp_path / f"{name}.txt", text="tokens") for name in "ab")
    assert np.array_equal(a["train"]["x"], b["train"]["x"]) and a.digest != b.digest


def test_a_tokenizer_file_is_used_as_it_is(tmp_path):
    made = train_tokenizer("bpe", [TEXT], 280)
    (tmp_path / "tokenizer.json").write_text(made.to_json())
    data = load("tales", tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.tokens() == made
    with pytest.raises(UserError, match="no tokenizer"):
        (tmp_path / "other.json").write_text("{}")
        load("tales", tokenizer=str(tmp_path / "other.json"))


BAD = {
    "empty": (b"", "empty"),
    "not-utf8": (b"first\nsecond \xff line\n" * 50, "line 2"),
    "too-short": (b"short", "too few"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_texts_are_refused(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "text.txt", text="tokens")


# --- pairs


def test_pairs_come_from_tables_parallel_files_and_folders(tmp_path):
    rows = [(f"word {i}", f"wort {i}") for i in range(40)]
    (tmp_path / "two.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    (tmp_path / "named.csv").write_text(
        "id,en,de\n" + "".join(f'{i},"{a}, yes",{b}\n' for i, (a, b) in enumerate(rows))
    )
    (tmp_path / "a.txt").write_text("".join(f"{a}\n" for a, _ in rows))
    (tmp_path / "b.txt").write_text("".join(f"{b}\n" for _, b in rows))
    folder = tmp_path / "parallel"
    folder.mkdir()
    for split, part in (("train", rows[:30]), ("val", rows[30:35]), ("test_2016", rows[35:])):
        for language, side in (("en", 0), ("de", 1)):
            (folder / f"{split}.{language}").write_text("".join(f"{row[side]}\n" for row in part))
    ways = [
        load(tmp_path / "two.tsv", text="pairs"),
        load(tmp_path / "named.csv", text="pairs", columns="en,de"),
        load(tmp_path / "a.txt", text="pairs", partner=str(tmp_path / "b.txt")),
        load(folder, text="pairs", columns="en,de"),
    ]
    for data in ways:
        tokenizer = data.tokens(pairs=True)
        assert sum(len(data[split]["x"]) for split in data.splits) == 40
        train = data["train"]
        source = tokenizer.text(train["x"][0, : train["length"][0] - 1])
        target = tokenizer.text(train["y"][0, 1 : train["y_length"][0] - 1])
        assert source.replace(", yes", "").split()[-1] == target.split()[-1] and target.startswith("wort")
        assert train["x"][0, train["length"][0] - 1] == train["y"][0, 0] == tokenizer.end
    with pytest.raises(UserError, match="40 lines.*39"):
        (tmp_path / "b.txt").write_text("".join(f"{b}\n" for _, b in rows[:-1]))
        load(tmp_path / "a.txt", text="pairs", partner=str(tmp_path / "b.txt"))
    with pytest.raises(UserError, match="line 2 has 3 cells"):
        (tmp_path / "bad.tsv").write_text("a\tb\na\tb\tc\n")
        load(tmp_path / "bad.tsv", text="pairs")


def test_equal_sources_stay_in_one_split_and_empty_sides_are_left_out(tmp_path):
    rows = [(f"word {i % 20}", f"wort {i}") for i in range(60)] + [("", "nothing"), ("something", "")]
    (tmp_path / "two.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    data = load(tmp_path / "two.tsv", text="pairs")
    tokenizer = data.tokens(pairs=True)
    sources = {s: {tokenizer.text(x[: n - 1]) for x, n in zip(data[s]["x"], data[s]["length"])} for s in data.splits}
    assert not sources["train"] & sources["test"] and not sources["train"] & sources["validation"]
    assert "" not in sources["train"]


def test_packing_keeps_every_pair_whole(monkeypatch):
    data = load("numbers")
    some = {name: a[:300] for name, a in data["train"].items()}
    packed = pack_pairs(some, 160, 30)
    assert len(packed["x"]) < 200
    seen = []
    for x, segments, y, y_segments in zip(*(packed[n] for n in ("x", "segments", "y", "y_segments"))):
        assert set(segments[segments > 0]) == set(y_segments[y_segments > 0])
        seen += [(tuple(x[segments == n]), tuple(y[y_segments == n])) for n in range(1, segments.max() + 1)]
    whole = [(tuple(x[:n]), tuple(y[:m])) for x, n, y, m in zip(some["x"], some["length"], some["y"], some["y_length"])]
    assert sorted(seen) == sorted(whole)
    longest = max(some["length"])
    assert pack_pairs(some, 10, 20)["x"].shape[1] == -(-longest // 16) * 16
    monkeypatch.setattr(pairs, "LONGEST", 40)
    with pytest.raises(UserError, match="too short"):
        pack_pairs(some, 10, 20)


def test_published_corpora_say_how_to_prepare_them(tmp_path):
    with pytest.raises(UserError, match="data prepare scan --manual-dir"):
        load("scan", data_dir=tmp_path)
    from gen_jax.data import prepare

    files = tmp_path / "files"
    files.mkdir()
    lines = [f"IN: walk {i} OUT: I_WALK {i}\n" for i in range(1000)]
    (files / "tasks_train_simple.txt").write_text("".join(lines[:900]))
    (files / "tasks_test_simple.txt").write_text("".join(lines[900:]))
    prepare("scan", tmp_path, files)
    data = load("scan", data_dir=tmp_path)
    assert sum(len(data[split]["x"]) for split in data.splits) == 1000 and len(data["test"]["x"]) == 100


def test_captions_of_a_picture_are_paraphrases_of_each_other(tmp_path):
    from gen_jax.data.builders.corpora import CORPORA

    for name, pictures in (("train", 4), ("val", 3), ("test_2016", 6)):
        for k in range(1, 6):
            lines = [f"{name} picture {i}, {'same' if k < 3 and i == 0 else f'caption {k}'}\n" for i in range(pictures)]
            (tmp_path / f"{name}.{k}.en").write_text("".join(lines))
    parts = CORPORA["multi30k_captions"][1](tmp_path)
    assert len(parts["train"]) == 4 * 5 - 1  # two captions of the first picture are equal
    picture = lambda text: text.split(",")[0]
    assert all(picture(x) == picture(y) and x != y for x, y in parts["train"])
    sources = [x for x, _ in parts["test"]][::4]
    assert [text[-1] for text in sources[1:]] == ["2", "3", "4", "5", "1"] and len(parts["test"]) == 6 * 4
