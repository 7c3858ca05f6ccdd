"""Analysis of preferences between pairs of stimuli."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from gen_jax.applications.study.results import Answers, ResultTable, difference_table, number, share
from gen_jax.errors import UserError
from gen_jax.evaluation.human import Interval, Preference, bradley_terry, by_rater, jackknife

__all__ = ["preferences"]


def preferences(answers: Answers):
    """Strengths by the Bradley-Terry model, and how often real stimuli were preferred."""
    protocol = answers.protocol
    compared = sorted({answers.sources[id] for row in answers.rows for id in row["stimuli"]})
    place = {source: i for i, source in enumerate(compared)}
    names = [protocol.sources[i].name for i in compared]
    sides = [tuple(place[answers.sources[id]] for id in row["stimuli"]) for row in answers.rows]
    outcomes = np.array([(*side, row["choice"]) for side, row in zip(sides, answers.rows)])
    raters = np.array([row["rater"] for row in answers.rows])
    try:
        found = bradley_terry(outcomes, raters, len(names))
    except ValueError as error:
        raise UserError(f"preferences cannot be ranked yet: {error}") from None
    strengths = dict(zip(names, found.strengths))
    order = sorted(names, key=lambda name: -strengths[name].value)
    rows = [[name, number(strengths[name]), *_wins(outcomes, names, name)] for name in order]
    pairs = list(combinations(range(len(names)), 2))
    apart, p = zip(*(_contrast(found, i, j) for i, j in pairs))
    named = [(names[i], names[j]) for i, j in pairs]
    tables = [
        ResultTable("strengths (Bradley-Terry, log odds)", ["source", "strength", "wins", "ties", "losses"], rows),
        difference_table("differences of strengths", named, apart, p),
    ]
    if right := _against_real(answers):
        tables.append(ResultTable("told from real ones", ["source", "share right", "sensitivity d'"], right))
    notes = [
        f"the left one was chosen in {np.mean(outcomes[:, 2] == 0):.0%}, no difference in "
        f"{np.mean(outcomes[:, 2] == 2):.0%}"
    ]
    if found.regularized:
        notes.append(
            "some sources only won or only lost against the others: strengths are pulled together by a normal prior of "
            "standard deviation 2, and their intervals are too short"
        )
    return (
        tables,
        {"strength, log odds": {name: strengths[name] for name in order}},
        {"preference": (strengths, "log odds", "higher")},
        notes,
    )


def _contrast(found: Preference, i: int, j: int) -> tuple[Interval, float]:
    """The difference of two strengths with its interval, and its p-value."""
    value = found.strengths[i].value - found.strengths[j].value
    raters, c = found.strengths[i].raters, found.covariance
    error = math.sqrt(max(c[i, i] + c[j, j] - 2 * c[i, j], 1e-300))
    half = float(stats.t.ppf(0.975, raters - 1)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, raters - 1))
    return Interval(value, error, value - half, value + half, raters), p


def _wins(outcomes: np.ndarray, names: Sequence[str], name: str) -> list[str]:
    """Wins, ties and losses of a source."""
    i = names.index(name)
    first, second = outcomes[outcomes[:, 0] == i, 2], outcomes[outcomes[:, 1] == i, 2]
    wins, losses = np.sum(first == 0) + np.sum(second == 1), np.sum(first == 1) + np.sum(second == 0)
    return [str(wins), str(np.sum(first == 2) + np.sum(second == 2)), str(losses)]


def _against_real(answers: Answers) -> list[list[str]]:
    """How often the real one of a pair was chosen, per model; ties count half. d' = sqrt(2) z(share)."""
    said = []
    right = lambda row: 0.5 if row["choice"] == 2 else float(row["choice"] == row["expected"])
    z = lambda total: math.sqrt(2) * float(stats.norm.ppf((total[0] + 0.5) / (total[1] + 1)))
    for i, source in enumerate(answers.protocol.sources):
        shown = lambda row, i=i: i in {answers.sources[id] for id in row["stimuli"]}
        rows = [row for row in answers.rows if row["expected"] is not None and shown(row)]
        if not source.real and rows:
            right_share = share(by_rater(answers.means(rows, right)))
            counts = answers.counts(rows, lambda row: (right(row), 1.0), 2)
            said.append([source.name, number(right_share, "%"), number(jackknife(z, counts))])
    return said
