"""Options of how data is read, and their spelling in one text with a name or path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints
from urllib.parse import parse_qsl, quote, urlencode

from gen_jax.errors import UserError

__all__ = ["DataOptions", "listed", "spell", "split_name"]


@dataclass(frozen=True)
class DataOptions:
    """How data is read. Which options apply depends on its kind.

    Args:
        size: of images: 64, or HEIGHTxWIDTH
        fit: of images of other sizes: crop keeps the middle, pad adds black, stretch changes proportions
        channels: of images: 1 (gray), 3 (RGB), 4 (RGBA); by default 1 if all are gray, else 3
        bits: of images, per channel
        labels: of images: the subfolders, or none
        decode: of images: once, into the data folder, or stream: whenever they are read; by default by their size
        partner: a second folder or set of images, or a second text with as many lines, the entry "y"
        pairing: of images: names (equal ones, by default with a partner), unpaired (which also takes a set of pairs
            apart), or the halves of each image
        columns: of a table, or of texts in pairs: names of those to use, with commas between them
        targets: of a table: names of the columns of the entry "y"
        label: of a table: the column with the classes
        missing: of a table: keep rows with empty cells, as NaN, or drop them
        id: of a table of sequences: the column that tells them apart
        time: of a table of sequences: the column that orders their steps
        text: of a text file: its lines or windows of one stream, as bytes; or, as tokens, the whole, pairs of lines, or
            windows with spans taken out
        length: of a text: bytes of a window, or at most of a line; of pairs: tokens of a row
        tokenizer: of texts as tokens: characters, bytes, bpe, unigram, words, or a file such as WORKDIR/tokenizer.json
        vocabulary: of bpe, unigram and words: number of tokens
    """

    size: str = ""
    fit: Literal["", "crop", "pad", "stretch"] = ""
    channels: int = 0
    bits: int = 8
    labels: Literal["folders", "none"] = "folders"
    decode: Literal["", "once", "stream"] = ""
    partner: str = ""
    pairing: Literal["", "names", "unpaired", "halves"] = ""
    columns: str = ""
    targets: str = ""
    label: str = ""
    missing: Literal["keep", "drop"] = "keep"
    id: str = ""
    time: str = ""
    text: Literal["lines", "stream", "tokens", "pairs", "spans"] = "lines"
    length: int = 1024
    tokenizer: str = ""
    vocabulary: int = 2048

    def __post_init__(self):
        kinds = get_type_hints(DataOptions)
        for name, value in asdict(self).items():
            kind = kinds[name]
            if kind is int:
                try:
                    object.__setattr__(self, name, int(value))
                except ValueError:
                    raise UserError(f"the data option {name} takes a whole number, got {value!r}") from None
            elif kind is str:
                object.__setattr__(self, name, str(value))
            elif value not in get_args(kind):
                raise UserError(
                    f"the data option {name} is one of {', '.join(filter(None, get_args(kind)))}; got {value!r}"
                )
        if self.length < 1:
            raise UserError(f"the data option length must be at least 1, got {self.length}")

    def only(self, where: Any, *applicable: str) -> None:
        """Raises UserError if an option is set that does not apply to this data."""
        if unused := sorted(self.changed.keys() - set(applicable)):
            possible = ", ".join(applicable) or "none"
            raise UserError(f"{where} is not read with the option {unused[0]}; options of its kind: {possible}")

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}


def listed(text: str) -> tuple[str, ...]:
    """The names in a text, with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def spell(source: str, options: Mapping[str, Any]) -> str:
    """A data set and its options in one text, "photos?size=64&fit=crop"."""
    name, given = split_name(source)
    options = dict(sorted({**given, **{k: value for k, value in options.items() if value not in (None, "")}}.items()))
    return name + ("?" + urlencode(options, quote_via=quote, safe=",/ ") if options else "")


def split_name(source: str) -> tuple[str, dict[str, str]]:
    """The name or path, and the options after its "?"; a path that exists as it is has none."""
    name, mark, query = str(source).rpartition("?")
    if not mark or "=" not in query or os.path.exists(os.path.expanduser(source)):
        return str(source), {}
    return name, dict(parse_qsl(query, keep_blank_values=True))
