"""The work of `study create`: opens runs, draws stimuli, and says how much the design can show."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen_jax.applications.study.creation import (
    SPARE,
    Drawn,
    Generating,
    draw,
    draw_real,
    medium_of,
    write_stimuli,
)
from gen_jax.applications.study.protocol import Kind, Protocol, Source, wording
from gen_jax.cli.latent_space import truncated
from gen_jax.cli.options import open_workdir, parse_step, read_input
from gen_jax.core import ImageTranslator, Seq2Seq, averaged
from gen_jax.errors import UserError
from gen_jax.evaluation.human import power_by_rater
from gen_jax.models.common.autoregressive import Sampling
from gen_jax.run import Run

__all__ = ["Design", "created"]


@dataclass(frozen=True)
class Design:
    """The options of `study create`."""

    kind: Kind
    n: int
    trials: int
    seed: int
    split: str
    with_real: bool
    mean: bool
    psi: float | None
    temperature: float
    length: int
    exposure_ms: int
    catch: int
    practice: int
    raters: int


def created(
    workdirs: Sequence[Path], out: Path, design: Design, own: Path | None, step: str | None, data_dir: Path | None
) -> None:
    """Creates a study of runs. The folder appears once it is complete."""
    if not workdirs:
        raise UserError("which runs? Name their working directories")
    if design.kind == "pairs" and len(workdirs) + design.with_real < 2:
        raise UserError("pairs needs two models, or one and --with-real")
    _check_trials(design, len(workdirs))
    texts = _own_wording(own)
    runs = [open_workdir(workdir, None, data_dir) for workdir in workdirs]
    _check_alike(runs)
    first, part = runs[0], runs[0].experiment.split(runs[0].data, design.split)
    part = part._replace(training=first.experiment.examples(first.data, first.experiment.train))
    medium = medium_of(part, first.experiment.model, str(first.workdir))
    words = wording(design.kind, medium, design.trials, texts)
    names = _names(workdirs)
    labeled = design.kind == "match" and not isinstance(first.experiment.model, ImageTranslator) and medium == "image"
    real = draw_real(part, first.experiment.model, design.n + SPARE, design.seed, labeled, design.length)
    generating = [_generating(run, name, design, parse_step(step)) for run, name in zip(runs, names)]
    drawn = [real]
    for number, (run, one) in enumerate(zip(runs, generating)):
        print(f"drawing {design.n} stimuli of {run.workdir}", flush=True)
        of_run = run.experiment.split(run.data, design.split)._replace(training=part.training)
        drawn.append(draw(one, of_run, real, design.seed + number, labeled, design.length))
    _check_sizes(drawn, workdirs)
    sources = (Source(f"real ({part.name})", True), *(one.source for one in generating))
    protocol = Protocol(
        design.kind,
        sources,
        words,
        medium,
        first.data.name,
        part.name,
        drawn[0].contents.shape[1:3] if medium == "image" else (0, 0),
        design.seed,
        design.trials,
        design.practice,
        design.catch,
        exposure_ms=design.exposure_ms,
        compare_real=design.kind != "pairs" or design.with_real,
    )
    draft = out.with_name(f".{out.name}-incomplete")
    shutil.rmtree(draft, ignore_errors=True)
    stimuli = write_stimuli(draft, protocol, drawn)
    draft.rename(out)
    print(f"{len(stimuli)} stimuli in {out}; texts of the page are in {out / 'protocol.json'}")
    print(*_power(design), sep="\n")
    print(f"next: python -m gen_jax study serve {out}")


def _check_trials(design: Design, models: int) -> None:
    """Raises UserError if a rater would see a stimulus twice."""
    real = design.kind != "pairs" or design.with_real
    sources = models + real
    if design.kind == "turing":
        most = 2 * design.n
    elif design.kind == "pairs":
        most = design.n * sources // 2
    else:
        most = design.n * sources
    if design.trials > most:
        raise UserError(
            f"--trials {design.trials}: with --n {design.n} a rater can judge at most {most} without seeing one twice"
        )


def _own_wording(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(read_input("--wording", str(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"--wording {path}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f'--wording {path}: an object such as {{"question": "..."}} is needed')
    return found


def _check_alike(runs: Sequence[Run]) -> None:
    """Raises UserError unless all runs are of the same data and of models that a study can show."""
    for run in runs:
        if isinstance(run.experiment.model, Seq2Seq):
            raise UserError(f"{run.workdir}: studies show images and language models, not text-to-text models")
        if run.data.digest != runs[0].data.digest:
            raise UserError(f"{run.workdir} and {runs[0].workdir} were trained on different data")
        if isinstance(run.experiment.model, ImageTranslator) != isinstance(runs[0].experiment.model, ImageTranslator):
            raise UserError(f"{run.workdir} and {runs[0].workdir}: one maps images and the other does not")


def _names(workdirs: Sequence[Path]) -> list[str]:
    names = [workdir.resolve().name for workdir in workdirs]
    if len(set(names)) < len(names):
        names = [str(workdir) for workdir in workdirs]
    if len(set(names)) < len(names):
        raise UserError("a run is named more than once")
    return names


def _generating(run: Run, name: str, design: Design, step: int | str | None) -> Generating:
    model = truncated(run.experiment.model, design.psi, None, run.workdir)
    state = averaged(run.state(step))
    said = [f"truncation {design.psi:g}"] if design.psi is not None else []
    said += [f"temperature {design.temperature:g}"] if run.data.info.tokenizer else []
    said += ["means"] if design.mean else []
    source = Source(name, False, str(run.workdir.resolve()), type(model).__name__, int(state.step), ", ".join(said))
    return Generating(source, model, state, Sampling(temperature=design.temperature), design.mean)


def _check_sizes(drawn: Sequence[Drawn], workdirs: Sequence[Path]) -> None:
    shapes = [one.contents.shape[1:] if not isinstance(one.contents, list) else () for one in drawn]
    for shape, workdir in zip(shapes[1:], workdirs):
        if shape != shapes[0]:
            raise UserError(f"{workdir}: its images are {shape} and the real ones {shapes[0]}; all must be alike")


def _power(design: Design) -> list[str]:
    """How likely the design shows assumed effects."""
    if design.kind == "rating":
        return []
    fakes = design.trials // 2 if design.kind == "turing" else design.trials
    what = {
        "turing": "a deception rate of",
        "pairs": "a share of preferences of",
        "match": "a share of right answers of",
    }[design.kind]
    rates = (0.3, 0.4) if design.kind == "turing" else (0.6, 0.7)
    said = [
        f"{what} {rate:.0%}: {power_by_rater(rate, design.raters, fakes):.0%}" for rate in rates if design.raters > 1
    ]
    head = f"power to tell a model from chance, {design.raters} raters x {fakes} trials of it, raters correlated by .1:"
    return [head, *said] if said else ["one rater alone shows nothing about others: plan for ten or more"]
