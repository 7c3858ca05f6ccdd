"""Results of a study as JSON, pictures and a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gen_jax import plots
from gen_jax.applications.study.analysis import Analysis
from gen_jax.evaluation.report import as_json, finite
from gen_jax.files import write_json, write_text
from gen_jax.pages import bullets, heading, page, picture, table

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
    who = "simulated raters" if found.simulated else "raters"
    parts = [heading(f"{study.name}: {found.protocol.wording['title']}", 1)]
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
    parts.append(bullets(facts))
    for one in found.tables:
        parts += [heading(one.title.capitalize()), table(one.header, one.rows)]
    parts.append(bullets(found.notes))
    for path in pictures:
        parts += [heading(TITLES[path.stem]), picture(path, TITLES[path.stem])]
    if found.excluded:
        left_out = [f"{rater}: {reason}" for rater, reason in found.excluded.items()]
        parts += [heading("Raters that do not count"), bullets(left_out)]
    about = lambda source: ", ".join(filter(None, (source.family, source.how))) or "the data"
    step = lambda source: f", step {source.step:,}" if source.step is not None else ""
    sources = [f"{source.name}: {about(source)}{step(source)}" for source in protocol.sources]
    return page(study.name, [*parts, heading("Sources"), bullets(sources)])
