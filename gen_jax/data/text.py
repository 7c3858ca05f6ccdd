"""Texts: as bytes, in lines or windows; as one stream of tokens; or as pairs of token sequences."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen_jax.data.dataset import Dataset, describe
from gen_jax.data.folders import SPLITS, content_splits, fractions
from gen_jax.data.tables import align, pad
from gen_jax.data.tokenizers import KINDS, open_tokenizer, train_tokenizer
from gen_jax.errors import UserError

__all__ = [
    "SEPARATOR",
    "SUFFIXES",
    "Windows",
    "as_corpus",
    "check_splits",
    "choose_tokenizer",
    "described_tokens",
    "documents_in",
    "documents_of",
    "evaluation_windows",
    "lines_of",
    "open_text",
    "read_text",
    "text_files",
]

SUFFIXES = (".txt", ".text", ".md")
SEPARATOR = "<|endoftext|>"  # between documents in one file
_HELD_OUT = 8  # blocks of a single document for validation, spread over what is no test data
_VALIDATION = 0.02  # their share


class Windows(NamedTuple):
    """How a stream of tokens is cut: into windows that predict `length` tokens each.

    stride: in evaluation, how many tokens each window after the first predicts anew, with the others as context; 0: all
    of them. whole: training takes the stream as one batch.
    """

    length: int
    stride: int = 0
    whole: bool = False

    @property
    def step(self) -> int:
        return min(self.stride or self.length, self.length)


def evaluation_windows(tokens: np.ndarray, windows: Windows, uncounted: int | None = None) -> dict[str, np.ndarray]:
    """Windows "x" (W, length + 1) over a whole stream (N,) and "mask": every token but the first counts exactly once.

    uncounted: a token that does not count.
    """
    length, step, size = windows.length, windows.step, len(tokens)
    if size < 2:
        raise UserError("a text needs at least one token")
    count = 1 + max(0, -(-(size - 1 - length) // step))
    padded = np.concatenate([tokens, np.zeros(count * step + length, tokens.dtype)])
    x = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[: count * step : step]
    place = np.arange(length + 1)
    first = np.where(np.arange(count) == 0, 1, length + 1 - step)[:, None]
    last = (size - np.arange(count) * step)[:, None]
    mask = (place >= first) & (place < last)
    if uncounted is not None:
        mask &= x != uncounted
    return {"x": x, "mask": mask.astype(np.float32), "length": np.minimum(last[:, 0], length + 1).astype(np.int32)}


def open_text(paths: Mapping[str, Path], options: Any, name: str) -> Dataset:
    """A text file, or one for each split, as `options.text` says.

    "lines": sequences of bytes "x" (N, T) with "length", split 80/10/10 % by their content. "stream": windows of
    `options.length` bytes of the whole text; the last tenth is for testing.
    """
    if options.tokenizer:
        raise UserError("--tokenizer is for --text tokens, pairs or spans")
    texts = {split: _read(path) for split, path in paths.items()}
    make = _lines if options.text == "lines" else _windows
    parts = {split: make(text, options, paths[split]) for split, text in texts.items()}
    if parts.keys() == {""}:
        parts = _split_lines(parts[""], name) if options.text == "lines" else _split_stream(parts[""], name)
    else:
        check_splits(parts, name)
    lines = options.text == "lines"
    splits = {split: pad(some) if lines else {"x": np.stack(some)} for split, some in parts.items()}
    splits = align(splits) if lines else splits
    return Dataset(name, splits, {**describe(splits), "levels": 256})


def check_splits(parts: Mapping[str, Any], name: str) -> None:
    """Raises UserError unless a text comes with all splits."""
    if missing := {"train", "validation", "test"} - parts.keys():
        raise UserError(f"{name} has no text for the splits {', '.join(sorted(missing))}: give one text, or all three")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, unchanged; .gz and .xz are unpacked. A UserError names the line of a bad byte."""
    opener: Callable[..., Any] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not data:
        raise UserError(f"{path} is empty")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8: byte {error.start:,}, in line {line:,}, is 0x{data[error.start]:02x}; "
            "convert it first"
        ) from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, without "\\n" or "\\r\\n"."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def text_files(folder: Path) -> list[Path]:
    """The text files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def documents_in(folder: Path) -> dict[str, list[str]]:
    """The documents of a folder of text files, by split where they lie in folders train, validation and test."""
    by_split: dict[str, list[str]] = {}
    for path in text_files(folder):
        first = path.relative_to(folder).parts[0]
        split = SPLITS.get(first, "") if (folder / first).is_dir() else ""
        by_split.setdefault(split, []).extend(read_text(path).split(SEPARATOR))
    if len(by_split) > 1 and "" in by_split:
        raise UserError(f"{folder} holds texts inside and outside of folders for splits: put all into such folders")
    return by_split


def as_corpus(texts: Mapping[str, Sequence[str]], options: Any, name: str) -> Dataset:
    """Streams of tokens "x" (N,): documents with `end` before each, and after the last of several.

    texts: see `documents_of`.
    """
    parts, several = documents_of(texts, name)
    tokenizer = choose_tokenizer([text for some in parts.values() for text in some], parts["train"], options)
    end = np.array([tokenizer.end], tokenizer.dtype)
    splits = {}
    for split, documents in parts.items():
        pieces = [end]
        for document in documents:
            pieces += [tokenizer.encode(document).astype(end.dtype), end]
        splits[split] = {"x": np.concatenate(pieces if several else pieces[:-1])}
    return Dataset(name, splits, {**described_tokens(splits, tokenizer), "documents": several})


def documents_of(texts: Mapping[str, Sequence[str]], name: str) -> tuple[dict[str, list[str]], bool]:
    """The documents of each split, and whether there are several.

    texts: those of each split, or of "": these are split 80/10/10 % by their content; of a single document the last
    tenth is for testing, and eight blocks from the rest of it, 2 %, for validation.
    """
    parts = {split: [text for text in some if text.strip()] for split, some in texts.items()}
    if not any(parts.values()):
        raise UserError(f"{name} has no text")
    several = sum(map(len, parts.values())) > len(parts)
    if parts.keys() != {""}:
        check_splits({split: some for split, some in parts.items() if some}, name)
        return parts, several
    return _split_documents(parts[""], name) if several else _split_document(parts[""][0], name), several


def choose_tokenizer(everything: Sequence[str], training: Sequence[str], options: Any) -> Any:
    """The tokenizer that the options name, trained on the training part; characters are those of all parts."""
    kind = options.tokenizer or "characters"
    if kind not in KINDS:
        path = Path(kind).expanduser()
        if not path.is_file():
            raise UserError(f"--tokenizer {kind}: it is {', '.join(KINDS)}, or a file")
        return open_tokenizer(path)
    return train_tokenizer(kind, everything if kind == "characters" else training, options.vocabulary)


def described_tokens(splits: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The fields of `DataInfo` of tokens."""
    found, text = describe(splits), tokenizer.to_json()
    digest = hashlib.sha256(f"{found['digest']} {text}".encode()).hexdigest()
    return {**found, "levels": tokenizer.size, "vocabulary": tokenizer.names, "tokenizer": text, "digest": digest}


def _split_documents(documents: Sequence[str], name: str) -> dict[str, list[str]]:
    unique = list(dict.fromkeys(documents))
    if len(unique) < 3:
        raise UserError(
            f"{name} has {len(unique)} documents, too few to be split: give train, validation and test texts"
        )
    parts = content_splits(fractions(text.encode() for text in unique), ("validation", "test"), name)
    return {split: [unique[i] for i in part] for split, part in parts.items()}


def _split_document(text: str, name: str) -> dict[str, list[str]]:
    if len(text) < 1000:
        raise UserError(f"{name} has {len(text)} characters, too few to be split: at least 1,000 are needed")
    rest = int(0.9 * len(text))
    width = max(1, int(_VALIDATION * rest) // _HELD_OUT)
    starts = [(2 * i + 1) * rest // (2 * _HELD_OUT) - width // 2 for i in range(_HELD_OUT)]
    edges = [0, *(edge for start in starts for edge in (start, start + width)), rest]
    pieces = [text[a:b] for a, b in zip(edges, edges[1:])]
    return {"train": pieces[::2], "validation": pieces[1::2], "test": [text[rest:]]}


def _read(path: Path) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    if not len(data):
        raise UserError(f"{path} is empty")
    return data


def _lines(text: np.ndarray, options: Any, path: Path) -> list[np.ndarray]:
    lines = [np.frombuffer(line, np.uint8) for line in text.tobytes().splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} has no lines with text")
    longest = max(map(len, lines))
    if longest > options.length:
        number = next(i for i, line in enumerate(lines) if len(line) == longest)
        raise UserError(
            f"{path}: line {number + 1} of those with text has {longest:,} bytes, more than --length {options.length}: "
            "raise it, or read the text as one stream"
        )
    return lines


def _windows(text: np.ndarray, options: Any, path: Path) -> list[np.ndarray]:
    windows = len(text) // options.length
    if windows < 3:
        raise UserError(f"{path} has {len(text):,} bytes, too few for windows of {options.length}: lower --length")
    return list(text[: windows * options.length].reshape(windows, options.length))


def _split_lines(lines: list[np.ndarray], name: str) -> dict[str, list[np.ndarray]]:
    parts = content_splits(fractions(line.tobytes() for line in lines), ("validation", "test"), name)
    return {split: [lines[i] for i in part] for split, part in parts.items()}


def _split_stream(windows: list[np.ndarray], name: str) -> dict[str, list[np.ndarray]]:
    tenth = max(1, len(windows) // 10)
    return {"train": windows[: -2 * tenth], "validation": windows[-2 * tenth : -tenth], "test": windows[-tenth:]}
