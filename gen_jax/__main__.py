"""What is done with runs, data and configs:  python -m gen_jax {sample,evaluate,compare,bench,plot,data,configs,...}"""

from __future__ import annotations

import ast
import functools
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from gen_jax.errors import UserError, exits, one_line_usage_errors

PICTURES = (".png", ".pdf", ".svg")
Workdir = Positional[Annotated[Path, arg(metavar="WORKDIR", help="the working directory of a run")]]
Step = Annotated[str | None, arg(help='a checkpoint\'s step, or "best"; by default the newest')]
ConfigPath = Annotated[Path | None, arg(help="the config file, if the one recorded is gone")]
EncoderName = Annotated[str, arg(help="of sample metrics: small, raw, or a file; by default what fits the data")]
Samples = Annotated[int, arg(help="how many samples are judged")]
DataDir = Annotated[Path | None, arg(help="where data sets lie; by default TFDS_DATA_DIR")]


def sample(
    workdir: Workdir,
    n: int = 64,
    out: Path | None = None,
    seed: int = 0,
    label: int | None = None,
    step: Step = None,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Draws new examples from a trained model.

    Args:
        n: how many
        out: a picture (.png, .pdf, .svg) or the arrays (.npz); by default WORKDIR/samples.png
        seed: another seed, other examples
        label: their class, for a model conditioned on labels; by default every class in turn
    """
    out = out or workdir / "samples.png"
    _check_ending(out, (*PICTURES, ".npz"))
    if not 1 <= n <= 1_000_000:
        raise UserError(f"--n must be between 1 and 1,000,000, got {n}")
    import jax
    import numpy as np

    from gen_jax import plots

    run = _open(workdir, config, data_dir)
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    given = [] if label is None else [_of_class(run.experiment.model, label, n)]
    draw = jax.jit(run.experiment.model.sample, static_argnums=2)
    batch = {name: np.asarray(a) for name, a in draw(run.state(_step(step)), jax.random.key(seed), n, *given).items()}
    if out.suffix == ".npz":
        np.savez(out, **batch)
    else:
        plots.show({f"{n} samples": batch["x"]}).savefig(out)
    print(f"{n} samples of shape {batch['x'].shape[1:]} in {out}")


def _of_class(model, label: int, n: int) -> dict[str, Any]:
    """What a model conditioned on labels is given to draw n examples of one class."""
    import numpy as np

    from gen_jax.models.contexts import Labels

    context = getattr(model, "context", None)
    if not isinstance(context, Labels):
        raise UserError("--label is for models conditioned on labels, which this one is not")
    if not 0 <= label < context.classes:
        raise UserError(f"--label must be between 0 and {context.classes - 1}, got {label}")
    return {context.entry: np.full(n, label)}


def evaluate(
    workdir: Workdir,
    metrics: list[str] | None = None,
    split: str = "test",
    encoder: EncoderName = "",
    samples: Samples = 10_000,
    seed: int = 0,
    step: Step = None,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Measures a trained model by all that applies to it, prints a table and writes WORKDIR/evaluation.json.

    Args:
        metrics: names of metrics, instead of all that apply and those of the config
        split: train, validation, test, or a part such as test[:100]
        seed: of the samples and of everything else that is drawn
    """
    from gen_jax.evaluation.report import chosen, console, evaluator, table
    from gen_jax.evaluation.suite import suite

    if metrics == []:
        raise UserError("--metrics takes one or more names; leave it out for all that apply")
    see = _encoder(encoder, samples)
    run = _open(workdir, config, data_dir)
    part = run.experiment.split(run.data, split)
    wanted = suite(run.experiment.model, part, run.experiment.metrics, see, samples)
    wanted = wanted if metrics is None else chosen(wanted, metrics)
    try:
        measure = evaluator(run.experiment.model, wanted, seed)
    except AttributeError as error:  # a metric asks the model for something it does not have
        raise UserError(f"this model cannot be measured so: {error}") from None
    state = run.state(_step(step))
    found = measure(state, part)
    run.keep_evaluation(part.name, int(state.step), found, seed)
    console().print(table(f"{workdir}, step {int(state.step)}, {part.name} split", found))


def compare(
    workdirs: Positional[tuple[Path, ...]] = (),
    configs: tuple[Path, ...] = (),
    data: str = "",
    split: str = "test",
    out: Path = Path("runs/compare"),
    encoder: EncoderName = "",
    samples: Samples = 10_000,
    seed: int = 0,
    write: Path | None = None,
    data_dir: DataDir = None,
) -> None:
    """Measures runs of any family on the same data, and writes one table: .html with pictures, .md, .csv and .json.

    Args:
        workdirs: the working directories of runs
        configs: config files, trained first where runs/NAME has not finished
        data: a data set: given to configs that have a knob for it, demanded of all others
        split: train, validation, test, or a part such as test[:100]
        seed: of the samples and of everything else that is drawn
        out: the folder for the reports
        write: also write the tables into this Markdown file, between its compare markers
    """
    from gen_jax.compare import compared, ready
    from gen_jax.readme import check_section, write_section

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if write:
        check_section(write, "compare")
    see = _encoder(encoder, samples)
    folders = [*workdirs, *ready(configs, data, data_dir)]
    if not folders:
        raise UserError("which runs? Name their working directories, or config files after --configs")
    comparison = compared(folders, data, split, see, samples, seed, data_dir)
    terminal = Console(width=None if sys.stdout.isatty() else 160)
    for table in comparison.tables():
        terminal.print(table)
    print(*comparison.notes(), sep="\n")
    print("written:", *comparison.write(out))
    if write:
        write_section(write, "compare", comparison.markdown(level=4))


def encoder(
    action: Positional[Literal["train", "convert"]],
    source: Positional[str],
    out: Positional[Path],
    preprocessing: Literal["tensorflow", "pytorch_fid"] = "tensorflow",
    data_dir: DataDir = None,
) -> None:
    """Makes an encoder for the features of images, in a file for --encoder.

    Args:
        action: train a small classifier, or convert the weights of the FID's Inception
        source: the data set to train on, or the PyTorch file (pt_inception-2015-12-05-6726825d.pth)
        out: the file to write (.safetensors)
        preprocessing: of converted weights: how images are resized, as in the original or as in pytorch-fid
    """
    _check_ending(out, (".safetensors",))
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    if action == "convert":
        from gen_jax.evaluation.inception import convert

        convert(Path(source), out, preprocessing)
        print(f"the FID's Inception, resized as by {preprocessing}, in {out}")
        return
    from gen_jax.data.catalogue import load
    from gen_jax.evaluation.features import save_small, small_of
    from gen_jax.evaluation.likelihood import Split

    splits = load(source, data_dir)
    made = small_of(Split("test", splits["test"], training=splits["train"], data=source))
    save_small(made, out)
    print(f"a classifier of {source} with test accuracy {made.accuracy:.4f} in {out}")


def bench(
    configs: Positional[tuple[Path, ...]] = (),
    batch: tuple[int, ...] = (),
    dtype: tuple[Literal["float32", "bfloat16"], ...] = (),
    devices: tuple[int, ...] = (),
    chunk: tuple[int, ...] = (),
    scale: tuple[str, ...] = (),
    seconds: float = 3.0,
    profile: bool = False,
    compare: Path | None = None,
    out: Path = Path("runs/bench"),
    write: Path | None = None,
    data_dir: DataDir = None,
) -> None:
    """Times the step that trains a config, and holds it against what the device can do.

    Args:
        configs: config files, with their default knobs
        batch: examples per step; of several numbers all are measured
        dtype: what networks compute in (configs with a knob precision), or products on accelerators
        devices: over how many devices a batch is divided
        chunk: steps per call of the compiled program
        scale: "batch LOW:HIGH" (doubling), "devices" (1, 2, 4, ...), or "accelerators" (on paper: 8 to 1,024)
        seconds: for how long each case is timed
        profile: also trace a few steps of training, and list the ten costliest operations
        compare: the bench.json of an earlier run; slower is what takes a tenth more, and longer than its p95 was
        out: the folder for bench.json, bench.md, pictures and traces
        write: also write the tables into this Markdown file, between its bench markers (on accelerators NAME/bench)
    """
    from gen_jax.benchmark import run
    from gen_jax.benchmark.device import place
    from gen_jax.readme import check_section
    from gen_jax.sharding import several_cpu_devices

    run.check(seconds, out, compare)
    if devices or scale == ("devices",):
        several_cpu_devices(*(devices or [4]))
    section = str(Path(place()) / "bench")
    if write:
        check_section(write, section)
    found = run.cases(configs, scale, data_dir, batch=batch, dtype=dtype, devices=devices, chunk=chunk)
    run.bench(found, scale, seconds, out, compare, profile, (write, section) if write else None, data_dir)


def plot(workdir: Workdir, out: Path | None = None) -> None:
    """Draws the learning curves of a run.

    Args:
        out: the picture; by default WORKDIR/curves.png
    """
    from gen_jax import plots
    from gen_jax.logs import read_metrics

    rows = read_metrics(workdir / "metrics.jsonl")
    if not rows:
        raise UserError(f"{workdir} has no metrics yet (metrics.jsonl)")
    out = out or workdir / "curves.png"
    _check_ending(out, PICTURES)
    plots.learning_curves(rows, str(workdir)).savefig(out)
    print(f"learning curves in {out}")


def animate(workdir: Workdir, name: str = "samples", out: Path | None = None, seconds: float = 6.0) -> None:
    """Joins the pictures that a run has drawn while it trained, from the same noise each time, into an animation.

    Args:
        name: which picture, e.g. samples or generator_density
        out: the animation (.gif); by default WORKDIR/NAME.gif
        seconds: how long it takes
    """
    out = out or workdir / f"{name}.gif"
    _check_ending(out, (".gif",))
    if seconds <= 0:
        raise UserError(f"--seconds must be positive, got {seconds}")
    frames = sorted((workdir / "plots").glob(f"{name}_*[0-9].png"))
    if len(frames) < 2:
        there = sorted({path.stem.rpartition("_")[0] for path in (workdir / "plots").glob("*_*[0-9].png")})
        raise UserError(f"{workdir}/plots has fewer than two pictures {name}_STEP.png; there are {', '.join(there)}")
    from PIL import Image

    first, *rest = (Image.open(path).convert("RGB") for path in frames)
    first.save(out, save_all=True, append_images=rest, duration=1000 * seconds / len(frames), loop=0)
    print(f"{len(frames)} pictures in {out}")


def data(
    action: Positional[Literal["list", "prepare"]],
    name: Positional[str | None] = None,
    manual_dir: Path | None = None,
    data_dir: DataDir = None,
) -> None:
    """Lists the data sets, or prepares one.

    Args:
        action: list, or prepare
        name: the data set to prepare
        manual_dir: a folder that holds its original files, which are then not downloaded
    """
    from gen_jax.data import catalogue

    if action == "list":
        table = Table()
        for column in ("data set", "what it is", "state"):
            table.add_column(column)
        for key, row in catalogue.CATALOGUE.items():
            ready = (
                "prepared" if catalogue.is_prepared(key, data_dir) else "on first use" if row.embedded else "to prepare"
            )
            table.add_row(key, row.summary, ready)
        Console().print(table)
        print("Any other name of the tensorflow-datasets catalogue works too, prepared with the `tfds` extra.")
    elif name is None:
        raise UserError("which data set? `python -m gen_jax data list` lists them")
    else:
        print(f"{name} is prepared in {catalogue.prepare(name, data_dir, manual_dir)}")


def configs(folder: Positional[Path] = Path("configs"), runs: Path = Path("runs"), write: Path | None = None) -> None:
    """Lists the configs with the first line of what they say of themselves, and what they reached.

    Args:
        folder: where they lie
        runs: where their runs lie; a run with the default knobs shows its time and test metrics
        write: write the table into this Markdown file, between its configs markers
    """
    from gen_jax.readme import markdown_table, write_section

    files = sorted(folder.glob("*.py"))
    if not files:
        raise UserError(f"there are no configs in {folder}")
    header = ["config", "what it is", "test split", "whole run", "device, date"]
    rows = []
    for path in files:
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        rows.append([str(path), said, *_reached(runs / path.stem)])
    if write:
        write_section(write, "configs", markdown_table(header, [[f"`{row[0]}`", *row[1:]] for row in rows]))
    table = Table()
    table.add_column(header[0], no_wrap=True)
    table.add_column("what it is; test split")
    for name, said, reached, *_ in rows:
        table.add_row(name, f"{said}\n{reached}".strip())
    Console().print(table)


HEADLINES = (
    "frechet_distance classes class_kl confidence modes high_quality reverse_kl accuracy train_on_synthetic "
    "latent_accuracy active_units reconstruction_rmse log_integral"
).split()


def _reached(workdir: Path) -> list[str]:
    """The main test metrics, time, device and date of a finished run; blanks if there is none."""
    from gen_jax.evaluation.comparison import sign, tightest
    from gen_jax.evaluation.likelihood import Estimate
    from gen_jax.evaluation.report import from_json
    from gen_jax.logs import read_json, read_record

    record = read_record(workdir) or {}
    if "summary" not in record:
        return ["", "", ""]
    summary = record["summary"]
    measured = (read_json(workdir / "evaluation.json") or {}).get("test", {})
    found = from_json(measured if measured.get("step") == summary["step"] else summary["evaluation"])

    def said(label: str, e: Estimate, unit: str) -> str:
        error = "" if math.isnan(e.error) else f" ± {e.error:.1g}"
        return f"{label}{e.value:.4g}{error} {unit}".strip()

    texts = [said(f"likelihood {sign(e)}", e, name[12:-1]) for name, e in tightest(found).items()]
    texts += [said(f"{name} ", e, e.unit) for name, e in found.items() if name.partition("@")[0] in HEADLINES]
    time = f"{summary['seconds']:.0f} s" if not summary["resumed_at"] else "resumed"
    devices = record["environment"]["devices"]
    where = f"{len(devices)} x {devices[0]}, {record['environment']['cores']} cores, {summary['finished'].split()[0]}"
    return ["; ".join(texts), time, where]


def _check_ending(out: Path, endings: tuple[str, ...]) -> None:
    if out.suffix not in endings:
        *others, last = endings
        raise UserError(f"--out {out}: the ending must be {', '.join(others) + ' or ' if others else ''}{last}")


def _open(workdir: Path, config: Path | None, data_dir: Path | None):
    from gen_jax.run import open_run, use_compilation_cache

    use_compilation_cache()
    run, warning = open_run(workdir, config, data_dir=data_dir)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return run


def _encoder(name: str, samples: int):
    from gen_jax.evaluation.suite import opened

    if not 2 <= samples <= 1_000_000:
        raise UserError(f"--samples must be between 2 and 1,000,000, got {samples}")
    return opened(name)


def _step(step: str | None) -> int | str | None:
    if step is None or step == "best":
        return step
    if not step.isdigit():
        raise UserError(f'--step takes a number or "best", got {step!r}')
    return int(step)


def main() -> None:
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    with one_line_usage_errors():
        chosen, options = tyro.extras.subcommand_cli_from_dict(
            {
                command.__name__: _later(command)
                for command in (sample, evaluate, compare, bench, encoder, plot, animate, data, configs)
            },
            prog="python -m gen_jax",
            description=__doc__.partition(":")[0],
        )
    chosen(**options)


def _later(command):
    """A function with the same arguments that returns them with the command instead of running it."""

    @functools.wraps(command)
    def parsed(**options):
        return command, options

    return parsed


if __name__ == "__main__":
    exits(main)
