"""Config files: a Python file with a function `config(**knobs) -> Experiment`.

The knobs are its keyword arguments; every config has `steps` and `smoke` among them, and documents the others in its
docstring.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import math
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from gen_jax.errors import UserError
from gen_jax.experiment import Experiment

__all__ = ["Config", "ConfigFile", "find", "knob_help", "load", "unknown_knob"]

Config = Callable[..., Experiment]


@dataclass(frozen=True)
class ConfigFile:
    """A config file and the knobs to call it with."""

    path: Path
    config: Config
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def changed(self) -> dict[str, Any]:
        """The knobs that differ from their defaults."""
        return {name: value for name, value in self.knobs.items() if value != self.defaults[name]}

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: p.default for name, p in inspect.signature(self.config).parameters.items()}

    def with_knobs(self, knobs: Mapping[str, Any]) -> ConfigFile:
        """The same config with some knobs changed."""
        for name, value in knobs.items():
            if name not in self.defaults:
                raise UserError(unknown_knob(self.path, name, list(self.defaults)))
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name} must be finite, got {value}")
        if knobs.get("steps", 1) < 1:
            raise UserError(f"--steps must be at least 1, got {knobs['steps']}")
        return dataclasses.replace(self, knobs={**self.knobs, **knobs})

    def build(self, data_dir: str | os.PathLike | None = None) -> Experiment:
        """Calls the config, which may read facts of its data from `data_dir`."""
        from gen_jax.data.cache import use_data_dir

        try:
            with use_data_dir(data_dir):
                experiment = self.config(**self.knobs)
        except UserError:
            raise
        except ValueError as error:  # raised by models and optimizers for invalid hyper-parameters
            raise UserError(f"{self.path}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise UserError(f"{self.path}: config() returned {type(experiment).__name__}, not an Experiment")
        return experiment


def load(path: str | Path, knobs: Mapping[str, Any] | None = None) -> ConfigFile:
    """Loads a config file (executing it) with its default knobs, some of them overridden by `knobs`."""
    path = find(path)
    config = getattr(_module(path), "config", None)
    if not callable(config):
        raise UserError(f"{path} defines no function config(...)")
    parameters = inspect.signature(config).parameters
    for name, p in parameters.items():
        if p.default is p.empty:
            raise UserError(f"{path}: the knob {name} needs a default")
    if missing := {"steps", "smoke"} - set(parameters):
        raise UserError(f"{path}: config() needs the knobs steps and smoke, {' and '.join(sorted(missing))} missing")
    loaded = ConfigFile(path, config)
    return dataclasses.replace(loaded, knobs=loaded.defaults).with_knobs(knobs or {})


def find(path: str | Path) -> Path:
    """The path of a config file; those below configs/ may be named by their stem, "vae_digits"."""
    path = Path(path)
    if path.is_file():
        return path
    here = sorted(
        {other for folder in (path.parent, Path("configs")) for way in ("*.py", "*/*.py") for other in folder.glob(way)}
    )
    if named := [other for other in here if str(path) == other.stem]:
        return named[0]
    near = {**{str(other): other for other in here}, **{other.name: other for other in here}}
    close = difflib.get_close_matches(str(path), near, n=1, cutoff=0.5) or difflib.get_close_matches(
        path.name, near, n=1
    )
    hint = f"did you mean {near[close[0]]}?" if close else "`python -m gen_jax configs` lists those below configs/"
    raise UserError(f"there is no config {path}: {hint}")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gen_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def knob_help(config: Config) -> dict[str, tuple[Any, Any, str]]:
    """{knob: (type, default, help)} from a config's signature and the "Args:" of its docstring."""
    import docstring_parser

    types = typing.get_type_hints(config)
    said = {p.arg_name: p.description or "" for p in docstring_parser.parse(config.__doc__ or "").params}
    common = {"steps": "training steps", "smoke": "a tiny version that only shows that it runs"}
    return {
        name: (types.get(name, type(p.default)), p.default, said.get(name, common.get(name, "")))
        for name, p in inspect.signature(config).parameters.items()
    }


def unknown_knob(path: Path, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    listed = f"it has {', '.join('--' + k for k in known)}"
    return f"{path} has no knob --{name}: {f'did you mean --{near[0]}?' if near else listed}"
