"""How far a study is, and whether it may stop."""

from __future__ import annotations

import time

from rich.table import Table

from gen_jax.applications.study.analysis import counting, evidence
from gen_jax.applications.study.results import Answers
from gen_jax.applications.study.store import Store

__all__ = ["report"]


def report(store: Store) -> list[Table | str]:
    """A table of raters, and lines on who counts and on early stopping."""
    rows, raters = store.answers(), store.raters()
    counted, left_out = counting(store.protocol, rows)
    table = Table(title=f"{store.folder}: {store.protocol.kind} study of {store.protocol.data}", title_justify="left")
    for name in ("rater", "code", "began", "answers", "state"):
        table.add_column(name, justify="right" if name == "answers" else "left")
    for one in raters:
        state = "simulated, " if one["simulated"] else ""
        state += "finished" if one["finished"] else "under way"
        state += "" if one["rater"] in counted else f", does not count: {left_out.get(one['rater'], 'no answers')}"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["admitted"]))
        table.add_row(one["rater"], one["code"], began, f"{one['answers']} of {one['trials']}", state)
    people = {one["rater"] for one in raters if not one["simulated"]}
    mine = [rater for rater in counted if rater in people]
    said = [table, f"{len(people)} raters, of whom {len(mine)} count"]
    if invitations := store.count("invitation"):
        said.append(f"{invitations} invitations")
    if store.protocol.kind == "turing" and mine:
        sources = {id: one.source for id, one in store.stimuli.items()}
        main = [row for row in rows if row["rater"] in set(mine) and row["role"] == "main"]
        e, text = evidence(Answers(store.protocol, main, sources, mine))
        said.append(text + ("; the study may stop" if e >= 20 else "; looking does no harm"))
    return said
