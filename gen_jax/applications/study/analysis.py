"""Analysis of the answers of a study, after exclusions by the rule of its protocol; errors are over raters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from gen_jax.applications.study.preferences import preferences
from gen_jax.applications.study.protocol import Protocol
from gen_jax.applications.study.results import Answers, ResultTable, Row, differences, number, p_value, share
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

__all__ = ["Analysis", "analyzed", "counting", "evidence"]


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


def counting(protocol: Protocol, rows: Sequence[Row]) -> tuple[list[str], dict[str, str]]:
    """Raters that count, in the order of their last answers, and those that do not, each with the reason.

    Whoever has answered half of the trials counts, whether or not the others follow.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["rater"], []).append(row)
    reasons = {rater: _reason(protocol, own) for rater, own in by_name.items()}
    order = sorted(by_name, key=lambda rater: by_name[rater][-1]["at"])
    return [rater for rater in order if not reasons[rater]], {rater: why for rater, why in reasons.items() if why}


def _reason(protocol: Protocol, rows: Sequence[Row]) -> str:
    """Why a rater does not count; "" if it does."""
    main = [row for row in rows if row["role"] == "main"]
    catch = [_passed(protocol, row) for row in rows if row["role"] == "catch"]
    times = [row["rt_ms"] for row in main if row["rt_ms"] is not None and not row["hidden"]]
    if len(main) < protocol.trials / 2:
        return f"answered {len(main)} of {protocol.trials} trials"
    if catch and np.mean(catch) < protocol.least_passed:
        return f"passed {sum(catch)} of {len(catch)} catch trials"
    if times and median(times) < protocol.fastest_ms:
        return f"median response time of {median(times):.0f} ms"
    return ""


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
        advice = "" if simulated or not store.count("answer") else "; --simulated analyzes those of simulated raters"
        raise UserError(
            f"{store.folder}: {'no simulated rater' if simulated else 'nobody'} has answered so far{advice}"
        )
    raters, left_out = counting(protocol, every)
    rows = [row for row in every if row["role"] == "main" and row["rater"] not in left_out]
    if len(raters) < 2:
        counted = "1 rater counts" if len(raters) == 1 else "no rater counts"
        raise UserError(
            f"{store.folder}: {counted}, after {len(left_out)} exclusions; two are needed, as errors are over raters"
        )
    answers = Answers(protocol, rows, {id: one.source for id, one in store.stimuli.items()}, raters)
    make = {"turing": _turing, "pairs": preferences, "rating": _rating, "match": _match}[protocol.kind]
    tables, intervals, columns, notes = make(answers)
    how = f"{len(raters)} raters, {len(rows)} answers, {store.folder.name}"
    names = [source.name for source in protocol.sources]
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for column, (found, unit, better) in columns.items():
        for name, interval in found.items():
            drawn = next(source.how for source in protocol.sources if source.name == name)
            noted = ", ".join(filter(None, [how, drawn]))
            one = Estimate(interval.value, interval.error, unit, "estimate", len(rows), noted)
            estimates[name] |= with_group({column: one}, "human evaluation", True, **{column: better})
    tables = tables if simulated else [*tables, _times(answers)]
    stimuli = _stimuli(answers) if protocol.kind != "pairs" else []
    return Analysis(protocol, len(raters), len(rows), left_out, tables, intervals, estimates, stimuli, notes, simulated)


def _turing(answers: Answers):
    """Deception rates, sensitivity, and whether generated stimuli can be told from real ones."""
    protocol = answers.protocol
    real = [i for i, source in enumerate(protocol.sources) if source.real]
    made = [i for i, source in enumerate(protocol.sources) if not source.real]
    name = lambda i: protocol.sources[i].name
    said_real = lambda row: float(row["choice"] == 0)
    by_source = {i: answers.means(answers.of(i), said_real) for i in [*real, *made]}
    rates = {name(i): share(by_rater(means)) for i, means in by_source.items()}
    rows, sensitivity = [], {}
    for i in made:
        both = [*answers.of(i), *(row for j in real for row in answers.of(j))]
        found = detection(answers.counts(both, _detected(answers), 4))
        sensitivity[name(i)] = found.sensitivity
        p = paired_p_value(by_source[i], by_source[real[0]])
        rows.append([name(i), number(rates[name(i)], "%"), p_value(p), number(found.sensitivity), number(found.bias)])
    rows.append([name(real[0]), number(rates[name(real[0])], "%"), "", "", ""])
    header = ["source", "share judged real", "p (as real ones)", "sensitivity d'", "bias c"]
    tables = [
        ResultTable("judged real", header, rows),
        *differences(
            answers, {name(i): by_source[i] for i in made}, "differences of shares, percentage points", "points"
        ),
    ]
    fooled = share(by_rater(answers.means([row for i in made for row in answers.of(i)], said_real)))
    notes = [
        f"all generated stimuli: judged real {number(fooled, '%')}; {evidence(answers)[1]}",
        _agreement(answers, "nominal"),
    ]
    deception = {name(i): rates[name(i)] for i in made}
    columns = {"human_deception": (deception, "share", "higher"), "human_sensitivity": (sensitivity, "d'", "lower")}
    return tables, {"share judged real": rates, "sensitivity d'": sensitivity}, columns, notes


def evidence(answers: Answers) -> tuple[float, str]:
    """The largest e-value so far that generated stimuli can be told from real ones, and what it says.

    Of each rater who has finished, in that order, the mean of the shares of right answers on both, which is one half
    for whoever cannot tell them, however often "generated" is said. What others have answered so far may still change.
    """
    ended = {row["rater"] for row in answers.rows if row["finished"]}
    rows = [row for row in answers.rows if row["rater"] in ended]
    answers = Answers(answers.protocol, rows, answers.sources, [r for r in answers.raters if r in ended])
    real = lambda row: answers.protocol.sources[answers.sources[row["stimuli"][0]]].real
    right = lambda row: float(row["choice"] == row["expected"])
    halves = [answers.means([row for row in answers.rows if real(row) == which], right) for which in (True, False)]
    accuracy = np.mean(halves, axis=0)
    accuracy = accuracy[np.isfinite(accuracy)]
    if not len(accuracy):
        return 1.0, "no rater has finished"
    e = float(e_values(accuracy).max())
    worse = " (by more wrong than right answers)" if accuracy.mean() < 0.5 else ""
    verdict = f"they can be told from real ones{worse}" if e >= 20 else "it is not decided whether they can be told"
    return (
        e,
        f"right answers on real and generated ones alike: {accuracy.mean():.1%}; e-value {e:.3g} of 20: {verdict}",
    )


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
        accuracy[source.name] = share(by_rater(by_source[source.name]))
        found = detection(answers.counts(answers.of(i), mismatch, 4))
        sensitivity[source.name] = found.sensitivity
        rows.append([source.name, number(accuracy[source.name], "%"), number(found.sensitivity), number(found.bias)])
    tables = [
        ResultTable("recognized", ["source", "share right", "sensitivity d'", "bias c"], rows),
        *differences(answers, by_source, "differences of shares, percentage points", "points"),
    ]
    columns = {"human_match": (accuracy, "share", "higher")}
    notes = [_agreement(answers, "nominal")]
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
    notes = [_agreement(answers, "ordinal"), _agreement(answers, "interval")]
    return (
        tables,
        {f"mean rating, 1 to {protocol.choices}": means},
        {"human_rating": (means, "points", "higher")},
        notes,
    )


def _agreement(answers: Answers, level: str) -> str:
    alpha = krippendorff_alpha(_matrix(answers), level)
    said = f"{alpha:.3f}" if math.isfinite(alpha) else "unknown, as no stimulus was judged by two raters, or all alike"
    return f"Krippendorff's alpha ({level}): {said}"


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
    """(id, source, answers, score) of each stimulus: judged real, right, or mean rating.

    In the order of scores drawn towards the mean of all by two answers, so that one answer alone leads to no end.
    """
    kind = answers.protocol.kind
    score = {
        "turing": lambda row: float(row["choice"] == 0),
        "match": lambda row: float(row["choice"] == row["expected"]),
        "rating": lambda row: row["choice"] + 1.0,
    }[kind]
    found: dict[str, list[float]] = {}
    for row in answers.rows:
        found.setdefault(row["stimuli"][0], []).append(score(row))
    overall = float(np.mean([value for values in found.values() for value in values]))
    drawn = {id: (sum(values) + 2 * overall) / (len(values) + 2) for id, values in found.items()}
    sources = answers.protocol.sources
    order = sorted(found, key=lambda id: (-drawn[id], id))
    return [(id, sources[answers.sources[id]].name, len(found[id]), float(np.mean(found[id]))) for id in order]
