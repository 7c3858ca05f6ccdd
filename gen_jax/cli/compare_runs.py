"""Comparison of runs: trains configs whose run has not finished, then evaluates all runs in the same way."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import jax
from jax import Array

from gen_jax import plots
from gen_jax.applications.study.analysis import analyzed
from gen_jax.applications.study.store import open_study
from gen_jax.compilation import use_compilation_cache
from gen_jax.configs import ConfigFile, load
from gen_jax.core import ImageTranslator, Seq2Seq, State, averaged
from gen_jax.data.catalogue import CATALOGUE
from gen_jax.data.loading import load as load_data
from gen_jax.errors import UserError
from gen_jax.evaluation.comparison import Comparison, Row
from gen_jax.evaluation.metric import Estimate, Split
from gen_jax.evaluation.report import evaluator, over_seeds
from gen_jax.evaluation.samples.quality import examples_of, quality, resolve_encoder
from gen_jax.evaluation.suite import EncoderChoice, is_text, quality_encoder, suite
from gen_jax.evaluation.text import held_out_quality, text_quality
from gen_jax.logs import machine, read_metrics
from gen_jax.reopen import open_run
from gen_jax.run import Run
from gen_jax.workdir import default_workdir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HumanColumns", "compared", "human_columns", "ready"]

HumanColumns = Mapping[Path | None, tuple[int | None, Mapping[str, Estimate]]]  # step judged, estimates


def ready(configs: Sequence[Path], data: str, data_dir: Path | None) -> list[Path]:
    """The working directories of configs with their default knobs, each trained or resumed in a process of its own.

    data: the value for the knob of that name, in configs that have one.
    """
    loaded = [load(path) for path in configs]  # load all before training the first
    loaded = [one.with_knobs({"data": data}) if data and "data" in one.defaults else one for one in loaded]
    for one in loaded:
        _same({str(one.path): _data_of(one, data_dir)}, data, data_dir)
    folders = []
    for one in loaded:
        knobs = [f"--{name}={value}" for name, value in one.changed.items()]
        where = ["--data-dir", str(data_dir)] if data_dir else []
        print(f"{one.path}: training, or already trained", flush=True)
        command = [sys.executable, "-m", "gen_jax", "train", str(one.path), *knobs, *where, "--no-progress"]
        done = subprocess.run(command)
        if done.returncode:
            raise UserError(f"{one.path} could not be trained (exit code {done.returncode}); see above")
        folders.append(default_workdir(one))
    return folders


def _data_of(loaded: ConfigFile, data_dir: Path | None) -> str:
    data = loaded.build(data_dir).data
    return data if isinstance(data, str) else data.name


def compared(
    workdirs: Sequence[Path],
    data: str,
    split: str,
    encoder: EncoderChoice | None,
    samples: int,
    seed: int,
    data_dir: Path | None,
    human: HumanColumns,
) -> Comparison:
    """All applicable metrics of each run, and of the split itself in place of samples.

    human: further estimates, as `human_columns` gives them.
    """
    use_compilation_cache()
    if twice := {str(one) for one in workdirs if sum(one.resolve() == other.resolve() for other in workdirs) > 1}:
        raise UserError(f"{min(twice)} is named more than once")
    opened = [open_run(workdir, data_dir=data_dir) for workdir in workdirs]
    for warning in filter(None, (warning for _, warning in opened)):
        print(f"warning: {warning}", file=sys.stderr)
    runs = [run for run, _ in opened]
    _same({str(run.workdir): run.data.name for run in runs}, data, data_dir)
    if len({run.data.digest for run in runs}) > 1:
        kinds = {str(run.workdir): f"{run.data.name} with digest {run.data.digest[:8]}" for run in runs}
        raise UserError(f"data of one name, and different content, cannot be compared: {_listed(kinds)}")
    if unready := [str(run.workdir) for run in runs if "step" not in run.folder.summary()]:
        raise UserError(f"{unready[0]} has not finished training: the command that began it goes on with it")
    train = lambda run: "train" if "train" in run.data.splits else run.experiment.train
    whole = lambda run: run.experiment.examples(run.data, train(run))
    parts = [run.experiment.split(run.data, split)._replace(training=whole(run)) for run in runs]  # the same for all
    _same_split({str(run.workdir): part.name for run, part in zip(runs, parts)})
    windows = [part.windows.length for part in parts if part.windows is not None]
    length = min([256, *windows])  # of generated texts, the same for all
    translated = all(isinstance(run.experiment.model, ImageTranslator) for run in runs)
    rows = [] if translated else [_data_row(parts[0], encoder, length)]  # of sources, which say nothing of targets
    rows = [replace(row, found={**row.found, **human.get(None, (None, {}))[1]}) for row in rows]
    if strange := [str(path) for path in human if path is not None and path not in {r.workdir.resolve() for r in runs}]:
        print(f"warning: left out from the studies, as they are not compared: {', '.join(strange)}", file=sys.stderr)
    for name, seeds in _of_one_config(runs).items():
        print(f"measuring {', '.join(str(run.workdir) for run in seeds)}", flush=True)
        try:
            row = _model_row(name, seeds, parts[runs.index(seeds[0])], encoder, samples, seed, length)
            rows.append(replace(row, found={**row.found, **_judged(seeds, human)}))
        except UserError as error:  # the others are still shown
            print(f"warning: {name} is left out: {error}", file=sys.stderr)
        jax.clear_caches()
        gc.collect()
    if not any(row.competes for row in rows):
        raise UserError("none of these runs could be measured")
    return Comparison(runs[0].data.name, parts[0].name, [row for row in rows if row.found], machine())


def _of_one_config(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seeds only, by the name of their row; a seed counts once."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = [run.config.name, run.folder.code(), run.config.recorded(), run.folder.data.get("from")]
        key, again = json.dumps(settings), 0
        while any(other.seed == run.seed for other in groups.get(f"{key}{again}", ())):
            again += 1
        groups.setdefault(f"{key}{again}", []).append(run)
    names = [seeds[0].workdir.name for seeds in groups.values()]
    names = names if len(set(names)) == len(names) else [str(seeds[0].workdir) for seeds in groups.values()]
    total = lambda seeds: sum(run.experiment.seeds for run in seeds)
    said = lambda name, seeds: name if total(seeds) == 1 else f"{name} ({total(seeds)} seeds)"
    return {said(name, seeds): seeds for name, seeds in zip(names, groups.values())}


def _judged(runs: Sequence[Run], human: HumanColumns) -> dict[str, Estimate]:
    """Estimates from human studies of the runs of a row."""
    found = []
    for run in runs:
        step, judged = human.get(run.workdir.resolve(), (None, {}))
        if step is not None and step != run.folder.summary()["step"]:
            print(f"warning: raters saw samples of step {step:,} of {run.workdir}, not of its newest", file=sys.stderr)
        found += [judged] if judged else []
    return over_seeds(found)


def human_columns(studies: Sequence[Path]) -> HumanColumns:
    """Estimates from human studies by the working directory of the run, and by None of the data."""
    found: dict[Path | None, tuple[int | None, dict[str, Estimate]]] = {}
    for folder in studies:
        analysis = analyzed(open_study(folder))
        for source in analysis.protocol.sources:
            _, estimates = found.setdefault(None if source.real else Path(source.run).resolve(), (source.step, {}))
            if twice := sorted(set(estimates) & set(analysis.estimates[source.name])):
                raise UserError(f"{folder}: another study has given {twice[0]} of {source.name} already")
            estimates |= analysis.estimates[source.name]
    return found


def _model_row(
    name: str, runs: Sequence[Run], split: Split, encoder: EncoderChoice | None, samples: int, seed: int, length: int
) -> Row:
    """The row of a run, or of several that differ in their seeds: means over all."""
    run = runs[0]
    model, own = run.experiment.model, run.experiment.metrics
    if is_text(split):
        of_texts = text_quality(length=length)
        own = [*(metric for metric in own if metric.__name__ != of_texts.__name__), of_texts]
    measure = evaluator(model, suite(model, split, own, encoder, samples), seed)
    states = [state for one in runs for state in one.states()]
    found = over_seeds([measure(one, split) for one in states])
    if not any(one.folder.summary().get("resumed_at") for one in runs):  # else only the time since then is known
        device = run.folder.recorded()["environment"]["devices"][0]
        device += f", {run.experiment.seeds} seeds" if run.experiment.seeds > 1 else ""
        seconds = fmean(one.folder.summary()["seconds"] for one in runs)
        found["run_seconds"] = Estimate(seconds, math.nan, "s", "exact", 1, device, "speed and cost", "lower")
    figures = {"samples": _samples(model, averaged(states[0]), split, jax.random.key(seed))}
    if rows := read_metrics(run.workdir / "metrics.jsonl"):
        figures["learning curves"] = plots.learning_curves(rows, run.workdir.name)
    return Row(name, type(model).__name__, found, figures)


def _samples(model: Any, state: State, split: Split, key: Array) -> Figure:
    if isinstance(model, Seq2Seq):
        return plots.text_to_text_samples(model, state, split, key)
    if is_text(split):
        return plots.text_samples(model, state, split, key)
    if isinstance(model, ImageTranslator):
        return plots.translations(model, state, split, key)
    drawn = split.pixels(model.sample(state, key, _shown(split))["x"])
    return plots.show({"samples": drawn}, around=split.pixels(split.head(1000)["x"]))  # as encoders receive them


def _shown(split: Split) -> int:
    """The number of samples in a picture."""
    return 64 if split.arrays["x"].ndim == 4 else 1000


def _data_row(split: Split, encoder: EncoderChoice | None, length: int) -> Row:
    """Sample-quality metrics of the split itself; with few examples, distances are biased upward.

    length: tokens of a text.
    """
    if is_text(split):
        return Row(f"({split.name} text)", "data", held_out_quality(split, length=length), competes=False)
    choice = quality_encoder(split, encoder)
    if choice is None:
        return Row(split.name, "data", {}, competes=False)
    encode = resolve_encoder(choice, split)
    found = quality(encode, encode(examples_of(split, 10_000)), split)
    shown = {"samples": plots.show({f"{split.name} examples": examples_of(split, _shown(split))})}
    return Row(f"({min(split.size, 10_000):,} {split.name} examples)", "data", found, shown, competes=False)


def _same(found: dict[str, str], data: str, data_dir: Path | None) -> None:
    """Raises a UserError unless all runs use this data set, or, if "", the same one."""
    names = set(found.values())
    data = load_data(data, data_dir).name if data and data not in CATALOGUE else data
    if data and names - {data}:
        where = next(one for one, name in found.items() if name != data)
        raise UserError(f"{where} is of {found[where]}, not of {data}")
    if len(names) > 1:
        raise UserError(f"models of different data cannot be compared: {_listed(found)}")


def _same_split(found: dict[str, str]) -> None:
    if len(set(found.values())) > 1:
        raise UserError(f"these runs mean different examples by this split, choose another: {_listed(found)}")


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in found.items())
