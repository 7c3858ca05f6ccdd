"""Device mesh ("data", "model") and shardings of a run: the batch along "data", parameters by rules.

Means in losses become all-reduces automatically, EM's sums by `psum_over_data`: models are unaware of devices.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gen_jax.core import Algorithm, Batch, Metrics, PyTree, State
from gen_jax.errors import UserError

__all__ = ["P", "Layout", "force_cpu_devices", "is_writer", "over_data", "psum_over_data", "start_processes"]

P = PartitionSpec
_FORCED = re.compile(r"xla_force_host_platform_device_count=(\d+)")


@dataclass(frozen=True)
class Layout:
    """The distribution of a run over devices.

    `data` and `model` are the mesh's sizes; data = 0 takes all remaining devices. `rules` are (regex, spec) pairs: the
    first whose regex is found in a leaf's path, e.g. "params/vae/decoder/Dense_0/kernel", applies; rules for parameters
    also apply to their optimizer states, whose paths contain the parameter's. `fsdp` shards leaves without a rule along
    their largest divisible axis; everything else is replicated.
    """

    data: int = 0
    model: int = 1
    fsdp: bool = False
    rules: Sequence[tuple[str, PartitionSpec]] = ()

    def mesh(self) -> Mesh:
        _allow_threads()
        devices = jax.devices()
        data = self.data or len(devices) // self.model
        asked = data * self.model
        if not 1 <= asked <= len(devices):
            raise UserError(
                f"{asked} devices asked for ({data} data x {self.model} model), {len(devices)} present "
                f"({devices[0].platform}): lower --devices, or the layout's model axis"
            )
        if len({device.process_index for device in devices[:asked]}) < jax.process_count():
            raise UserError(f"{asked} of {len(devices)} devices leave a process without one: use them all")
        axes = (AxisType.Auto, AxisType.Auto)
        return Mesh(np.asarray(devices[:asked]).reshape(data, self.model), ("data", "model"), axis_types=axes)

    def shardings(self, state: State, mesh: Mesh) -> State:
        """A sharding for every leaf of a (possibly abstract) State."""

        used = set()

        def leaf(path: Any, a: Any) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            for pattern, spec in self.rules:
                if re.search(pattern, name) and len(spec) <= len(a.shape):
                    used.add(pattern)
                    self._check(name, a.shape, spec, mesh)
                    return NamedSharding(mesh, spec)
            return NamedSharding(mesh, self._default(a.shape, mesh.shape["data"]))

        shardings = jax.tree_util.tree_map_with_path(leaf, state)
        if unused := [pattern for pattern, _ in self.rules if pattern not in used]:
            raise UserError(f"the sharding rule {unused[0]!r} matches no leaf of the State")
        return shardings

    def _check(self, name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
        for size, axis in zip(shape, spec):
            parts = prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ()))
            if size % parts:
                raise UserError(f"{name} {list(shape)} cannot be divided as {spec}: {size} is no multiple of {parts}")

    def _default(self, shape: tuple[int, ...], devices: int) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
        if not self.fsdp or not axes or prod(shape) < 1024:
            return P()
        largest = max(axes, key=lambda axis: shape[axis])
        return P(*["data" if axis == largest else None for axis in range(len(shape))])


def over_data(algorithm: Algorithm, mesh: Mesh) -> Algorithm:
    """The algorithm with every batch sharded along the mesh's "data" axis."""

    def step(state: State, batch: PyTree) -> tuple[State, Metrics]:
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, P("data")))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return algorithm.step(state, batch)

    return algorithm._replace(step=step)


def psum_over_data(f: Callable[[State, Batch], PyTree], state: State, batch: Batch) -> PyTree:
    """f(state, batch) for an f that sums over examples: each device of the "data" axis sums its own, then a psum.

    Models may then process their examples in blocks, which a program partitioned by the compiler would first gather.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("data", 1) == 1:
        return f(state, batch)
    local = lambda state, batch: jax.lax.psum(f(state, batch), "data")
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)(state, batch)


def force_cpu_devices(*numbers: int) -> None:
    """Splits the CPU into as many devices as the largest number; they share its cores. Only before JAX starts."""
    if min(numbers) < 1:
        raise UserError(f"--devices must be at least 1, got {min(numbers)}")
    if not _FORCED.search(os.environ.get("XLA_FLAGS", "")):
        jax.config.update("jax_num_cpu_devices", max(numbers))
        _allow_threads()


def _allow_threads() -> None:
    """Gives each CPU device at least two threads. XLA starts one thread per core for all of them; with fewer than two
    per device, programs can deadlock waiting for parts that have no thread to run on, e.g. EM on four devices and two
    cores. Only before JAX starts."""
    forced = _FORCED.findall(os.environ.get("XLA_FLAGS", ""))
    devices = int(forced[-1]) if forced else jax.config.jax_num_cpu_devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("PJRT_NPROC") or cores)
    if devices > 1 and threads < 2 * devices:
        os.environ["PJRT_NPROC"] = str(2 * devices)


_allow_threads()


def start_processes() -> None:
    """Connects to the other processes of the run.

    On clusters JAX knows (Slurm, Open MPI, TPU pods) nothing needs to be set; elsewhere JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID identify them. A process that dies ends the others within
    seconds instead of minutes. If not all have joined after GEN_JAX_JOIN_SECONDS (60), this one exits with code 2.
    """
    given = os.environ.get
    seconds = int(given("GEN_JAX_JOIN_SECONDS", "60"))
    help_text = "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who takes part"

    def give_up() -> None:  # JAX itself would abort the process without a helpful message
        os.write(2, f"error: not all processes of the run came within {seconds} s: {help_text}\n".encode())
        os._exit(UserError.exit_code)

    patience = threading.Timer(seconds, give_up)
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator_address=given("JAX_COORDINATOR_ADDRESS"),
            num_processes=int(given("JAX_NUM_PROCESSES")) if given("JAX_NUM_PROCESSES") else None,
            process_id=int(given("JAX_PROCESS_ID")) if given("JAX_PROCESS_ID") else None,
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=10,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"cannot join the other processes ({error}): {help_text}") from None
    finally:
        patience.cancel()


def is_writer() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0
