"""Tables in a Markdown file, written between `<!-- name -->` and `<!-- /name -->` by the commands that measure them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gen_jax.errors import UserError


def write_section(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the markers of `name`."""
    before, after = check_section(path, name)
    path.write_text(f"{before}<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->{after}")


def check_section(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after the section; an error if there is none."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{path} has no section between {begin} and {end}")
    return before, after


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
