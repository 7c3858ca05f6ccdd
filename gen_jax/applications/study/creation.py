"""Stimuli of a study: real examples and samples of models, written alike so that no file tells where it is from."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import jax
import numpy as np

from gen_jax.applications.study.protocol import SPARE, Protocol, Source, Stimulus, digest, write_study
from gen_jax.applications.translation import encoded
from gen_jax.core import Conditional, ImageTranslator, State
from gen_jax.data.dataset import value_range
from gen_jax.data.records import take
from gen_jax.data.tokenizers import read_tokenizer
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.labeled import of_label, of_rows
from gen_jax.evaluation.suite import is_text
from gen_jax.evaluation.text.generated import counted_tokens
from gen_jax.evaluation.translation.images import transformed, translator_of
from gen_jax.files import write_bytes
from gen_jax.models.common.autoregressive import Sampling
from gen_jax.models.text.generation import Generator, Row

__all__ = ["Drawn", "Generating", "draw", "draw_real", "medium_of", "padded", "scrambled", "write_stimuli"]


@dataclass(frozen=True)
class Generating:
    """A model whose samples are judged."""

    source: Source
    model: Any
    state: State
    sampling: Sampling = Sampling()
    mean: bool = False  # of models with latent vectors, the means of p(x | z)


@dataclass(frozen=True)
class Drawn:
    """Contents of one source, images (N, H, W, C) of integers 0 .. 255 or texts, with what they should show."""

    contents: Sequence[Any]
    indices: Sequence[int]
    given: Sequence[str] = ()
    pictures: Sequence[Any] = field(default=())  # that are given


def medium_of(split: Split, model: Any, name: str) -> str:
    """ "image" or "text". Raises UserError if samples of the model are neither."""
    if is_text(split):
        return "text"
    target, entry = _target(split, model)
    x = target.arrays[entry]
    if len(x.shape) == 4 and x.shape[-1] in (1, 3, 4):
        return "image"
    raise UserError(f"{name}: a study shows images and texts, and its data is of shape {tuple(x.shape[1:])}")


def _target(split: Split, model: Any) -> tuple[Split, str]:
    """The split and the entry that hold the real examples which samples of a model resemble."""
    if not isinstance(model, ImageTranslator):
        return split, "x"
    return (split, "y") if split.partner is None else (split.partner, "x")


def draw_real(split: Split, model: Any, n: int, seed: int, labeled: bool, length: int) -> Drawn:
    """n real stimuli of a split, at random without repetition.

    labeled: give the names of their labels. length: tokens of texts, after as many that are given.
    """
    rng = np.random.default_rng([seed, 1])
    if is_text(split):
        return _real_texts(split, n, rng, length)
    target, entry = _target(split, model)
    size = min(split.size, target.size)
    if size < n:
        raise UserError(f"--n is too large: {n} examples are needed, practice included, and {split.name} has {size}")
    rows = rng.permutation(size)[:n]
    images = _intensities(target, entry, take(target.arrays, rows)[entry])
    if isinstance(model, ImageTranslator):
        given = _intensities(split, "x", take(split.arrays, rows)["x"])
        return Drawn(images, rows.tolist(), pictures=given)
    names = _label_names(split, rows) if labeled else ()
    return Drawn(images, rows.tolist(), names)


def _label_names(split: Split, rows: np.ndarray) -> list[str]:
    if "label" not in split.arrays:
        raise UserError("stimuli of a study of this kind need labels, prompts or input images, and there are none")
    return [_label_name(split, label) for label in np.asarray(take(split.arrays, rows)["label"])]


def _label_name(split: Split, label: int) -> str:
    names = split.info.class_names if split.info is not None else ()
    return names[int(label)] if names else str(int(label))


def _real_texts(split: Split, n: int, rng: np.random.Generator, length: int) -> Drawn:
    """Texts of a split after prompts from it; both of `length` tokens, disjoint and at random places."""
    tokens, tokenizer = counted_tokens(split), read_tokenizer(split.info.tokenizer)
    places = len(tokens) // (2 * length)
    if places < n:
        raise UserError(
            f"--n is too large: {n} texts of {2 * length} tokens are needed, practice included, and {split.name} has "
            f"{places}; take fewer, or a smaller --length"
        )
    starts = rng.permutation(places)[:n] * 2 * length
    decode = lambda run: tokenizer.decode(run).decode("utf-8", "replace")
    given = [decode(tokens[start : start + length]) for start in starts]
    return Drawn([decode(tokens[start + length : start + 2 * length]) for start in starts], starts.tolist(), given)


def draw(one: Generating, split: Split, real: Drawn, seed: int, labeled: bool, length: int) -> Drawn:
    """As many samples of a model as there are real stimuli, with the same labels, prompts or input images."""
    n, model, state = len(real.contents), one.model, one.state
    if is_text(split):
        return _generated_texts(one, split, real, seed, length)
    if isinstance(model, ImageTranslator):
        rows = np.asarray(real.indices)
        inputs = split._replace(arrays=take(split.arrays, rows))
        made = translator_of(model)(state, transformed(inputs), key=jax.random.key(seed))
        target, entry = _target(split, model)
        return Drawn(
            _intensities(target, entry, target.untransformed(made, entry)), real.indices, pictures=real.pictures
        )
    conditional = isinstance(model, Conditional) and model.conditioning is not None
    if labeled and not conditional:
        raise UserError(f"{one.source.run}: its samples have no labels: a study of this kind needs conditional models")
    if conditional:
        labels = np.asarray(take(split.arrays, np.asarray(real.indices))["label"])
        images = of_label(model, state, split, one.mean)(labels, jax.random.key(seed))
    else:
        labels, images = (), of_rows(model, state, split, one.mean)(np.zeros(n, np.int32), jax.random.key(seed))
    given = [_label_name(split, label) for label in labels] if labeled else ()
    return Drawn(_intensities(split, "x", images), range(n), given)


def _generated_texts(one: Generating, split: Split, real: Drawn, seed: int, length: int) -> Drawn:
    tokenizer = read_tokenizer(split.info.tokenizer)
    generate = Generator(one.model, tokenizer, one.sampling, length, length, ends=False, seed=seed)
    rows = [Row(i, tokenizer.encode(prompt).tolist()) for i, prompt in enumerate(real.given)]
    made = [text for i in range(0, len(rows), 32) for text in generate(one.state, rows[i : i + 32])]
    return Drawn([text.text for text in made], range(len(made)), real.given)


def _intensities(split: Split, entry: str, x: Any) -> np.ndarray:
    """Values in the units of the data as integers 0 .. 255, real and generated ones by the same rounding."""
    stored = (split.training or split.arrays).get(entry, split.arrays[entry])
    low, high = value_range(stored, split.levels)
    low = 0.0 if stored.dtype.kind in "iu" else low
    scaled = (np.asarray(x, np.float32) - low) / max(high - low, 1e-12)
    return np.floor(np.clip(scaled, 0, 1) * 255 + 0.5).astype(np.uint8)


def scrambled(content: Any, rng: np.random.Generator) -> Any:
    """An image with its pixels, or a text with its letters, in random order: obviously not real."""
    if isinstance(content, str):
        letters = list(content)
        rng.shuffle(letters)
        return "".join(letters)
    flat = content.reshape(-1, content.shape[-1])
    return flat[rng.permutation(len(flat))].reshape(content.shape)


def padded(file: bytes, size: int) -> bytes:
    """A PNG made longer by a chunk that viewers ignore: the length of a file says how smooth its image is."""
    end = file.rindex(b"IEND") - 4
    body = b"paDd" + bytes(size - len(file) - 12)
    return file[:end] + (len(body) - 4).to_bytes(4, "big") + body + crc32(body).to_bytes(4, "big") + file[end:]


def write_stimuli(folder: Path, protocol: Protocol, drawn: Sequence[Drawn]) -> list[Stimulus]:
    """Writes a study from the contents of its sources, the last of which are for practice and catch trials."""
    rng, stimuli = np.random.default_rng([protocol.seed, 2]), []
    files: dict[str, bytes] = {}
    (folder / "stimuli").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(drawn):
        real = protocol.sources[number].real
        main = len(one.contents) - SPARE
        for i, content in enumerate(one.contents):
            role = "main" if i < main else "practice"
            stimuli.append(_stimulus(number, one, i, content, role, files))
            if real and i >= main:
                stimuli.append(_stimulus(number, one, i, scrambled(content, rng), "catch", files))
    stimuli = [stimuli[i] for i in rng.permutation(len(stimuli))]
    size = max(map(len, files.values()), default=0) + 12
    files = {name: padded(content, size) for name, content in files.items()}
    for name, content in files.items():
        write_bytes(folder / "stimuli" / name, content)
    stimuli = [replace(one, sha256=digest(files[one.file])) if one.file else one for one in stimuli]
    protocol = replace(protocol, created=time.strftime("%Y-%m-%d %H:%M:%S %z"))
    write_study(folder, protocol, stimuli)
    return stimuli


def _stimulus(source: int, drawn: Drawn, i: int, content: Any, role: Any, files: dict[str, bytes]) -> Stimulus:
    """The record of a stimulus, whose pictures are added to the files."""
    made = Stimulus(
        secrets.token_hex(8), source, int(drawn.indices[i]), role=role, given=drawn.given[i] if drawn.given else ""
    )
    if isinstance(content, str):
        made = replace(made, text=content, sha256=digest(content.encode()))
    else:
        made = replace(made, file=f"{made.id}.png")
        files[made.file] = encoded(content, ".png")
    if len(drawn.pictures):
        picture = encoded(drawn.pictures[i], ".png")
        made = replace(made, given_file=f"given-{digest(picture)[:16]}.png")
        files[made.given_file] = picture
    return made
