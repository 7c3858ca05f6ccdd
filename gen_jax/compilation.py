"""Compiled programs kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial, update_wrapper
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import gen_jax

__all__ = ["Kept", "use_compilation_cache"]

ON_DISK = 256  # lowered functions, the latest of them


def use_compilation_cache(on: bool = True) -> None:
    """Caches compiled programs for the next process, in JAX_COMPILATION_CACHE_DIR or a folder of the user's cache.

    A folder that was set already stays.
    """
    if not on:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not jax.config.jax_compilation_cache_dir:
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gen_jax" / "compiled"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except (OSError, RuntimeError):
            return  # no home, or not writable: must not stop a run
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1:  # JAX's default
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class Kept:
    """A jitted function that the next process neither traces nor compiles.

    JAX's cache of compiled programs saves compiling alone; tracing takes as long as loading what it saves. Here the
    lowered function is kept too, as `jax.export` writes it, under a key of all that it depends on: the source of this
    package, versions, configuration, shapes, and the static arguments, which come first. Those may be numbers, strings,
    functions, classes and objects of this package, and containers of these; with others, whose source may change, and
    on several processes, the function is jitted. NamedTuples among the other arguments and in the result must be
    registered by `jax.export`.
    """

    def __init__(self, function: Callable[..., Any], statics: int):
        self.function, self.statics = function, statics
        self.jitted = jax.jit(function, static_argnums=tuple(range(statics)))
        self.programs: dict[str, Callable[..., Any]] = {}
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        statics, dynamic = arguments[: self.statics], arguments[self.statics :]
        folder, key = _folder(), self._key(arguments)
        if folder is None or key is None or jax.config.jax_default_device is not None:
            return self.jitted(*arguments)
        if key not in self.programs:
            exported = _load(folder / key)
            if exported is None:
                exported = export.export(jax.jit(partial(self.function, *statics)))(*dynamic)
                _save(exported, folder / key)
            self.programs[key] = jax.jit(exported.call)
        return self.programs[key](*dynamic)

    def _key(self, arguments: tuple[Any, ...]) -> str | None:
        try:
            said = [_said(a) for a in arguments[: self.statics]]
        except TypeError:
            return None
        leaves, tree = jax.tree.flatten(arguments[self.statics :])
        if jax.process_count() > 1 or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return None
        shapes = [f"{kind} {kind.weak_type}" for kind in map(jax.typeof, leaves)]
        parts = [self.function.__module__, self.function.__qualname__, *said, str(tree), *shapes, _surroundings()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _said(value: Any) -> str:
    """A text that tells values apart and is the same in every process; TypeError if there is none."""
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value)
    if isinstance(value, (type, FunctionType)):
        if not value.__module__.startswith("gen_jax.") or "<" in value.__qualname__:
            raise TypeError(f"{value!r} is not of this package, or has no name of its own")
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (tuple, list)):
        kind = "" if type(value) in (tuple, list) else _said(type(value))
        return f"{kind}({', '.join(map(_said, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_said(k)}: {_said(v)}' for k, v in value.items())}}}"
    if type(value).__module__.startswith("gen_jax."):
        fields = vars(value)
        return f"{_said(type(value))}({', '.join(f'{name}={_said(a)}' for name, a in fields.items())})"
    raise TypeError(f"{value!r} has no text that is the same in every process")


def _surroundings() -> str:
    """All that programs depend on beside their function and its arguments."""
    config = {name: value for name, value in jax.config.values.items() if "cache" not in name and "log" not in name}
    precision = jax.config.jax_default_matmul_precision  # and float64, which may be set for a while only
    return f"{_source()} {jnp.result_type(float)} {precision} {sorted(map(str, config.items()))}"


@cache
def _source() -> str:
    """Versions of what is traced, and the source of the package."""
    digest, root = hashlib.sha256(), Path(gen_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    others = {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax", "distrax")}
    return f"{digest.hexdigest()} {others} {jax.default_backend()} {jax.device_count()}"


def _folder() -> Path | None:
    """The folder of lowered functions, beside what JAX keeps; None if nothing is kept."""
    if not jax.config.jax_enable_compilation_cache or not jax.config.jax_compilation_cache_dir:
        return None
    folder = Path(jax.config.jax_compilation_cache_dir) / "lowered"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder


def _load(path: Path) -> export.Exported | None:
    """The function of a file; None if there is none, or it cannot be read."""
    try:
        found = export.deserialize(bytearray(path.read_bytes()))
        path.touch()
        return found
    except Exception:  # whatever is wrong with a file, the function can be traced
        return None


def _save(exported: export.Exported, path: Path) -> None:
    """Writes a function, and deletes those that were used longest ago."""
    try:
        content = exported.serialize()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="new-", delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
        for old in sorted(path.parent.iterdir(), key=lambda p: -p.stat().st_mtime)[ON_DISK:]:
            old.unlink(missing_ok=True)
    except Exception:  # a full disk, or a structure that cannot be written: must not stop a fit
        return
