"""One-line usage errors for the command line."""

import contextlib
import io
from collections.abc import Iterator

from gen_jax.errors import UserError

__all__ = ["one_line_usage_errors"]


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
