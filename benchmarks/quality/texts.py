"""Text: what the configs of the family reach on published data, with the core-seconds of each training.

python -m benchmarks.quality.texts [--only scan]

The data sets must be prepared (`python -m gen_jax data prepare NAME --manual-dir DIR`). A run that has finished in
`runs/texts` is not trained again. The record is of all that has finished, and of what it held before.
"""

from __future__ import annotations

import statistics

from benchmarks.harness import Report
from benchmarks.quality.tasks import Task, Tasks, of_seeds
from gen_jax.core import averaged
from gen_jax.evaluation.text import mixture_likelihood
from gen_jax.reopen import open_run

NATS = {"nats_per_token": ("nats/character", "")}
SLOWER = "products of this machine run at a third of the speed of the one the target was set on"
TEXTS = Tasks(
    "texts",
    {
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
    },
)


def mixture(report: Report) -> None:
    """Mixtures of each Transformer and the n-gram model, their weight that of the validation split."""
    [n_gram] = [open_run(folder)[0] for folder in TEXTS.finished("tinyshakespeare, n-gram")]
    values, weights = [], []
    for folder in TEXTS.finished("tinyshakespeare, gpt_tales"):
        runs = [open_run(folder)[0], n_gram]
        splits = lambda run: {name: run.experiment.split(run.data, name) for name in ("validation", "test")}
        sides = [(run.experiment.model, averaged(run.state()), splits(run)) for run in runs]
        found, weight = mixture_likelihood(*sides, "test")
        values.append(found["mixture_nats_per_token"].value)
        weights.append(weight)
    share = statistics.mean(weights)
    what = f"tinyshakespeare, {share:.2f} Transformer + {1 - share:.2f} n-gram{of_seeds(values)}"
    report.fact(what, statistics.mean(values), "nats/character", "<= 1.42", SLOWER)


def main() -> None:
    report = Report("texts")
    TEXTS.train(report.options.only)
    done = TEXTS.report(report)
    if {"tinyshakespeare, gpt_tales", "tinyshakespeare, n-gram"} <= {*done}:
        mixture(report)
    TEXTS.keep_earlier(report, done)
    report.finish()


if __name__ == "__main__":
    main()
