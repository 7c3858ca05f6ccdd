"""Convolutions of every config against PyTorch: forward and backward passes of all convolutional layers.

python -m benchmarks.speed.convolutions [--only sngan]          (needs the `bench` extra)

Each layer is run by itself at the config's whole batch, in both libraries with its own threads; times are summed over
the layers of a config, each distinct layer measured once. Of PyTorch the faster memory format counts, layer by layer. A
step that takes its batch in parts which stay in the caches can take less than the sum.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness import Report, options
from benchmarks.rivals import Elsewhere, answer, torch_device
from gen_jax.configs import load as load_config
from gen_jax.data import load
from gen_jax.models.common.convolutions import Conv, ConvTranspose, UpsampleConv, over_rows
from gen_jax.profiling.flops import layers

ROUNDS, SECONDS = 5, 0.1


class Layer(NamedTuple):
    kind: str  # plain, doubled, transposed
    x: tuple[int, ...]  # (B, H, W, C)
    kernel: tuple[int, ...]  # (height, width, C, features)
    strides: int


def layers_of(config: Path) -> list[Layer]:
    """Every convolution that a step of this config calls, at its batch."""
    experiment = load_config(config).build()
    source = experiment.source(load(experiment.data))
    batch = jax.eval_shape(lambda source: source.batch_at(0), jax.tree.map(jnp.asarray, source))
    kinds = {ConvTranspose: "transposed", UpsampleConv: "doubled", Conv: "plain"}
    found = []
    for called in layers(experiment.model.init, batch):
        if type(called.layer) in kinds:
            x = (len(batch["x"]), *called.x[1:])
            found += [Layer(kinds[type(called.layer)], x, called.kernel, called.layer.strides)] * called.times
    return found


def ours(layer: Layer) -> Callable[[], Any]:
    kind = {"plain": Conv, "doubled": UpsampleConv, "transposed": ConvTranspose}[layer.kind]
    module = kind(layer.kernel[-1], layer.kernel[:2], layer.strides)
    params = {"params": {"kernel": jnp.ones(layer.kernel), "bias": jnp.zeros(layer.kernel[-1])}}
    x = jnp.ones(layer.x)
    y = jax.eval_shape(module.apply, params, x)

    @jax.jit
    def run(params, x, cotangent):
        y, pull = jax.vjp(module.apply, params, x)
        return y, pull(cotangent)

    cotangent = jnp.ones(y.shape)
    return lambda: jax.block_until_ready(run(params, x, cotangent))


def theirs(layer: Layer, channels_last: bool) -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    device = torch_device()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tall, wide, channels, features = layer.kernel
    batch, height, width, _ = layer.x
    x = torch.ones(batch, channels, height, width).to(device, memory_format=layout).requires_grad_()
    pads = (tall // 2, wide // 2)
    shape = (channels, features, tall, wide) if layer.kind == "transposed" else (features, channels, tall, wide)
    kernel = torch.ones(shape).to(device, memory_format=layout).requires_grad_()
    bias = torch.zeros(features, device=device, requires_grad=True)

    def forward():
        if layer.kind == "transposed":
            return functional.conv_transpose2d(x, kernel, bias, layer.strides, pads, layer.strides - 1)
        seen = functional.interpolate(x, scale_factor=2) if layer.kind == "doubled" else x
        return functional.conv2d(seen, kernel, bias, layer.strides, pads)

    cotangent = torch.ones_like(forward())

    def run():
        x.grad = kernel.grad = bias.grad = None
        forward().backward(cotangent)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(run: Callable[[], Any]) -> float:
    """The median of rounds of calls, of one call."""
    run()
    start = time.perf_counter()
    run()
    n = max(1, int(SECONDS / ROUNDS / (time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(n):
            run()
        rounds.append((time.perf_counter() - start) / n)
    return statistics.median(rounds)


def by_torch(layer: str) -> float:
    """Seconds of a layer, in JSON, in the faster of PyTorch's memory formats."""
    return min(seconds(theirs(Layer(*json.loads(layer)), last)) for last in (False, True))


def main() -> None:
    chosen = options()
    if chosen.case:
        return answer(by_torch)
    report, elsewhere = Report("convolutions"), Elsewhere(__spec__.name, "PyTorch")
    rival = lambda layer: elsewhere.ask(json.dumps(layer))

    @lru_cache
    def measured(layer: Layer) -> tuple[float, float]:
        pair = seconds(ours(layer)), rival(layer)
        jax.clear_caches()
        return pair

    alike: dict[tuple[Layer, ...], list[str]] = {}  # configs by their layers
    for config in sorted(Path("configs").glob("*.py")):
        if chosen.only in config.stem and (found := layers_of(config)):
            alike.setdefault(tuple(sorted(found)), []).append(config.stem)
    for found, configs in alike.items():
        pairs = [(layer, *measured(layer)) for layer in found]
        (mine, its), lost = map(sum, list(zip(*pairs))[1:]), [(a - b, layer) for layer, a, b in pairs if a > b]
        worst = max(lost, default=(0, None))[1]
        why = "" if worst is None else f"most is lost in {worst.kind} {worst.kernel} of {worst.x}"
        what = f"{', '.join(configs)}: {len(found)} convolutions"
        report.row(what, mine, "PyTorch, layer by layer", its, ">= 1", why=why)
    if not chosen.only and jax.default_backend() == "cpu":
        report.note(limits(rival))
    elsewhere.process.terminate()
    report.finish()


def limits(rival: Callable[[Layer], float]) -> str:
    """How fast the matrix products are that the convolutions of many channels are made of, and what PyTorch reaches."""
    pixels, channels = 16 * 28 * 28, 64
    x, y, kernel = (jnp.ones(shape) for shape in ((pixels, 3 * channels), (pixels, channels), (3 * channels, channels)))
    products = {
        "forward": (jax.jit(jnp.matmul), x, kernel),
        "of kernel gradients": (jax.jit(over_rows), x, y),
    }
    once = lambda program, *arguments: jax.block_until_ready(program(*arguments))
    rate = lambda *product: 2 * x.size * channels / seconds(partial(once, *product)) / 1e9
    found = ", ".join(f"{name} {rate(*product):.0f}" for name, product in products.items())
    layer = Layer("plain", (128, 28, 28, channels), (3, 3, channels, channels), 1)
    flops = 6 * 9 * channels**2 * layer.x[0] * 28 * 28
    return (
        f"GFLOP/s of XLA's products of {channels} channels: {found}. Of the whole layer {layer.kernel} of {layer.x}, "
        f"counted without Winograd's savings: gen_jax {flops / seconds(ours(layer)) / 1e9:.0f}, PyTorch "
        f"{flops / rival(layer) / 1e9:.0f}."
    )


if __name__ == "__main__":
    main()
