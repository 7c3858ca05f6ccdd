"""The command `augment`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from gen_jax.cli.options import (
    DataDir,
    Member,
    Step,
    check_results_folder,
    check_seed,
    interruptible,
    open_workdir,
    parse_step,
)
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.applications.augmentation import Arm, Design
    from gen_jax.data.dataset import Dataset
    from gen_jax.evaluation.samples.labeled import Draw

__all__ = ["augment"]

POOL = 60_000  # samples drawn at most


def augment(
    data: str = "digits",
    geometric: list[str] | None = None,
    runs: Annotated[list[Path] | None, arg(name="from")] = None,
    labels: list[int] | None = None,
    share: list[float] | None = None,
    networks: list[str] | None = None,
    seeds: int = 5,
    epochs: int | None = None,
    batch: int = 128,
    confidence: float = 0.0,
    mean: bool = False,
    split: str = "",
    out: Path = Path("augmentation"),
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    data_dir: DataDir = None,
) -> None:
    """Trains classifiers of images with and without augmentation, and tells where it helps.

    Writes a table (.md and .json), learning curves and augmented images into a folder.

    Args:
        data: images with labels: a name or a folder
        geometric: random changes of the images: keras (10 degrees, a tenth of shift and zoom), flip, contrast, cutout,
            mixup, cutmix, or ranges such as rotation=15,shift=0.1,zoom=0.2,shear=5
        runs: working directories of generative models whose samples are added: one of a model conditioned on labels, or
            one for each class
        labels: numbers of labeled examples, by default 100 and 1000
        share: samples for each example, by default as many; several for a curve
        networks: mlp (a hidden layer of 128) and cnn (16 and 32 channels), by default both
        seeds: classifiers for each row of the table, trained as one program, each with its own examples
        epochs: passes over the labeled examples, by default 5, or as many as make 1,000 steps; all rows of as many
            labels take the same number of steps
        batch: examples per step
        confidence: keeps the samples to whose label a classifier of the examples gives at least this probability
        mean: of VAEs, the mean of p(x | z) instead of a draw, whose pixels have independent noise
        split: where the labeled examples are drawn from, by default train, or train+validation where labels need it
        out: the folder that is written
        seed: random seed
    """
    from gen_jax.compilation import use_compilation_cache
    from gen_jax.data import load

    if (share or confidence or mean) and not runs:
        raise UserError("--share, --confidence and --mean are of samples: give --from")
    geometric, runs, share = geometric or [], runs or [], share or [1.0]
    _check(networks or [], seeds, epochs, batch, share, confidence, out, seed)
    use_compilation_cache()
    found = load(data, data_dir)
    info = found.images(labels=True)
    from gen_jax.applications.augmentation import NETWORKS, Design, parse_changes
    from gen_jax.cli.labeled_runs import check_generators, draw_from

    changes = parse_changes(geometric, min(info.shape[:2]))
    size = len(found["train"]["x"])
    counts = labels or [n for n in (100, 1000) if n <= size] or [size]
    split = split or ("train+validation" if max(counts) > size and "validation" in found.splits else "train")
    design = Design(
        found,
        split,
        changes,
        {} if runs else None,
        sorted(counts),
        sorted(share),
        networks or tuple(NETWORKS),
        seeds,
        epochs,
        batch,
        seed,
    )
    design.check()
    notes = _repeated(found, split)
    with interruptible():
        if runs:
            opened = [open_workdir(one, None, data_dir, member) for one in runs]
            check_generators(found, opened)
            notes += _provenance(found, opened, counts, confidence)
            design = design._replace(pool=_pool(design, draw_from(opened, parse_step(step), mean), confidence))
        arms = _train(design)
    _report(design, arms, geometric, runs, notes, out)


def _check(
    networks: Sequence[str],
    seeds: int,
    epochs: int | None,
    batch: int,
    share: Sequence[float],
    confidence: float,
    out: Path,
    seed: int,
) -> None:
    from gen_jax.applications.augmentation import NETWORKS

    check_seed(seed)

    if unknown := [name for name in networks if name not in NETWORKS]:
        raise UserError(f"--networks {unknown[0]}: there are {' and '.join(NETWORKS)}")
    for name, number in (("seeds", seeds), ("epochs", 1 if epochs is None else epochs), ("batch", batch)):
        if number < 1:
            raise UserError(f"--{name} must be at least 1, got {number}")
    if min(share) <= 0:
        raise UserError(f"--share must be positive, got {min(share):g}")
    if not 0 <= confidence < 1:
        raise UserError(f"--confidence must be at least 0 and below 1, got {confidence:g}")
    check_results_folder(out)


def _pool(design: Design, draw: Draw, confidence: float) -> dict[str, Any]:
    """Samples with labels of the frequencies of the examples."""
    import jax
    import numpy as np

    from gen_jax.applications.augmentation import keep_confident
    from gen_jax.evaluation.samples.labeled import draw_labels, with_progress

    real, shape = design.data[design.split], design.data.info.shape
    n = min(POOL, round(max(design.labels) * max(design.shares)))
    wanted = draw_labels(np.asarray(real["label"]), n, design.seed)
    if confidence:
        draw = keep_confident(draw, real, design.data["test"], design.data.info.levels, confidence)
    key = jax.random.key(design.seed)
    if (made := draw(wanted[:1], key).shape[1:]) != shape:
        raise UserError(f"--from: samples have the shape {made}, {design.data.name} has {shape}")
    return {"x": with_progress(draw)(wanted, key), "label": wanted}


def _provenance(data: Dataset, runs: Sequence[Any], counts: Sequence[int], confidence: float) -> list[str]:
    """Notes on the examples that generators have seen."""
    notes, most = [], sum(len(run.data[run.experiment.train]["x"]) for run in runs)
    if len(runs) == 1 and min(counts) < most:
        notes.append(
            f"the generator was trained on {most:,} examples: where classifiers have fewer labels, samples carry what "
            "it learned from the others"
        )
    if confidence:
        notes.append("samples were chosen by a classifier of up to 20,000 labeled examples of the same split")
    if other := [run for run in runs if run.data.digest != data.digest and len(runs) == 1]:
        notes.append(
            f"the generator was trained on {other[0].data.name}, which is not {data.name} or is read differently: its "
            "examples may be among those of the test split"
        )
    return notes


def _repeated(data: Dataset, split: str) -> list[str]:
    from gen_jax.applications.augmentation import count_copies

    n = count_copies(data, split)
    return [f"{n:,} of the test examples are in {split} too, byte for byte"] if n else []


def _train(design: Design) -> list[Arm]:
    from tqdm import tqdm

    from gen_jax.applications.augmentation import train_arms

    total = len(design.arms()) * len(design.labels) * len(design.networks)
    with tqdm(total=total, desc="training", unit=" arms", leave=False, dynamic_ncols=True) as bar:
        arms = []
        for arm in train_arms(design):
            arms.append(arm)
            bar.set_postfix_str(f"{arm.network}, {arm.labels:,} labels, {arm.name}: {arm.accuracy.value:.3f}")
            bar.update()
    return arms


HEADER = ("network", "labels", "augmentation", "examples", "steps", "accuracy", "± s.e.", "gain", "± s.e.", "McNemar p")


def _rows(arms: Sequence[Arm]) -> list[list[str]]:
    return [
        [
            arm.network,
            f"{arm.labels:,}",
            arm.name,
            f"{arm.examples:,}",
            f"{arm.fitted.steps[-1]:,}",
            f"{arm.accuracy.value:.4f}",
            f"{arm.accuracy.error:.4f}",
            *(
                ["", "", ""]
                if arm.gain is None
                else [f"{arm.gain.value:+.4f}", f"{arm.gain.error:.4f}", f"{arm.p:.2g}"]
            ),
        ]
        for arm in arms
    ]


def _verdicts(arms: Sequence[Arm]) -> list[str]:
    """Sentences on where augmentation helps and where it hurts, by more than two standard errors."""
    said = []
    for word, side in (("helps", 1), ("hurts", -1)):
        if mine := [arm for arm in arms if arm.gain and side * arm.gain.value > 2 * arm.gain.error]:
            where = "; ".join(f"{arm.name}, {arm.network} with {arm.labels:,} labels" for arm in mine)
            said.append(f"{word} by more than two standard errors: {where}")
    return said or ["no difference is larger than two standard errors"]


def _report(
    design: Design, arms: Sequence[Arm], geometric: Sequence[str], runs: Sequence[Path], notes: list[str], out: Path
) -> None:
    """Prints the table, and writes it with its figures."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from gen_jax.evaluation.report import console, finite
    from gen_jax.files import write_json, write_text
    from gen_jax.markdown import markdown_table
    from gen_jax.plots.augmentation import accuracy_curves, augmented_images

    out.mkdir(exist_ok=True)
    title = f"{design.data.name}: accuracy on {len(design.data['test']['x']):,} test examples, {design.seeds} seeds"
    shown = Table(title=escape(title), title_justify="left")
    for column in HEADER:
        shown.add_column(column, justify="left" if column in ("network", "augmentation") else "right")
    for row in _rows(arms):
        shown.add_row(*row)
    console().print(shown)
    if design.seeds == 1:
        notes = ["one seed: errors are those of the test examples, and leave out how classifiers differ", *notes]
    if design.pool is not None and len(design.pool["x"]) < max(design.labels) * max(design.shares):
        notes.append(f"{len(design.pool['x']):,} samples were drawn, and are repeated where more are asked for")
    notes = [*_verdicts(arms), *notes]
    for note in notes:
        print(note)
    made = [*(["geometric: " + ", ".join(geometric)] if geometric else []), *(f"samples of {run}" for run in runs)]
    said = "\n".join(
        [
            f"# {title}",
            "",
            *(f"- {one}" for one in made),
            "",
            markdown_table(HEADER, _rows(arms)),
            "",
            *(f"- {note}" for note in notes),
            "",
        ]
    )
    write_text(out / "augmentation.md", said)
    record = {
        "data": design.data.name,
        "digest": design.data.digest,
        "split": design.split,
        "geometric": list(geometric),
        "from": [str(run) for run in runs],
        "seeds": design.seeds,
        "seed": design.seed,
        "notes": notes,
        "arms": [_as_json(arm) for arm in arms],
    }
    write_json(out / "augmentation.json", finite(record))
    accuracy_curves(arms, np.asarray(design.data["test"]["label"])).savefig(out / "curves.png")
    augmented_images(design).savefig(out / "images.png")
    print(f"augmentation.md, augmentation.json, curves.png and images.png in {out}")


def _as_json(arm: Arm) -> dict[str, Any]:
    return {
        "network": arm.network,
        "labels": arm.labels,
        "augmentation": arm.name,
        "examples": arm.examples,
        "steps": arm.fitted.steps.tolist(),
        "accuracies": arm.fitted.accuracies.T.tolist(),
        "accuracy": arm.accuracy._asdict(),
        "gain": arm.gain and arm.gain._asdict(),
        "mcnemar": arm.p,
    }
