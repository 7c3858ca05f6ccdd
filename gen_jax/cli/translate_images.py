"""The command `translate` for images."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen_jax.cli.options import interruptible
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.applications.translation import FileTranslator, ImageFile
    from gen_jax.core import State

__all__ = ["translate_images"]

_SHOWN = 10  # images of a contact sheet


def translate_images(made: FileTranslator, state: State, source: Path, out: Path | None, sheet: Path | None) -> None:
    """Translates a file, a folder of images, or the entry "x" of an .npz file, into a folder.

    Files that are there already are left as they are. sheet: also draws sources and translations.
    """
    from gen_jax.applications.translation import image_files

    if out is None:
        raise UserError("--out FOLDER is needed: translations of images are files")
    if out.is_file():
        raise UserError(f"--out {out} is a file: give a folder")
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} lies in {source}, whose images are translated: choose another folder")
    if source.is_file() and source.resolve().parent == out.resolve():
        raise UserError(f"--out {out} holds {source.name} itself: choose another folder")
    if source.suffix == ".npz":
        if sheet:
            raise UserError("--sheet draws image files, not arrays")
        _translate_array(made, state, source, out / source.name)
        return
    files = image_files(source, lambda paths: _bar(paths, "reading", len(paths)))
    made.check(state, [file.size for file in files], [file.path.suffix.lower() for file in files])
    targets = {file: _targets(out, file, made.draws) for file in files}
    todo = [file for file in files if not all(path.is_file() for path in targets[file])]
    if len(todo) < len(files):
        _check_same(made, state, next(file for file in files if file not in todo), targets, out)
        print(f"note: {out} already has {len(files) - len(todo):,} of {len(files):,} images", file=sys.stderr)
    if len(sizes := {file.size for file in todo}) > 3:
        print(f"note: images of {len(sizes):,} sizes; a program is compiled for each", file=sys.stderr)
    _write(made, state, todo, targets)
    if other := sum(file.header.gray != (made.channels == 1) for file in files):
        turned = "averaged over their colors" if made.channels == 1 else f"repeated in {made.channels} channels"
        print(f"note: {other:,} of {len(files):,} images {turned}, as the model needs", file=sys.stderr)
    if sheet:
        _draw_sheet(files, targets, sheet)
    print(f"{len(files):,} images in {out}")


def _targets(out: Path, file: ImageFile, draws: int) -> list[Path]:
    path = out / file.name
    return [path] if draws == 1 else [path.with_name(f"{path.stem}_{i + 1}{path.suffix}") for i in range(draws)]


def _check_same(
    made: FileTranslator, state: State, file: ImageFile, targets: dict[ImageFile, list[Path]], out: Path
) -> None:
    """Raises UserError unless a file that is there is the one that would be written now."""
    from gen_jax.applications.translation import encoded

    [(_, images)] = made(state, [file])
    for image, path in zip(images, targets[file]):
        if encoded(image, path.suffix) != path.read_bytes():
            raise UserError(f"--out {out}: {path.name} is of another model, image or options: choose another folder")


def _write(made: FileTranslator, state: State, todo: list[ImageFile], targets: dict[ImageFile, list[Path]]) -> None:
    from gen_jax.applications.translation import encoded, write_whole

    with interruptible("; run it again to go on"):
        for file, images in _bar(made(state, todo), "translating", len(todo)):
            for image, path in zip(images, targets[file]):
                write_whole(path, encoded(image, path.suffix))


def _bar(items: Iterable[Any], label: str, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(items, label, total, leave=False, delay=2, unit=" images", dynamic_ncols=True)


def _translate_array(made: FileTranslator, state: State, source: Path, path: Path) -> None:
    """Writes the translations of "x" (N, H, W, C), with an axis of draws if there are several."""
    from gen_jax.applications.translation import write_whole
    from gen_jax.data.archives import load_arrays

    if path.is_file():
        print(f"note: {path} is there already, and left as it is", file=sys.stderr)
        return
    entries = load_arrays(source)
    x: Any = entries.get("x")
    if x is None or x.ndim != 4 or not len(x):
        raise UserError(f'{source} needs an entry "x" of images (N, height, width, channels)')
    top = np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1
    if x.dtype.kind != "u" and (x.dtype.kind != "f" or not 0 <= x.min() <= x.max() <= 1):
        raise UserError(f"{source}: images are of unsigned integers, or of floats in [0, 1]")
    made.check(state, [x.shape[1:3]])
    stored = (lambda a: np.rint(a * top).astype(x.dtype)) if top > 1 else (lambda a: a.astype(x.dtype))
    with interruptible():
        found: Iterator[list[np.ndarray]] = made.arrays(state, x.astype(np.float32) / top)
        images = [stored(np.stack(one) if made.draws > 1 else one[0]) for one in _bar(found, "translating", len(x))]
    buffer = io.BytesIO()
    np.savez(buffer, **{**entries, "x": np.stack(images)})
    write_whole(path, buffer.getvalue())
    print(f"{len(images):,} images of shape {images[0].shape} in {path}")


def _draw_sheet(files: list[ImageFile], targets: dict[ImageFile, list[Path]], sheet: Path) -> None:
    """Draws the first images of one size above their translations."""
    from gen_jax.applications.translation import image_files, read_image
    from gen_jax.plots.translation import rows_of_images

    shown = [file for file in files if file.size == files[0].size][:_SHOWN]
    rows = [np.stack([read_image(file, 3) for file in shown])]
    for draw in range(len(targets[files[0]])):
        rows.append(np.stack([read_image(image_files(targets[file][draw])[0], 3) for file in shown]))
    rows_of_images({"sources, translations": rows}).savefig(sheet)
    print(f"{len(shown)} sources of one size, and their translations, in {sheet}")
