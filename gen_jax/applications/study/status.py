"""How far a study is, and whether it may stop."""

from __future__ import annotations

import math
import time

import numpy as np
from rich.table import Table

from gen_jax.applications.study.analysis import excluded
from gen_jax.applications.study.store import Store
from gen_jax.evaluation.human import e_values

__all__ = ["report"]


def report(store: Store) -> list[Table | str]:
    """A table of raters, and lines on exclusions and on early stopping."""
    raters, rows = store.raters(), store.answers()
    left_out = excluded(store.protocol, [row for row in rows if row["finished"]])
    table = Table(title=f"{store.folder}: {store.protocol.kind} study of {store.protocol.data}", title_justify="left")
    for name in ("rater", "began", "answers", "state"):
        table.add_column(name, justify="right" if name == "answers" else "left")
    for one in raters:
        state = "finished" if one["finished"] else "under way"
        state += f", excluded: {left_out[one['rater']]}" if one["rater"] in left_out else ""
        state += ", simulated" if one["simulated"] else ""
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["admitted"]))
        table.add_row(one["rater"], began, f"{one['answers']} of {one['trials']}", state)
    people = [one for one in raters if not one["simulated"]]
    finished = [one for one in people if one["finished"] and one["rater"] not in left_out]
    said = [table, f"people: {len(people)}, of whom {len(finished)} have finished and count"]
    if invitations := store.count("invitation"):
        said.append(f"{invitations} invitations")
    return [*said, *_stopping(store, [one["rater"] for one in finished])]


def _stopping(store: Store, raters: list[str]) -> list[str]:
    """The e-value of a Turing test, which may be looked at as often as one likes."""
    if store.protocol.kind != "turing" or not raters:
        return []
    fooled: dict[str, list[bool]] = {rater: [] for rater in raters}
    for row in sorted(store.answers(), key=lambda row: row["finished"] or math.inf):
        real = store.protocol.sources[store.stimuli[row["stimuli"][0]].source].real
        if row["rater"] in fooled and row["role"] == "main" and not real:
            fooled[row["rater"]].append(row["choice"] == 0)
    order = sorted(raters, key=lambda rater: next(row["finished"] for row in store.answers() if row["rater"] == rater))
    means = [float(np.mean(fooled[rater])) for rater in order]
    e = float(e_values(means).max())
    done = e >= 20
    return [
        f"judged real: {np.mean(means):.1%} of generated stimuli; largest e-value against 50 %: {e:.3g} of 20: "
        + ("they can be told from real ones, and the study may stop" if done else "not decided; looking does no harm")
    ]
