"""Analysis of the answers of a study, after exclusions by the rule of its protocol; errors are over raters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from gen_jax.applications.study.preferences import preferences
from gen_jax.applications.study.protocol import Protocol
from gen_jax.applications.study.results import Answers, ResultTable, Row, differences, number, p_value
from gen_jax.applications.study.store import Store
from gen_jax.errors import UserError
from gen_jax.evaluation.human import (
    Interval,
    by_rater,
    detection,
    e_values,
    krippendorff_alpha,
    mean_ratings,
    paired_p_value,
)
from gen_jax.evaluation.metric import Estimate, with_group

__all__ = ["Analysis", "analyzed", "excluded"]


@dataclass(frozen=True)
class Analysis:
    """Results of a study.

    intervals: {title: {source: interval}} of the main results, which are drawn. estimates: of each source, as columns
    of comparisons. stimuli: (id, source, answers, score) of each stimulus, the most convincing first.
    """

    protocol: Protocol
    raters: int
    answers: int
    excluded: Mapping[str, str]
    tables: Sequence[ResultTable]
    intervals: Mapping[str, Mapping[str, Interval]]
    estimates: Mapping[str, Mapping[str, Estimate]]
    stimuli: Sequence[tuple[str, str, int, float]] = ()
    notes: Sequence[str] = ()
    simulated: bool = False


def excluded(protocol: Protocol, rows: Sequence[Row]) -> dict[str, str]:
    """Raters excluded by the protocol, with the reason."""
    found, by_name = {}, {}
    for row in rows:
        by_name.setdefault(row["rater"], []).append(row)
    for rater, own in by_name.items():
        main = [row for row in own if row["role"] == "main"]
        catch = [_passed(protocol, row) for row in own if row["role"] == "catch"]
        times = [row["rt_ms"] for row in main if row["rt_ms"] is not None and not row["hidden"]]
        if len(main) < protocol.trials / 2:
            found[rater] = f"answered {len(main)} of {protocol.trials} trials"
        elif catch and np.mean(catch) < protocol.least_passed:
            found[rater] = f"passed {sum(catch)} of {len(catch)} catch trials"
        elif times and median(times) < protocol.fastest_ms:
            found[rater] = f"median response time of {median(times):.0f} ms"
    return found


def _passed(protocol: Protocol, row: Row) -> bool:
    if protocol.kind == "rating":
        return row["choice"] <= (protocol.choices - 2) // 2
    return row["choice"] == row["expected"]


def analyzed(store: Store, simulated: bool = False) -> Analysis:
    """The analysis of people's answers, or of those of simulated raters.

    Raises UserError if fewer than two raters count.
    """
    protocol = store.protocol
    every = [row for row in store.answers() if bool(row["simulated"]) == simulated]
    if not every:
        others = "simulated ones: add --simulated" if store.count("answer") else "none at all"
        raise UserError(f"{store.folder} has no answers of {'simulated raters' if simulated else 'people'}, {others}")
    left_out = excluded(protocol, every)
    rows = [row for row in every if row["role"] == "main" and row["rater"] not in left_out]
    raters = list(dict.fromkeys(row["rater"] for row in rows))
    if len(raters) < 2:
        raise UserError(
            f"{len(raters)} rater{'' if len(raters) == 1 else 's'} count{'s' if len(raters) == 1 else ''} after "
            f"{len(left_out)} exclusions, and errors are over raters: at least two are needed"
        )
    answers = Answers(protocol, rows, {id: one.source for id, one in store.stimuli.items()}, raters)
    make = {"turing": _turing, "pairs": preferences, "rating": _rating, "match": _match}[protocol.kind]
    tables, intervals, columns, notes = make(answers)
    how = f"{len(raters)} raters, {len(rows)} answers, {store.folder.name}"
    names = [source.name for source in protocol.sources]
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for column, (found, unit, better) in columns.items():
        for name, interval in found.items():
            one = Estimate(interval.value, interval.error, unit, "estimate", len(rows), how)
            estimates[name] |= with_group({column: one}, "human evaluation", True, **{column: better})
    tables = [*tables, _times(answers)]
    stimuli = _stimuli(answers) if protocol.kind != "pairs" else []
    return Analysis(protocol, len(raters), len(rows), left_out, tables, intervals, estimates, stimuli, notes, simulated)


def _turing(answers: Answers):
    """Deception rates, sensitivity, and whether generated stimuli pass for real ones."""
    protocol = answers.protocol
    real = [i for i, source in enumerate(protocol.sources) if source.real]
    made = [i for i, source in enumerate(protocol.sources) if not source.real]
    name = lambda i: protocol.sources[i].name
    said_real = lambda row: float(row["choice"] == 0)
    by_source = {i: answers.means(answers.of(i), said_real) for i in [*real, *made]}
    rates = {name(i): by_rater(means) for i, means in by_source.items()}
    rows, sensitivity = [], {}
    for i in made:
        found = detection(
            answers.counts([*answers.of(i), *(r for j in real for r in answers.of(j))], _detected(answers))
        )
        sensitivity[name(i)] = found.sensitivity
        p = paired_p_value(by_source[i], [0.5] * len(by_source[i]))
        rows.append([name(i), number(rates[name(i)], "%"), p_value(p), number(found.sensitivity), number(found.bias)])
    rows.append([name(real[0]), number(rates[name(real[0])], "%"), "", "", ""])
    tables = [
        ResultTable("judged real", ["source", "share judged real", "p (50 %)", "sensitivity d'", "bias c"], rows),
        *differences(answers, {name(i): by_source[i] for i in made}, "difference of shares judged real", "%"),
    ]
    fooled = answers.means([row for i in made for row in answers.of(i)], said_real)
    e = e_values([value for value in fooled if math.isfinite(value)])
    alpha = krippendorff_alpha(_matrix(answers))
    notes = [
        f"all generated stimuli: judged real {number(by_rater(fooled), '%')}; e-value against 50 %: {e[-1]:.3g} "
        "(20 or more at any time: they can be told from real ones)",
        f"Krippendorff's alpha (nominal): {alpha:.3f}",
    ]
    deception = {name(i): rates[name(i)] for i in made}
    columns = {"human_deception": (deception, "share", "higher"), "human_sensitivity": (sensitivity, "d'", "lower")}
    return tables, {"share judged real": rates, "sensitivity d'": sensitivity}, columns, notes


def _detected(answers: Answers) -> Callable[[Row], Sequence[float]]:
    """(hits, signals, false alarms, noises): generated stimuli are signals, judged generated a hit."""

    def values(row: Row) -> Sequence[float]:
        generated = not answers.protocol.sources[answers.sources[row["stimuli"][0]]].real
        said = float(row["choice"] == 1)
        return (said, 1.0, 0.0, 0.0) if generated else (0.0, 0.0, said, 1.0)

    return values


def _match(answers: Answers):
    """How well raters tell stimuli that show what is given from others."""
    protocol = answers.protocol
    mismatch = lambda row: (
        (float(row["choice"] == 1), 1.0, 0.0, 0.0) if row["expected"] else (0.0, 0.0, float(row["choice"] == 1), 1.0)
    )
    right = lambda row: float(row["choice"] == row["expected"])
    rows, accuracy, sensitivity, by_source = [], {}, {}, {}
    for i, source in enumerate(protocol.sources):
        by_source[source.name] = answers.means(answers.of(i), right)
        accuracy[source.name] = by_rater(by_source[source.name])
        found = detection(answers.counts(answers.of(i), mismatch))
        sensitivity[source.name] = found.sensitivity
        rows.append([source.name, number(accuracy[source.name], "%"), number(found.sensitivity), number(found.bias)])
    tables = [
        ResultTable("recognized", ["source", "share right", "sensitivity d'", "bias c"], rows),
        *differences(answers, by_source, "difference of shares right", "%"),
    ]
    columns = {"human_match": (accuracy, "share", "higher")}
    notes = [f"Krippendorff's alpha (nominal): {krippendorff_alpha(_matrix(answers)):.3f}"]
    return tables, {"share right": accuracy, "sensitivity d'": sensitivity}, columns, notes


def _rating(answers: Answers):
    """Mean ratings, from 1 on, with a random effect of raters."""
    protocol, names = answers.protocol, [source.name for source in answers.protocol.sources]
    value = lambda row: row["choice"] + 1.0
    items = np.array([answers.sources[row["stimuli"][0]] for row in answers.rows])
    if missing := [name for i, name in enumerate(names) if i not in items]:
        raise UserError(f"nobody has rated {missing[0]} so far")
    found = mean_ratings(
        np.array([value(row) for row in answers.rows]),
        items,
        np.array([row["rater"] for row in answers.rows]),
        len(names),
    )
    means = dict(zip(names, found))
    by_source = {name: answers.means(answers.of(i), value) for i, name in enumerate(names)}
    shares = [
        [
            name,
            number(means[name]),
            *(f"{np.mean([r['choice'] == c for r in answers.of(i)]):.0%}" for c in range(protocol.choices)),
        ]
        for i, name in enumerate(names)
    ]
    tables = [
        ResultTable("mean ratings (mixed model)", ["source", "mean", *protocol.wording["choices"]], shares),
        *differences(answers, by_source, "difference of mean ratings"),
    ]
    matrix = _matrix(answers)
    notes = [
        f"Krippendorff's alpha: {krippendorff_alpha(matrix, 'ordinal'):.3f} (ordinal), "
        f"{krippendorff_alpha(matrix, 'interval'):.3f} (interval)"
    ]
    return (
        tables,
        {f"mean rating, 1 to {protocol.choices}": means},
        {"human_rating": (means, "points", "higher")},
        notes,
    )


def _matrix(answers: Answers) -> np.ndarray:
    """Choices (raters, stimuli), NaN where a rater has not judged one; for a match, of each description apart."""
    key = lambda row: (*row["stimuli"], row["given"] if answers.protocol.kind == "match" else "")
    columns = {unit: i for i, unit in enumerate(dict.fromkeys(map(key, answers.rows)))}
    lines = {rater: i for i, rater in enumerate(answers.raters)}
    matrix = np.full((len(lines), len(columns)), math.nan)
    for row in answers.rows:
        matrix[lines[row["rater"]], columns[key(row)]] = row["choice"]
    return matrix


def _times(answers: Answers) -> ResultTable:
    """Median response times in seconds of trials that were in sight throughout, by source and by choice."""
    seen = [row for row in answers.rows if row["rt_ms"] is not None and not row["hidden"]]
    groups: dict[str, list[float]] = {}
    for i, source in enumerate(answers.protocol.sources):
        groups[source.name] = [row["rt_ms"] for row in seen if i in {answers.sources[id] for id in row["stimuli"]}]
    for i, choice in enumerate(answers.protocol.wording["choices"]):
        groups[f'"{choice}"'] = [row["rt_ms"] for row in seen if row["choice"] == i]
    rows = [[name, f"{median(times) / 1000:.2f}", str(len(times))] for name, times in groups.items() if times]
    return ResultTable("response times", ["", "median, s", "answers"], rows)


def _stimuli(answers: Answers) -> list[tuple[str, str, int, float]]:
    """(id, source, answers, score) of each stimulus, the highest score first: judged real, right, or mean rating."""
    kind = answers.protocol.kind
    score = {
        "turing": lambda row: float(row["choice"] == 0),
        "match": lambda row: float(row["choice"] == row["expected"]),
        "rating": lambda row: row["choice"] + 1.0,
    }[kind]
    found: dict[str, list[float]] = {}
    for row in answers.rows:
        found.setdefault(row["stimuli"][0], []).append(score(row))
    sources = answers.protocol.sources
    listed = [(id, sources[answers.sources[id]].name, len(v), float(np.mean(v))) for id, v in found.items()]
    return sorted(listed, key=lambda one: (-one[3], -one[2], one[0]))
