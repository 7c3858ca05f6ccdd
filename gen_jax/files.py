"""Files that appear whole: a crash leaves the old content or the new one, never a part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gen_jax.errors import UserError

__all__ = ["check_empty", "read_json", "write_bytes", "write_json", "write_text"]


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a binary file atomically."""
    draft = path.with_suffix(".draft")
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a power failure could leave an empty file otherwise
    draft.replace(path)


def check_empty(folder: Path) -> None:
    """Raises UserError unless a folder is empty or not there yet."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: a new or an empty folder is needed")
