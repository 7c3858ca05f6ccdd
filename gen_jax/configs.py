"""Config files: a Python file with a function `config(**knobs) -> Experiment`.

The knobs are its keyword arguments; every config has `steps` and `smoke` among them, and documents the others in its
docstring. Their annotations say how a value is read from the command line and from the record of a run.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import json
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from cattrs.preconf.json import make_converter

from gen_jax.errors import UserError, first_line, users_line
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
        return {name: value for name, value in self.knobs.items() if not _same(value, self.defaults[name])}

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: p.default for name, p in inspect.signature(self.config).parameters.items()}

    def with_knobs(self, knobs: Mapping[str, Any]) -> ConfigFile:
        """The same config with some knobs changed."""
        for name, value in knobs.items():
            if name not in self.defaults:
                raise UserError(unknown_knob(self.path, name, list(self.defaults)))
            if isinstance(value, float) and not math.isfinite(value) and not _same(value, self.defaults[name]):
                raise UserError(f"--{name} must be finite, got {value}")
        if knobs.get("steps", 1) < 1:
            raise UserError(f"--steps must be at least 1, got {knobs['steps']}")
        return dataclasses.replace(self, knobs={**self.knobs, **knobs})

    def recorded(self) -> dict[str, Any]:
        """The knobs as the JSON values that the record of a run keeps."""
        values = {name: self._json(name, value) for name, value in self.knobs.items()}
        return json.loads(json.dumps(values, default=str), parse_constant=lambda name: name.replace("Infinity", "inf"))

    def with_recorded(self, values: Mapping[str, Any]) -> ConfigFile:
        """The config with the knobs of a record; those it no longer has are ignored."""
        return self.with_knobs({name: self._value(name, value) for name, value in values.items() if name in self.knobs})

    def check_recorded(self) -> None:
        """Raises a UserError if a knob could not be read back from the record of a run."""
        for name, value in self.recorded().items():
            if not _same(back := self._value(name, value), self.knobs[name]):
                raise UserError(
                    f"{self.path}: the knob {name} = {self.knobs[name]!r} would come back from run.json as {back!r}: "
                    "give it an annotation of exactly one type, such as Path, tuple[int, ...] or an Enum"
                )

    def _json(self, name: str, value: Any) -> Any:
        try:
            return _CONVERTER.unstructure(value, unstructure_as=self.types[name])
        except Exception:  # converters raise whatever their types do; `check_recorded` tells
            return str(value)

    def _value(self, name: str, value: Any) -> Any:
        try:
            return _CONVERTER.structure(value, self.types[name])
        except Exception:  # as above
            return value

    @cached_property
    def types(self) -> dict[str, Any]:
        """The annotation of each knob, the type of its default where it has none."""
        hints = typing.get_type_hints(self.config)
        of_default = lambda value: Any if value is None else type(value)
        return {name: hints.get(name, of_default(value)) for name, value in self.defaults.items()}

    def build(self, data_dir: str | os.PathLike | None = None) -> Experiment:
        """Calls the config, which may read facts of its data from `data_dir`."""
        from gen_jax.data.cache import use_data_dir

        try:
            with use_data_dir(data_dir):
                experiment = self.config(**self.knobs)
        except (UserError, OSError):
            raise
        except Exception as error:
            raise UserError(_explained(self.path, error)) from error
        if not isinstance(experiment, Experiment):
            raise UserError(f"{self.path}: config() returned {type(experiment).__name__}, not an Experiment")
        return experiment


def load(path: str | Path, knobs: Mapping[str, Any] | None = None) -> ConfigFile:
    """Loads a config file (executing it) with its default knobs, some of them overridden by `knobs`."""
    path = find(path)
    try:
        config = vars(_module(path)).get("config")
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(_explained(path, error)) from error
    if not callable(config):
        raise UserError(f"{path} defines no function config(...)")
    parameters = inspect.signature(config).parameters
    for name, p in parameters.items():
        if p.default is p.empty:
            raise UserError(f"{path}: the knob {name} needs a default")
        if isinstance(p.default, (list, dict, set)):
            raise UserError(f"{path}: the default of the knob {name} can be changed by accident: take a tuple")
    if missing := {"steps", "smoke"} - set(parameters):
        raise UserError(f"{path}: config() needs the knobs steps and smoke, {' and '.join(sorted(missing))} missing")
    loaded = ConfigFile(path, config)
    return dataclasses.replace(loaded, knobs=loaded.defaults).with_knobs(knobs or {})


def _explained(path: Path, error: Exception) -> str:
    """An error of what a config has written, in one line with its place."""
    where = users_line(error)
    return f"{path}{f', at {where}' if where else ''}: {first_line(error)}"


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


def _same(a: Any, b: Any) -> bool:
    """Whether two values of a knob are equal, or both NaN."""
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


_CONVERTER = make_converter()
_FOLDERS: list[str] = []  # of loaded configs, added to the path of modules, the last one first


def _module(path: Path) -> ModuleType:
    """The module of a config, which finds the modules beside it, and is found as Python finds any module."""
    path = path.resolve()
    _find_modules_of(path.parent)
    name = f"gen_jax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # where dataclasses look up annotations
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _find_modules_of(folder: Path) -> None:
    """Lets a config import the modules of its folder, and not those of the same name beside another config."""
    others = [other for other in _FOLDERS if other != str(folder)]
    sys.path[:] = [part for part in sys.path if part not in _FOLDERS]
    _FOLDERS[:] = [*([] if str(folder) in sys.path else [str(folder)]), *others]
    sys.path.extend(_FOLDERS)
    if not others:
        return
    for name, module in list(sys.modules.items()):
        spec = module.__spec__ if isinstance(module, ModuleType) else None
        origin = Path((spec and spec.origin) or "")
        if str(origin.parent) in others and (folder / origin.name).is_file():
            del sys.modules[name]


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
