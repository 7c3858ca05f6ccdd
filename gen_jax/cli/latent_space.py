"""The commands `interpolate`, `mix` and `edit`, and images by seed."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from gen_jax.cli.options import (
    PICTURES,
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_ending,
    check_folder,
    interruptible,
    open_workdir,
    parse_step,
)
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.applications.latents import Space

__all__ = ["Generator", "Label", "Psi", "SpaceName", "edit", "interpolate", "mix", "open_generator", "parse_numbers"]

Seeds = Annotated[str, arg(metavar="SEEDS", help='of the images, numbers and ranges such as "0-63,100"')]
Psi = Annotated[
    float | None, arg(help="truncation of StyleGAN: 0 gives its mean image, 1, as in training, all variety")
]
Cutoff = Annotated[int | None, arg(help="truncate only so many layers, from the coarsest")]
Label = Annotated[int | None, arg(help="class of the images, for a model conditioned on labels")]
SpaceName = Annotated[str, arg(help='"w" (of StyleGAN, its default) or "z"')]
BLOCK = 64  # images at once
SIDE = 256  # pixels of an animation, at least


@dataclass(frozen=True)
class Generator:
    """A trained model whose images are made from points of a latent space."""

    run: Any
    model: Any
    state: Any
    space: Space
    label: int | None

    @property
    def name(self) -> str:
        """The run and the step of its checkpoint."""
        return f"{self.run.workdir.resolve().name} at step {int(self.state.step)}"

    @property
    def of_class(self) -> str:
        """The class of the images of a conditional model, for titles."""
        from gen_jax.core import Conditional

        if not isinstance(self.model, Conditional) or self.model.conditioning is None:
            return ""
        return f", class {self.label or 0}" if self.model.conditioning.classes else ""

    def conditions(self, n: int, alike: bool = True) -> dict[str, Any] | None:
        """The conditions of n images, None for an unconditional model: of --label, by default the first class.

        alike: else of every class in turn, unless there is a label.
        """
        import numpy as np

        from gen_jax.core import Conditional

        if self.label is not None:
            return class_condition(self.model, self.label, n)
        if not isinstance(self.model, Conditional) or self.model.conditioning is None:
            return None
        found = self.model.conditioning.example(1 if alike else n)
        return {name: np.repeat(a, n // len(a), axis=0) for name, a in found.items()}

    def draw(self, seeds: list[int], alike: bool = True) -> Any:
        """Points, each depending on its own seed alone."""
        import jax
        import numpy as np

        keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
        return np.asarray(jax.jit(self.space.draw)(keys, self.conditions(len(seeds), alike)))

    def encodings(self, n: int) -> Any:
        """Points of at most n training examples."""
        import jax
        import numpy as np

        split = self.run.experiment.split(self.run.data, self.run.experiment.train)
        encode, rows = jax.jit(self.space.encode), min(n, split.size)
        return np.concatenate(
            [np.asarray(encode(split.part(i, min(i + BLOCK, rows)).head(BLOCK))) for i in range(0, rows, BLOCK)]
        )

    def decode(self, points: Any, alike: bool = True) -> Any:
        """(n, H, W, C) images in [0, 1], a block at a time."""
        import jax
        import numpy as np

        program, found, given = jax.jit(self.space.decode), [], self.conditions(len(points), alike)
        for first in range(0, len(points), BLOCK):
            rows = np.minimum(np.arange(first, first + min(BLOCK, len(points))), len(points) - 1)
            here = None if given is None else {name: a[rows] for name, a in given.items()}
            found.append(np.asarray(program(points[rows], here))[: len(points) - first])
        return self.run.experiment.split(self.run.data, "train").pixels(np.concatenate(found))


def open_generator(
    workdir: Path,
    space: str,
    psi: float | None,
    cutoff: int | None,
    label: int | None,
    step: str | None,
    member: int,
    config: Path | None,
    data_dir: Path | None,
) -> Generator:
    """The generator of a run of images; a UserError if it has no latent space."""
    from gen_jax.applications.latents import space_of
    from gen_jax.core import averaged

    run = open_workdir(workdir, config, data_dir, member)
    if len(run.data.info.shape) != 3:
        raise UserError(f"{workdir} was not trained on images")
    model = truncated(run.experiment.model, psi, cutoff, workdir)
    if label is not None:
        class_condition(model, label, 1)
    state = averaged(run.state(parse_step(step)))
    try:
        return Generator(run, model, state, space_of(model, state, space), label)
    except ValueError as error:
        raise UserError(f"{workdir}: {error}") from None


def truncated(model: Any, psi: float | None, cutoff: int | None, workdir: Path) -> Any:
    """The model with another truncation; a warning if it lies outside of [0, 1.5]."""
    from dataclasses import replace

    from gen_jax.core import StyleBased

    if psi is None and cutoff is None:
        return model
    if not isinstance(model, StyleBased):
        raise UserError(f"--psi and --cutoff are for StyleGAN, which {workdir} is not")
    psi = model.psi if psi is None else psi
    if not math.isfinite(psi):
        raise UserError(f"--psi must be a number, got {psi}")
    if not 0 <= psi <= 1.5:
        print(f"warning: --psi {psi:g} is outside of 0 to 1.5: images may be unlike the data", file=sys.stderr)
    try:
        return replace(model, psi=psi, cutoff=cutoff)
    except ValueError as error:
        raise UserError(str(error)) from None


def class_condition(model: Any, label: int, n: int) -> dict[str, Any]:
    """The condition for n samples of one class."""
    import numpy as np

    from gen_jax.core import Conditional

    conditioning = model.conditioning if isinstance(model, Conditional) else None
    if conditioning is None or conditioning.classes is None:
        raise UserError("--label is for models conditioned on labels, which this one is not")
    if not 0 <= label < conditioning.classes:
        raise UserError(f"--label must be between 0 and {conditioning.classes - 1}, got {label}")
    return {conditioning.entry: np.full(n, label)}


def parse_numbers(option: str, text: str, most: int = 100_000) -> list[int]:
    from gen_jax.applications.latents import numbers_of

    try:
        return numbers_of(text, option, most)
    except ValueError as error:
        raise UserError(str(error)) from None


def interpolate(
    workdir: Workdir,
    seeds: Seeds = "0-3",
    frames: int = 10,
    space: SpaceName = "",
    loop: bool = False,
    psi: Psi = None,
    cutoff: Cutoff = None,
    label: Label = None,
    out: Path | None = None,
    fps: float = 15.0,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Interpolates between images of a generator, through its latent space; a strip per pair or an animation.

    Args:
        frames: from each image to the next
        loop: and back to the first
        out: a figure (.png, .pdf, .svg) or an animation (.gif); by default WORKDIR/interpolation.png
        fps: frames per second of an animation
    """
    import numpy as np

    from gen_jax import plots
    from gen_jax.applications import latents

    out = out or workdir / "interpolation.png"
    check_ending(out, (*PICTURES, ".gif"))
    chosen = parse_numbers("--seeds", seeds, 1000)
    if len(chosen) < 2:
        raise UserError(f"an interpolation needs at least two --seeds, got {seeds}")
    if not 1 <= frames <= 1000:
        raise UserError(f"--frames must be 1 to 1,000, got {frames}")
    if not 0 < fps <= 100:
        raise UserError(f"--fps must be above 0 and at most 100, got {fps:g}")
    made = open_generator(workdir, space, psi, cutoff, label, step, member, config, data_dir)
    check_folder(out)
    with interruptible():
        images = made.decode(latents.interpolate(made.space, made.draw(chosen), frames, loop))
    if out.suffix == ".gif":
        write_animation(images, out, fps)
        print(f"{len(images)} frames in {out}")
        return
    pairs = len(chosen) if loop else len(chosen) - 1
    wrapped = np.concatenate([images, images[:1]]) if loop else images
    rows = np.concatenate([wrapped[i * frames : (i + 1) * frames + 1] for i in range(pairs)])
    title = f"{workdir.name}: from seed to seed in {made.space.name}{made.of_class}"
    plots.show({title: rows}, columns=frames + 1, limits=(0, 1)).savefig(out, bbox_inches="tight")
    print(f"{pairs} interpolations in {out}")


def write_animation(images: Any, out: Path, fps: float) -> None:
    """Writes images (n, H, W, C) in [0, 1] as an animation, small ones enlarged."""
    import numpy as np
    from PIL import Image

    times = max(1, -(-SIDE // max(images.shape[1:3])))
    large = np.rint(images * 255).astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2)
    frames = [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a[..., :3]) for a in large]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0)


def mix(
    workdir: Workdir,
    rows: Seeds = "0-3",
    columns: Seeds = "4-11",
    layers: str = "coarse",
    psi: Psi = None,
    cutoff: Cutoff = None,
    label: Label = None,
    out: Path | None = None,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Mixes styles of StyleGAN: each image of the rows with some layers of each image of the columns.

    Args:
        rows: seeds of the images on the left
        columns: seeds of the images on top
        layers: those taken from the columns: coarse, middle, fine (thirds), or numbers from 0 such as "0-3,5"
        out: a figure; by default WORKDIR/mixing.png
    """
    import numpy as np

    from gen_jax import plots
    from gen_jax.applications import latents

    out = out or workdir / "mixing.png"
    check_ending(out, PICTURES)
    left, top = parse_numbers("--rows", rows, 100), parse_numbers("--columns", columns, 100)
    made = open_generator(workdir, "", psi, cutoff, label, step, member, config, data_dir)
    if made.space.name != "w":
        raise UserError(f"{workdir}: styles are mixed by StyleGAN only; try `gen_jax interpolate`")
    check_folder(out)
    chosen = parse_layers(layers, made.model.styles)
    with interruptible():
        of_rows, of_columns = made.draw(left), made.draw(top)
        mixed = latents.mix(of_rows, of_columns, chosen)
        mixed = made.decode(mixed.reshape(-1, *mixed.shape[2:]))
        beside, above = made.decode(of_rows), made.decode(of_columns)
    grid = np.concatenate([beside[:, None], mixed.reshape(len(left), len(top), *mixed.shape[1:])], axis=1)
    head = np.concatenate([np.ones_like(above[:1]), above])
    images = np.concatenate([head[None], grid]).reshape(-1, *grid.shape[2:])
    title = f"{workdir.name}: {_listed(chosen)} of the columns, the others of the rows{made.of_class}"
    plots.show({title: images}, columns=len(top) + 1, limits=(0, 1)).savefig(out, bbox_inches="tight")
    print(f"{len(left)} x {len(top)} mixed images in {out}")


def parse_layers(text: str, styles: int) -> tuple[int, ...]:
    from gen_jax.applications.latents import layers_of

    try:
        return layers_of(text, styles)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _listed(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return (
        f"layers {layers[0]}-{layers[-1]}"
        if layers == tuple(range(layers[0], layers[-1] + 1))
        else f"layers {', '.join(map(str, layers))}"
    )


def edit(
    workdir: Workdir,
    seeds: Seeds = "0-3",
    points: Path | None = None,
    directions: Literal["pca", "classes"] = "pca",
    n: int = 5,
    reach: float = 2.0,
    steps: int = 7,
    layers: str = "all",
    draws: int = 5000,
    space: SpaceName = "",
    psi: Psi = None,
    cutoff: Cutoff = None,
    label: Label = None,
    out: Path | None = None,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Moves images along directions of a generator's latent space.

    Args:
        points: edit these instead of drawn ones: the points.npz that `gen_jax project` writes
        directions: pca, the directions of the largest variance of styles (GANSpace) or of encoded training images;
            classes, from the mean of all points to that of each class, as the small encoder of the data sees them
        n: how many directions
        reach: how far each way: deviations of the points; of classes, times the distance
        steps: images from one end to the other
        layers: those that move: all, coarse, middle, fine, or numbers; only of styles
        draws: how many points the directions are computed from
        out: a figure; by default WORKDIR/edits.png
    """
    import numpy as np

    from gen_jax import plots

    out = out or workdir / "edits.png"
    check_ending(out, PICTURES)
    for name, value, low, high in (("n", n, 1, 100), ("steps", steps, 2, 100), ("draws", draws, 100, 100_000)):
        if not low <= value <= high:
            raise UserError(f"--{name} must be {low} to {high:,}, got {value}")
    if not 0 < reach < 1000:
        raise UserError(f"--reach must be above 0 and below 1,000, got {reach:g}")
    made = open_generator(workdir, space, psi, cutoff, label, step, member, config, data_dir)
    check_folder(out)
    moved = parse_layers(layers, made.model.styles) if made.space.name == "w" else None
    if moved is None and layers != "all":
        raise UserError("--layers is for StyleGAN, which has a style for each layer")
    chosen = parse_numbers("--seeds", seeds, 100)
    check_directions(made, directions)
    with interruptible():
        start = read_points(points, made) if points else made.draw(chosen)
        names, ways = directions_of(made, directions, n, draws)
        shown = {}
        for name, way in zip(names, ways):
            shares = np.linspace(-reach, reach, steps)
            offsets = shares.reshape(-1, *[1] * way.ndim) * way
            if moved is not None:
                offsets = offsets * np.isin(np.arange(made.model.styles), moved)[:, None]
            path = (start[:, None] + offsets[None]).reshape(-1, *start.shape[1:]).astype(np.float32)
            shown[name] = made.decode(path)
    plots.show(shown, columns=steps, limits=(0, 1)).savefig(out, bbox_inches="tight")
    print(f"images: {len(start)}, directions: {len(shown)}, in {out}")


def read_points(path: Path, made: Generator) -> Any:
    """Points written by `project`, of the space of a generator."""
    import numpy as np

    if not path.is_file():
        raise UserError(f"--points {path}: there is no such file")
    try:
        with np.load(path) as file:
            points, name, run = file["points"], str(file["space"]), str(file["run"])
    except (OSError, ValueError, KeyError):
        raise UserError(f"--points {path}: no points that `gen_jax project` has written") from None
    expected = made.draw([0]).shape[1:]
    if name != made.space.name or points.shape[1:] != expected:
        has, wants = (f"{space} {shape}" for space, shape in ((name, points.shape[1:]), (made.space.name, expected)))
        raise UserError(f"--points {path}: holds points of {has}, which do not fit those of {wants}: see --space")
    if run != made.name:
        raise UserError(f"--points {path}: holds points of {run}, and this is {made.name}: project the images again")
    return points


def check_directions(made: Generator, kind: str) -> None:
    """Raises UserError if the space has no directions of this kind."""
    if kind == "pca" and made.space.encode is None and made.space.curved:
        raise UserError("the noise of this model varies alike in all directions: use --directions classes")
    if kind == "classes" and made.conditions(1) is not None:
        raise UserError("this model is told the class: use --directions pca, and --label for another class")


def directions_of(made: Generator, kind: str, n: int, draws: int) -> tuple[list[str], list[Any]]:
    """Names and vectors (*shape) of directions."""
    import jax.numpy as jnp
    import numpy as np

    from gen_jax.applications.latents import principal_directions
    from gen_jax.evaluation.samples.features import small

    encoded = made.space.encode is not None
    drawn = made.encodings(draws) if encoded else made.draw(list(range(draws)), alike=False)
    draws = len(drawn)
    flat = drawn[:, 0] if made.space.name == "w" else drawn.reshape(draws, -1)
    whole = lambda v: np.broadcast_to(v, drawn.shape[1:]) if made.space.name == "w" else v.reshape(drawn.shape[1:])
    if kind == "pca":
        found, deviations = principal_directions(jnp.asarray(flat), n)
        share = np.asarray(deviations) ** 2 / flat.var(axis=0).sum()
        names = [f"component {i + 1} ({100 * part:.0f} % of the variance)" for i, part in enumerate(share)]
        return names, [whole(np.asarray(v * d)) for v, d in zip(found, deviations)]
    seen = small(made.run.experiment.split(made.run.data, "test"))(made.decode(drawn, alike=False))
    seen = seen.probabilities.argmax(axis=1)
    classes = [k for k, count in enumerate(np.bincount(seen)) if count >= 10][:n]
    names = made.run.data.info.class_names or ()
    titles = [f"towards {names[k] if k < len(names) else f'class {k}'}" for k in classes]
    return titles, [whole(flat[seen == k].mean(axis=0) - flat.mean(axis=0)) for k in classes]
