"""The command `report`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen_jax.cli.options import Workdir, check_ending, check_folder
from gen_jax.errors import UserError
from gen_jax.files import read_json, write_text
from gen_jax.pages import bullets, heading, page, picture, table

__all__ = ["report"]

SHOWN = 5  # pictures of each plot over training


def report(workdir: Workdir, out: Path | None = None) -> None:
    """Writes one page about a run: settings, learning curves, pictures over training, evaluation, environment.

    Args:
        out: the page (.html); by default WORKDIR/report.html
    """
    out = out or workdir / "report.html"
    check_ending(out, (".html",))
    record = read_json(workdir / "run.json")
    if record is None:
        raise UserError(f"{workdir} is not the working directory of a run: it has no run.json")
    check_folder(out)
    parts = [heading(record["name"], 1), bullets(_facts(record)), *_evaluation(workdir), *_curves(workdir)]
    parts += [*_pictures(workdir), heading("Settings"), _settings(record), heading("Environment"), _environment(record)]
    write_text(out, page(record["name"], parts))
    print(f"report in {out}")


def _facts(record: Mapping[str, Any]) -> list[str]:
    """How the run went, in a few lines."""
    summary, data = record.get("summary"), record.get("data", {})
    said = [f"data: {data.get('name', 'unknown')}", f"seed {record['seed']}"]
    said += [f"{record['seeds']} seeds as one program"] if record.get("seeds", 1) > 1 else []
    if summary is None:
        return [*said, "not finished"]
    said.append(f"{'stopped early' if summary['stopped_early'] else 'finished'} at step {summary['step']:,}")
    said += [f"because {summary['stopped_because']}"] if "stopped_because" in summary else []
    step = summary.get("evaluated_step", summary["step"])
    said += [f"results of the best checkpoint, step {step:,}"] if step != summary["step"] else []
    resumed = f" since it was resumed at step {summary['resumed_at']:,}" if summary.get("resumed_at") else ""
    said.append(f"{summary['seconds']:,.0f} s{resumed}, ended {summary['finished']}")
    return said + [f"failed and left out: {name}, {n} times" for name, n in summary.get("failed", {}).items()]


def _evaluation(workdir: Path) -> list[str]:
    """The estimates of each split with their errors."""
    from gen_jax.evaluation.metric import rounded
    from gen_jax.evaluation.report import from_json

    parts = []
    for split, found in (read_json(workdir / "evaluation.json") or {}).items():
        rows = [
            [name, *rounded(e.value, e.error), e.unit, e.kind, f"{e.n:,}", e.how]
            for name, e in from_json(found).items()
        ]
        if rows:
            parts.append(heading(f"Evaluation, {split} split"))
            parts.append(table(["metric", "value", "standard error", "unit", "kind", "n", "how"], rows))
    return parts


def _curves(workdir: Path) -> list[str]:
    """Learning curves, drawn anew."""
    from gen_jax import plots
    from gen_jax.logs import read_metrics

    rows = read_metrics(workdir / "metrics.jsonl")
    if not rows:
        return []
    plots.learning_curves(rows, workdir.name).savefig(workdir / "curves.png")
    return [heading("Learning curves"), picture(workdir / "curves.png", "learning curves")]


def _pictures(workdir: Path) -> list[str]:
    """Each plot at several steps, and at the end."""
    folder, parts = workdir / "plots", []
    steps: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*_[0-9]*.png")):
        if found := re.fullmatch(r"(.+)_(\d{7,})", path.stem):
            steps.setdefault(found[1], []).append(path)
    finals = [path.stem for path in sorted(folder.glob("*.png")) if not path.stem[-7:].isdigit()]
    for name in dict.fromkeys([*steps, *finals]):
        there = steps.get(name, [])
        places = sorted({round(i * (len(there) - 1) / (SHOWN - 1)) for i in range(SHOWN)}) if there else []
        chosen = [there[place] for place in places]
        shown = [picture(path, f"step {int(path.stem[-7:]):,}") for path in chosen]
        final = folder / f"{name}.png"
        shown += [picture(final, "at the end")] if final.is_file() else []
        parts += [heading(name.replace("_", " ").capitalize()), f"<div class='row'>{''.join(shown)}</div>"]
    return parts


def _settings(record: Mapping[str, Any]) -> str:
    return table(["knob", "value"], [[name, str(value)] for name, value in record["knobs"].items()])


def _environment(record: Mapping[str, Any]) -> str:
    found = record.get("environment", {})
    rows = [["commit", f"{found.get('commit')}{' and changes' if found.get('uncommitted_changes') else ''}"]]
    rows += [["devices", ", ".join(found.get("devices", []))], ["Python", str(found.get("python"))]]
    rows += [[name, version] for name, version in found.get("versions", {}).items()]
    return table(["", "value"], rows)
