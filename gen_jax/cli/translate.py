"""The command `translate`."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from tyro.conf import Positional, arg

from gen_jax.cli.options import (
    PICTURES,
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_ending,
    check_folder,
    interruptible,
    json_line,
    open_workdir,
    parse_step,
    read_input,
)
from gen_jax.cli.translate_images import translate_images
from gen_jax.errors import UserError

if TYPE_CHECKING:
    from gen_jax.applications.translation import FileTranslator
    from gen_jax.core import State
    from gen_jax.models.text.translation import Translation, Translator
    from gen_jax.run import Run

__all__ = ["translate"]


def translate(
    workdir: Workdir,
    images: Positional[Annotated[Path | None, arg(metavar="[IMAGES]")]] = None,
    source: Annotated[str, arg(name="in")] = "-",
    out: Path | None = None,
    direction: str = "a2b",
    draws: int = 1,
    own: bool = False,
    sheet: Path | None = None,
    beams: int = 5,
    penalty: str = "mean",
    alpha: float = 1.0,
    best: int = 1,
    groups: int = 1,
    diversity: float = 0.5,
    length: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch: int = 16,
    json: bool = False,
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Translates images or texts by a trained model: an image, a folder or an .npz file; or a text line by line.

    A text that is there already is continued after its last line; images that are there already are left out.

    Args:
        images: of a model of images: a file, a folder, or an .npz file with the entry x
        source: of a text-to-text model: a file with one text per line, or - for standard input
        out: the folder for images; of texts a file, by default standard output, written line by line
        direction: of images: a2b, or b2a where a model translates both ways
        draws: of images: how many translations of each; of more than one each has its own noise and dropout
        own: of images: batch normalization by the statistics of each image instead of those of training
        sheet: of images: also draw sources and translations in this file
        beams: width of the beam search; 1 is greedy; 0 draws a target at random
        penalty: what log-probabilities are divided by: mean (length^alpha), wu (((5 + length) / 6)^alpha), or none
        alpha: exponent of the length penalty
        best: how many targets of each line, best first, on lines of their own
        groups: divides the beams into groups that avoid each other's tokens, for --best targets that differ more; the
            best of each group come first
        diversity: how much less probable a token gets when an earlier group has just chosen it, in nats
        length: tokens of a target at most; by default 1.5 times those of its source and 20 more, rounded up
        temperature: of random targets
        top_k: of random targets
        top_p: of random targets
        batch: lines, or images of one size, that are processed together
        json: lines of JSON, with log-probabilities in nats
        seed: random seed
    """
    from gen_jax.core import ImageTranslator, Seq2Seq, averaged
    from gen_jax.data.text import lines_of
    from gen_jax.models.common.autoregressive import Sampling
    from gen_jax.models.text.translation import Translator

    for name, number, least in (("batch", batch, 1), ("best", best, 1), ("length", length, 0)):
        if number < least:
            raise UserError(f"--{name} must be at least {least}, got {number}")
    run = open_workdir(workdir, config, data_dir, member)
    model = run.experiment.model
    if isinstance(model, ImageTranslator):
        of_images = _file_translator(run, images, direction, draws, own, batch, seed, sheet)
        translate_images(of_images, averaged(run.state(parse_step(step))), images, out, sheet)
        return
    if images is not None:
        raise UserError(f"{workdir} holds no model of images: give texts as --in")
    if not isinstance(model, Seq2Seq):
        raise UserError(f"{workdir} holds no text-to-text model: use `gen_jax generate` or `sample`")
    lines = lines_of(read_input("--in", source))
    done = _done(out, best, len(lines))
    try:
        sampling = Sampling(temperature, top_k, top_p)
        made = Translator(
            model,
            run.data.tokens(pairs=True),
            beams,
            penalty,
            alpha,
            sampling,
            length,
            best,
            batch,
            seed,
            groups,
            diversity,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    todo = lines[done:]
    _check_lines(made.tokenizer, todo, done, run.data["train"]["x"].shape[1])
    state = averaged(run.state(parse_step(step)))
    if done:
        _check_same(made, state, lines, best, out, json)
        _cut(out, done * best)
        print(f"note: {out} already has the first {done:,} of {len(lines):,} lines", file=sys.stderr)
    found = made(state, todo, done)
    _write(zip(todo, _with_bar(found, len(todo), out is not None)), out, json)
    if out:
        print(f"{len(lines):,} lines in {out}")


def _file_translator(
    run: Run, images: Path | None, direction: str, draws: int, own: bool, batch: int, seed: int, sheet: Path | None
) -> FileTranslator:
    """Translates images by the model of a run."""
    from gen_jax.applications.translation import FileTranslator

    if images is None:
        raise UserError(f"{run.workdir} translates images: give a file or a folder of them, and --out FOLDER")
    if sheet:
        check_ending(sheet, PICTURES, "--sheet")
        check_folder(sheet, "--sheet")
    split = run.experiment.split(run.data, "test")
    source = split.partner if direction == "b2a" and split.partner else split
    channels = source.head(1)["x"].shape[-1]
    return FileTranslator(run.experiment.model, channels, direction, draws, own, batch, seed)


def _done(out: Path | None, best: int, lines: int) -> int:
    """How many sources already have all their targets in a file."""
    if out is None:
        return 0
    check_folder(out)
    if not out.is_file():
        return 0
    written = out.read_bytes().split(b"\n")
    done = (len(written) - 1) // best
    if done > lines:
        raise UserError(f"--out {out} has {len(written) - 1:,} lines, more than these sources: choose another file")
    if not done and written != [b""]:
        raise UserError(f"--out {out} has no whole line of these sources: remove it, or choose another file")
    return done


def _cut(out: Path, lines: int) -> None:
    """Cuts off all that stands behind the first lines of a file, where a command was stopped while it wrote."""
    written = out.read_bytes().split(b"\n")
    os.truncate(out, sum(len(line) + 1 for line in written[:lines]))


def _check_same(made: Translator, state: State, lines: list[str], best: int, out: Path, as_json: bool) -> None:
    """Raises UserError unless the targets of the first source in a file are those that would be written now."""
    number = next((i for i, line in enumerate(lines) if line.strip()), 0)
    with open(out, encoding="utf-8") as file:
        there = file.read().split("\n")[number * best : (number + 1) * best]
    [targets] = made(state, lines[number : number + 1], number)
    if len(there) == best and [_text(line, as_json) for line in there] != [_plain(one.text) for one in targets]:
        raise UserError(f"--out {out} holds targets of another model, text or options: choose another file")


def _text(line: str, as_json: bool) -> str | None:
    """The target in a line of the output; None if there is none."""
    if not as_json:
        return line
    try:
        return _plain(json_module.loads(line)["text"])
    except (ValueError, KeyError, TypeError):
        return None


def _plain(text: str) -> str:
    return text.replace("\n", " ")


def _write(found: Iterable[tuple[str, Sequence[Translation]]], out: Path | None, as_json: bool) -> None:
    """Writes the targets of each source as they come."""
    with interruptible(f"; run it again to go on with {out}" if out else ""):
        with open(out, "a", encoding="utf-8") if out else os.fdopen(os.dup(1), "w") as file:
            for source, targets in found:
                for one in targets:
                    said = {"source": source, **one._asdict()}
                    file.write((json_line(said) if as_json else _plain(one.text)) + "\n")
                file.flush()


def _check_lines(tokenizer, lines: list[str], start: int, longest: int) -> None:
    """Raises UserError for a line with characters that the tokenizer does not know, before any work starts.

    Notes which line is longer than any of the data set, of `longest` tokens with the end.
    """
    lengths = []
    for number, line in enumerate(lines, start + 1):
        try:
            lengths.append(len(tokenizer.encode(line)) + 1)
        except UserError as error:
            raise UserError(f"--in, line {number:,}: {error}") from None
    if max(lengths, default=0) > longest:
        number, size = start + 1 + int(np.argmax(lengths)), max(lengths)
        print(
            f"note: line {number:,} has {size:,} tokens, the longest source of the data set {longest:,}: what is "
            "longer than the model has seen is translated poorly, and slowly; --length limits the target",
            file=sys.stderr,
        )


def _with_bar(found, total: int, shown: bool):
    from tqdm import tqdm

    return tqdm(found, "translating", total, leave=False, delay=2, disable=not shown, unit=" lines", dynamic_ncols=True)
