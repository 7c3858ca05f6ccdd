"""Answers as a table or JSON, with a data dictionary."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from gen_jax.applications.study.analysis import counting
from gen_jax.applications.study.store import Store
from gen_jax.files import write_json, write_text

__all__ = ["DICTIONARY", "export_answers"]

DICTIONARY = {
    "rater": "pseudonym",
    "code": "completion code",
    "simulated": "1 for a simulated rater",
    "finished": "1 if the rater has answered all trials",
    "excluded": "why the rater does not count so far, by the rule of the protocol; empty if it counts",
    "position": "place of the trial in the order of the rater, from 0, practice included",
    "role": "practice, main, or catch",
    "stimulus": "id of the stimulus; of pairs the left one",
    "content": "its file in the folder `stimuli`, or its text",
    "source": "the run it comes from, or the real data",
    "right_stimulus": "of pairs, the right one",
    "right_content": "its file or text",
    "right_source": "the run it comes from, or the real data",
    "given": "what the stimulus should show, if it was said: a label, a prompt, or the file of a picture",
    "expected": "the choice that is right, from 0; empty if there is none",
    "choice": "the choice, from 0",
    "choice_text": "its text on the page",
    "rt_ms": "milliseconds from the painted stimulus to the answer; drawn at random for simulated raters",
    "onset_ms": "milliseconds from the loading of the page to the painted stimulus",
    "hidden": "1 if the trial was out of sight, paused or shown twice: the response time does not count",
    "at": "time at which the answer was stored, UTC",
}


def export_answers(store: Store, out: Path) -> tuple[int, Path]:
    """Writes all answers as .csv or .json, and the dictionary; returns their number and the dictionary's path."""
    rows = store.answers()
    _, left_out = counting(store.protocol, rows)
    records = [_record(store, row, left_out) for row in rows]
    if out.suffix == ".json":
        write_json(out, records)
    else:
        text = io.StringIO()
        lines = csv.DictWriter(text, DICTIONARY, lineterminator="\n")
        lines.writeheader()
        lines.writerows({name: _safe(value) for name, value in record.items()} for record in records)
        write_text(out, text.getvalue())
    dictionary = out.with_suffix(".dictionary.json")
    write_json(dictionary, DICTIONARY)
    return len(records), dictionary


def _record(store: Store, row: dict[str, Any], left_out: dict[str, str]) -> dict[str, Any]:
    left, *right = (store.stimuli[id] for id in row["stimuli"])
    name = lambda one: store.protocol.sources[one.source].name
    return {
        "rater": row["rater"],
        "code": row["code"],
        "simulated": row["simulated"],
        "finished": int(row["finished"] is not None),
        "excluded": left_out.get(row["rater"], ""),
        "position": row["position"],
        "role": row["role"],
        "stimulus": left.id,
        "content": left.file or left.text,
        "source": name(left),
        "right_stimulus": right[0].id if right else "",
        "right_content": (right[0].file or right[0].text) if right else "",
        "right_source": name(right[0]) if right else "",
        "given": store.stimuli[row["given"]].description if row["given"] else "",
        "expected": "" if row["expected"] is None else row["expected"],
        "choice": row["choice"],
        "choice_text": store.protocol.wording["choices"][row["choice"]],
        "rt_ms": "" if row["rt_ms"] is None else round(row["rt_ms"], 1),
        "onset_ms": "" if row["onset_ms"] is None else round(row["onset_ms"], 1),
        "hidden": row["hidden"],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["at"])),
    }


def _safe(value: Any) -> Any:
    """Texts that a spreadsheet would take for a formula, with an apostrophe before."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
