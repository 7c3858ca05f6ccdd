"""The command `data`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional

from gen_jax.cli.options import PICTURES, DataDir, check_ending
from gen_jax.data.options import DataOptions
from gen_jax.errors import UserError

__all__ = ["data"]


def data(
    action: Positional[Literal["list", "prepare", "show", "pack"]],
    source: Positional[str | None] = None,
    destination: Positional[Path | None] = None,
    manual_dir: Path | None = None,
    out: Path | None = None,
    data_dir: DataDir = None,
    options: OmitArgPrefixes[DataOptions] = DataOptions(),
) -> None:
    """Lists the data sets, prepares one of them, shows what a path or name is read as, or packs it into shards.

    Args:
        action: list, prepare, show, or pack
        source: a name, or a path to a folder of images, a table, a text or shards
        destination: the folder to pack into
        manual_dir: for prepare: a folder with the original files, which are then not downloaded
        out: for show: the picture of 64 examples (.png, .pdf, .svg); by default data.png in this folder
    """
    if action == "list":
        _list(data_dir)
        return
    if source is None:
        raise UserError(f"data {action} needs a name or a path; `python -m gen_jax data list` lists the names")
    if action == "prepare":
        from gen_jax.data import catalogue

        print(f"{source} is prepared in {catalogue.prepare(source, data_dir, manual_dir)}")
        return
    if action == "pack" and destination is None:
        raise UserError("data pack needs a folder to pack into: data pack SOURCE DESTINATION")
    if action == "pack":
        _pack(source, destination, data_dir, options)
        return
    from gen_jax.data import load

    found = load(source, data_dir, **options.changed)
    _note(found)
    _show(found, out or Path("data.png"))


def _note(found: Any) -> None:
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)


def _list(data_dir: Path | None) -> None:
    """Prints the catalogue, and the folders and tables that were prepared."""
    from gen_jax.data import catalogue
    from gen_jax.data.builders.corpora import CORPORA
    from gen_jax.data.builders.texts import TEXTS
    from gen_jax.data.cache import use_data_dir
    from gen_jax.data.loading import prepared_folders

    table = Table()
    for column in ("data set", "contents", "state"):
        table.add_column(column)
    for key, row in catalogue.CATALOGUE.items():
        ready = catalogue.prepared_size(key, data_dir)
        state = f"{_size(ready)}" if ready else "on first use" if row.embedded else "to prepare"
        table.add_row(key, row.summary, state)
    with use_data_dir(data_dir):
        for key, (_, _, summary) in {**TEXTS, **CORPORA}.items():
            ready = catalogue.is_text_prepared(key)
            table.add_row(key, summary, "embedded" if key in TEXTS else "prepared" if ready else "to prepare")
    Console().print(table)
    if folders := prepared_folders(data_dir):
        table = Table()
        for column in ("prepared from", "as", "size"):
            table.add_column(column, overflow="fold")
        for name, source, size in folders:
            table.add_row(source, name, _size(size))
        Console().print(table)
    print("Any other name of the tensorflow-datasets catalogue works too, prepared with the `tfds` extra.")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _show(found: Any, out: Path) -> None:
    """Prints the description of a data set, and draws examples or prints rows."""
    check_ending(out, PICTURES)
    _describe(found)
    if found.partner is not None:
        print("unpaired with ", end="")
        _show(found.partner, out.with_stem(f"{out.stem}_y"))
    from gen_jax.core import is_sequential

    first = next(iter(found.splits.values()))
    if found.info.tokenizer:
        _texts(found.info, first)
    elif first["x"].ndim == 4:
        _draw(found, out)
    elif is_sequential(first):
        _sequences(found.info, first)
    elif first["x"].ndim == 2:
        _rows(found.info, _head(first, 8))


def _describe(found: Any) -> None:
    """Prints sizes, columns, classes and empty cells of a data set."""
    import numpy as np

    from gen_jax.data.records import nbytes

    info = found.info
    print(found.name)
    for split, arrays in found.splits.items():
        shapes = {name: "x".join(map(str, a.shape[1:])) or "number" for name, a in arrays.items()}
        entries = ", ".join(f"{name} {shapes[name]} {a.dtype}" for name, a in arrays.items())
        print(f"  {split}: {len(arrays['x']):,} examples, {_size(nbytes(arrays))}: {entries}")
    facts = {"levels": info.levels, "classes": info.classes, "columns": ", ".join(info.columns)}
    for name, value in (facts | {"targets": ", ".join(info.targets), "label": info.label}).items():
        if value:
            print(f"  {name}: {value}")
    for column, names in zip(info.columns, info.categories):
        if names:
            print(f"  categories of {column}: {_some(names)}")
    for split, arrays in found.splits.items() if info.missing and info.columns else ():
        empty = np.isnan(np.asarray(arrays["x"])).reshape(-1, len(info.columns)).sum(axis=0)
        if shown := [f"{name} {count:,}" for name, count in zip(info.columns, empty) if count]:
            print(f"  empty cells in {split}: {_some(shown)}")
    for split, arrays in found.splits.items() if info.classes else ():
        counts = np.bincount(np.asarray(arrays["label"]), minlength=info.classes)
        names = info.class_names or tuple(map(str, range(info.classes)))
        print(f"  classes in {split}: {_some([f'{n} {c:,}' for n, c in zip(names, counts)])}")
    print(f"  digest: {info.digest}")


def _head(arrays: Any, n: int) -> Any:
    """The first n examples."""
    import numpy as np

    from gen_jax.data.records import take

    return take(arrays, np.arange(min(n, len(arrays["x"]))))


def _sequences(info: Any, arrays: Any) -> None:
    """Prints the first lines of a text, or the first steps of the first sequence."""
    few = _head(arrays, 8)
    lengths = few.get("length", [None] * 8)
    if info.levels == 256:
        for line, length in zip(few["x"], lengths):
            print(f"  {bytes(line[:length]).decode(errors='replace')!r}")
        return
    steps = few["x"][0][: lengths[0]]
    if steps.ndim == 2:
        print(f"the first sequence, {min(8, len(steps))} of its {len(steps):,} steps")
        _rows(info, {"x": steps[:8]})


def _texts(info: Any, arrays: Any) -> None:
    """Prints the tokenizer and the first tokens of a text, or the first pairs."""
    from gen_jax.data.tokenizers import read_tokenizer

    tokenizer = read_tokenizer(info.tokenizer)
    print(f"  tokenizer: {tokenizer.kind}, {tokenizer.size:,} tokens, {tokenizer.digest}")
    if arrays["x"].ndim == 1:
        pieces = [tokenizer.names[i] for i in arrays["x"][:40]]
        print(f"  first tokens: {' | '.join(repr(piece)[1:-1] for piece in pieces)}")
        return
    for i in range(min(5, len(arrays["x"]))):
        source = tokenizer.text(arrays["x"][i, : arrays["length"][i] - 1])
        target = tokenizer.text(arrays["y"][i, 1 : arrays["y_length"][i] - 1])
        print(f"  {source!r} -> {target!r}")


def _some(items: Any) -> str:
    items = list(items)
    return ", ".join(items[:12]) + (f", ... ({len(items):,} in all)" if len(items) > 12 else "")


def _draw(found: Any, out: Path) -> None:
    import numpy as np

    from gen_jax import plots
    from gen_jax.data.records import take

    train = next(iter(found.splits.values()))
    size = len(train["x"])
    examples = take(train, np.linspace(0, size - 1, min(64, size)).astype(np.int64))
    top = (found.info.levels or 256) - 1
    shown = {name: np.asarray(a, np.float32) / top for name, a in examples.items() if a.ndim == 4}
    plots.show(shown).savefig(out)
    print(f"{len(examples['x'])} examples of {next(iter(found.splits))} in {out}")


def _rows(info: Any, rows: Any) -> None:
    """Prints rows of a table with the names of its columns and categories."""
    table = Table()
    names = info.columns or [f"x{i}" for i in range(rows["x"].shape[1])]
    shown = list(names[:12])
    for name in [*shown, *(["..."] if len(names) > 12 else []), *([info.label or "label"] if "label" in rows else [])]:
        table.add_column(name)
    for i, row in enumerate(rows["x"]):
        cells = [_cell(value, info.categories[j] if info.categories else ()) for j, value in enumerate(row[:12])]
        cells += ["..."] if len(names) > 12 else []
        if "label" in rows:
            label = int(rows["label"][i])
            cells.append(info.class_names[label] if info.class_names else str(label))
        table.add_row(*cells)
    Console().print(table)


def _cell(value: float, names: tuple[str, ...]) -> str:
    return "" if value != value else names[int(value)] if names else f"{value:g}"


def _pack(source: str, destination: Path, data_dir: Path | None, options: DataOptions) -> None:
    from gen_jax.data.loading import pack

    packed, sizes = pack(source, destination, data_dir=data_dir, **options.changed)
    _note(packed)
    total = sum(len(arrays["x"]) for arrays in packed.splits.values())
    listed = ", ".join(f"{split} {_size(size)}" for split, size in sizes.items())
    print(f"{total:,} examples in {destination} ({listed}); use it as --data {os.fspath(destination)}")
