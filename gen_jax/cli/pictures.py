"""The commands `plot` and `animate`."""

from __future__ import annotations

from pathlib import Path

from gen_jax.cli.options import PICTURES, Workdir, check_ending
from gen_jax.errors import UserError

__all__ = ["animate", "plot"]


def plot(workdir: Workdir, out: Path | None = None) -> None:
    """Draws the learning curves of a run.

    Args:
        out: the figure; by default WORKDIR/curves.png
    """
    from gen_jax import plots
    from gen_jax.logs import read_metrics

    rows = read_metrics(workdir / "metrics.jsonl")
    if not rows:
        raise UserError(f"{workdir} has no metrics yet (metrics.jsonl)")
    out = out or workdir / "curves.png"
    check_ending(out, PICTURES)
    plots.learning_curves(rows, workdir.name).savefig(out)
    print(f"learning curves in {out}")


def animate(workdir: Workdir, name: str = "samples", out: Path | None = None, seconds: float = 6.0) -> None:
    """Joins the figures a run has plotted during training, from the same noise each time, into an animation.

    Args:
        name: name of the figure, e.g. samples or generator_density
        out: the animation (.gif); by default WORKDIR/NAME.gif
        seconds: duration
    """
    out = out or workdir / f"{name}.gif"
    check_ending(out, (".gif",))
    if seconds <= 0:
        raise UserError(f"--seconds must be positive, got {seconds}")
    frames = sorted((workdir / "plots").glob(f"{name}_*[0-9].png"))
    if len(frames) < 2:
        there = sorted({path.stem.rpartition("_")[0] for path in (workdir / "plots").glob("*_*[0-9].png")})
        raise UserError(f"{workdir}/plots has fewer than two pictures {name}_STEP.png; there are {', '.join(there)}")
    from PIL import Image

    first, *rest = (Image.open(path).convert("RGB") for path in frames)
    first.save(out, save_all=True, append_images=rest, duration=1000 * seconds / len(frames), loop=0)
    print(f"{len(frames)} pictures in {out}")
