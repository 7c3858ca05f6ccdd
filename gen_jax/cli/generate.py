"""The command `generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    Step,
    Workdir,
    check_folder,
    json_line,
    open_workdir,
    parse_step,
    read_input,
)
from gen_jax.errors import Preempted, UserError

__all__ = ["generate"]


def generate(
    workdir: Workdir,
    prompt: Annotated[list[str] | None, arg(metavar="TEXT ...")] = None,
    prompt_file: Path | None = None,
    after: str | None = None,
    n: int = 1,
    length: int = 256,
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
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Generates texts from a trained language model, n for each prompt; or fills the gap before --after.

    Args:
        prompt: the beginning of a text, or of several; by default the start of a document
        prompt_file: a file with one prompt, or - for standard input
        after: the text after a gap of --length tokens, which is filled; a model of `--text spans` chooses the length
        n: how many texts for each prompt
        length: tokens at most
        minimum: tokens before a text may end
        temperature: divides the logits; 0 is greedy
        top_k: draw from the k most probable tokens; 0 from all
        top_p: draw from the most probable tokens with this total probability
        min_p: draw from tokens with at least this fraction of the largest probability
        repetition: penalty of tokens seen before, as a factor; 1 is none
        presence: penalty of tokens seen before, subtracted from their logits
        order: the steps from logits to a draw, in their order, with commas between them
        stop: strings at which a text ends
        candidates: for a gap, draws from which one is chosen by how well both sides fit; 0: exact draws, by default
            where the model can, else 256
        stream: print each text as it is generated, one after the other
        json: print each text as a line of JSON, with its log-probabilities in nats
        out: write to this file instead of standard output
        seed: random seed; text number i is the same whatever else is generated
    """
    if n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    if stream and (json or out or after is not None):
        raise UserError("--stream writes to the terminal as text comes: leave out --json, --out and --after")
    if candidates is not None and after is None:
        raise UserError("--candidates is for filling a gap: give the text after it with --after")
    if out is not None:
        check_folder(out)
    prompts = _prompts(prompt, prompt_file)
    from gen_jax.core import Seq2Seq, averaged
    from gen_jax.models.common.autoregressive import ORDER, Sampling
    from gen_jax.models.text.generation import Generator, Row

    names = tuple(name.strip() for name in order.split(",")) if order else ORDER
    try:
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition, presence, names)
    except ValueError as error:
        raise UserError(str(error)) from None
    run = open_workdir(workdir, config, data_dir)
    wanted = parse_step(step)
    try:
        if after is not None:
            lines = _fill(run, wanted, prompts, after, n, length, sampling, candidates, seed, json)
            _write(lines, json, out)
            return
        if isinstance(run.experiment.model, Seq2Seq):
            raise UserError(f"{workdir} holds a text-to-text model: use `gen_jax translate`, or fill gaps with --after")
        tokenizer, info = run.data.tokens(), run.data.info
        made = Generator(
            run.experiment.model, tokenizer, sampling, length, minimum, info.documents, tuple(stop or ()), seed
        )
        rows = [Row(i * n + j, _encode(text, tokenizer)) for i, text in enumerate(prompts) for j in range(n)]
        _note_cut(run.experiment.model, rows)
        state = averaged(run.state(wanted))
        if stream:
            _stream(made, state, rows, prompts, n)
            return
        found = made(state, rows)
    except KeyboardInterrupt:
        raise Preempted("stopped") from None
    _write([_as_line(prompts[i // n], one, sampling, json) for i, one in enumerate(found)], json, out)


def _prompts(prompt: list[str] | None, file: Path | None) -> list[str]:
    if prompt and file:
        raise UserError("give --prompt or --prompt-file, not both")
    return [read_input("--prompt-file", str(file)).removesuffix("\n")] if file else prompt or [""]


def _write(lines: list[str], as_json: bool, out: Path | None) -> None:
    text = "\n".join(lines) if as_json else f"\n{'-' * 40}\n".join(lines)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n")
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
    as_json: bool,
) -> list[str]:
    """The texts whose gaps between each prompt and `after` are filled n times."""
    from gen_jax.core import Infilling, Seq2Seq, averaged
    from gen_jax.models.text.infilling import Infiller, fill_marked

    model = run.experiment.model
    if isinstance(model, Seq2Seq):
        if candidates is not None:
            raise UserError("--candidates is for language models: this model was trained to fill gaps")
        tokenizer = run.data.tokens(pairs=True)
        pairs = [(text, after) for text in prompts for _ in range(n)]
        found = fill_marked(model, tokenizer, averaged(run.state(step)), pairs, sampling, length, seed)
    else:
        tokenizer = run.data.tokens()
        if candidates is None:
            candidates = 0 if isinstance(model, Infilling) else 256
        made = Infiller(model, tokenizer, sampling, length, candidates, seed)
        rest, befores = _encode(after, tokenizer), [_encode(text, tokenizer) for text in prompts]
        state = averaged(run.state(step))
        found = [one for i, before in enumerate(befores) for one in made(state, before, rest, range(i * n, i * n + n))]
    texts = [prompts[i // n] + one.text + after for i, one in enumerate(found)]
    if not as_json:
        return texts
    more = lambda i, one: {"prompt": prompts[i // n], "after": after, **one._asdict()}
    return [json_line(more(i, one)) for i, one in enumerate(found)]


def _encode(text: str, tokenizer: Any) -> list[int]:
    try:
        return tokenizer.encode(text).tolist()
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None


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
