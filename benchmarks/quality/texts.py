"""Text: what the configs of the family reach on published data, with the core-seconds of each training.

python -m benchmarks.quality.texts [--only scan]

The data sets must be prepared (`python -m gen_jax data prepare NAME --manual-dir DIR`). A run that has finished in
`runs/texts` is not trained again. The record is of all that has finished.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.harness import ROOT, Report, beside
from gen_jax.core import averaged
from gen_jax.evaluation.text import mixture_likelihood
from gen_jax.logs import read_json, write_json
from gen_jax.run import open_run

FOLDER = ROOT / "runs" / "texts"


class Task(NamedTuple):
    """A training: the arguments of train.py, and what to read from its evaluation, with a unit and a target."""

    arguments: str
    metrics: Mapping[str, tuple[str, str]]
    why: str = ""


NATS = {"nats_per_token": ("nats/character", "")}
SLOWER = "products of this machine run at a third of the speed of the one the target was set on"
TASKS = {
    "tinyshakespeare, n-gram": Task("ngram --data tinyshakespeare", NATS),
    "tinyshakespeare, gpt_tales": Task(
        "gpt_tales --data tinyshakespeare --steps 3000 --evaluate_every 1000",
        {"nats_per_token": ("nats/character", "<= 1.5")},
        SLOWER,
    ),
    "tinyshakespeare, gpt_nano": Task(
        "gpt_nano --data tinyshakespeare",
        {"nats_per_token": ("nats/character", "<= 1.88")},
        "the target is nanoGPT's number, which is of random windows, not of an exact pass",
    ),
    "scan": Task("actions --data scan", {"exact_match": ("share", ">= 0.99")}),
    "cmudict": Task("phonemes --data cmudict", {"exact_match": ("share", ">= 0.55")}),
    "multi30k": Task(
        "translation --data multi30k",
        {"bleu": ("BLEU", ""), "bleu_lower": ("BLEU", ">= 28"), "bleu_of_copy": ("BLEU", "")},
    ),
    "bible_styles": Task(
        "simplification --data bible_styles", {"bleu": ("BLEU", ">= 27"), "bleu_of_copy": ("BLEU", "")}
    ),
}


def core_seconds(task: str) -> float:
    """Trains a task unless it has finished; the time of all cores that its training and evaluation took."""
    folder = FOLDER / task.replace(", ", "_")
    took = read_json(folder / "core_seconds.json")
    if took is None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "train.py",
            *TASKS[task].arguments.split(),
            "--workdir",
            str(folder),
            "--no-progress",
        ]
        subprocess.run(command, cwd=ROOT, env=beside(), check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_json(folder / "core_seconds.json", took)
    return took


def run_of(task: str) -> Any:
    return open_run(FOLDER / task.replace(", ", "_"))[0]


def mixture(report: Report) -> None:
    """The mixture of the Transformer and the n-gram model, its weight that of the validation split."""
    runs = [run_of("tinyshakespeare, gpt_tales"), run_of("tinyshakespeare, n-gram")]
    splits = lambda run: {name: run.experiment.split(run.data, name) for name in ("validation", "test")}
    found, weight = mixture_likelihood(*((r.experiment.model, averaged(r.state()), splits(r)) for r in runs), "test")
    what = f"tinyshakespeare, {weight:.2f} Transformer + {1 - weight:.2f} n-gram"
    report.fact(what, found["mixture_nats_per_token"].value, "nats/character", "<= 1.42", SLOWER)


def main() -> None:
    report = Report("texts")
    for name in (name for name in TASKS if report.options.only in name):
        core_seconds(name)
    report.options.only = ""  # the record is of all that has finished
    finished = [name for name in TASKS if (FOLDER / name.replace(", ", "_") / "core_seconds.json").is_file()]
    for name in finished:
        task, took, found = TASKS[name], core_seconds(name), run_of(name).folder.summary()["evaluation"]
        for metric, (unit, target) in task.metrics.items():
            title = f"{name}: {metric.replace('_', ' ')} (`{task.arguments}`, {took:.0f} core-seconds)"
            report.fact(title, found[metric]["value"], unit, target, task.why)
    if {"tinyshakespeare, gpt_tales", "tinyshakespeare, n-gram"} <= {*finished}:
        mixture(report)
    if left := [name for name in TASKS if name not in finished]:
        report.note(f"Not measured on this device: {', '.join(left)}.")
    report.finish()


if __name__ == "__main__":
    main()
