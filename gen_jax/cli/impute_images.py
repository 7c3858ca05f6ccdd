"""The command `impute` for images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gen_jax.cli.options import interruptible
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.run import Run

__all__ = ["impute_images"]

BLOCK = 16  # images at once
SHOWN = 8  # images of the sheet
SHEET = "sheet.png"


def impute_images(
    run: Run, step: Any, source: Path, mask: Path | None, n: int, mean: bool, out: Path, seed: int
) -> None:
    """Completes a file or a folder of images where a mask is black; writes PNGs and a sheet into a folder."""
    from gen_jax.applications.imputation import latent_search
    from gen_jax.applications.translation import encoded, image_files, read_image, write_whole
    from gen_jax.plots.translation import rows_of_images

    info = run.data.info
    if len(info.shape) != 3:
        raise UserError(f"{run.workdir} was not trained on images, which --mask and image files are for")
    out = Path("imputed") if out == Path("imputed.csv") else out
    if out.is_file() or out.suffix:
        raise UserError(f"--out {out}: completed images are written into a folder")
    if info.levels is None:
        raise UserError(f"{run.workdir} was not trained on images of whole numbers")
    if mask is None:
        raise UserError("--mask FILE is needed: an image that is black where values are missing")
    files, size = image_files(source), info.shape[:2]
    if not mask.is_file():
        raise UserError(f"--mask {mask}: one image is needed")
    [hole] = image_files(mask)
    names = [file.name.with_suffix("") for file in files]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"{source} has several images {twice[0]}, whose completions would have one name")
    if Path(SHEET).with_suffix("") in names:
        raise UserError(f"{source} has an image {Path(SHEET).stem}, the name of the sheet that is written: rename it")
    for file in [*files, hole]:
        if file.size != size:
            raise UserError(f"{file.path} is {file.size[0]}x{file.size[1]}, the run's images are {size[0]}x{size[1]}")
    if out.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserError(f"--out {out}: holds the images that are read, which would be lost")
    seen = np.broadcast_to(read_image(hole, 1) > 0.5, info.shape)
    if seen.all() or not seen.any():
        raise UserError(
            f"--mask {mask}: is {'white' if seen.all() else 'black'} everywhere; black marks what is missing"
        )
    given = np.stack([read_image(file, info.shape[2]) for file in files])
    x = np.rint(given * (info.levels - 1))
    with interruptible():
        method, drawn = _draws(run, step, x.astype(run.data[run.experiment.train]["x"].dtype), seen, n, seed)
    drawn = drawn.mean(axis=0, keepdims=True) if mean else drawn
    unit = np.where(seen, given, drawn / (info.levels - 1))
    for file, images in zip(files, np.rint(unit * 255).astype(np.uint8).swapaxes(0, 1)):
        for i, image in enumerate(images):
            name = file.name.with_name(f"{file.name.stem}{f'_{i + 1}' if len(images) > 1 else ''}.png")
            write_whole(out / name, encoded(image, ".png"))
    rows = [given, np.where(seen, given, 0.5), *unit]
    rows_of_images({"images, what is known, completions": [row[:SHOWN] for row in rows[:10]]}).savefig(out / SHEET)
    print(f"{len(files):,} images completed{f', {len(unit)} times' if len(unit) > 1 else ''}: {out}, with {SHEET}")
    if method is latent_search:
        print("these are the closest images a GAN makes, not draws from a posterior: their spread means nothing")


def _draws(run: Run, step: Any, x: np.ndarray, seen: np.ndarray, n: int, seed: int) -> tuple[Any, np.ndarray]:
    """The method, and (n, images, H, W, C) completions in the units of the data."""
    import jax
    from tqdm import tqdm

    from gen_jax.applications.imputation import default_method
    from gen_jax.core import Conditional, averaged
    from gen_jax.data.source import apply_transforms

    model, state = run.experiment.model, averaged(run.state(step))
    if isinstance(model, Conditional) and model.conditioning is not None:
        raise UserError(f"the model is conditioned on {model.conditioning.entry!r}: use an unconditional one")
    split = run.experiment.split(run.data, "test")
    mask = np.broadcast_to(seen, (min(BLOCK, len(x)), *x.shape[1:]))
    try:
        method = default_method(model, mask)
    except ValueError as error:
        raise UserError(str(error)) from None
    program = jax.jit(lambda state, x, key: method(model, state, {"x": x}, mask, key, n))
    found = []
    starts = tqdm(range(0, len(x), len(mask)), "completing", leave=False, delay=2, dynamic_ncols=True)
    for i, start in enumerate(starts):
        rows = np.minimum(np.arange(start, start + len(mask)), len(x) - 1)
        raw = {"x": jax.numpy.asarray(x[rows]), "index": jax.numpy.asarray(rows, jax.numpy.int32)}
        part = apply_transforms(raw, split.transforms, seed, i)["x"]
        made = np.asarray(program(state, part, jax.random.fold_in(jax.random.key(seed), i)))
        found.append(split.untransformed(made)[:, : len(x) - start])
    return method, np.concatenate(found, axis=1)
