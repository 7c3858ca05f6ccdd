"""The command `generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_folder,
    interruptible,
    json_line,
    open_workdir,
    parse_step,
    read_input,
)
from gen_jax.errors import UserError

__all__ = ["generate"]


def generate(
    workdir: Workdir,
    prompt: Annotated[list[str] | None, arg(metavar="TEXT ...")] = None,
    prompt_file: Path | None = None,
    after: str | None = None,
    n: int = 1,
    length: int | None = None,
    minimum: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    presence: float = 0.0,
    order: str = "",
    stop: Annotated[list[str] | None, arg(metavar="TEXT ...")] = None,
    candidates: int | None = None,
    stream: bool = False,
    json: bool = False,
    out: Path | None = None,
    seed: int = 0,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Generates texts from a trained language model, n for each prompt; or fills the gap before --after.

    Args:
        prompt: the beginning of a text, or of several; by default the start of a document
        prompt_file: a file with one prompt, or - for standard input
        after: the text after a gap of --length tokens, which is filled; a model of `--text spans` chooses the length
        n: how many texts for each prompt
        length: tokens at most; by default 256, or 16 for a gap
        minimum: tokens before a text may end
        temperature: divides the logits; 0 is greedy
        top_k: draw from the k most probable tokens; 0 from all
        top_p: draw from the most probable tokens with this total probability
        min_p: draw from tokens with at least this fraction of the largest probability
        repetition: penalty of tokens seen before, as a factor; 1 is none
        presence: penalty of tokens seen before, subtracted from their logits
        order: the steps from logits to a draw, in their order, with commas between them
        stop: strings at which a text ends
        candidates: for a gap, draws from which one is chosen by how well both sides fit, by default 256; 0 for exact
            draws, by HMMs (their default) and by n-gram models of low order
        stream: print each text as it is generated, one after the other
        json: print each text as a line of JSON, with its log-probabilities in nats
        out: write to this file instead of standard output
        seed: random seed; text number i is the same whatever else is generated
    """
    _check(n, length, stream, json, out)
    _check_gap(after, candidates, stream, minimum, stop)
    length = length or (256 if after is None else 16)
    prompts = _prompts(prompt, prompt_file)
    from gen_jax.core import Seq2Seq
    from gen_jax.models.text.generation import Generator

    sampling = _sampling(temperature, top_k, top_p, min_p, repetition, presence, order=order)
    run = open_workdir(workdir, config, data_dir, member)
    wanted = parse_step(step)
    if after is not None:
        with interruptible():
            found = _fill(run, wanted, prompts, after, n, length, sampling, candidates, seed)
        _write([_as_text(prompts[i // n], after, one, json) for i, one in enumerate(found)], json, out)
        return
    if isinstance(run.experiment.model, Seq2Seq):
        raise UserError(f"{workdir} holds a text-to-text model: use `gen_jax translate`, or fill gaps with --after")
    ends = run.data.info.documents
    made = Generator(run.experiment.model, run.data.tokens(), sampling, length, minimum, ends, tuple(stop or ()), seed)
    _continue(run, wanted, made, prompts, n, stream, json, out)


def _check(n: int, length: int | None, stream: bool, as_json: bool, out: Path | None) -> None:
    if n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    if length is not None and length < 1:
        raise UserError(f"--length must be at least 1, got {length}")
    if stream and (as_json or out):
        raise UserError("--stream writes to the terminal: leave out --json and --out")
    if out is not None:
        check_folder(out)


def _check_gap(after: str | None, candidates: int | None, stream: bool, minimum: int, stop: list[str] | None) -> None:
    if after is None and candidates is not None:
        raise UserError("--candidates is for filling a gap: give the text after it with --after")
    if after is not None and (stream or minimum or stop):
        raise UserError("--stream, --minimum and --stop are for continuing a text: leave them out with --after")


def _sampling(*numbers: float, order: str = "") -> Any:
    from gen_jax.models.common.autoregressive import ORDER, Sampling

    names = tuple(name.strip() for name in order.split(",")) if order else ORDER
    try:
        return Sampling(*numbers, names)
    except ValueError as error:
        raise UserError(str(error)) from None


def _continue(
    run: Any,
    step: int | str | None,
    made: Any,
    prompts: list[str],
    n: int,
    stream: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Continues each prompt n times."""
    from gen_jax.core import averaged
    from gen_jax.models.text.generation import Row

    prompted = enumerate(_encode("--prompt", text, made.tokenizer) for text in prompts)
    rows = [Row(i * n + j, tokens) for i, tokens in prompted for j in range(n)]
    _note_cut(made.model, rows)
    state = averaged(run.state(step))
    with interruptible():
        if stream:
            _stream(made, state, rows, prompts, n)
            return
        found = made(state, rows)
    _write([_as_line(prompts[i // n], one, made.sampling, as_json) for i, one in enumerate(found)], as_json, out)


def _prompts(prompt: list[str] | None, file: Path | None) -> list[str]:
    if prompt and file:
        raise UserError("give --prompt or --prompt-file, not both")
    return [read_input("--prompt-file", str(file)).removesuffix("\n")] if file else prompt or [""]


def _write(lines: list[str], as_json: bool, out: Path | None) -> None:
    text = "\n".join(lines) if as_json else f"\n{'-' * 40}\n".join(lines)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        print(f"{len(lines)} texts in {out}")


def _fill(
    run: Any,
    step: int | str | None,
    prompts: list[str],
    after: str,
    n: int,
    length: int,
    sampling: Any,
    candidates: int | None,
    seed: int,
) -> list[Any]:
    """Fillings of the gap between each prompt and `after`, n for each."""
    from gen_jax.core import Autoregressive, Seq2Seq, averaged
    from gen_jax.models.text.infilling import Infiller, fill_marked

    model = run.experiment.model
    if isinstance(model, Seq2Seq):
        if candidates is not None:
            raise UserError("--candidates is for language models: this one is text-to-text")
        translate = _filler(run, [*prompts, after], sampling, length, seed)
        pairs = [(text, after) for text in prompts for _ in range(n)]
        return fill_marked(translate, averaged(run.state(step)), pairs)
    if candidates is None:
        candidates = 256 if isinstance(model, Autoregressive) else 0
    tokenizer = run.data.tokens()
    made = Infiller(model, tokenizer, sampling, length, candidates, seed)
    befores, rest = [_encode("--prompt", text, tokenizer) for text in prompts], _encode("--after", after, tokenizer)
    for before in befores:
        seen = sum(map(len, made.seen(before, rest))) - 1
        if seen < len(before) + len(rest):
            print(
                f"note: the model sees {seen} of the {len(before) + len(rest)} tokens around the gap", file=sys.stderr
            )
    state = averaged(run.state(step))
    return [one for i, before in enumerate(befores) for one in made(state, before, rest, range(i * n, i * n + n))]


def _filler(run: Any, texts: list[str], sampling: Any, length: int, seed: int) -> Any:
    """A text-to-text model that fills gaps, once it is known that it can fill those in these texts."""
    from gen_jax.data.spans import MARKS, check_marks
    from gen_jax.models.text.translation import Translator

    if not run.data.info.gaps:
        raise UserError(f"{run.workdir} was not trained to fill gaps: train a text-to-text model on --text spans")
    check_marks(texts, "--prompt or --after")
    tokenizer = run.data.tokens(pairs=True)
    for text in texts:
        _encode("--after" if text == texts[-1] else "--prompt", text, tokenizer)
    more = 1 + len(tokenizer.encode(MARKS[0]))  # the mark before, and the end
    return Translator(run.experiment.model, tokenizer, 0, sampling=sampling, length=length + more, seed=seed)


def _as_text(prompt: str, after: str, one: Any, as_json: bool) -> str:
    return json_line({"prompt": prompt, "after": after, **one._asdict()}) if as_json else prompt + one.text + after


def _encode(option: str, text: str, tokenizer: Any) -> list[int]:
    try:
        return tokenizer.encode(text).tolist()
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _note_cut(model: Any, rows: Any) -> None:
    from gen_jax.core import LimitedContext

    longest = max(len(row.prompt) for row in rows) + 1
    if isinstance(model, LimitedContext) and longest > model.context:
        cut = longest - model.context
        print(
            f"note: the model sees the last {model.context} tokens, not the first {cut} of the prompt", file=sys.stderr
        )


def _stream(made: Any, state: Any, rows: Any, prompts: list[str], n: int) -> None:
    for i, row in enumerate(rows):
        print("-" * 40 + "\n" if i else "", prompts[i // n], sep="", end="", flush=True)
        made(state, [row], on_text=lambda _, text: print(text, end="", flush=True))
        print()


def _as_line(prompt: str, one: Any, sampling: Any, as_json: bool) -> str:
    if not as_json:
        return prompt + one.text
    said = {"prompt": prompt, **one._asdict(), "log_prob": sum(one.log_probs), "sampling": sampling.protocol}
    return json_line(said)
