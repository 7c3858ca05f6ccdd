"""Flows against flowjax and zuko (PyTorch): training steps, densities, samples, compile time, and likelihood reached.

python -m benchmarks.speed.flow [--only maf]          (needs the `bench` extra)

`--only quality` compares likelihoods over seeds instead, which takes long.

Four layers with networks of two hidden layers of 64; splines of 8 bins on [-4, 4]; Adam at 1e-3 on batches of 512.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Report, in_turns, options
from benchmarks.rivals import Elsewhere, answer, torch_device
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.source import Resident
from gen_jax.loop import compile_steps, initial_state, zero_metrics
from gen_jax.models.bijections import (
    Affine,
    Chain,
    Coupling,
    MaskedAutoregressive,
    RationalQuadraticSpline,
    Reverse,
    Stack,
)
from gen_jax.models.flow import Flow, Normal

KINDS, SIZES, BATCH, POINTS, WARM = ("realnvp", "maf", "spline"), (2, 16, 64), 512, 4096, 300
SEEDS, STEPS = 5, 2000  # of the comparison of quality
SPREAD = "its time lies in some 75 loops over the values of a layer, by a trace, none of them above 5 %"
CHUNK = 20  # steps that are timed together, and that one call of our compiled program takes


class Rival(NamedTuple):
    """What is timed. `train` takes CHUNK steps and returns their mean loss."""

    train: Callable[[], float]
    density: Callable[[], Any]
    sample: Callable[[], Any]
    compiling: float  # seconds until the first step is done
    parameters: int


def data(size: int) -> np.ndarray:
    """(20,000, size) points of a mixture of eight normals in random places, in units of their spread."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, size))[rng.integers(8, size=20_000)] + 0.3 * rng.normal(size=(20_000, size))
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)


def count(params: Any) -> int:
    return sum(a.size for a in jax.tree.leaves(params))


def ours(kind: str, x: np.ndarray, points: np.ndarray, seed: int = 0) -> Rival:
    size = x.shape[1]
    layer = {
        "realnvp": Coupling(Affine()),
        "maf": MaskedAutoregressive(),
        "spline": Coupling(RationalQuadraticSpline(8, 4.0)),
    }[kind]
    model = Flow(Normal((size,)), [Stack(Chain([layer, Reverse()]), 4)])
    algorithm = descent(model, {"flow": optax.adam(1e-3)})
    source = jax.tree.map(jnp.asarray, Resident({"x": x}, BATCH, seed=seed))
    state = initial_state(algorithm, source, seed)
    advance, zeros = compile_steps(algorithm, CHUNK), zero_metrics(algorithm, state, source)
    start = time.perf_counter()
    held = [advance(state, zeros(), source, 1)[0]]
    jax.block_until_ready(held)
    seconds = time.perf_counter() - start

    def train() -> float:
        held[0], totals, _ = advance(held[0], zeros(), source, CHUNK)
        return float(totals["loss"].value)

    density = jax.jit(lambda state: model.log_prob(state, {"x": jnp.asarray(points)}))
    sample = jax.jit(lambda state: model.sample(state, jax.random.key(0), POINTS)["x"])
    return Rival(train, lambda: density(held[0]), lambda: sample(held[0]), seconds, count(held[0].params))


def flowjax(kind: str, x: np.ndarray, points: np.ndarray, seed: int = 0) -> Rival:
    """With the step and the loss of its own `fit_to_data`, whose loop takes a key and a batch per step, from arrays on
    the device."""
    import equinox as eqx
    import flowjax.bijections as bijections
    import flowjax.flows as flows
    import paramax
    from flowjax.distributions import StandardNormal
    from flowjax.train.losses import MaximumLikelihoodLoss
    from flowjax.train.train_utils import step

    make = flows.masked_autoregressive_flow if kind == "maf" else flows.coupling_flow
    spline = {"transformer": bijections.RationalQuadraticSpline(knots=7, interval=4)} if kind == "spline" else {}
    shape = dict(base_dist=StandardNormal(x.shape[1:]), flow_layers=4, nn_width=64, nn_depth=2)
    flow = make(jax.random.key(seed), **shape, **spline)
    held = list(eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda a: isinstance(a, paramax.NonTrainable)))
    tx, loss = optax.adam(1e-3), MaximumLikelihoodLoss()
    held += [tx.init(held[0]), jax.random.key(seed + 1)]
    rng, device = np.random.default_rng(seed), jnp.asarray(x)
    drawn = jax.jit(lambda x, index: x[index])

    def epochs():
        while True:
            order = rng.permutation(len(x))
            yield from (drawn(device, order[i : i + BATCH]) for i in range(0, len(x) - BATCH + 1, BATCH))

    batches = epochs()

    def one():
        held[3], key = jax.random.split(held[3])
        batch = next(batches)
        held[0], held[2], value = step(held[0], held[1], batch, optimizer=tx, opt_state=held[2], loss_fn=loss, key=key)
        return value

    start = time.perf_counter()
    jax.block_until_ready(one())
    seconds = time.perf_counter() - start

    def train() -> float:
        return float(np.mean(jax.device_get([one() for _ in range(CHUNK)])))

    density = eqx.filter_jit(lambda params: eqx.combine(params, held[1]).log_prob(jnp.asarray(points)))
    sample = eqx.filter_jit(lambda params: eqx.combine(params, held[1]).sample(jax.random.key(0), (POINTS,)))
    return Rival(train, lambda: density(held[0]), lambda: sample(held[0]), seconds, count(held[0]))


def zuko(kind: str, size: int) -> Rival:
    """Couplings and autoregressive flows with a plain loop of PyTorch."""
    import torch
    import zuko

    torch.manual_seed(0)
    common = dict(transforms=4, hidden_features=(64, 64))
    make = zuko.flows.NSF if kind == "spline" else zuko.flows.MAF
    device = torch_device()
    flow = make(size, **common, **({} if kind == "maf" else {"passes": 2}), **({"bins": 8} if kind == "spline" else {}))
    flow = flow.to(device)
    adam = torch.optim.Adam(flow.parameters(), 1e-3, fused=True)
    x = torch.from_numpy(data(size)).to(device)

    def train() -> float:
        losses = []
        for _ in range(CHUNK):
            adam.zero_grad()
            loss = -flow().log_prob(x[torch.randint(len(x), (BATCH,), device=device)]).mean()
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    points = x[:POINTS]

    def without_gradients(f: Callable[[], Any]) -> None:
        with torch.no_grad():
            f()
        if device == "cuda":
            torch.cuda.synchronize()

    return Rival(
        train,
        partial(without_gradients, lambda: flow().log_prob(points)),
        partial(without_gradients, lambda: flow().sample((POINTS,))),
        0.0,
        sum(p.numel() for p in flow.parameters()),
    )


def served(case: str) -> None:
    """zuko in a process of its own, which is told what to do."""
    _, kind, size = case.removesuffix("/served").split("/")
    rival = zuko(kind, int(size))
    uses = rival._asdict() | {"parameters": lambda: rival.parameters}
    answer(lambda use: uses[use.strip()]() or 0)


def compare(report: Report, kind: str, size: int) -> None:
    what = f"{kind}, D = {size}"
    x = data(size)
    mine, theirs = ours(kind, x, x[:POINTS]), flowjax(kind, x, x[:POINTS])
    other = Elsewhere(__spec__.name, f"zuko/{kind}/{size}")
    train = {"gen_jax": mine.train, "flowjax": theirs.train, "zuko": partial(other.ask, "train")}
    losses = {name: np.mean([run() for _ in range(WARM // CHUNK)][-5:]) for name, run in train.items()}
    times = {name: seconds / CHUNK for name, seconds in in_turns(train).items()}
    why = SPREAD if kind == "spline" and jax.default_backend() == "cpu" else ""
    for name in ("flowjax", "zuko"):
        quality = f"{losses['gen_jax']:.2f} / {losses[name]:.2f} nats"
        report.row(f"step, {what}", times["gen_jax"], name, times[name], ">= 2", quality, mine.compiling, why)
    counts = {"flowjax": theirs.parameters, "zuko": int(other.ask("parameters"))}
    uses = {"density": (mine.density, theirs.density), "sample": (mine.sample, theirs.sample)}
    for use, pair in uses.items():
        times = in_turns({"gen_jax": pair[0], "flowjax": pair[1], "zuko": partial(other.ask, use)})
        for name, parameters in counts.items():
            quality = f"{mine.parameters:,} / {parameters:,} parameters"
            cells = times["gen_jax"], name, times[name], ">= 1", quality, 0.0
            report.row(f"{use} of {POINTS}, {what}", *cells, why)
    report.fact(f"first step, {what}", mine.compiling / theirs.compiling, "times as long as flowjax's")
    other.process.terminate()


def quality(report: Report, name: str) -> None:
    """Test negative log-likelihood of splines after as many steps, over seeds."""
    splits = load(name).splits
    mean, deviation = (f(splits["train"]["x"], axis=0) for f in (np.mean, np.std))
    x, test = ((np.asarray(splits[split]["x"]) - mean) / deviation for split in ("train", "test"))
    found = {}
    for maker in (ours, flowjax):
        values = []
        for seed in range(SEEDS):
            rival = maker("spline", x, test, seed)
            for _ in range(STEPS // CHUNK):
                rival.train()
            values.append(-float(np.mean(rival.density())))
        found[maker.__name__] = f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / SEEDS**0.5:.3f}"
    report.note(
        f"Test NLL of splines on {name} (standardized, nats), {STEPS} steps, {SEEDS} seeds, mean ± standard error: "
        f"gen_jax {found['ours']}, flowjax {found['flowjax']}."
    )


def main() -> None:
    if case := options().case:
        return served(case)
    report = Report("flow")
    for kind in KINDS:
        for size in SIZES:
            if report.options.only in f"{kind}{size}":
                compare(report, kind, size)
    for name in ("two_moons", "checkerboard", "ring8"):
        if report.options.only.startswith("quality") and report.options.only in f"quality {name}":
            quality(report, name)
    report.finish()


if __name__ == "__main__":
    main()
