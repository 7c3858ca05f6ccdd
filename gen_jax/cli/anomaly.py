"""The command `anomaly`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gen_jax.cli.options import (
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
    from rich.table import Table

    from gen_jax.applications.anomaly import Ranking, Scorer, Threshold
    from gen_jax.evaluation.metric import Split
    from gen_jax.run import Run

__all__ = ["anomaly"]

SLOW = ("regret",)  # a search for each example


def anomaly(
    workdir: Workdir,
    data: str = "",
    split: str = "test",
    scores: list[str] | None = None,
    level: float = 0.01,
    threshold: Literal["conformal", "quantile", "tail"] = "conformal",
    label: str = "",
    normal: list[str] | None = None,
    background: Path | None = None,
    out: Path = Path("anomalies.csv"),
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Scores examples by a trained model, of any family, and flags the anomalies among them.

    Writes the scores, p-values and flags of all examples (.csv), and beside them a summary (.json) and figures (.png).
    Thresholds come from the validation split of the run, the rate of false alarms is measured on its test split.
    Without labels, the areas under the curves compare the examples with that test split.

    Args:
        data: examples to score: a table (.csv, .tsv, .parquet), all rows in their order, or a name or folder, read as
            the run's own data; by default the run's own
        split: of data with splits
        scores: names, the first of which flags; by default all that the model has and that are quick
        level: the share of normal examples that may be flagged
        threshold: conformal (a guarantee, from the validation split), quantile (of the training examples, optimistic)
            or tail (of the validation split, extrapolated by a generalized Pareto distribution)
        label: of a table: the column that tells normal rows from anomalies
        normal: the labels of normal examples
        background: the run of another model of the same data, for the likelihood ratio
        out: the file that is written
    """
    from gen_jax.applications.anomaly import SCORES
    from gen_jax.applications.anomaly.thresholds import check_calibration, check_level

    check_ending(out, (".csv",))
    check_folder(out)
    check_level(level)
    if data and Path(data).resolve() == out.resolve():
        raise UserError(f"--out {out}: is the table that is read, and would be lost")
    if unknown := [name for name in scores or () if name not in SCORES]:
        raise UserError(f"--scores {unknown[0]}: there are {', '.join(SCORES)}")
    if label and not normal:
        raise UserError("--label needs --normal, the labels of normal rows")
    run = open_workdir(workdir, config, data_dir, member)
    other = open_workdir(background, None, data_dir) if background else None
    scored = _examples(run, data, split, label, normal or [], data_dir)
    if threshold == "conformal":
        check_calibration(level, run.experiment.split(run.data, "validation").size)
    with interruptible():
        made = _scorers(run, other, parse_step(step), scores, scored.split)
        groups = _groups(run, scored.split, threshold)
        found = {name: {kind: scorer(one) for kind, one in groups.items()} for name, scorer in made.items()}
    for note in _notes(run, scored, step):
        print(f"note: {note}", file=sys.stderr)
    found = {name: groups for name, groups in found.items() if not any(np.isnan(a).any() for a in groups.values())}
    if not found:
        raise UserError("the scores are not defined where cells are missing")
    first = next(iter(found))
    limit = _threshold(threshold, found[first], level)
    _report(Found(run, scored, made, found, first, limit, level, out))


class Examples(NamedTuple):
    """The examples that are scored."""

    split: Split
    name: str
    anomalous: np.ndarray | None  # (N,), where labels tell
    comparable: bool = True  # with the test split of the run


class Found(NamedTuple):
    """The scores of all examples."""

    run: Run
    examples: Examples
    scorers: Mapping[str, Scorer]
    scores: Mapping[str, Mapping[str, np.ndarray]]  # by score and group: "calibration", "test", "examples"
    first: str
    threshold: Threshold
    level: float
    out: Path


def _notes(run: Run, examples: Examples, step: str | None) -> list[str]:
    """Notes on what weakens the guarantee: calibration examples that were used otherwise too."""
    validation, test = (run.experiment.split(run.data, name) for name in ("validation", "test"))
    x = lambda split: np.asarray(split.arrays["x"][:100])
    notes = []
    if step == "best":
        notes.append("the validation split chose this checkpoint, and now sets the threshold: false alarms may be more")
    if np.array_equal(x(validation), x(test), equal_nan=x(test).dtype.kind == "f"):
        notes.append("the test split is the validation split: false alarms are those of the calibration examples")
    if np.array_equal(x(validation), x(examples.split), equal_nan=x(test).dtype.kind == "f"):
        notes.append("the examples are those of the validation split, which set the threshold")
    return notes


def _examples(run: Run, data: str, split: str, label: str, normal: Sequence[str], data_dir: Path | None) -> Examples:
    """The examples to score, with the transforms of the run, and which of them are anomalies."""
    from gen_jax.data import load
    from gen_jax.data.options import spell, split_name
    from gen_jax.data.tables import TABLES, read_rows

    own = run.experiment.split(run.data, split if not data else "test")
    if not data:
        truth = own.arrays.get("label")
        found = _anomalous(truth, run.data.info.class_names, normal)
        return Examples(own, f"{run.data.name} [{own.name}]", found, own.name != run.experiment.test)
    path = Path(data).expanduser()
    if path.suffix.lower() in TABLES and path.is_file() and len(run.data.info.shape) == 1:
        if split != "test":
            raise UserError(f"--split {split}: all rows of a table are scored")
        if normal and not label:
            raise UserError("--normal needs --label, the column that holds these")
        arrays, texts = read_rows(path, run.data.info, label)
        examples = own._replace(name=path.name, arrays=arrays)
        return Examples(examples, path.name, None if texts is None else _anomalous(texts, (), normal))
    if label:
        raise UserError("--label is of tables")
    options = split_name(run.config.knobs.get("data", ""))[1]
    loaded = load(spell(data, options), data_dir)
    theirs = run.experiment.with_validation(loaded).split(loaded, split)
    arrays = theirs.arrays
    if arrays["x"].shape[1:] != own.arrays["x"].shape[1:] or arrays["x"].dtype != own.arrays["x"].dtype:
        raise UserError(
            f"{loaded.name} has examples {arrays['x'].dtype} {arrays['x'].shape[1:]}, those of the run are "
            f"{own.arrays['x'].dtype} {own.arrays['x'].shape[1:]}: --data 'NAME?size=...' reads images in another size"
        )
    names = loaded.info.class_names
    return Examples(
        own._replace(name=split, arrays=arrays),
        f"{loaded.name} [{split}]",
        _anomalous(arrays.get("label"), names, normal),
    )


def _anomalous(labels: Any, names: Sequence[str], normal: Sequence[str]) -> np.ndarray | None:
    """Booleans (N,): the labels, codes of names or texts, that are not normal; None if nothing tells."""
    if not normal:
        return None
    if labels is None:
        raise UserError("--normal needs labels, which the examples do not have")
    texts = np.asarray(labels).astype(str) if not names else np.array(names)[np.asarray(labels)]
    if unknown := [one for one in normal if one not in texts]:
        raise UserError(f"--normal {unknown[0]}: the labels are {', '.join(np.unique(texts)[:10])}")
    found = ~np.isin(texts, normal)
    if not found.any():
        raise UserError("all labels are normal: there are no anomalies to tell apart")
    return found


def _check_condition(model: Any, examples: Split, training: Split) -> None:
    """Raises UserError if the examples lack what the model is conditioned on."""
    from gen_jax.core import Conditional

    conditioning = model.conditioning if isinstance(model, Conditional) else None
    if conditioning is None or conditioning.entry not in training.arrays:
        return
    if reason := conditioning.unsupported(examples.arrays):
        raise UserError(f"{type(model).__name__} is conditional, and the examples do not fit: {reason}")


def _scorers(run: Run, other: Run | None, step: Any, names: Sequence[str] | None, examples: Split) -> dict[str, Scorer]:
    from gen_jax.applications.anomaly import Scored, scorers
    from gen_jax.core import averaged
    from gen_jax.evaluation.samples.features import Encoder
    from gen_jax.evaluation.suite import quality_encoder

    training, test = (run.experiment.split(run.data, name) for name in ("train", "test"))
    chosen = quality_encoder(test, None)
    encode = chosen if chosen is None or isinstance(chosen, Encoder) else chosen(test)
    background = other and (other.experiment.model, averaged(other.state(None)))
    model = run.experiment.model
    _check_condition(model, examples, training)
    scored = Scored(model, averaged(run.state(step)), training, background, encode)
    found = scorers(scored, names)
    if missing := [name for name in names or () if name not in found]:
        needs = " without --background" if missing[0] == "ratio" and not other else ""
        known = ", ".join(scorers(scored))
        raise UserError(f"{type(model).__name__} has no score {missing[0]!r}{needs}: it has {known}")
    quick = {name: scorer for name, scorer in found.items() if names or name not in SLOW}
    if not quick:
        raise UserError(f"{type(model).__name__} has no score")
    return {name: quick[name] for name in names or quick}


def _groups(run: Run, examples: Split, threshold: str) -> dict[str, Split]:
    """The examples that are scored, in groups."""
    own = lambda name: run.experiment.split(run.data, name)
    found = {"calibration": own("validation"), "test": own("test"), "examples": examples}
    return {**found, "training": own("train")} if threshold == "quantile" else found


def _threshold(kind: str, scores: Mapping[str, np.ndarray], level: float) -> Threshold:
    from gen_jax.applications.anomaly import conformal_threshold, quantile_threshold, tail_threshold

    if kind == "quantile":
        return quantile_threshold(scores["training"], level)
    return (tail_threshold if kind == "tail" else conformal_threshold)(scores["calibration"], level)


def _report(found: Found) -> None:
    """Prints what was found, and writes scores, summary and figures."""
    from gen_jax.applications.anomaly import benjamini_hochberg, conformal_p_values, rank
    from gen_jax.evaluation.report import console, finite
    from gen_jax.files import write_json

    mine = found.scores[found.first]
    p, flags = conformal_p_values(mine["calibration"], mine["examples"]), found.threshold(mine["examples"])
    alarms, discovered = found.threshold(mine["test"]), benjamini_hochberg(p, found.level)
    ranked, truth = _ranked(found)
    areas = {name: rank(values, truth) for name, values in ranked.items()}
    if areas:
        console().print(_table(found, areas))
    print(f"threshold of {found.first}: {found.threshold.value:.6g} ({found.threshold.how})")
    print(
        f"flagged: {flags.sum():,} of {len(flags):,} examples; {discovered.sum():,} at a false discovery rate of "
        f"{found.level:g} (Benjamini-Hochberg{_least(len(mine['calibration']), len(p), found.level)})"
    )
    print(f"false alarms on the test split of the run: {alarms.sum():,} of {len(alarms):,}, {alarms.mean():.4f}")
    if found.examples.anomalous is not None:
        caught = flags[found.examples.anomalous]
        print(f"anomalies found: {caught.sum():,} of {len(caught):,}")
    _write(found, p, flags, discovered)
    summary = {
        "workdir": str(found.run.workdir),
        "examples": found.examples.name,
        "score": found.first,
        "level": found.level,
        "threshold": found.threshold._asdict(),
        "flagged": int(flags.sum()),
        "discovered": int(discovered.sum()),
        "of": len(flags),
        "false_alarm_rate": float(alarms.mean()),
        "areas": {name: area._asdict() for name, area in areas.items()},
    }
    write_json(found.out.with_suffix(".json"), finite(summary))
    _draw(found, ranked, truth, areas)
    print(f"scores in {found.out}, a summary in {found.out.with_suffix('.json').name}, and figures")


def _least(calibration: int, n: int, level: float) -> str:
    """The number of rows that have to have the least p-value for any to be discovered."""
    rows = math.ceil(n / (level * (1 + calibration)) - 1e-9)
    return f"; {rows:,} at least, or none, with {calibration:,} calibration examples" if rows > 1 else ""


def _table(found: Found, areas: Mapping[str, Ranking]) -> Table:
    """The areas under the curves of each score."""
    from rich.markup import escape
    from rich.table import Table

    against = (
        "" if found.examples.anomalous is not None else " as a whole against the test split of the run (0.5: alike)"
    )
    table = Table(title=escape(f"{found.run.workdir.name}: {found.examples.name}{against}"), title_justify="left")
    for column in ("score", "AUROC", "95 %", "average precision", "95 %"):
        table.add_column(column, justify="left" if column == "score" else "right")
    interval = lambda ends: f"{ends[0]:.3f} to {ends[1]:.3f}"
    for name, area in areas.items():
        roc = f"{area.roc_auc:.4f}", interval(area.roc_auc_range)
        table.add_row(name, *roc, f"{area.average_precision:.4f}", interval(area.average_precision_range))
    return table


def _ranked(found: Found) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The scores that are compared, and which of them are of anomalies: by the labels, or all examples."""
    if found.examples.anomalous is not None:
        return {name: groups["examples"] for name, groups in found.scores.items()}, found.examples.anomalous
    normal, mine = len(next(iter(found.scores.values()))["test"]), found.examples.split.size
    if not found.examples.comparable:
        return {}, np.zeros(0, bool)
    both = {name: np.concatenate([groups["test"], groups["examples"]]) for name, groups in found.scores.items()}
    return both, np.arange(normal + mine) >= normal


def _write(found: Found, p: np.ndarray, flags: np.ndarray, discovered: np.ndarray) -> None:
    import pyarrow as pa

    from gen_jax.data.tables import write_table

    columns: dict[str, Any] = {"row": np.arange(len(p))}
    columns |= {name: groups["examples"] for name, groups in found.scores.items()}
    columns |= {"p_value": p, "anomalous": flags.astype(np.int8), "discovered": discovered.astype(np.int8)}
    if found.examples.anomalous is not None:
        columns["truth"] = found.examples.anomalous.astype(np.int8)
    write_table(pa.table(columns), found.out)


def _draw(found: Found, ranked: Mapping[str, np.ndarray], truth: np.ndarray, areas: Mapping[str, Ranking]) -> None:
    from gen_jax.plots.anomaly import decision_boundary, ranking_curves, score_histograms

    named = lambda kind: found.out.with_name(f"{found.out.stem}_{kind}.png")
    truths = found.examples.anomalous
    groups = {}
    for name, scores in found.scores.items():
        mine = scores["examples"]
        parts = {"examples": mine} if truths is None else {"normal": mine[~truths], "anomalous": mine[truths]}
        groups[name] = {"calibration": scores["calibration"], **parts}
    score_histograms(groups, (found.first, found.threshold.value)).savefig(named("scores"))
    if ranked:
        ranking_curves(ranked, truth, areas).savefig(named("curves"))
    split = found.examples.split
    x = np.asarray(split.arrays["x"])
    if x.shape[1:] == (2,) and np.isfinite(x).all():
        flagged = found.threshold(found.scores[found.first]["examples"]) if truths is None else truths
        points = {"normal": x[~flagged], "anomalous" if truths is not None else "flagged": x[flagged]}
        score = lambda plane: found.scorers[found.first](split._replace(arrays={"x": plane.astype(x.dtype)}))
        normal = np.asarray(split.reference.arrays["x"][:2000])
        normal = normal[np.isfinite(normal).all(axis=1)]
        decision_boundary(score, found.threshold.value, points, normal, found.first).savefig(named("boundary"))
