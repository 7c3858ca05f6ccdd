"""Text: what the configs of the family reach on published data, with the core-seconds of each training.

python -m benchmarks.quality.texts [--only scan]

The data sets must be prepared (`python -m gen_jax data prepare NAME --manual-dir DIR`). A run that has finished in
`runs/texts` is not trained again. The record is of all that has finished, and of what it held before.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import ROOT, Report, beside, results
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
    seeds: int = 1


NATS = {"nats_per_token": ("nats/character", "")}
SLOWER = "products of this machine run at a third of the speed of the one the target was set on"
TASKS = {
    "tinyshakespeare, n-gram": Task("ngram --data tinyshakespeare", NATS),
    "tinyshakespeare, gpt_tales": Task(
        "gpt_tales --data tinyshakespeare --steps 3600 --evaluate_every 1800",
        {"nats_per_token": ("nats/character", "<= 1.5")},
        SLOWER,
        seeds=3,
    ),
    "tinyshakespeare, gpt_nano": Task(
        "gpt_nano --data tinyshakespeare",
        {"nats_per_token": ("nats/character", "<= 1.88")},
        "the target is nanoGPT's number, which is of random windows, not of an exact pass",
    ),
    "scan": Task("actions --data scan", {"exact_match": ("share", ">= 0.99")}),
    "scan_length": Task("actions --data scan_length", {"exact_match": ("share", "")}),
    "scan_jump": Task("actions --data scan_jump", {"exact_match": ("share", "")}),
    "cmudict": Task("phonemes --data cmudict", {"exact_match": ("share", ">= 0.55")}),
    "multi30k": Task(
        "translation --data multi30k",
        {"bleu": ("BLEU", ""), "bleu_lower": ("BLEU", ">= 28"), "bleu_of_copy": ("BLEU", "")},
    ),
    "bible_styles": Task(
        "simplification --data bible_styles", {"bleu": ("BLEU", ">= 27"), "bleu_of_copy": ("BLEU", "")}
    ),
    "multi30k_captions": Task(
        "paraphrase --data multi30k_captions", {"bleu_lower": ("BLEU", ""), "bleu_lower_of_copy": ("BLEU", "")}
    ),
    "scitldr": Task(
        "summaries --data scitldr",
        {name: ("F1", "") for name in ("rouge_1", "rouge_1_of_lead", "rouge_l", "rouge_l_of_lead")},
    ),
}


def folders(task: str) -> list[Path]:
    """The working directories of a task, one for each seed."""
    name = task.replace(", ", "_")
    return [FOLDER / (f"{name}_{seed}" if seed else name) for seed in range(TASKS[task].seeds)]


def train(task: str) -> None:
    """Trains a task with each seed, unless it has finished, and keeps the time of all cores that it took.

    A run of other settings in the same folder is an error of the command.
    """
    for seed, folder in enumerate(folders(task)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "train.py", *TASKS[task].arguments.split(), "--seed", str(seed)]
        command += ["--workdir", str(folder), "--no-progress"]
        subprocess.run(command, cwd=ROOT, env=beside(), check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if (folder / "core_seconds.json").is_file():  # it had finished, and was only checked
            continue
        write_json(folder / "core_seconds.json", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def finished(task: str) -> list[Path]:
    return [folder for folder in folders(task) if (folder / "core_seconds.json").is_file()]


def report_task(report: Report, task: str) -> None:
    """The metrics of a task, of several seeds their mean and standard error."""
    done = finished(task)
    found = [read_json(folder / "evaluation.json")["test"] for folder in done]
    took = max(read_json(folder / "core_seconds.json") for folder in done)
    for metric, (unit, target) in TASKS[task].metrics.items():
        values = [one[metric]["value"] for one in found]
        title = f"{task}: {metric.replace('_', ' ')} (`{TASKS[task].arguments}`, {took:.0f} core-seconds)"
        report.fact(title + _seeds(values), statistics.mean(values), unit, target, TASKS[task].why)


def _seeds(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    return f", mean of {len(values)} seeds ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


def mixture(report: Report) -> None:
    """Mixtures of each Transformer and the n-gram model, their weight that of the validation split."""
    [n_gram] = [open_run(folder)[0] for folder in finished("tinyshakespeare, n-gram")]
    values, weights = [], []
    for folder in finished("tinyshakespeare, gpt_tales"):
        runs = [open_run(folder)[0], n_gram]
        splits = lambda run: {name: run.experiment.split(run.data, name) for name in ("validation", "test")}
        sides = [(run.experiment.model, averaged(run.state()), splits(run)) for run in runs]
        found, weight = mixture_likelihood(*sides, "test")
        values.append(found["mixture_nats_per_token"].value)
        weights.append(weight)
    share = statistics.mean(weights)
    what = f"tinyshakespeare, {share:.2f} Transformer + {1 - share:.2f} n-gram{_seeds(values)}"
    report.fact(what, statistics.mean(values), "nats/character", "<= 1.42", SLOWER)


def keep_earlier(report: Report, tasks: Sequence[str]) -> None:
    """Adds what an earlier record holds of tasks that have no run on this machine."""
    earlier = read_json(results() / "texts.json") or {"facts": [], "environment": {}}
    now = earlier["environment"]
    for task in tasks:
        kept = [fact for fact in earlier["facts"] if fact["what"].startswith(f"{task}:")]
        kept = [{"measured": f"{now['started'][:10]}, commit {now['commit'][:9]}", **fact} for fact in kept]
        report.facts.extend(kept)
        report.note(f"{task}: " + (f"measured {kept[0]['measured']}." if kept else "not measured on this device."))


def main() -> None:
    report = Report("texts")
    for name in (name for name in TASKS if report.options.only in name):
        train(name)
    report.options.only = ""  # the record is of all that has finished
    done = [name for name in TASKS if finished(name)]
    for name in done:
        report_task(report, name)
    if {"tinyshakespeare, gpt_tales", "tinyshakespeare, n-gram"} <= {*done}:
        mixture(report)
    keep_earlier(report, [name for name in TASKS if name not in done])
    report.finish()


if __name__ == "__main__":
    main()
