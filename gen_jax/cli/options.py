"""Options and checks that several commands share."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from gen_jax.errors import Preempted, UserError

__all__ = [
    "PICTURES",
    "ConfigPath",
    "DataDir",
    "EncoderName",
    "Member",
    "Samples",
    "Step",
    "Workdir",
    "check_ending",
    "check_folder",
    "check_results_folder",
    "check_seed",
    "interruptible",
    "json_line",
    "open_workdir",
    "parse_step",
    "read_input",
    "resolve_encoder",
]

PICTURES = (".png", ".pdf", ".svg")
Workdir = Positional[Annotated[Path, arg(metavar="WORKDIR", help="the working directory of a run")]]
Step = Annotated[
    str | None,
    arg(help='a checkpoint\'s step, "best", or "mean:3" for the mean parameters of the last 3; by default the newest'),
]
Member = Annotated[int, arg(help="of a run of several seeds, the one to use, from 0")]
ConfigPath = Annotated[Path | None, arg(help="the config file, if the one recorded is gone")]
EncoderName = Annotated[
    str, arg(help="of sample metrics: small, raw, projected, or a file; by default what fits the data")
]
Samples = Annotated[int, arg(help="how many samples are judged")]
DataDir = Annotated[Path | None, arg(help="the folder of data sets; by default TFDS_DATA_DIR")]


def check_ending(out: Path, endings: tuple[str, ...], option: str = "--out") -> None:
    if out.suffix not in endings:
        *others, last = endings
        raise UserError(f"{option} {out}: the ending must be {', '.join(others) + ' or ' if others else ''}{last}")


def check_folder(out: Path, option: str = "--out") -> None:
    """Raises UserError unless the folder of a file to be written is there."""
    if not out.resolve().parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.parent}")


def check_results_folder(out: Path) -> None:
    """Raises UserError unless a folder of results can be written there."""
    check_folder(out)
    if out.is_file():
        raise UserError(f"--out {out}: is a file, and a folder is needed")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be between 0 and 2^32 - 1, got {seed}")


def read_input(option: str, source: str) -> str:
    """The text of a file, or of standard input for "-"."""
    from gen_jax.data.text import read_text

    if source != "-" and not Path(source).is_file():
        raise UserError(f"{option} {source}: there is no such file")
    return sys.stdin.read() if source == "-" else read_text(Path(source))


def open_workdir(workdir: Path, config: Path | None, data_dir: Path | None, member: int = 0):
    from gen_jax.compilation import use_compilation_cache
    from gen_jax.reopen import open_run

    use_compilation_cache()
    run, warning = open_run(workdir, config, data_dir, member)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return run


def resolve_encoder(name: str, samples: int):
    from gen_jax.evaluation.suite import open_encoder

    if not 2 <= samples <= 1_000_000:
        raise UserError(f"--samples must be between 2 and 1,000,000, got {samples}")
    return open_encoder(name)


def json_line(said: Mapping[str, Any]) -> str:
    """A line of JSON; numbers that are not finite are null."""
    finite = {name: None if isinstance(a, float) and not math.isfinite(a) else a for name, a in said.items()}
    return json.dumps(finite, ensure_ascii=False)


@contextmanager
def interruptible(advice: str = "") -> Iterator[None]:
    """Ends with one line and exit code 75 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise Preempted("stopped" + advice) from None


def parse_step(step: str | None) -> int | str | None:
    if step is None or step == "best" or re.fullmatch(r"mean:[1-9]\d*", step):
        return step
    if not step.isdigit():
        raise UserError(f'--step takes a number, "best", or "mean:3" for the mean of the last 3, got {step!r}')
    return int(step)
