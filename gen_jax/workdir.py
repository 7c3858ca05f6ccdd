"""The working directory of a run.

workdir/
  run.json            config file, knobs, seed, commit, versions, devices; final results
  config.py           a copy of the config file
  metrics.jsonl       one line per report; tensorboard/ holds the same
  checkpoints/        the newest and the best
  plots/              figures, by step; final ones without a number
  evaluation.json     metrics on the test split
  tokenizer.json      of a text: the tokenizer
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gen_jax.checkpoint import Checkpoints
from gen_jax.configs import ConfigFile
from gen_jax.errors import UserError
from gen_jax.experiment import Experiment
from gen_jax.files import read_json, write_json
from gen_jax.logs import environment, read_record
from gen_jax.sharding import is_writer

__all__ = ["Workdir", "default_workdir"]


LONGEST = 160  # bytes of the name of a folder, to which others are added


def _code(text: str) -> str:
    """The syntax tree of a config without docstrings; its text if it cannot be parsed."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def default_workdir(config: ConfigFile, seed: int = 0, seeds: int | None = None) -> Path:
    """runs/NAME, followed by the changed knobs, so that variants do not collide. seeds: where given as an option."""
    parts = [f"{name}={value}" for name, value in config.changed.items()]
    parts += ([f"seed={seed}"] if seed else []) + ([f"seeds={seeds}"] if seeds else [])
    name = "-".join([config.name, *(re.sub(r"[/?&\s]+", "_", part) for part in parts)])
    if len(name.encode()) > LONGEST:
        name = f"{name[: LONGEST // 4]}...{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return Path("runs", name)


@dataclass(frozen=True)
class Workdir:
    """The folder of a run, and the identity by which the run is resumed: config, knobs, seed and data.

    data: {"name", "digest", "resident"} of the data set. tokenizer: of a text, as JSON. seeds: trained as one program.
    """

    folder: Path
    config: ConfigFile
    seed: int
    data: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    seeds: int = 1

    def claim(self, force: bool) -> None:
        """Creates the folder; a UserError if it is not writable or holds another run (unless forced)."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = "it is a file" if self.folder.is_file() else error.strerror
            raise UserError(f"cannot write to the working directory {self.folder}: {reason}") from None
        before = read_record(self.folder)
        if before is None or force:
            return
        if differences := list(self.differences(before).values()):
            raise UserError(
                f"{self.folder} holds another run: {'; '.join(differences)}. "
                "Choose another --workdir, or --force to go on with the new settings"
            )

    def checkpoints(
        self, experiment: Experiment, write: bool, identity: Mapping[str, Any] | None = None
    ) -> Checkpoints:
        """The checkpoints; with an identity, those with other settings are refused."""
        return Checkpoints(self.folder / "checkpoints", experiment.keep, experiment.best, identity, write)

    def identity(self) -> dict[str, Any]:
        """The settings that identify a run, as read back from JSON."""
        return {
            "knobs": self.config.recorded(),
            "seed": self.seed,
            **({"seeds": self.seeds} if self.seeds > 1 else {}),
        }

    def record(self, force: bool) -> None:
        """Writes run.json and config.py, once."""
        before = read_record(self.folder)
        if not is_writer() or (before is not None and not force):
            return
        record = {
            "name": self.config.name,
            "config": os.path.relpath(self.config.path),
            "config_absolute": str(self.config.path.resolve()),
            **self.identity(),
            "data": dict(self.data),
            "environment": environment(),
            **({"summary": before["summary"]} if before and "summary" in before else {}),
        }
        (self.folder / "config.py").write_text(self.config.text)
        if self.tokenizer:
            (self.folder / "tokenizer.json").write_text(self.tokenizer)
        write_json(self.folder / "run.json", record)

    def recorded(self) -> dict[str, Any]:
        """The content of run.json, {} if there is none."""
        return read_record(self.folder) or {}

    def summary(self) -> dict[str, Any]:
        """The final summary of the run, {} before it has ended."""
        return self.recorded().get("summary", {})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Adds the summary to run.json."""
        write_json(self.folder / "run.json", self.recorded() | {"summary": summary})

    def keep_evaluation(self, split: str, step: int | str, estimates: Mapping[str, Any], seed: int = 0) -> None:
        """Writes the metrics of a split, as JSON, into evaluation.json, keeping those of other splits."""
        path = self.folder / "evaluation.json"
        write_json(path, (read_json(path) or {}) | {split: {"step": step, "seed": seed, **estimates}})

    def code(self) -> str:
        """The code of the recorded config, whatever its comments and layout."""
        path = self.folder / "config.py"
        return _code(path.read_text() if path.exists() else self.config.text)

    def changes(self) -> str:
        """A unified diff from the recorded config to the present one; "" if they are the same."""
        if self.code() == _code(self.config.text):
            return ""
        before, now = (self.folder / "config.py").read_text(), self.config.text
        return "\n".join(
            difflib.unified_diff(before.splitlines(), now.splitlines(), "recorded", "now", lineterm="", n=1)
        )

    def changed_data(self, before: Mapping[str, Any]) -> str:
        """A message if the data is not what the run was trained on; "" if it is, or if that is not known."""
        there, here = before.get("data", {}).get("digest"), self.data.get("digest")
        return f"the data {self.data['name']} has changed since" if there and here and there != here else ""

    def differences(self, before: Mapping[str, Any]) -> dict[str, str]:
        """Differences from a recorded run, each with a message: knobs by their name, and other settings."""
        new, name = self.identity(), self.config.name
        differences = {} if before["name"] == name else {"config": f"config {before['name']} there, {name} here"}
        for knob in sorted(before["knobs"].keys() | new["knobs"].keys()):
            there, here = before["knobs"].get(knob, "absent"), new["knobs"].get(knob, "absent")
            if there != here:
                differences[knob] = f"{knob} = {there} there, {here} here"
        for setting in ("seed", "seeds"):
            there, here = before.get(setting, 1), new.get(setting, 1)
            if there != here:
                differences[f"--{setting}"] = f"{setting} = {there} there, {here} here"
        there, here = (one.get("from", "") for one in (before.get("data", {}), self.data))
        if there != here:
            differences["--from"] = f"--from {there or 'nothing'} there, {here or 'nothing'} here"
        if changed := self.changed_data(before):
            differences["data"] = changed
        if differences.keys() <= {"steps"} and (edits := self.changes()):
            differences["text"] = "the config file has changed since:\n" + edits + "\n"
        return differences
