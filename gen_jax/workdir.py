"""The working directory of a run."""

from __future__ import annotations

import difflib
from pathlib import Path

from gen_jax.configs import ConfigFile


def default_workdir(loaded: ConfigFile, seed: int) -> Path:
    """runs/NAME, followed by what differs from the defaults, so that variants do not collide."""
    parts = [f"{name}={value}" for name, value in loaded.changed.items()] + ([f"seed={seed}"] if seed else [])
    return Path("runs", "-".join([loaded.name, *(part.replace("/", "_") for part in parts)]))


def text_changes(workdir: Path, text: str) -> str:
    """A unified diff from the recorded config to `text`; "" if they are the same."""
    path = workdir / "config.py"
    before = path.read_text() if path.exists() else text
    return "\n".join(difflib.unified_diff(before.splitlines(), text.splitlines(), "recorded", "now", lineterm="", n=1))
