"""The command `project`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from gen_jax.cli.latent_space import Generator, Label, open_generator
from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_results_folder,
    check_seed,
    interruptible,
)
from gen_jax.errors import UserError

__all__ = ["project"]


def project(
    workdir: Workdir,
    images: Positional[
        Annotated[Path, arg(metavar="IMAGES", help="an image or a folder of them; colors become gray if the run's are")]
    ],
    space: Annotated[
        Literal["w", "w+", "z"] | None,
        arg(help="w (one style for all layers, the default of StyleGAN), w+ (one each), or z (the default of others)"),
    ] = None,
    steps: int = 500,
    rate: float = 0.1,
    features: bool = True,
    label: Label = None,
    out: Path = Path("projected"),
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Finds points of a generator's latent space whose images are closest to given ones.

    Writes points.npz (for `gen_jax edit --points`), sheet.png and, of a search, distances.png. A flow's point is exact.

    Args:
        steps: of the search
        rate: learning rate of the search
        features: compare the features of the small encoder of the data, too, where there is one
        out: a folder
        seed: of the noise of the search
    """
    check_results_folder(out)
    check_seed(seed)
    if not 1 <= steps <= 100_000:
        raise UserError(f"--steps must be 1 to 100,000, got {steps}")
    if not 0 < rate < 1000:
        raise UserError(f"--rate must be above 0 and below 1,000, got {rate:g}")
    from gen_jax.core import StyleBased

    wanted = {"w+": "w", None: ""}.get(space, space)
    made = open_generator(workdir, wanted, None, None, label, step, member, config, data_dir)
    if label is None and made.of_class:
        raise UserError("this model is conditioned on labels: say with --label of which class the images are")
    shared = space != "w+" and isinstance(made.model, StyleBased) and made.space.name == "w"
    given, x = _read(made, images)
    with interruptible():
        found, compared = _search(made, x, shared, steps, rate, features, seed)
    _write(made, found, given, x, compared, space or made.space.name, out)


def _read(made: Generator, source: Path) -> tuple[Any, Any]:
    """Images in [0, 1], and as the model sees them."""
    import numpy as np

    from gen_jax.applications.translation import image_files, read_image

    info = made.run.data.info
    if info.levels is None:
        raise UserError(f"{made.run.workdir} was not trained on images of whole numbers")
    files, size = image_files(source), info.shape[:2]
    for file in files:
        if file.size != size:
            has, wants = ("x".join(map(str, one)) for one in (file.size, size))
            raise UserError(f"{file.path} is {has}, the run's images are {wants}: resize it")
    given = np.stack([read_image(file, info.shape[2]) for file in files])
    stored = np.rint(given * (info.levels - 1)).astype(made.run.data[made.run.experiment.train]["x"].dtype)
    return given, _as_seen(made, stored)


def _as_seen(made: Generator, stored: Any) -> Any:
    """Images of whole numbers as the model sees them."""
    split = made.run.experiment.split(made.run.data, "test")
    return split._replace(arrays={"x": stored}).head(len(stored))["x"]


def _search(made: Generator, x: Any, shared: bool, steps: int, rate: float, wanted: bool, seed: int) -> tuple[Any, str]:
    """The projection, and by which distances it was found."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tqdm import tqdm

    from gen_jax.applications.latents import Projection
    from gen_jax.applications.latents import project as search
    from gen_jax.core import Invertible

    given = made.conditions(len(x))
    start = None if made.space.encode is None else made.space.encode({"x": x, **(given or {})})
    if isinstance(made.model, Invertible):
        return Projection(start, jax.jit(made.space.decode)(start, given), np.zeros((0, len(x)))), "the exact inverse"
    features = _features(made) if wanted and made.space.cost is None else None
    compared = "pixels" if features is None else "pixels and features of the small encoder"
    if made.space.cost is not None:
        compared = "likelihood, from the encoder's mean on"
    with tqdm(total=steps, desc="projecting", leave=False, delay=2, dynamic_ncols=True) as bar:
        found = search(
            made.space,
            jnp.asarray(x),
            given,
            jax.random.key(seed),
            start,
            shared,
            steps,
            rate,
            features,
            report=lambda n: bar.update(n),
        )
    return found, compared


def _features(made: Generator) -> Any:
    """The features of the small encoder, of images as the model makes them; None if the data has no such encoder."""
    import numpy as np

    from gen_jax.evaluation.samples.features import small
    from gen_jax.evaluation.suite import has_classes

    split = made.run.experiment.split(made.run.data, "test")
    if not has_classes(split):
        return None
    info = made.run.data.info
    ends = np.stack([np.zeros(info.shape), np.full(info.shape, info.levels - 1)]).astype(split.arrays["x"].dtype)
    low, high = (float(x.mean()) for x in _as_seen(made, ends))
    encoder = small(split)
    return lambda x: encoder.encode((x - low) / (high - low))[0]


def _write(made: Generator, found: Any, given: Any, x: Any, compared: str, space: str, out: Path) -> None:
    import numpy as np

    from gen_jax import plots
    from gen_jax.plots.style import panels, styled

    out.mkdir(parents=True, exist_ok=True)
    images = made.run.experiment.split(made.run.data, "train").pixels(found.images)
    np.savez(out / "points.npz", points=np.asarray(found.points), space=made.space.name, run=made.name)
    pairs = np.stack([given, images], axis=1)[:32].reshape(-1, *given.shape[1:])
    title = f"{made.run.workdir.name}: images and their projections into {space}{made.of_class}"
    plots.show({title: pairs}, columns=2 * min(4, len(given)), limits=(0, 1)).savefig(
        out / "sheet.png", bbox_inches="tight"
    )
    x, unrounded = (np.asarray(a, np.float32) for a in (x, found.images))
    error = np.mean((unrounded - x) ** 2, axis=(1, 2, 3)) / max(float(x.max() - x.min()), 1e-6) ** 2
    decibels = -10 * np.log10(np.maximum(error, 1e-10))
    if len(found.distances):
        with styled():
            figure, [axis] = panels(1)
            axis.plot(found.distances[:, :10])
            axis.set(xlabel="step", ylabel="mean squared distance of pixels", yscale="log")
            axis.set_title(f"projection by {compared}, one line per image")
        figure.savefig(out / "distances.png")
    print(
        f"projected by {compared}: {len(given)} images, PSNR {decibels.mean():.1f} dB, the worst {decibels.min():.1f}"
    )
    print(f"  points.npz, sheet.png{', distances.png' if len(found.distances) else ''} in {out}")
