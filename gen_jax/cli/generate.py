"""The command `generate`."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    Step,
    Workdir,
    check_folder,
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
    stream: bool = False,
    json: bool = False,
    out: Path | None = None,
    seed: int = 0,
    step: Step = None,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Generates texts from a trained language model, n for each prompt.

    Args:
        prompt: the beginning of a text, or of several; by default the start of a document
        prompt_file: a file with one prompt, or - for standard input
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
        stream: print each text as it is generated, one after the other
        json: print each text as a line of JSON, with its log-probabilities in nats
        out: write to this file instead of standard output
        seed: random seed; text number i is the same whatever else is generated
    """
    if n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    if prompt and prompt_file:
        raise UserError("give --prompt or --prompt-file, not both")
    if stream and (json or out):
        raise UserError("--stream writes to the terminal: leave out --json and --out")
    if out is not None:
        check_folder(out)
    prompts = prompt or [""]
    if prompt_file:
        prompts = [read_input("--prompt-file", str(prompt_file)).removesuffix("\n")]
    from gen_jax.core import Seq2Seq, averaged
    from gen_jax.models.common.autoregressive import ORDER, Sampling
    from gen_jax.models.text.generation import Generator, Row

    names = tuple(name.strip() for name in order.split(",")) if order else ORDER
    try:
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition, presence, names)
    except ValueError as error:
        raise UserError(str(error)) from None
    run = open_workdir(workdir, config, data_dir)
    if isinstance(run.experiment.model, Seq2Seq):
        raise UserError(f"{workdir} holds a text-to-text model: use `gen_jax translate`")
    tokenizer, info = run.data.tokens(), run.data.info
    made = Generator(
        run.experiment.model, tokenizer, sampling, length, minimum, info.documents, tuple(stop or ()), seed
    )
    rows = [Row(i * n + j, _encode(text, tokenizer)) for i, text in enumerate(prompts) for j in range(n)]
    _note_cut(run.experiment.model, rows)
    state = averaged(run.state(parse_step(step)))
    try:
        if stream:
            _stream(made, state, rows, prompts, n)
            return
        found = made(state, rows)
    except KeyboardInterrupt:
        raise Preempted("stopped") from None
    lines = [_as_line(prompts[i // n], one, sampling, json) for i, one in enumerate(found)]
    text = "\n".join(lines) if json else f"\n{'-' * 40}\n".join(lines)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n")
        print(f"{len(lines)} texts in {out}")


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
    return dumps(said, ensure_ascii=False)
