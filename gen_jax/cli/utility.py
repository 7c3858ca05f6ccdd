"""The command `utility`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from tyro.conf import Positional, arg

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
    from gen_jax.evaluation.metric import Estimate
    from gen_jax.evaluation.utility import Task, Utility

__all__ = ["utility"]


def utility(
    runs: Positional[Annotated[list[Path], arg(metavar="WORKDIR", help="of a run, or of one for each class")]],
    data: str = "",
    target: str = "",
    predictors: list[str] | None = None,
    samples: int = 10_000,
    seeds: int = 5,
    steps: int = 1000,
    batch: int = 128,
    mean: bool = False,
    out: Path = Path("utility"),
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    data_dir: DataDir = None,
) -> None:
    """Measures how well samples of a model serve a task: train on synthetic, test on real; and the reverse.

    The task is to predict labels, by a model conditioned on them or by one run for each class; or a column of the table
    that a run was trained on. Writes a table (.md and .json) and a figure into a folder.

    Args:
        data: labeled examples, by default those of the run; needed for several runs
        target: the column of a table that is predicted from the others: categories, or numbers
        predictors: mlp, cnn (of images), linear (logistic or ridge regression) and boosting (gradient-boosted trees);
            by default mlp and cnn for images, mlp and boosting for classes of tables, linear and boosting for numbers
        samples: of each seed, at most; as many as there are real examples
        seeds: predictors of each kind, each with its own samples, and examples where there are more than --samples
        steps: of networks
        batch: examples per step of networks
        mean: of VAEs of images, the mean of p(x | z) instead of a draw, whose pixels have independent noise
        out: the folder that is written
        seed: random seed
    """
    _check(runs, data, target, samples, seeds, steps, batch, seed, mean, out)
    opened = [open_workdir(one, None, data_dir, member) for one in runs]
    from gen_jax.evaluation.utility import default_predictors, measure_utility

    with interruptible():
        sampled = Sampled(opened, data, target, samples, seeds, seed, parse_step(step), mean, data_dir)
        task, names, title = _task(sampled, predictors or ())
        chosen = predictors or default_predictors(task.x, task.classes)
        found = [measure_utility(task, name, steps, batch, seed) for name in chosen]
        copies = _copies(task)
    _report(found, task, names, title, copies, runs, out)


def _check(
    runs: Sequence[Path],
    data: str,
    target: str,
    samples: int,
    seeds: int,
    steps: int,
    batch: int,
    seed: int,
    mean: bool,
    out: Path,
) -> None:
    if not runs:
        raise UserError("give the working directory of a run, or those of one run for each class")
    check_seed(seed)
    for name, number in (("samples", samples), ("seeds", seeds), ("steps", steps), ("batch", batch)):
        if number < (least := 10 if name == "samples" else 1):
            raise UserError(f"--{name} must be at least {least}, got {number}")
    if target and mean:
        raise UserError("--mean is of images: rows of a table are drawn")
    if target and (data or len(runs) > 1):
        raise UserError(
            "--target is a column of the table that one run was trained on: leave --data and other runs out"
        )
    if len(runs) > 1 and not data:
        raise UserError("several runs need --data, the labeled examples")
    check_results_folder(out)


class Sampled(NamedTuple):
    """Runs, and what is asked of them."""

    runs: Sequence[Any]
    data: str
    target: str
    samples: int
    seeds: int
    seed: int
    step: int | str | None
    mean: bool
    data_dir: Path | None


def _task(asked: Sampled, predictors: Sequence[str]) -> tuple[Task, Sequence[str], str]:
    """The task, the names of its classes, and a title."""
    from gen_jax.cli.labeled_runs import check_generators, draw_from
    from gen_jax.core import averaged, is_sequential
    from gen_jax.data import load
    from gen_jax.evaluation.samples.labeled import of_rows, with_progress
    from gen_jax.evaluation.utility import Inputs, check_predictors, column_task, labeled_task

    run, target = asked.runs[0], asked.target
    found = load(asked.data, asked.data_dir) if asked.data else run.data
    experiment = run.experiment.with_validation(found) if asked.data else run.experiment
    train, test = ("train", "test") if len(asked.runs) > 1 else (experiment.train, experiment.test)
    training, tested, info = found[train], found[test], found.info
    if is_sequential(training) or len(info.shape) not in (1, 3):
        raise UserError(f"{found.name} has examples of shape {info.shape}: images or rows of a table are needed")
    if target:
        if not info.columns:
            raise UserError(f"{run.workdir} was not trained on a table: leave --target out")
        if target not in info.columns:
            raise UserError(f"--target {target}: the columns are {', '.join(info.columns)}")
        names = info.categories[info.columns.index(target)] if info.categories else ()
        check_predictors(predictors, len(info.shape), len(names) or None)
        known = np.isnan(np.concatenate([training["x"], tested["x"]])[:, info.columns.index(target)])
        if known.any():
            print(f"note: {known.sum():,} rows without {target} are left out", file=sys.stderr)
        draw = of_rows(run.experiment.model, averaged(run.state(asked.step)), run.experiment.split(run.data, "train"))
        task = column_task(training, tested, with_progress(draw), info, target, asked.samples, asked.seeds, asked.seed)
        return task, names, f"{found.name}: {target}"
    if not info.classes:
        raise UserError(
            f"{found.name} has no labels to predict" + (": name a column with --target" * bool(info.columns))
        )
    check_predictors(predictors, len(info.shape), info.classes)
    check_generators(found, asked.runs)
    draw = with_progress(draw_from(asked.runs, asked.step, asked.mean))
    inputs = Inputs(info.classes, info.levels, info.categories)
    task = labeled_task(training, tested, draw, inputs, asked.samples, asked.seeds, asked.seed)
    return task, info.class_names or [str(c) for c in range(info.classes)], found.name


def _copies(task: Task) -> dict[str, Estimate]:
    """Whether samples are closer to training examples than test examples are; by raw values."""
    from gen_jax.evaluation.samples.features import raw
    from gen_jax.evaluation.samples.quality import memorization

    seen = lambda x: raw(task.inputs(x)).features
    return memorization(seen(task.x[task.synthetic[0]]), seen(task.x[np.unique(task.real)]), seen(task.test["x"]))


def _rows(found: Sequence[Utility]) -> list[list[str]]:
    rows = []
    for one in found:
        for arm, score in one.scores.items():
            gain = one.gains.get(arm)
            change = ["", ""] if gain is None else [f"{gain.value:+.4f}", f"{gain.error:.4f}"]
            rows.append([one.predictor, arm, "real", f"{score.value:.4f}", f"{score.error:.4f}", *change])
        on = one.on_samples
        rows.append([one.predictor, "real", "synthetic", f"{on.value:.4f}", f"{on.error:.4f}", "", ""])
    return rows


def _recall_rows(found: Sequence[Utility], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The recall of each class when trained on real examples, on samples and on both, by predictor."""
    shown = [one for one in found if one.recalls]
    header = ["class", *(f"{one.predictor}, {arm}" for one in shown for arm in one.recalls)]
    text = lambda one, arm, c: f"{one.recalls[arm][c]:.3f} ± {one.recall_errors[arm][c]:.3f}"
    return header, [
        [name, *(text(one, arm, c) for one in shown for arm in one.recalls)] for c, name in enumerate(names)
    ]


def _notes(found: Sequence[Utility], task: Task, names: Sequence[str], copies: dict[str, Estimate]) -> list[str]:
    notes = []
    for one in found:
        if lost := one.lost():
            classes = ", ".join(str(names[c]) for c in lost)
            notes.append(
                f"{one.predictor}: trained on samples, it misses classes that it knows from examples: {classes}"
            )
        gain = one.gains["both"]
        if len(task.real) > 1 and abs(gain.value) > 2 * gain.error:
            word = "helps" if gain.value > 0 else "hurts"
            notes.append(f"{one.predictor}: adding samples to the examples {word} by more than two standard errors")
    share, ratio = copies["memorized"], copies["nearest_ratio"]
    notes.append(
        f"copies: {100 * share.value:.1f} ± {100 * share.error:.1f} % of the samples are closer to a training example "
        "than 99 % of the test examples are (1 % is expected of a model that copies nothing); their median distance is "
        f"{ratio.value:.2f} times that of test examples"
    )
    if len(task.real) == 1:
        notes.append("one seed: errors are those of the test examples, and leave out how predictors differ")
    return notes


HEADER = ("predictor", "trained on", "tested on", "{}", "± s.e.", "change", "± s.e.")


def _report(
    found: Sequence[Utility],
    task: Task,
    names: Sequence[str],
    data: str,
    copies: dict[str, Estimate],
    runs: Sequence[Path],
    out: Path,
) -> None:
    """Prints the tables, and writes them with a figure."""
    from gen_jax.evaluation.report import as_json, finite
    from gen_jax.files import write_json, write_text
    from gen_jax.markdown import markdown_table
    from gen_jax.plots.utility import utility_figure

    out.mkdir(exist_ok=True)
    score = "accuracy" if task.classes else "R²"
    seeds, n = task.real.shape
    many = f"{seeds} seed{'s' * (seeds > 1)}"
    title = f"{data}: {n:,} examples, as many samples, {many}, {len(task.test['x']):,} test examples"
    header, rows, notes = [h.format(score) for h in HEADER], _rows(found), _notes(found, task, names, copies)
    parts = [f"# {title}", "", *(f"- samples of {run}" for run in runs), "", markdown_table(header, rows), ""]
    tables = [(title, header, rows)]
    if any(one.recalls for one in found):
        tables.append(("recall by class", *_recall_rows(found, names)))
        parts += ["## Recall by class", "", markdown_table(*tables[1][1:]), ""]
    for table in tables:
        _show(*table)
    for note in notes:
        print(note)
    write_text(out / "utility.md", "\n".join([*parts, *(f"- {note}" for note in notes), ""]))
    record = {
        "data": data,
        "runs": [str(run) for run in runs],
        "examples": n,
        "seeds": seeds,
        "score": score,
        "notes": notes,
        "copies": as_json(copies),
        "predictors": [_as_json(one, names) for one in found],
    }
    write_json(out / "utility.json", finite(record))
    utility_figure(found, score, [str(name) for name in names]).savefig(out / "utility.png")
    print(f"utility.md, utility.json and utility.png in {out}")


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, unless it is long."""
    from rich.markup import escape
    from rich.table import Table

    from gen_jax.evaluation.report import console

    if len(rows) > 60:
        return
    shown = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(header):
        shown.add_column(column, justify="right" if i and "ed on" not in column else "left")
    for row in rows:
        shown.add_row(*map(escape, row))
    console().print(shown)


def _as_json(one: Utility, names: Sequence[str]) -> dict[str, Any]:
    by_class = lambda arm: {
        str(name): {"recall": float(one.recalls[arm][c]), "error": float(one.recall_errors[arm][c])}
        for c, name in enumerate(names)
    }
    return {
        "predictor": one.predictor,
        "scores": {arm: score._asdict() for arm, score in one.scores.items()},
        "real on synthetic": one.on_samples._asdict(),
        "gains": {arm: gain._asdict() for arm, gain in one.gains.items()},
        "recalls": {arm: by_class(arm) for arm in one.recalls},
        "lost": [str(names[c]) for c in one.lost()],
    }
