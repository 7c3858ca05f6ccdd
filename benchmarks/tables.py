"""Pages of results, written as whole files from the records in `results/<device>/*.json`; nothing is measured here.

python -m benchmarks.tables               writes docs/benchmarks/*.md, docs/configs.md, docs/comparison.md, two tables
                                          of the README, and the results in the docstrings of configs
python -m benchmarks.tables --check       fails where a file is not what its records say
python -m benchmarks.tables --keep FILE   also takes a record, such as runs/compare/compare.json, into results/<device>
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.harness import RESULTS, ROOT, SPEED, STEPS
from gen_jax.evaluation.comparison import Comparison
from gen_jax.files import read_json
from gen_jax.markdown import markdown_table
from gen_jax.profiling import report

DOCS = ROOT / "docs"
OURS = (  # bounds and other ways of our own, no other library
    "products alone",
    "bare compiled step",
    "step by step in fit",
    "hand-written loop",
    "serial scan",
    "recursion alone",
    "1 process",
    "1 device",
    "step of vae_mnist",
)
DEVICES = {"cpu": "CPU"}  # headings of folders; others are the record's own name of the device


class Page(NamedTuple):
    """A page of docs/benchmarks: its title, and how its numbers were measured."""

    title: str
    text: str


PAGES = {
    "loop": Page(
        "The training loop",
        "The training loop, streamed data, and start-up (`benchmarks/speed/loop.py`). The first row includes two saves "
        "within 1,000 short steps; `chunk` saves the cost of a call and leaves the work of the step. Start-up is "
        "measured without TensorFlow: where that is installed, importing distrax imports it too, which takes seconds.",
    ),
    "data": Page(
        "Input",
        "Images from files to the device, in batches of 128, in a new order every epoch, against PyTorch's DataLoader "
        "with two workers and tf.data; both read JPEG files. Then waiting in `fit`, starts, packing, and the memory of "
        "a run on a set larger than that (`benchmarks/speed/data.py`). The time of `fit` spent in the source includes "
        "the copies to the device, which overlap with steps in flight.",
    ),
    "mixture": Page(
        "Mixtures",
        'The same data and parameters, with equal likelihoods first ("quality" is the difference). "Products alone" '
        "are the two matrix products that an iteration of EM cannot do without. All compute in float32 "
        "(`benchmarks/speed/mixture.py`).",
    ),
    "hmm": Page(
        "Hidden Markov models",
        "The same data and parameters, with equal likelihoods first. All compute in float32 except hmmlearn, which has "
        "only float64 and runs the faster of its two recursions (`benchmarks/speed/hmm.py`).",
    ),
    "estimators": Page(
        "Estimators",
        "Calls as scripts make them, checks of the arguments included: single methods from a hundred rows to a "
        "million, sequences of very different lengths, and the first fit of a process after its imports "
        '(`benchmarks/speed/estimators.py`). Both libraries compute in float64 from the same parameters; "quality" is '
        "the largest difference of what they return, relative where it is above 1.",
    ),
    "vae": Page(
        "Variational autoencoders",
        'A time is one training step, and "quality" the loss (nats) of gen_jax and of the other library after 100 '
        "steps. The convolutional network is that of `vae_mnist`, the other that of Flax's VAE example "
        "(`benchmarks/speed/vae.py`).",
    ),
    "flow": Page(
        "Normalizing flows",
        "Four layers with networks of two hidden layers of 64, batch 512. A time is that of one training step, of the "
        'densities of 4,096 points, or of as many samples; "quality" is the loss (nats) after the same number of '
        "steps, or the number of parameters, gen_jax first. gen_jax takes 20 steps in one program, flowjax the "
        "step of its own `fit_to_data`, zuko a plain loop of PyTorch (`benchmarks/speed/flow.py`).",
    ),
    "gan": Page(
        "Adversarial networks",
        "A step is one turn of each player; the first rows are the network of `dcgan_mnist` "
        "(`benchmarks/speed/gan.py`).",
    ),
    "text": Page(
        "Text",
        "Training steps of nanoGPT's recipe for a CPU, and generation after prompts of 64 tokens, random weights of "
        'the same size, in float32, compiled beforehand. PyTorch uses its fused attention and AdamW; "quality" is the '
        "loss (nats) of both after 100 steps, or what gen_jax generates per second (`benchmarks/speed/text.py`).",
    ),
    "texts": Page(
        "Quality of text models",
        "The configs of the family on published data, test split, one seed unless more are named, with the "
        "core-seconds of training and evaluation together (`benchmarks/quality/texts.py`).",
    ),
    "stylegan": Page(
        "StyleGAN2",
        "Training steps of StyleGAN2 with R1 every sixteenth and path lengths every fourth step, over sixteen steps, "
        "against the authors' implementation in PyTorch, which takes its reference operations on a CPU; the same "
        "networks, batch and recipe, without augmentation (`benchmarks/speed/stylegan.py`).",
    ),
    "translation": Page(
        "Image translation",
        "Training steps of both players and the translation of images, with the networks of `pix2pix_facades` and "
        "`cyclegan_twins` in float32, compiled beforehand (`benchmarks/speed/translation.py`).",
    ),
    "translations": Page(
        "Quality of image translation",
        "The configs of the family, test split, one seed unless more are named, with the core-seconds of training and "
        "evaluation together; PSNR is the mean over images, of which those without any error count 99 dB; "
        "names are those of [the family's page](../families/translation.md) (`benchmarks/quality/translations.py`).",
    ),
    "applications": Page(
        "Applications",
        "Random rotation, shift and zoom of images, compiled beforehand, against the loop of Keras' "
        "`ImageDataGenerator` over single images; and imputation of a table, fitting included, against scikit-learn's "
        "`IterativeImputer` (`benchmarks/speed/applications.py`).",
    ),
    "augmentations": Page(
        "Whether augmentation helps",
        "Classifiers of Fashion-MNIST and the embedded digits, with and without random changes (`keras`) and samples "
        "of a conditional VAE that saw 50,000 labeled examples; means over five seeds (`cnn` on Fashion-MNIST: three; "
        "`benchmarks/quality/augmentations.py`).",
    ),
    "anomaly": Page(
        "Anomaly detection",
        "`AnomalyDetector` (a Gaussian mixture, its size by held-out likelihood), a masked autoregressive flow, the "
        "bound of a VAE, ECOD and scikit-learn's methods on 20 tables of ADBench: trained on a shuffled half of the "
        "normal rows, no method sees labels, means over seeds. In "
        "the published protocol (DTE) the halves are in the order of the file, and small sets are filled with copies "
        "before they are divided, so that test rows are among the training rows "
        "(`benchmarks/quality/anomaly.py`).",
    ),
    "anomaly_images": Page(
        "Anomalies among images",
        "Convolutional VAEs of MNIST and of Fashion-MNIST, told apart from the other set, by each score. `size`, the "
        "bits of the PNG file alone, uses no model (`benchmarks/quality/anomaly_images.py`).",
    ),
    "imputation": Page(
        "Imputation",
        "`Imputer` with one Gaussian or a mixture (its size by held-out likelihood), VAEs of the known cells (MIWAE) "
        "and scikit-learn's imputers on standardized tables: RMSE of missing cells, and of 50 draws the CRPS, the "
        "energy score of rows and the coverage of intervals (`benchmarks/quality/imputation.py`). Under MNAR the VAE "
        "with a model of the mask (not-MIWAE) is told that high values are missing; the others know nothing of it, "
        "and their intervals do not cover.",
    ),
    "imputation_kinds": Page(
        "Imputation of categories and counts",
        "Mixtures and VAEs of columns by their kind on tables with categories, a third of whose cells is missing at "
        "random: RMSE of numbers in standard deviations, and of categories the share that is right and the log loss "
        "(`benchmarks/quality/imputation_kinds.py`).",
    ),
    "convolutions": Page(
        "Convolutions",
        "Every convolutional config, forward and backward, each layer by itself at the whole batch, first in one "
        "library, then in the other (`benchmarks/speed/convolutions.py`). Steps that process a batch in parts, which "
        "stay in the caches, can take less than the sum of their layers.",
    ),
    "metrics": Page(
        "Metrics",
        "Metrics of samples against the packages the field uses; the last row is the FID's network with random weights "
        "(`benchmarks/speed/metrics.py`).",
    ),
    "scaling": Page(
        "Many devices",
        "Processes and devices of one machine, and on paper accelerators (`benchmarks/speed/scaling.py`). On paper a "
        "device reaches 40 % of its peak; small steps reach less, compute then dominates and the predicted efficiency "
        'rises. Processes have a core each; "efficiency" is the time of one process over that of two, with half of the '
        "data each (strong scaling, then halved) or as much data each (weak). Devices of a CPU share its cores.",
    ),
    "bench": Page(
        "Training steps",
        "The step that trains each config, by `python -m gen_jax bench`, relative to peaks measured in the same run; "
        "see the [profiling guide](../guides/profiling.md).",
    ),
    "bench_types": Page("Training steps in float32 and bfloat16", "Image models on accelerators."),
    "bench_batches": Page("Training steps by batch size", "Image models on accelerators."),
    "fits": Page(
        "Fits of the estimators",
        "Log-likelihoods (nats, per row for mixtures, of all steps for chains) of fits by both libraries in float64, "
        "first from the same parameters, then the best of ten starts of each (`benchmarks/quality/fits.py`). Where "
        "fits from the same parameters end apart, they took the same way for more than a thousand iterations, to a "
        "saddle point at which rounding decides.",
    ),
    "generators": Page(
        "Generators at equal seconds",
        "Generators of images after equal seconds of training on one core, compilation not counted: StyleGAN2 against "
        "DCGAN and WGAN-GP on 8x8 digits, and growing against networks of full size from the start on 16x16 digits. "
        "Scores of 2,000 samples of the averaged generator (`benchmarks/quality/generators.py`).",
    ),
    "studies": Page(
        "Human studies",
        "Coverage and power of the analysis, a study from runs to report with simulated raters over HTTP, and the "
        "server under load and when it is killed (`benchmarks/quality/studies.py`).",
    ),
    "mode_collapse": Page(
        "Remedies against mode collapse",
        "Each remedy against the plain GAN, ten seeds each as one program (`benchmarks/quality/mode_collapse.py`), by "
        "VEEGAN's protocol: 2,500 samples; high quality is within three standard deviations of a mode; reverse KL in "
        "nats. Mean and standard error over seeds. The weight of R1 and R2 was chosen on four of these seeds of the "
        "grid.",
    ),
    "estimator_bias": Page(
        "Bias of the estimators",
        "Metrics against the truth, with models of known density as data "
        "(`benchmarks/quality/estimator_bias.py`).\n\n![bias of each estimator](../images/oracle.png)",
    ),
}
READING = """All benchmarks run beside their peers, whose versions the extra `bench` pins: `make bench`. Unless noted,
implementations are timed alternately; times are medians, "±" is half of the range. "ratio" is the other library's time
divided by that of gen_jax: above 1 gen_jax is faster. Targets were set before anything was measured; "quality" says how
equal the results are. A row such as "products alone" is a bound, and "serial scan" another method of gen_jax itself.
Machines vary in speed, even from one hour to the next: compare ratios, not times, across tables."""


def records(name: str) -> Iterator[tuple[str, Any]]:
    """(device folder, record) of a benchmark, the CPU first."""
    for path in sorted(RESULTS.glob(f"*/{name}.json"), key=lambda path: (path.parent.name != "cpu", path)):
        yield path.parent.name, read_json(path)


def page(name: str) -> str:
    """docs/benchmarks/NAME.md."""
    parts = [f"# {PAGES[name].title}", PAGES[name].text]
    for device, record in records(name):
        where = record["where"].partition(",")[0]
        parts += [f"## {DEVICES.get(device, where)}", body(name, record)]
    return _file(parts)


def body(name: str, record: Mapping[str, Any]) -> str:
    """The tables of a record."""
    if name in STEPS:
        return report.as_markdown(record)
    if name == "mode_collapse":
        return mode_collapse(record)
    if name == "fits":
        return fits(record)
    if name == "estimator_bias":
        return f"{record['where']}.\n\n{markdown_table(['metric', 'truth', 'estimate', 'error'], record['rows'])}"
    return f"{_origin(record)}\n\n{harness.as_markdown(record)}"


def fits(record: Mapping[str, Any]) -> str:
    header = ["data", "model", "same start: gen_jax", "peer", "difference", "own starts: gen_jax", "peer"]
    digits = lambda value: f"{value:.10g}"
    rows = [
        [data, f"`{model}`", digits(a), digits(b), f"{a - b:+.1e}", digits(c), digits(d)]
        for data, model, a, b, c, d in record["rows"]
    ]
    parts = [_origin(record), markdown_table(header, rows), "## Arguments"]
    parts.append("Every argument of both, with its default; those that only one has are not there in the other.")
    for name in dict.fromkeys(row[0] for row in record["arguments"]):
        which = [[f"`{cell}`" for cell in row[1:]] for row in record["arguments"] if row[0] == name]
        parts += [f"### {name}", markdown_table(["argument", "default here", "default of the peer"], which)]
    return "\n\n".join(parts)


def mode_collapse(record: Mapping[str, Any]) -> str:
    from benchmarks.quality.mode_collapse import table

    parts = [f"{record['where']}."]
    for name, one in record["sets"].items():
        dates = sorted({recipe["date"] for recipe in one["recipes"].values()})
        when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
        head = f"`{name}`, {one['steps']:,} steps, {one['seeds']} seeds, {when}:"
        parts += [head, markdown_table(*table(one["recipes"]))]
    return "\n\n".join(parts)


def ratios(device: str) -> list[list[str]]:
    """Per peer: rows, and how many times as fast gen_jax is: least, median, most, and rows in which it is slower."""
    found: dict[str, list[float]] = {}
    for name in SPEED:
        for row in (read_json(RESULTS / device / f"{name}.json") or {"rows": []})["rows"]:
            if row["rival"] not in OURS:
                found.setdefault(row["rival"], []).append(row["ratio"])
    times = lambda ratio: f"{ratio:.2f}x" if ratio < 10 else f"{ratio:,.0f}x"
    return [
        [rival, f"{len(r)}", *(times(f(r)) for f in (min, median, max)), f"{sum(one < 1 for one in r)}"]
        for rival, r in sorted(found.items())
    ]


RATIOS = ["peer", "rows", "least", "median", "most", "rows in which it is faster"]


def summary(device: str) -> str:
    """Ratios, targets, misses with their reasons, and the last whole run of a device."""
    rows, missed = [], []
    for name in SPEED:
        record = read_json(RESULTS / device / f"{name}.json")
        if record is None:
            continue
        targets = [entry["met"] for entry in (*record["rows"], *record["facts"]) if entry["met"] is not None]
        reached = f"{sum(targets)} of {len(targets)}" if targets else "none set"
        rows.append([f"[{name}]({name}.md)", reached, f"{record['seconds'] / 60:.1f}", _origin(record)])
        missed += [[name, one, why] for why, which in harness.misses(record).items() for one in which]
    tables = [
        (RATIOS, ratios(device)),
        (["benchmark", "targets met", "minutes", "measured on"], rows),
        (["benchmark", "missed", "because"], missed),
    ]
    texts = [markdown_table(*table) for table in tables if table[1]]
    if whole := read_json(RESULTS / device / "whole.json"):
        parts = ", ".join(f"{name} {minutes:.1f}" for name, minutes in whole["minutes"].items())
        total = sum(whole["minutes"].values())
        texts.append(f"The last run of all of them took {total:.0f} minutes ({parts}): {_origin(whole)}.")
    return "\n\n".join(texts)


def index() -> str:
    """docs/benchmarks/index.md."""
    parts = ["# Benchmarks", READING]
    for folder in sorted((f for f in RESULTS.iterdir() if f.is_dir()), key=lambda f: f.name != "cpu"):
        first = next(path for path in sorted(folder.glob("*.json")) if "where" in read_json(path))
        name = DEVICES.get(folder.name, read_json(first)["where"].partition(",")[0])
        parts += [f"## {name}", summary(folder.name)]
    links = [f"- [{one.title}]({name}.md)" for name, one in PAGES.items() if list(records(name))]
    return _file([*parts, "## All tables", "\n".join(links)])


def configs() -> str:
    """docs/configs.md: every config, and the results of its default run."""
    reached = read_json(RESULTS / "cpu" / "configs.json")
    parts = [
        "# Configs",
        "Results are those of runs with the default knobs on the test split; `python -m gen_jax configs --out FILE` "
        "collects them from `runs/`. `python train.py NAME --help` lists the knobs of a config.",
    ]
    for family in sorted({path.parent.name for path in ROOT.glob("configs/*/*.py")}):
        rows = []
        for path in sorted(ROOT.glob(f"configs/{family}/*.py")):
            said = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            one = reached.get(path.stem, {"reached": "", "time": "", "where": ""})
            rows.append([f"`{path.stem}`", said, one["reached"], one["time"], one["where"]])
        header = ["config", "description", "test split", "run time", "device, date"]
        parts += [f"## {family}", markdown_table(header, rows)]
    return _file(parts)


def docstring(path: Path) -> str:
    """The text of a config file with its results as the last line of its docstring."""
    one = read_json(RESULTS / "cpu" / "configs.json").get(path.stem)
    text = path.read_text()
    end = text.index('"""', 3)
    said = re.sub(r"\n+Results \(.*\Z", "\n", text[3:end], flags=re.DOTALL).rstrip()
    if one and one["reached"]:
        import textwrap

        head = f"Results ({', '.join(filter(None, [one['time'], one['where']]))}): {one['reached']}."
        said += "\n\n" + "\n".join(textwrap.wrap(head, 110, break_long_words=False, break_on_hyphens=False))
    return f'"""{said}\n"""{text[end + 3 :]}'


def comparison() -> Comparison | None:
    """The recorded comparison of four families on the digits."""
    record = read_json(RESULTS / "cpu" / "compare.json")
    return None if record is None else Comparison.of(record)


def comparison_page() -> str:
    """docs/comparison.md."""
    found = comparison()
    text = "Four families on the same data, trained and measured by `make compare`."
    return _file(["# Comparison", text, found.markdown(level=2).strip()] if found else ["# Comparison", text])


def readme() -> str:
    """The README with its two short tables."""
    text = (ROOT / "README.md").read_text()
    fast = markdown_table(RATIOS, [row for row in ratios("cpu") if int(row[1]) > 1])
    text = _section(text, "benchmarks", f"{fast}\n\n{_origin(read_json(RESULTS / 'cpu' / 'mixture.json'))}")
    found = comparison()
    return _section(text, "compare", found.short() if found else "")


def _section(text: str, name: str, inner: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text:
        return text
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{inner.strip()}\n{end}{rest.partition(end)[2]}"


def _origin(record: Mapping[str, Any]) -> str:
    environment = record["environment"]
    changed = " and changes" if environment["uncommitted_changes"] else ""
    return f"{record['where']}, commit {(environment['commit'] or 'unknown')[:9]}{changed}"


def _file(parts: list[str]) -> str:
    note = "<!-- Written by `python -m benchmarks.tables`: do not edit. -->"
    return "\n\n".join([note, *parts]) + "\n"


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    pages = {DOCS / "benchmarks" / f"{name}.md": page(name) for name in PAGES if list(records(name))}
    texts = {**pages, DOCS / "benchmarks" / "index.md": index(), DOCS / "configs.md": configs()}
    texts |= {path: docstring(path) for path in ROOT.glob("configs/*/*.py")}
    return {**texts, DOCS / "comparison.md": comparison_page(), ROOT / "README.md": readme()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    parser.add_argument("--keep", type=Path, nargs="*", default=[], help="records to take over into results/<device>")
    chosen = parser.parse_args()
    for path in chosen.keep:
        json.loads(path.read_text())
        harness.results().mkdir(parents=True, exist_ok=True)
        shutil.copy(path, harness.results() / path.name)
    texts = files()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if chosen.check:
        sys.exit(f"out of date, run `python -m benchmarks.tables`: {', '.join(map(str, stale))}" if stale else 0)
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
    print(f"{len(texts)} files, {len(stale)} written")


if __name__ == "__main__":
    main()
