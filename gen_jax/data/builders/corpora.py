"""Published texts, prepared from their original files: language models' corpora and text-to-text tasks."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gen_jax.data.text import SEPARATOR, read_text
from gen_jax.errors import UserError

__all__ = ["CORPORA"]

Texts = Mapping[str, list[Any]]  # {split, or "": documents, or pairs}


def _file(folder: Path, *names: str) -> str:
    """The text of the first of these files that is there, plain or packed."""
    for name in names:
        for ending in ("", ".gz", ".xz"):
            if (folder / f"{name}{ending}").is_file():
                return read_text(folder / f"{name}{ending}")
    raise UserError(f"{folder} does not hold {names[0]}")


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def tinyshakespeare(folder: Path) -> Texts:
    return {"": [_file(folder, "input.txt")]}


def state_union(folder: Path) -> Texts:
    """Addresses, which begin with a line of the president's name; separated where the files say so."""
    names = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
    return {split: _file(folder, name).split(SEPARATOR) for split, name in names.items()}


def multi30k(folder: Path) -> Texts:
    folder = folder / "task1" if (folder / "task1").is_dir() else folder
    names = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    sides = {split: [_lines(_file(folder, f"{name}.{one}")) for one in ("en", "de")] for split, name in names.items()}
    return {split: list(zip(*both, strict=True)) for split, both in sides.items()}


def multi30k_captions(folder: Path) -> Texts:
    """Captions of the same picture. To learn from: each of the five with the next; to test: one with the four others,
    another one for each picture, because the first are longer."""
    folder = folder / "task2" if (folder / "task2").is_dir() else folder
    names, parts = {"train": "train", "validation": "val", "test": "test_2016"}, {}
    for split, name in names.items():
        sides = [_lines(_file(folder, f"{name}.{one}.en")) for one in range(1, 6)]
        pictures = list(zip(*sides, strict=True))
        if split == "train":
            pairs = [(five[i], five[(i + 1) % 5]) for five in pictures for i in range(5)]
            parts[split] = [(x, y) for x, y in pairs if x != y]
        else:
            chosen = [(five, row % 5) for row, five in enumerate(pictures)]
            parts[split] = [(five[i], other) for five, i in chosen for k, other in enumerate(five) if k != i]
    return parts


def tatoeba_en_de(folder: Path) -> Texts:
    names = {"train": "train.tsv", "validation": "val.tsv", "test": "test.tsv"}
    return {s: [tuple(line.split("\t")[:2]) for line in _lines(_file(folder, name))] for s, name in names.items()}


def _scan(kind: str) -> Callable[[Path], Texts]:
    def parse(folder: Path) -> Texts:
        """Commands and actions; a fiftieth of the commands for training is for validation."""
        read = lambda part: [
            tuple(re.fullmatch(r"IN: (.*) OUT: (.*)", line).groups())
            for line in _lines(_file(folder, f"tasks_{part}_{kind}.txt"))
        ]
        train = read("train")
        held_out = lambda pair: zlib.crc32(pair[0].encode()) % 50 == 0
        parts = {"train": [p for p in train if not held_out(p)], "validation": [p for p in train if held_out(p)]}
        return {**parts, "test": read("test")}

    return parse


def cmudict(folder: Path) -> Texts:
    """Words and phonemes with spaces between them; by the CRC-32 of the word, 5 % each for testing and validation."""
    parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    for line in _lines(_file(folder, "cmudict.dict")):
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = re.sub(r"\(\d+\)$", "", word)
        place = zlib.crc32(word.encode()) % 20
        parts[{0: "test", 1: "validation"}.get(place, "train")].append((word, phonemes))
    return parts


def scitldr(folder: Path) -> Texts:
    """Abstracts and their one-sentence summaries; each summary of an abstract is a pair."""
    names = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
    parts = {}
    for split, name in names.items():
        rows = [json.loads(line) for line in _lines(_file(folder, name)) if line]
        parts[split] = [(" ".join(row["source"]), target) for row in rows for target in row["target"]]
    return parts


def bible_styles(folder: Path) -> Texts:
    """Verses of the King James Version and of the Bible in Basic English; whole books are held out."""
    rows = [line.split("\t") for line in _lines(_file(folder, "verses.tsv"))]
    sides = [_lines(_file(folder, f"{name}.txt")) for name in ("KJV", "BBE")]
    parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    for row, *pair in zip(rows, *sides, strict=True):
        parts[{"val": "validation"}.get(row[3], row[3])].append(tuple(pair))
    return parts


CORPORA: Mapping[str, tuple[str, Callable[[Path], Texts], str]] = {
    "tinyshakespeare": ("tokens", tinyshakespeare, "plays of Shakespeare, 1.1 MB; the last tenth is for testing"),
    "state_union": ("tokens", state_union, "addresses of US presidents 1945 to 2006, 2.1 MB"),
    "multi30k": ("pairs", multi30k, "31,014 captions of pictures, English and German"),
    "multi30k_captions": (
        "pairs",
        multi30k_captions,
        "five English captions of each of 31,014 pictures, as paraphrases",
    ),
    "tatoeba_en_de": ("pairs", tatoeba_en_de, "169,813 sentences, English and German"),
    "scan": ("pairs", _scan("simple"), "20,910 commands and their actions"),
    "scan_length": ("pairs", _scan("length"), "the same, tested on longer actions"),
    "scan_jump": ("pairs", _scan("addprim_jump"), "the same, tested on new uses of jump"),
    "cmudict": ("pairs", cmudict, "135,166 English words and their phonemes"),
    "scitldr": ("pairs", scitldr, "abstracts of papers and one-sentence summaries, 1,992 to train on"),
    "bible_styles": ("pairs", bible_styles, "31,077 verses of the King James Bible and in Basic English"),
}
