"""Results of a study as JSON, pictures and a page."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import numpy as np

from gen_jax import plots
from gen_jax.applications.study.analysis import Analysis
from gen_jax.evaluation.report import as_json, finite
from gen_jax.files import write_json, write_text

__all__ = ["write_report"]

SHOWN = 12  # stimuli at each end
TITLES = {
    "intervals": "Main results",
    "by_stimulus": "Scores of all stimuli, sorted within each source",
    "stimuli": "Generated stimuli with the highest and the lowest scores",
}
DETECTION = (
    "sensitivity d' is 0 for guesses and about 2.5 for nine right answers in ten; bias c is above 0 where raters "
)
EXPLAINED = {
    "turing": [DETECTION + 'say "real" more often than "generated"'],
    "match": [DETECTION + "say more often that stimuli match"],
    "pairs": ["a difference of strengths of 1.1 means being preferred three times as often"],
}


def write_report(study: Path, found: Analysis, out: Path) -> list[Path]:
    """Writes analysis.json, stimuli.csv, pictures, and report.html, which holds all but single stimuli."""
    out.mkdir(exist_ok=True)
    written = _pictures(study, found, out)
    sources = [source.name for source in found.protocol.sources]
    write_json(
        out / "analysis.json",
        finite(
            {
                "study": study.name,
                "kind": found.protocol.kind,
                "data": found.protocol.data,
                "split": found.protocol.split,
                "simulated": found.simulated,
                "raters": found.raters,
                "answers": found.answers,
                "excluded": found.excluded,
                "intervals": {t: {n: i._asdict() for n, i in one.items()} for t, one in found.intervals.items()},
                "estimates": {name: as_json(found.estimates[name]) for name in sources},
                "tables": [{"title": t.title, "header": t.header, "rows": t.rows} for t in found.tables],
                "stimuli": [dict(zip(("id", "source", "answers", "score"), one)) for one in found.stimuli],
                "notes": found.notes,
            }
        ),
    )
    write_text(out / "report.html", _page(study, found, written))
    if found.stimuli:
        lines = [
            "id,source,answers,score",
            *(f"{id},{_quoted(source)},{n},{score:.4f}" for id, source, n, score in found.stimuli),
        ]
        write_text(out / "stimuli.csv", "\n".join(lines) + "\n")
        written.append(out / "stimuli.csv")
    return [out / "report.html", out / "analysis.json", *written]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _pictures(study: Path, found: Analysis, out: Path) -> list[Path]:
    reference = {"share judged real": 0.5, "share right": 0.5, "sensitivity d'": 0.0, "strength, log odds": 0.0}
    figures = {"intervals": plots.intervals(found.intervals, reference)}
    if found.stimuli and np.median([answers for _, _, answers, _ in found.stimuli]) >= 3:
        figures["by_stimulus"] = plots.scores_by_stimulus(found.stimuli, _score(found))
    if len(found.stimuli) > 3 and found.protocol.medium == "image":
        figures["stimuli"] = _extremes(study, found)
    written = []
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
        written.append(out / f"{name}.png")
    return written


def _score(found: Analysis) -> str:
    return {"turing": "share judged real", "match": "share right", "rating": "mean rating"}[found.protocol.kind]


def _extremes(study: Path, found: Analysis):
    """The generated stimuli with the highest and the lowest scores, of each model."""
    from PIL import Image

    load = lambda id: np.atleast_3d(np.asarray(Image.open(study / "stimuli" / f"{id}.png"), np.float32) / 255)
    ends = {}
    for source in (source.name for source in found.protocol.sources if not source.real):
        of_source = [id for id, name, _, _ in found.stimuli if name == source]
        few = min(SHOWN, len(of_source) // 2)
        ends |= {f"{source}, highest": of_source[:few], f"{source}, lowest": of_source[::-1][:few]} if few else {}
    return plots.show({title: np.stack([load(id) for id in ids]) for title, ids in ends.items()})


def _page(study: Path, found: Analysis, pictures: list[Path]) -> str:
    e = html.escape
    who = "simulated raters" if found.simulated else "raters"
    parts = [f"<h1>{e(study.name)}: {e(found.protocol.wording['title'])}</h1>"]
    protocol = found.protocol
    limit = f"shown for {protocol.exposure_ms} ms" if protocol.exposure_ms else "no limit of time"
    facts = [
        f"{protocol.kind} study of {protocol.data}, {protocol.split} split, created {protocol.created}",
        f'asked: "{protocol.wording["question"]}" with the choices {", ".join(protocol.wording["choices"])}',
        f"{protocol.trials} trials for each rater, besides {protocol.practice} for practice and {protocol.catch} with "
        f"a scrambled stimulus; {limit}",
        f"raters count who answered half of the trials, passed {protocol.least_passed:.0%} of the scrambled ones, and "
        f"took {protocol.fastest_ms} ms or more in the median",
        f"{found.raters} {who} count, with {found.answers:,} answers; {len(found.excluded)} do not",
        "intervals are of 95 % and over raters",
        *EXPLAINED.get(protocol.kind, ()),
    ]
    parts.append("<ul>" + "".join(f"<li>{e(fact)}</li>" for fact in facts) + "</ul>")
    for table in found.tables:
        head = "".join(f"<th scope='col'>{e(name)}</th>" for name in table.header)
        body = "".join(
            f"<tr><th scope='row'>{e(row[0])}</th>{''.join(f'<td>{e(cell)}</td>' for cell in row[1:])}</tr>"
            for row in table.rows
        )
        parts.append(
            f"<h2>{e(table.title.capitalize())}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
    parts.append("<ul>" + "".join(f"<li>{e(note)}</li>" for note in found.notes) + "</ul>")
    for path in pictures:
        title = TITLES[path.stem]
        coded = base64.b64encode(path.read_bytes()).decode()
        parts.append(f"<h2>{e(title)}</h2><img alt='{e(title)}' src='data:image/png;base64,{coded}'>")
    if found.excluded:
        left_out = "".join(f"<li>{e(rater)}: {e(reason)}</li>" for rater, reason in found.excluded.items())
        parts.append(f"<h2>Raters that do not count</h2><ul>{left_out}</ul>")
    sources = "".join(
        f"<li>{e(source.name)}: {e(', '.join(filter(None, (source.family, source.how))) or 'the data')}"
        f"{f', step {source.step:,}' if source.step is not None else ''}</li>"
        for source in found.protocol.sources
    )
    parts.append(f"<h2>Sources</h2><ul>{sources}</ul>")
    return _PAGE.format(title=e(study.name), body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child {{ text-align: left }} img {{ max-width: 100% }}
</style></head><body>
{body}
</body></html>
"""
