"""Checkpoints of a run: asynchronous, verified, and never lost to a crash (on top of orbax).

Orbax makes a step visible only when it is complete. This module adds: a SHA-256 of the content of every checkpoint,
verified on restore; fallback from a damaged checkpoint, which is set aside, to the one before; a state with NaN is
never saved and a NaN metric is never the best; the last save is awaited however the run ends; two runs cannot write to
the same folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gen_jax.core import PyTree, State
from gen_jax.errors import CheckpointError, UserError
from gen_jax.sharding import is_writer

__all__ = ["FORMAT", "Best", "Checkpoints", "digest", "layout", "mean_state"]

FORMAT = 2  # of the layout of States; raised when entries are renamed, so that older checkpoints are refused in words

_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "Permission denied", "Too many open files")


class Best(NamedTuple):
    """The metric that selects the best checkpoint, e.g. Best("validation/elbo", "max")."""

    metric: str
    mode: Literal["min", "max"] = "max"

    def check(self, metrics: Mapping[str, Any]) -> None:
        """Raises a UserError if other metrics of its group ("validation/...") were measured, but not this one.

        It is not an error if no metric of the group was measured: a run asked to stop saves without evaluating.
        """
        group = self.metric.rpartition("/")[0]
        measured = sorted(name for name in metrics if name.rpartition("/")[0] == group)
        if measured and self.metric not in metrics:
            raise UserError(f"the best checkpoint is chosen by {self.metric!r}, but there are {', '.join(measured)}")

    def score(self, metrics: Mapping[str, Any] | None) -> float:
        """Score of the metrics, higher is better; -inf if the metric is missing or NaN."""
        value = (metrics or {}).get(self.metric)
        if value is None or not math.isfinite(value):
            return -math.inf
        return value if self.mode == "max" else -value


_ORBAX_LOG = logging.getLogger("absl")


class Checkpoints:
    """The checkpoints in a folder; a context manager.

    keep: how many of the newest to keep (at least 2), besides the best.
    config: the settings of the run, kept in every checkpoint; a checkpoint with other settings is not restored.
    write: take the folder's lock, to save, clean up after killed runs and set damaged checkpoints aside; otherwise
    read-only.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 3,
        best: Best | None = None,
        config: Mapping[str, Any] | None = None,
        write: bool = True,
    ):
        self.folder, self.keep, self.best = Path(folder).resolve(), max(keep, 2), best
        self.config, self.write = config, write
        self._lock: Any = None
        self._orbax: Any = None
        self._saving: Any = None  # orbax's response to the save in progress

    def __enter__(self) -> Checkpoints:
        if self.write:
            self._take_lock()
        self._level = _ORBAX_LOG.level
        _ORBAX_LOG.setLevel(
            logging.CRITICAL
        )  # it logs the errors that it raises, with all calls of each of its threads
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
            if self._orbax is not None:
                with _explained(f"{self.folder} could not be closed"):
                    self._orbax.close()
        except CheckpointError:
            if error is None:  # else the first error is told
                raise
        finally:
            _ORBAX_LOG.setLevel(self._level)
            self._orbax = None
            if self._lock is not None:
                self._lock.close()

    @property
    def steps(self) -> list[int]:
        """Finished steps, oldest first; some may turn out to be damaged."""
        if not self.folder.is_dir():
            return []
        return sorted(int(f.name) for f in self.folder.iterdir() if f.name.isdigit() and f.is_dir())

    @property
    def best_step(self) -> int | None:
        """The finished step with the best metric; None if no step has it."""
        scored = [(self.best.score(m.metrics), m.step) for m in self._open().checkpoints] if self.best else []
        score, step = max(scored, default=(-math.inf, None))
        return step if score > -math.inf else None

    def save(self, step: int, state: State, metrics: Mapping[str, Any] | None = None) -> bool:
        """Starts an asynchronous save; the state may be donated once this returns. Returns False, saving nothing, if a
        parameter or an extra is NaN or infinite (the curve of `until_converged` is, after its last iteration)."""
        if not bool(_all_finite((state.params, {k: v for k, v in state.extra.items() if k != "curve"}))):
            return False
        orbax = self._open()
        known = {name: float(np.mean(a)) for name, a in (metrics or {}).items() if isinstance(a, (int, float, list))}
        self.wait()
        if step in self.steps:
            return True
        with _explained(f"checkpoint {step} could not be written to {self.folder}"):
            self._saving = orbax.save_checkpointables_async(
                step,
                {"state": state},
                metrics={name: value for name, value in known.items() if math.isfinite(value)},
                custom_metadata={
                    "format": FORMAT,
                    "sha256": digest(state),
                    "leaves": layout(state),
                    "config": None if self.config is None else dict(self.config),
                },
            )
        if self._saving is None:
            raise CheckpointError(f"checkpoint {step} was refused: {self.folder} holds a later step")
        return True

    def wait(self) -> None:
        """Waits until the save in progress is durable. Raises CheckpointError if it failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with _explained(f"a checkpoint could not be written to {self.folder}"):
                saving.result()  # which also closes its thread and its three open files

    def restore(self, like: State, step: int | None = None) -> State | None:
        """Restores the newest intact checkpoint, or that of `step`; None if there are no checkpoints.

        like: the abstract State (`loop.abstract_state` with shardings); its devices need not be those that saved it.
        Raises UserError if shapes or dtypes differ. A damaged checkpoint is set aside with a warning; raises
        CheckpointError if none is intact or reading fails for another reason (memory, permissions).
        """
        found = self._newest() if step is None else step
        damaged = []
        while found is not None:
            state, reason = self._load(found, like)
            if state is not None:
                return state
            if step is not None:
                raise CheckpointError(f"checkpoint {found} in {self.folder} is damaged ({reason})")
            damaged.append(found)
            self._set_aside(found, reason)
            found = self._newest(below=found)
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints {damaged} in {self.folder} is sound; to start afresh, remove that folder"
            )
        return None

    def _newest(self, below: int | None = None) -> int | None:
        """The newest step according to the first process."""
        step = max((s for s in self.steps if below is None or s < below), default=-1)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return None if step < 0 else step

    def _load(self, step: int, like: State) -> tuple[State | None, str]:
        """A State bitwise equal to the saved one in every process, or None and the reason."""
        orbax, state, meta, reason = self._open(), None, {}, ""
        try:
            meta = orbax.checkpointables_metadata(step).custom_metadata
            _check_format(step, meta.get("format"))
            _check_layout(step, meta["leaves"], layout(like))
            self._check_config(step, meta)
            state = orbax.load_checkpointables(step, {"state": like})["state"]
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore have no common base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if isinstance(error, (MemoryError, PermissionError)) or any(word in str(error) for word in _NOT_DAMAGE):
                raise CheckpointError(f"checkpoint {step} in {self.folder} cannot be read: {reason}") from error
        if not _everywhere(state is not None):
            return None, reason or "another process could not read it"
        if digest(state) != meta["sha256"]:
            return None, "its content does not match its SHA-256"
        return state, ""

    def _check_config(self, step: int, meta: Mapping[str, Any]) -> None:
        there, here = meta.get("config"), self.config
        if here is not None and there is not None and there != here:
            names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
            changes = "; ".join(f"{name} = {there.get(name)} there, {here.get(name)} here" for name in names)
            raise UserError(f"checkpoint {step} in {self.folder} is of other settings: {changes}")

    def _set_aside(self, step: int, reason: str) -> None:
        action = f"; it is kept as damaged-{step}" if self.write else ""
        warnings.warn(
            f"checkpoint {step} in {self.folder} is damaged ({reason}){action}; looking for the one before",
            stacklevel=3,
        )
        if not self.write:
            return
        if is_writer():
            target = self.folder / f"damaged-{step}"
            number = 1
            while target.exists():
                target, number = self.folder / f"damaged-{step}-{number}", number + 1
            (self.folder / str(step)).rename(target)
        _everywhere(True)  # no process continues before it is renamed
        self._orbax.reload()

    def _open(self) -> Any:
        """The orbax checkpointer, created on first use: importing it takes longer than many runs' first step."""
        if self._orbax is None:
            from orbax.checkpoint import v1 as ocp

            training, keeping = ocp.training, ocp.training.preservation_policies
            policies = [keeping.LatestN(self.keep)]
            if self.best:
                policies.append(keeping.BestN(get_metric_fn=self.best.score, reverse=False, n=1))
            with _explained(f"{self.folder} cannot be opened"):
                self._orbax = training.Checkpointer(
                    self.folder,
                    save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                    preservation_policy=keeping.AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=self.write,
                )
        return self._orbax

    def _take_lock(self) -> None:
        if not is_writer():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "LOCK", "a+")
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(f"another run (process {holder}) is writing to {self.folder}") from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()


def mean_state(restore: Callable[[int], State], steps: Sequence[int]) -> State:
    """The State of the last step with the mean parameters and batch statistics of all of them; moving averages are
    left out. restore: the State of a step."""
    entries = lambda state: (state.params, {name: a for name, a in state.extra.items() if name == "batch_stats"})
    add = lambda a, b: a + b if jnp.issubdtype(a.dtype, jnp.inexact) else b
    total, state = None, None
    for step in steps:
        state = restore(step)
        total = entries(state) if total is None else jax.tree.map(add, total, entries(state))
    divide = lambda a: a / len(steps) if jnp.issubdtype(a.dtype, jnp.inexact) else a
    params, statistics = jax.tree.map(divide, total)
    kept = {name: value for name, value in state.extra.items() if name != "ema"}
    return state._replace(params=params, extra={**kept, **statistics})


def digest(tree: PyTree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bytes of all leaves, independent of their sharding."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        a = _host(leaf)
        total.update(f"{_name(path)}:{a.dtype}{a.shape};".encode())
        total.update(np.ascontiguousarray(a).view(np.uint8))
    return total.hexdigest()


def layout(tree: PyTree) -> dict[str, str]:
    """{path: "dtype(shape)"} of all leaves of a (possibly abstract) tree."""
    return {_name(path): f"{a.dtype}{list(a.shape)}" for path, a in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _host(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        else:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.atleast_1d(np.asarray(leaf))


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    inexact = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(a).all() for a in inexact]))


def _everywhere(ok: bool) -> bool:
    """Whether `ok` holds in every process; a barrier for all of them."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _check_format(step: int, saved: Any) -> None:
    if saved is not None and saved != FORMAT:  # metadata that is absent is damage
        raise UserError(
            f"checkpoint {step} was written by another version of gen_jax (layout {saved}, this one reads {FORMAT}): "
            "train again, or use the version that wrote it"
        )


def _check_layout(step: int, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    if saved == wanted:
        return
    lines: Sequence[str] = [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} in this run"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    raise UserError(f"checkpoint {step} is of another model or optimizer: {'; '.join(lines[:3])}{more}")


class _explained:
    """Turns any exception from orbax into a CheckpointError."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (UserError, CheckpointError)):
            full = "No space left" in str(error)
            reason = "no space left on the device" if full else (str(error).strip().splitlines() or [repr(error)])[0]
            raise CheckpointError(f"{self.what}: {reason[:300]}") from error
