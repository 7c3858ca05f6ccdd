"""Timing of the training step exactly as `fit` runs it, with as many calls in flight."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from gen_jax.configs import ConfigFile, load
from gen_jax.core import State, Trainable, is_sequential
from gen_jax.data.dataset import Dataset
from gen_jax.data.loading import load as load_data
from gen_jax.errors import UserError
from gen_jax.experiment import Experiment
from gen_jax.loop import AHEAD, Program, program
from gen_jax.profiling.cost import cost
from gen_jax.profiling.device import Peaks, copy_bandwidth, data_sheet, matmul_peak, verdict
from gen_jax.profiling.flops import of_algorithm

__all__ = [
    "Case",
    "Measurement",
    "cadence",
    "cadences",
    "keep_programs",
    "lay_out",
    "loop_length",
    "measure_case",
    "moving_mean",
    "products_in",
    "step_times",
]


@dataclass(frozen=True)
class Case:
    """A benchmark case: a config, optionally with another batch size, chunk, dtype or number of devices.

    dtype: compute dtype of the networks, for configs with a knob `precision`; otherwise of matrix products only, on
    accelerators: "bfloat16" rounds their inputs, "float32" is JAX's default (TF32 on NVIDIA GPUs).
    """

    config: str
    batch: int | None = None
    chunk: int | None = None
    dtype: str | None = None
    devices: int = 1

    def __post_init__(self):
        for name in ("batch", "chunk", "devices"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")

    def loaded(self) -> ConfigFile:
        loaded = load(self.config)
        if self.dtype is None or "precision" in loaded.defaults:
            return loaded.with_knobs({"precision": self.dtype} if self.dtype else {})
        if self.dtype != "float32" and jax.default_backend() == "cpu":
            raise UserError(
                f"{self.config} has no knob --precision, and on CPUs products are of the type of their inputs: "
                "--dtype bfloat16 is for its use on accelerators"
            )
        return loaded

    def experiment(self, data_dir: Path | None = None) -> Experiment:
        """The experiment with the settings of the case; an error if its batch cannot be divided over the devices."""
        built = self.loaded().build(data_dir)
        layout = replace(built.layout, data=self.devices)
        experiment = replace(built, batch=self.batch or built.batch, chunk=self.chunk or built.chunk, layout=layout)
        layout.mesh()  # an error if there are too few devices
        if experiment.batch and experiment.batch % self.devices:
            raise UserError(
                f"{self.config}: a batch of {experiment.batch} cannot be divided over {self.devices} devices"
            )
        return experiment


@dataclass(frozen=True)
class Measurement:
    """Measurements of one case. Times are seconds per step unless noted; None means unknown. If a player is updated on
    every n-th step only, times are means over n steps."""

    config: str
    model: str
    batch: int
    chunk: int
    dtype: str
    devices: int
    tracing: float
    lowering: float
    compiling: float
    p50: float
    p95: float
    steps: int  # number of timed steps
    tokens: int | None  # sequence steps in a batch
    memory: int  # bytes that the compiled program needs besides its data: state, temporaries, results
    flops: float  # per step by XLA's analysis, with every loop iteration counted
    formula: float | None  # of its matrix products, by the formula of its family and the passes of the algorithm
    bytes: float
    endless_loops: int
    peak_flops: float  # measured, sum over devices
    peak_bandwidth: float  # measured in a working set of this size, sum over devices
    known_flops: float | None  # by the data sheet, sum over devices

    @property
    def steps_per_second(self) -> float:
        return 1 / self.p50

    @property
    def examples_per_second(self) -> float:
        return self.batch / self.p50

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens and self.tokens / self.p50

    @property
    def model_flops(self) -> float:
        """FLOPs that a step needs: XLA's count, or the formula's if smaller.

        XLA counts the most expensive branch of a conditional, whichever runs; the formula counts matrix products only.
        """
        return min(self.flops, self.formula or self.flops)

    @property
    def utilization(self) -> float:
        """Fraction of the measured peak of all devices."""
        return self.model_flops / self.p50 / self.peak_flops

    @property
    def known_utilization(self) -> float | None:
        """Fraction of the data-sheet peak."""
        return self.known_flops and self.model_flops / self.p50 / self.known_flops

    @property
    def bandwidth(self) -> float:
        """Bytes/s read and written by instructions; above the peak if served by caches."""
        return self.bytes / self.p50

    @property
    def roofline(self) -> tuple[str, float]:
        return verdict(self.model_flops, self.bytes, self.p50, Peaks(self.peak_flops, self.peak_bandwidth))

    @property
    def words(self) -> str:
        """The verdict in plain words."""
        bound, reached = self.roofline
        intensity = self.model_flops / max(self.bytes, 1.0)
        at = f"{intensity:.1f} FLOP/byte, {100 * reached:.0f} % of the roof"
        return {
            "compute": f"compute bound ({at}): faster only by fewer or cheaper operations, or a lower precision",
            "memory": f"memory bound ({at}): faster by touching less memory: fusing, smaller types, smaller blocks",
            "latency": f"latency bound ({at}): operations too small for the device, or far from its peaks; a larger "
            "chunk or batch costs little, and --profile lists them",
        }[bound]


def measure_case(case: Case, seconds: float = 3.0, data_dir: Path | None = None) -> Measurement:
    """Compiles a case and times it for about `seconds`. Raises UserError if it cannot be built."""
    experiment, source = lay_out(case, data_dir)
    with products_in(case.dtype):
        try:
            ready = program(experiment.algorithm_of_seeds, source, experiment.chunk, experiment.layout)
        except ValueError as error:  # raised by models and algorithms for incompatible data
            raise UserError(f"{case.config}: {error}") from error
        try:
            return _timed(case, experiment, ready, seconds)
        finally:
            ready.source.close()


@contextmanager
def keep_programs(folder: Path) -> Iterator[None]:
    """A context that caches programs that take at least a second to compile in this folder."""

    def use(path: str | None) -> None:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", path)

    before = jax.config.jax_compilation_cache_dir
    use(str(folder))
    try:
        yield
    finally:
        use(before)


def products_in(dtype: str | None) -> Any:
    """A context in which accelerators round the inputs of matrix products, for "bfloat16"."""
    rounded = dtype == "bfloat16" and jax.default_backend() != "cpu"
    return jax.default_matmul_precision("BF16_BF16_F32" if rounded else None)


def lay_out(case: Case, data_dir: Path | None = None) -> tuple[Experiment, Any]:
    """The experiment of a case, laid out on its devices, and its source; data smaller than a batch is repeated.

    If the config uses full batches, the case's batch size is the size of the data set.
    """
    experiment = case.experiment(data_dir)
    data = experiment.data if isinstance(experiment.data, Dataset) else load_data(experiment.data, data_dir)
    size = len(data[experiment.train]["x"])
    whole = case.loaded().build(data_dir).batch is None
    if experiment.batch and (whole or experiment.batch > size):
        index = np.arange(experiment.batch) % size
        taken = {name: np.asarray(a)[index] for name, a in data[experiment.train].items()}
        data = replace(data, splits={"taken": taken})
        experiment = replace(experiment, train="taken", batch=None if whole else experiment.batch)
    return experiment, experiment.source(data)


def _timed(case: Case, experiment: Experiment, ready: Program, seconds: float) -> Measurement:
    chunk, batch = experiment.chunk, jax.eval_shape(lambda view: view.batch_at(0), ready.source.example())
    state = jax.block_until_ready(ready.initial_state())
    jax.clear_caches()  # evaluating shapes has traced the step: start afresh
    start = time.perf_counter()
    traced = ready.advance.trace(state, ready.zeros(), ready.source.window(0, chunk), loop_length(chunk))
    middle = time.perf_counter()
    lowered = traced.lower()
    end = time.perf_counter()
    compiled = lowered.compile()
    compiling = time.perf_counter() - end
    memory = compiled.memory_analysis()
    if chunk == 1 and case.devices == 1:
        spent = cost(traced.jaxpr, compiled, cadence(experiment.model))
    else:  # the plain step on one device: the program knows neither its chunk's length nor, sharded, the whole batch
        view = jax.eval_shape(lambda source: source, ready.source.example())
        step = lambda state, view: experiment.algorithm_of_seeds.step(state, view.batch_at(state.step))
        jaxpr = jax.make_jaxpr(step)(ready.shapes, view)
        spent = cost(jaxpr, None, cadence(experiment.model))
    cycle = math.lcm(*cadences(experiment.model), chunk) // chunk  # calls per full cycle of player updates
    times = moving_mean(list(step_times(ready, state, chunk, seconds, 4 + cycle)), cycle)
    dtype = case.dtype or case.loaded().knobs.get("precision", "float32")
    needs = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes + _size(state)
    maker, x = data_sheet(dtype), batch["x"]
    apart = 1 if jax.default_backend() == "cpu" else case.devices  # a CPU's devices share its cores and memory
    return Measurement(
        config=Path(case.config).stem,
        model=type(experiment.model).__name__,
        batch=len(x),
        chunk=chunk,
        dtype=dtype,
        devices=case.devices,
        tracing=middle - start,
        lowering=end - middle,
        compiling=compiling,
        p50=float(np.median(times)),
        p95=float(np.percentile(times, 95)),
        steps=(len(times) + cycle - 1) * chunk,
        tokens=x.shape[0] * x.shape[1] if is_sequential(batch) else None,
        memory=needs,
        flops=spent.flops,
        formula=of_algorithm(experiment.model, experiment.algorithm_of_seeds.step, ready.shapes, batch),
        bytes=spent.bytes,
        endless_loops=spent.endless,
        peak_flops=apart * matmul_peak(dtype),
        peak_bandwidth=apart * copy_bandwidth(needs),
        known_flops=maker and apart * maker.flops,
    )


def moving_mean(times: Sequence[float], n: int) -> np.ndarray:
    """The means of every n consecutive times."""
    return np.convolve(times, np.full(n, 1 / n), "valid")


def loop_length(chunk: int) -> Any:
    """The number of steps per call, as the loop passes it."""
    return 1 if chunk == 1 else np.int32(chunk)


def cadences(model: Any) -> list[int]:
    """The update interval (`every`) of each objective."""
    return [objective.every for objective in (model.objectives if isinstance(model, Trainable) else ())]


def cadence(model: Any) -> int:
    """The unique cadence above 1; 1 if there is none, or several."""
    found = set(cadences(model)) - {1}
    return found.pop() if len(found) == 1 else 1


def step_times(ready: Program, state: State, chunk: int, seconds: float, least: int = 5) -> Iterator[float]:
    """Yields seconds per step from the end of a call to the end of the next, at least `least` times, after warm-up.

    As in the loop, later calls are already in flight, and the time a source takes to make batches counts.
    """
    totals, step = ready.zeros(), int(state.step)
    running, ends, begin = deque(), [], time.perf_counter()
    while len(ends) < least + 3 or time.perf_counter() - begin < seconds:
        window = ready.source.window(step, chunk)
        state, totals, token = ready.advance(state, totals, window, loop_length(chunk))
        running.append(token)
        step += chunk
        if len(running) > AHEAD:
            running.popleft().block_until_ready()
            ends.append(time.perf_counter())
            begin = ends[0]
            if len(ends) > 3:
                yield (ends[-1] - ends[-2]) / chunk
    jax.block_until_ready(state)


def _size(tree: Any) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
