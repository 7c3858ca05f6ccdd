"""The work of `study create`: opens runs, draws stimuli, and says how much the design can show."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gen_jax.applications.study.creation import (
    Drawn,
    Generating,
    draw,
    draw_real,
    medium_of,
    write_stimuli,
)
from gen_jax.applications.study.protocol import SPARE, Kind, Protocol, Source, wording
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
    texts = _own_wording(own)
    runs = [open_workdir(workdir, None, data_dir) for workdir in workdirs]
    _check_alike(runs)
    first, part = runs[0], runs[0].experiment.split(runs[0].data, design.split)
    part = part._replace(training=first.experiment.examples(first.data, first.experiment.train))
    medium = medium_of(part, first.experiment.model, str(first.workdir))
    given = (
        "prompt" if medium == "text" else "input" if isinstance(first.experiment.model, ImageTranslator) else "label"
    )
    given = "" if given == "label" and design.kind != "match" else given
    words = wording(design.kind, medium, design.trials + design.catch, texts, given)
    names = _names(workdirs)
    labeled = given == "label"
    if medium == "image" and design.temperature != 1.0:
        raise UserError("--temperature is for texts: leave it out")
    protocol = _protocol(design, words, medium, first.data.name, part.name, names)
    protocol.check(design.n)
    real = draw_real(part, first.experiment.model, design.n + SPARE, design.seed, labeled, design.length)
    generating = [_generating(run, name, design, parse_step(step)) for run, name in zip(runs, names)]
    drawn = [real]
    for number, (run, one) in enumerate(zip(runs, generating)):
        print(f"drawing {design.n} stimuli of {run.workdir}", flush=True)
        of_run = run.experiment.split(run.data, design.split)._replace(training=part.training)
        drawn.append(draw(one, of_run, real, design.seed + number, labeled, design.length))
    _check_sizes(drawn, workdirs)
    size = drawn[0].contents.shape[1:3] if medium == "image" else (0, 0)
    protocol = replace(protocol, sources=(protocol.sources[0], *(one.source for one in generating)), size=size)
    draft = out.with_name(f".{out.name}-incomplete")
    shutil.rmtree(draft, ignore_errors=True)
    stimuli = write_stimuli(draft, protocol, drawn)
    draft.rename(out)
    print(f"{len(stimuli)} stimuli in {out}; texts of the page are in {out / 'protocol.json'}")
    if texts and (english := sorted(name for name, text in words.items() if name not in texts and text)):
        print(f"note: not in {own}, and so in English: {', '.join(english)}")
    print(*_power(design, len(workdirs)), sep="\n")
    print(f"next: python -m gen_jax study serve {out}")


def _protocol(design: Design, words: Any, medium: Any, data: str, split: str, names: Sequence[str]) -> Protocol:
    """The protocol before its stimuli are drawn."""
    sources = (Source(f"real ({split})", True), *(Source(name, False) for name in names))
    return Protocol(
        design.kind,
        sources,
        words,
        medium,
        data,
        split,
        seed=design.seed,
        trials=design.trials,
        practice=design.practice,
        catch=design.catch,
        exposure_ms=design.exposure_ms,
        compare_real=design.kind != "pairs" or design.with_real,
    )


def _own_wording(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    text = read_input("--wording", str(path))
    try:
        found = json.loads(text)
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


def _power(design: Design, models: int) -> list[str]:
    """How likely the design shows assumed effects of one model, or one pair of them."""
    if design.kind == "rating":
        return []
    sources = models + (design.kind != "pairs" or design.with_real)
    shares = {"turing": 2 * models, "pairs": sources * (sources - 1) // 2, "match": sources}
    each = max(1, design.trials // shares[design.kind])
    what = {
        "turing": "a share judged real of {}, where 50% would be chance",
        "pairs": "a share of preferences of {}, where 50% would be none",
        "match": "a share of right answers of {}, where 50% would be chance",
    }[design.kind]
    rates = (0.3, 0.4) if design.kind == "turing" else (0.6, 0.7)
    said = [f"  {what.format(f'{r:.0%}')}: {power_by_rater(r, design.raters, each):.0%}" for r in rates]
    head = (
        f"power of {design.raters} raters with {each} trials each of a {'pair' if design.kind == 'pairs' else 'model'} "
        "(answers within raters correlated by .1):"
    )
    return [head, *said] if design.raters > 1 else ["one rater alone shows nothing about others: plan for ten or more"]
