"""Tokenizers: characters, bytes, and subwords by byte-level BPE or unigram; all lossless, and stored as JSON.

"bpe" and "unigram" keep letters, digits and marks apart; "words" is BPE of all that is between spaces.

The ids of a tokenizer are 0 .. size - 1; the last one, `end`, stands between documents and is no text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gen_jax.errors import UserError

__all__ = [
    "KINDS",
    "Bytes",
    "Characters",
    "Subwords",
    "Tokenizer",
    "open_tokenizer",
    "read_tokenizer",
    "train_tokenizer",
]

KINDS = ("characters", "bytes", "bpe", "unigram", "words")


class Tokenizer(Protocol):
    """A map between text and ids; decoding is that of bytes, so that every sequence of ids has one."""

    @property
    def kind(self) -> str: ...

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of each id; b"" for `end`."""

    def encode(self, text: str) -> np.ndarray:
        """(N,) int32 ids. Raises UserError for text without ids."""

    def to_json(self) -> str: ...


class _Ids:
    """Sizes, names and decoding, from the pieces."""

    @property
    def pieces(self) -> Sequence[bytes]:
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Number of ids, with `end`."""
        return len(self.pieces)

    @property
    def end(self) -> int:
        return self.size - 1

    @property
    def dtype(self) -> Any:
        """The smallest integers that hold all ids."""
        return np.uint16 if self.size <= 2**16 else np.int32

    @cached_property
    def counts(self) -> np.ndarray:
        """(size, 3) tokens, bytes and characters of each id; a character counts with its first byte."""
        return np.concatenate([np.ones((self.size, 1), np.int64), self.lengths], axis=1)

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.pieces[int(i)] for i in ids)

    def text(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode(ids).decode("utf-8", errors="replace")

    @property
    def names(self) -> tuple[str, ...]:
        """The pieces as they are shown."""
        return tuple(piece.decode("utf-8", errors="backslashreplace") for piece in self.pieces[:-1]) + ("<end>",)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(size, 2) bytes and characters of each id; a character counts with its first byte."""
        starts = lambda piece: sum(byte & 0xC0 != 0x80 for byte in piece)
        return np.array([(len(piece), starts(piece)) for piece in self.pieces], np.int64)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Characters(_Ids):
    """One id for each of the characters, in the order of their code points."""

    symbols: str
    kind = "characters"

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    @cached_property
    def _pieces(self) -> Sequence[bytes]:
        return [*(symbol.encode() for symbol in self.symbols), b""]

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        if unknown := np.flatnonzero(self._codes[ids] != codes)[:1].tolist():
            [place] = unknown
            raise UserError(
                f"the character {text[place]!r} at position {place} is not among the {len(self.symbols)} of the "
                "tokenizer; bytes and bpe have ids for all text (train with --tokenizer bytes)"
            )
        return ids.astype(np.int32)

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "symbols": self.symbols})


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@dataclass(frozen=True)
class Bytes(_Ids):
    """One id for each byte of UTF-8."""

    kind = "bytes"

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    @cached_property
    def _pieces(self) -> Sequence[bytes]:
        return [*(bytes([i]) for i in range(256)), b""]

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind})


@dataclass(frozen=True)
class Subwords(_Ids):
    """Subwords of bytes, by a model of the library `tokenizers`, in its JSON.

    Every line of a text is encoded on its own, so that long texts are encoded in parallel. Nothing is normalized and no
    text stands for a special id, so that decoding gives back every text.
    """

    model: str
    kind: str = "bpe"

    @cached_property
    def _library(self) -> Any:
        from tokenizers import Tokenizer as Library

        return Library.from_str(self.model)

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    @cached_property
    def _pieces(self) -> Sequence[bytes]:
        vocabulary = self._library.get_vocab()
        table = _bytes_of_letters()
        special = {token.content for token in self._library.get_added_tokens_decoder().values()}
        ordered = sorted(vocabulary, key=vocabulary.__getitem__)
        own_end = ordered[-1] in special  # as GPT-2's <|endoftext|>
        pieces = [b"" if token in special else bytes(table[letter] for letter in token) for token in ordered]
        return pieces if own_end else [*pieces, b""]

    def encode(self, text: str) -> np.ndarray:
        lines = text.splitlines(keepends=True)
        found = [np.array(one.ids, np.int32) for one in self._library.encode_batch(lines, add_special_tokens=False)]
        return np.concatenate(found) if found else np.zeros(0, np.int32)

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "tokenizer": json.loads(self.model)})


def _bytes_of_letters() -> dict[str, int]:
    """The byte of each letter of GPT-2's byte-level alphabet: printable Latin-1 itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def train_tokenizer(kind: str, texts: Sequence[str], size: int) -> Any:
    """A tokenizer for texts: of characters, bytes, or at most `size` subwords; always the same for the same texts."""
    match kind:
        case "characters":
            return Characters("".join(sorted(set().union(*map(set, texts)))))
        case "bytes":
            return Bytes()
    if size < 257:
        raise UserError(f"--vocabulary must be at least 257, the bytes and one more, got {size}")
    from tokenizers import models, trainers

    options = {"vocab_size": size - 1, "initial_alphabet": sorted(_bytes_of_letters()), "show_progress": False}
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    if kind in ("bpe", "words"):
        library = _library(models.BPE(), whole_words=kind == "words")
        library.train_from_iterator(lines, trainers.BpeTrainer(special_tokens=[], **options))
        return _subwords(library, kind)
    library = _library(models.Unigram())
    library.train_from_iterator(lines, trainers.UnigramTrainer(special_tokens=[], **options))
    return _subwords(_reestimated(sorted(library.get_vocab()), lines), kind)


def _library(model: Any, whole_words: bool = False) -> Any:
    """A tokenizer whose pieces lie within words; whole_words: of letters, digits and marks alike, between spaces."""
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(model)
    words = pre_tokenizers.Split(Regex(r"\s?\S+|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not whole_words)
    library.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level]) if whole_words else byte_level
    return library


def _subwords(library: Any, kind: str) -> Subwords:
    return Subwords(json.dumps(json.loads(library.to_str())), kind)


def _reestimated(pieces: Sequence[str], lines: Sequence[str], iterations: int = 4) -> Any:
    """A unigram model of these pieces, by Viterbi training.

    The scores that the library estimates differ in the second digit from process to process.
    """
    from tokenizers import models

    scores = np.full(len(pieces), -math.log(len(pieces)))
    for _ in range(iterations):
        library = _library(models.Unigram(list(zip(pieces, scores.tolist()))))
        ids = np.concatenate([one.ids for one in library.encode_batch(lines, add_special_tokens=False)]).astype(int)
        counts = 1.0 + np.bincount(ids, minlength=len(pieces))  # so that every piece stays possible
        scores = np.log(counts / counts.sum()).round(6)
    return _library(models.Unigram(list(zip(pieces, scores.tolist()))))


def read_tokenizer(text: str) -> Any:
    """A tokenizer from the output of its `to_json`."""
    found = json.loads(text)
    match found["kind"]:
        case "characters":
            return Characters(found["symbols"])
        case "bytes":
            return Bytes()
        case kind:
            return Subwords(json.dumps(found["tokenizer"]), kind)


def open_tokenizer(path: Path) -> Any:
    """A tokenizer from a file: WORKDIR/tokenizer.json of a run, or one with byte-level pieces of the library."""
    try:
        found = json.loads(path.read_text())
        if "kind" in found:
            return read_tokenizer(json.dumps(found))
        made = Subwords(json.dumps(found), str(found["model"]["type"]).lower())
        _ = made.pieces
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no tokenizer that can be used here: {error!r}") from None
    return made
