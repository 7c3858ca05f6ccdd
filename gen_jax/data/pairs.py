"""Pairs of texts: tables with two columns, parallel files, and rows of tokens, packed for training."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.dataset import Dataset
from gen_jax.data.folders import SPLITS, content_splits, fractions
from gen_jax.data.options import listed
from gen_jax.data.records import Arrays
from gen_jax.data.tables import align, pad
from gen_jax.data.text import SUFFIXES, check_splits, choose_tokenizer, described_tokens, lines_of, read_text
from gen_jax.errors import UserError

__all__ = ["as_pairs", "open_pairs", "open_parallel", "pack_pairs", "parallel_files"]

Pairs = Sequence[tuple[str, str]]
LONGEST = 1024  # tokens up to which rows are lengthened for the longest pair
_PACKED = re.compile(r"\.(gz|xz)$")


def open_pairs(paths: Mapping[str, Path], options: Any, name: str) -> Dataset:
    """Pairs from a table, or from two texts line by line (`--partner`), or from one of these for each split."""
    if options.partner:
        if paths.keys() != {""}:
            raise UserError("--partner takes one text; of several splits, give a folder and --columns, e.g. en,de")
        return as_pairs({"": _parallel(paths[""], Path(options.partner).expanduser())}, options, name)
    return as_pairs({split: _table(path, listed(options.columns)) for split, path in paths.items()}, options, name)


def parallel_files(folder: Path, languages: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """{split: its two files} of a folder with train.en and train.de, val.en, ..., for the languages ("en", "de").

    Of several files for a split, such as test_2016.en and test_2017.en, the first is taken. {} if there are none.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for path in sorted(folder.iterdir()):
        bare = _PACKED.sub("", path.name)
        stem, dot, language = bare.rpartition(".")
        split = SPLITS.get(re.split(r"[_.\-]", stem)[0].lower())
        if not dot or len(languages) != 2 or language != languages[0] or split is None or split in found:
            continue
        other = next((p for end in ("", ".gz", ".xz") if (p := folder / f"{stem}.{languages[1]}{end}").is_file()), None)
        if other is None:
            raise UserError(f"{path} has no partner {stem}.{languages[1]}")
        found[split] = path, other
    return found


def open_parallel(files: Mapping[str, tuple[Path, Path]], options: Any, name: str) -> Dataset:
    """Pairs from the output of `parallel_files`."""
    return as_pairs({split: _parallel(*both) for split, both in files.items()}, options, name)


def _parallel(first: Path, second: Path) -> list[tuple[str, str]]:
    sides = [lines_of(read_text(path)) for path in (first, second)]
    if len(sides[0]) != len(sides[1]):
        raise UserError(f"{first} has {len(sides[0]):,} lines, {second} has {len(sides[1]):,}: they must be as many")
    return list(zip(*sides))


def _table(path: Path, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs from two columns: of a table with names, or of a .tsv with two cells in each line."""
    text, delimiter = read_text(path), "\t" if ".tsv" in path.suffixes else ","
    if path.suffix == ".parquet":
        raise UserError(f"{path}: pairs are read from .tsv and .csv, or from two texts")
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting))
    if columns:
        if len(columns) != 2 or not set(columns) <= set(rows[0]):
            there = ", ".join(rows[0][:8])
            raise UserError(f"{path}: --columns takes the names of two columns; there are {there}")
        places, rows = [rows[0].index(name) for name in columns], rows[1:]
    elif path.suffix in SUFFIXES:
        raise UserError(f"{path}: pairs are two cells in each line of a .tsv, or a second text given by --partner")
    elif delimiter == ",":
        raise UserError(f"{path}: name the two columns with --columns, e.g. --columns {','.join(rows[0][:2])}")
    else:
        places = [0, 1]
    for number, row in enumerate(rows, 1 + bool(columns)):
        if row and (len(row) <= max(places) or (not columns and len(row) != 2)):
            raise UserError(f"{path}: line {number:,} has {len(row)} cells; two are needed")
    return [(row[places[0]], row[places[1]]) for row in rows if row]


def as_pairs(pairs: Mapping[str, Pairs], options: Any, name: str) -> Dataset:
    """Tokens "x" (N, S) and "y" (N, T) with "length" and "y_length".

    Sources end with `end`; targets begin and end with it. Both have one vocabulary. pairs: those of each split, or of
    "", which are split 80/10/10 % by the content of their sources. Pairs with an empty side are left out of training.
    """
    parts = {split: list(some) for split, some in pairs.items()}
    if parts.keys() == {""}:
        parts = _split(parts[""], name)
    else:
        check_splits(parts, name)
    whole = [(x, y) for x, y in parts["train"] if x.strip() and y.strip()]
    empty, parts["train"] = len(parts["train"]) - len(whole), whole
    if not whole:
        raise UserError(f"{name} has no pairs")
    texts = lambda some: [text for pair in some for text in pair]
    tokenizer = choose_tokenizer(texts(p for some in parts.values() for p in some), texts(whole), options)
    splits, cut = {}, 0
    for split, some in sorted(parts.items(), key=lambda one: one[0] != "train"):
        splits[split], longer = _tokens(some, tokenizer, options.length, split == "train")
        cut += longer
    splits = align(align(splits), "y")
    notes = [f"{empty:,} pairs with an empty side were left out"] * bool(empty)
    notes += [f"{cut:,} training pairs with more than {options.length} tokens were left out (--length)"] * bool(cut)
    return Dataset(name, splits, described_tokens(splits, tokenizer), notes=tuple(f"{name}: {n}" for n in notes))


def _split(pairs: Pairs, name: str) -> dict[str, list[tuple[str, str]]]:
    sources = sorted({x for x, _ in pairs})
    parts = content_splits(fractions(x.encode() for x in sources), ("validation", "test"), name)
    by_source: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        by_source.setdefault(pair[0], []).append(pair)
    return {split: [pair for i in part for pair in by_source[sources[i]]] for split, part in parts.items()}


def _tokens(pairs: Pairs, tokenizer: Any, length: int, drop: bool) -> tuple[dict[str, np.ndarray], int]:
    """The padded tokens, and how many pairs were left out."""
    end, kind = tokenizer.end, tokenizer.dtype
    both = [(tokenizer.encode(x), tokenizer.encode(y)) for x, y in pairs]
    kept = [pair for pair in both if max(map(len, pair)) <= length - 2] if drop else both
    if not kept:
        why = f"all pairs are longer than {length} tokens: raise --length" if both else "a split has no pairs"
        raise UserError(why)
    x = pad([np.append(one, end).astype(kind) for one, _ in kept])
    y = pad([np.concatenate([[end], one, [end]]).astype(kind) for _, one in kept])
    return {**x, "y": y["x"], "y_length": y["length"]}, len(both) - len(kept)


def pack_pairs(arrays: Arrays, source: int, target: int) -> dict[str, np.ndarray]:
    """Several pairs in each row: "x" (R, source) and "y" (R, target) with "segments" and "y_segments", 0 for padding.

    Pairs are taken in a fixed random order and put into the first of the last rows with room for both sides. Rows that
    are too short for the longest pair are made as long as it, in multiples of 16, up to `LONGEST` tokens.
    """
    lengths = np.stack([arrays["length"], arrays["y_length"]], axis=1)
    needed = lengths.max(axis=0).tolist()
    if any(n > max(row, LONGEST) for n, row in zip(needed, (source, target))):
        raise UserError(
            f"the longest source has {needed[0]:,} tokens, the longest target {needed[1]:,}: rows of {source} and "
            f"{target} are too short; raise --source and --target, or leave long pairs out by --length"
        )
    source, target = (row if n <= row else -(-n // 16) * 16 for n, row in zip(needed, (source, target)))
    rows: list[list[int]] = []
    room: list[list[int]] = []
    for i in np.random.default_rng(0).permutation(len(lengths)).tolist():
        n, m = lengths[i].tolist()
        recent = range(max(0, len(rows) - 32), len(rows))
        place = next((r for r in recent if room[r][0] >= n and room[r][1] >= m), len(rows))
        if place == len(rows):
            rows.append([])
            room.append([source, target])
        rows[place].append(i)
        room[place] = [room[place][0] - n, room[place][1] - m]
    found = {
        "x": np.zeros((len(rows), source), arrays["x"].dtype),
        "y": np.zeros((len(rows), target), arrays["x"].dtype),
    }
    found |= {
        "segments": np.zeros((len(rows), source), np.int16),
        "y_segments": np.zeros((len(rows), target), np.int16),
    }
    for r, members in enumerate(rows):
        for entry, segments, length in (("x", "segments", "length"), ("y", "y_segments", "y_length")):
            at = 0
            for number, i in enumerate(members, 1):
                stop = at + int(arrays[length][i])
                found[entry][r, at:stop] = arrays[entry][i, : stop - at]
                found[segments][r, at:stop] = number
                at = stop
    return found
