"""Commands from functions, with usage errors of one line."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tyro

from gen_jax.errors import UserError

__all__ = ["one_line_usage_errors", "run_command"]


def run_command(
    commands: Mapping[str, Callable[..., None]], program: str, description: str, arguments: list[str]
) -> None:
    """Runs the command that the arguments name, with the options they give."""
    with one_line_usage_errors():
        command, options = tyro.extras.subcommand_cli_from_dict(
            {name: _deferred(command) for name, command in commands.items()},
            prog=program,
            description=description,
            args=arguments,
        )
    command(**options)


def _deferred(command: Callable[..., None]) -> Callable[..., tuple[Callable[..., None], dict[str, Any]]]:
    """A function with the same signature that returns the command and its arguments instead of running it."""

    @functools.wraps(command)
    def parsed(**options: Any):
        return command, options

    return parsed


@contextlib.contextmanager
def one_line_usage_errors() -> Iterator[None]:
    """Turns tyro's boxed message about an invalid argument into a UserError with its first line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as error:
        if error.code != 2:
            raise
        raise UserError(_said_in_box(printed.getvalue())) from None


def _said_in_box(text: str) -> str:
    """The message inside the box: the part between its title and the hint about --help."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        line = line.strip().strip("|│").strip()
        if line.startswith(("╭", "╰")) or len(line) > 3 and set(line) <= {"-", "─"}:
            parts.append([])
        elif line:
            parts[-1].append(line)
    said = [
        " ".join(part) for part in parts[: next((i for i, p in enumerate(parts) if "helptext" in str(p)), None)] if part
    ]
    return said[-1].removeprefix("Error ") if said else " ".join(text.split())
