"""Compiled programs kept on disk."""

from __future__ import annotations

import os
from pathlib import Path

import jax

__all__ = ["use_compilation_cache"]


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
