"""The command `translate` for images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
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
    if source.suffix == ".npz":
        _translate_array(made, state, source, out / source.name)
        return
    files = image_files(source)
    targets = {file: _targets(out, file, made.draws) for file in files}
    todo = [file for file in files if not all(path.is_file() for path in targets[file])]
    if len(todo) < len(files):
        print(f"note: {out} already has {len(files) - len(todo):,} of {len(files):,} images", file=sys.stderr)
    sizes = {file.header[:2] for file in todo}
    if len(sizes) > 3:
        print(f"note: images of {len(sizes):,} sizes; a program is compiled for each", file=sys.stderr)
    _write(made, state, todo, targets)
    if sheet:
        _draw_sheet(files, targets, sheet)
    print(f"{len(files):,} images in {out}")


def _targets(out: Path, file: ImageFile, draws: int) -> list[Path]:
    path = out / file.name
    return [path] if draws == 1 else [path.with_name(f"{path.stem}_{i + 1}{path.suffix}") for i in range(draws)]


def _write(made: FileTranslator, state: State, todo: list[ImageFile], targets: dict[ImageFile, list[Path]]) -> None:
    from tqdm import tqdm

    from gen_jax.applications.translation import write_image

    found = tqdm(made(state, todo), "translating", len(todo), leave=False, delay=2, unit=" images", dynamic_ncols=True)
    with interruptible("; run it again to go on"):
        for file, images in found:
            for image, path in zip(images, targets[file]):
                write_image(image, path)


def _translate_array(made: FileTranslator, state: State, source: Path, path: Path) -> None:
    """Writes the translations of "x" (N, H, W, C), with an axis of draws if there are several."""
    try:
        with np.load(source, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read: {error}") from None
    x: Any = entries.get("x")
    if x is None or x.ndim != 4:
        raise UserError(f'{source} needs an entry "x" of images (N, height, width, channels)')
    top = np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1
    if x.dtype.kind != "u" and (x.dtype.kind != "f" or x.min() < 0 or x.max() > 1):
        raise UserError(f"{source}: images are of unsigned integers, or of floats in [0, 1]")
    stored = (lambda a: np.rint(a * top).astype(x.dtype)) if top > 1 else (lambda a: a.astype(x.dtype))
    with interruptible():
        found = list(_each(made, state, x.astype(np.float32) / top))
    images = np.stack([stored(np.stack(one) if made.draws > 1 else one[0]) for one in found])
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez(draft, **{**entries, "x": images})
    draft.replace(path)
    print(f"{len(images):,} images of shape {images.shape[1:]} in {path}")


def _each(made: FileTranslator, state: State, x: np.ndarray) -> Iterator[list[np.ndarray]]:
    from tqdm import tqdm

    yield from tqdm(made.arrays(state, x), "translating", len(x), leave=False, delay=2, unit=" images")


def _draw_sheet(files: list[ImageFile], targets: dict[ImageFile, list[Path]], sheet: Path) -> None:
    """Draws the first images of one size above their translations."""
    from PIL import Image

    from gen_jax import plots

    shown = [file for file in files if file.header[:2] == files[0].header[:2]][:_SHOWN]
    read = lambda path: np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    rows = [[read(file.path) for file in shown]]
    rows += [[read(targets[file][i]) for file in shown] for i in range(len(targets[files[0]]))]
    if len({image.shape for row in rows for image in row}) > 1:
        raise UserError("--sheet: sources and translations have other sizes")
    figure = plots.show({"sources, translations": np.stack([a for row in rows for a in row])}, columns=len(shown))
    figure.savefig(sheet)
    print(f"sources and translations in {sheet}")
