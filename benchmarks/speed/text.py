"""Text against PyTorch and Hugging Face transformers: training steps of nanoGPT's CPU recipe, and generation.

python -m benchmarks.speed.text [--only step]          (needs the `bench` extra)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Report, in_turns, options
from benchmarks.rivals import Elsewhere, Step, answer, serve, several, torch_device, trained
from gen_jax.data import load
from gen_jax.data.catalogue import first_available
from gen_jax.models.common.autoregressive import Sampling, advance, begin
from gen_jax.models.text import LanguageModel, gpt2

CORPUS = first_available("tinyshakespeare", "tales")
WIDTH, DEPTH, HEADS, CONTEXT, BATCH = 128, 4, 4, 64, 12
SIZES = {"0.8M": (128, 4, 4), "10M": (384, 6, 6)}  # width, depth, heads
PROMPT, NEW, SYMBOLS = 64, 192, 66
ROWS = (1, 16, 64)
ON_DEVICES = "a device per core"  # of this project: the CPU as several devices, which divide the batch
ROWS_WHY = "XLA computes the products of few rows in a cached step on one core, below the bandwidth of the memory"
POOL = "XLA runs the many small operations of a step mostly one after the other, each on one core"


def torch_step(compiled: bool) -> Step:
    """The same network, batches and optimizer in PyTorch, with its fused attention and fused AdamW."""
    import torch
    from torch import nn
    from torch.nn import functional

    device, data = torch_device(), load(CORPUS, text="tokens")
    tokens = torch.from_numpy(data["train"]["x"].astype(np.int64)).to(device)
    vocabulary = data.info.levels

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x):
            heads = [a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in self.qkv(self.norm1(x)).chunk(3, dim=-1)]
            a = functional.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(a.transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.layers, self.norm = nn.ModuleList(Layer() for _ in range(DEPTH)), nn.LayerNorm(WIDTH, bias=False)

        def forward(self, x):
            h = self.tokens(x[:, :-1]) + self.positions.weight
            for layer in self.layers:
                h = layer(h)
            logits = functional.linear(self.norm(h), self.tokens.weight)
            return functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())

    network = Network().to(device)
    for name, weight in network.named_parameters():
        if weight.ndim == 2:
            deep = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * DEPTH) if deep else 1))
    matrices = [p for p in network.parameters() if p.ndim == 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, 1e-3, (0.9, 0.99), fused=True)
    loss_of = torch.compile(network) if compiled else network
    offsets = torch.arange(CONTEXT + 1, device=device)

    def run():
        start = torch.randint(len(tokens) - CONTEXT - 1, (BATCH, 1), device=device)
        loss = loss_of(tokens[start + offsets])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        return loss.detach()

    return run


def divided_step() -> Step:
    """The step of gpt_nano on as many devices as the CPU has cores."""
    from gen_jax.configs import load as load_config
    from gen_jax.loop import program
    from gen_jax.sharding import Layout, force_cpu_devices

    devices = os.cpu_count() or 1
    force_cpu_devices(devices)
    experiment = load_config("gpt_nano", {"data": CORPUS}).build()
    made = program(experiment.algorithm, experiment.source(experiment.data), layout=Layout(data=devices))
    held = [made.initial_state(), made.zeros()]

    def run():
        held[0], totals, _ = made.advance(held[0], made.zeros(), made.source, 1)
        return totals["loss"].value

    return run


def model_of(size: str) -> LanguageModel:
    width, depth, heads = SIZES[size]
    return gpt2(SYMBOLS, SYMBOLS - 1, 256, width, depth, heads)


def generator(size: str, rows: int) -> Callable[[], Any]:
    """Reads prompts of 64 random tokens and draws 192 more, in one program."""
    model = model_of(size)
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((1, 257), jnp.int32)})
    prompt = jax.random.randint(jax.random.key(1), (rows, PROMPT), 0, SYMBOLS - 1)

    @jax.jit
    def run(params, prompt, key):
        cache, _ = model.start(params, None, rows, 256)
        cache = model.extend(params, None, cache, prompt[:, :-1], jnp.full(rows, PROMPT - 1))
        draft = begin(cache, prompt[:, -1], NEW)
        return advance(partial(model.next, params, None), draft, key, NEW, Sampling(top_k=20)).tokens

    return lambda: run(params, prompt, jax.random.key(2))


def recomputing(size: str, rows: int) -> Callable[[], Any]:
    """The same without a cache: the whole context is read again for each token."""
    model = model_of(size)
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((1, 257), jnp.int32)})
    prompt = jax.random.randint(jax.random.key(1), (rows, PROMPT), 0, SYMBOLS - 1)

    @jax.jit
    def run(params, prompt, key):
        from gen_jax.core import State

        tokens = jnp.pad(prompt, ((0, 0), (0, NEW)))

        def body(i, tokens):
            logits = model.logits(State(0, key, params, (), {}), tokens)[:, i - 1]
            drawn = Sampling(top_k=20).draw(logits, jax.random.fold_in(key, i))
            return tokens.at[:, i].set(drawn)

        return jax.lax.fori_loop(PROMPT, PROMPT + NEW, body, tokens)

    return lambda: run(params, prompt, jax.random.key(2))


def serve_transformers(size: str, rows: int) -> None:
    """`generate` of a GPT-2 with random weights of the same size."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    device, (width, depth, heads) = torch_device(), SIZES[size]
    ends = {"bos_token_id": SYMBOLS - 1, "eos_token_id": None, "pad_token_id": 0}
    config = GPT2Config(vocab_size=SYMBOLS, n_positions=256, n_embd=width, n_layer=depth, n_head=heads, **ends)
    model = GPT2LMHeadModel(config).eval().to(device)
    prompt = torch.randint(SYMBOLS - 1, (rows, PROMPT), device=device)
    more = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": True, "top_k": 20}

    def reply(_: str) -> float:
        with torch.no_grad():
            return float(model.generate(prompt, attention_mask=torch.ones_like(prompt), **more).shape[1])

    answer(reply)


def steps(report: Report) -> None:
    """Times of a training step, and the losses after 100 of them."""
    names = {"PyTorch": ">= 2", "PyTorch, compiled": ">= 1"}
    rivals = {"gen_jax": trained("gpt_nano", "loss", data=CORPUS)}
    rivals |= {ON_DEVICES: Elsewhere(__spec__.name, ON_DEVICES)} if jax.default_backend() == "cpu" else {}
    rivals |= {name: Elsewhere(__spec__.name, name) for name in names}
    after = {name: np.mean([float(step()) for _ in range(100)][-5:]) for name, step in rivals.items()}
    times = in_turns({name: several(step, 20) for name, step in rivals.items()}, rounds=7)
    for ours in (one for one in rivals if one not in names):
        what = "step of gpt_nano" if ours == "gen_jax" else f"step of gpt_nano, {ours}"
        for name, target in names.items():
            quality = f"{after[ours]:.2f} / {after[name]:.2f}"
            report.row(what, times[ours] / 20, name, times[name] / 20, target, quality, why=POOL)
        report.note(f"Tokens per second in training, {what}: {BATCH * CONTEXT * 20 / times[ours]:,.0f}.")
    utilization(report, {name: time / 20 for name, time in times.items()})


def utilization(report: Report, seconds: Mapping[str, float]) -> None:
    """The share of the device's peak, that of a product of large float32 matrices, which each step reaches."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(lambda a: a @ a)
    peak = 2 * 2048**3 / in_turns({"product": lambda: product(a)}, rounds=7)["product"]
    weights = 12 * DEPTH * WIDTH**2 + load(CORPUS, text="tokens").info.levels * WIDTH
    work = BATCH * CONTEXT * (6 * weights + 12 * DEPTH * WIDTH * CONTEXT)  # Chowdhery et al. 2022, appendix B
    said = ", ".join(f"{name} {work / time / peak:.0%}" for name, time in seconds.items())
    report.note(
        f"A step is {work / 1e9:.1f} GFLOP, {1000 * work / peak:.0f} ms at the peak of {peak / 1e9:.0f} GFLOP/s that a "
        f"large product reaches; shares of it: {said}."
    )


def generation(report: Report) -> None:
    for size in SIZES:
        for rows in ROWS:
            name = f"{size}/{rows}"
            theirs = Elsewhere(__spec__.name, f"PyTorch, transformers {name}")
            times = in_turns({"ours": generator(size, rows), "theirs": theirs}, rounds=3)
            theirs.process.terminate()
            what, rate = f"{NEW} tokens for {rows} rows, {size}", rows * NEW / times["ours"]
            report.row(
                what,
                times["ours"],
                "transformers generate",
                times["theirs"],
                ">= 3",
                f"{rate:,.0f} tokens/s",
                why=ROWS_WHY,
            )
    for rows in ROWS[:2]:
        times = in_turns({"cache": generator("0.8M", rows), "none": recomputing("0.8M", rows)}, rounds=3)
        report.row(f"{NEW} tokens for {rows} rows, 0.8M", times["cache"], "without a cache", times["none"])


def memory(report: Report) -> None:
    """The cache of keys and values: its formula, and the memory of what is allocated."""
    model = model_of("10M")
    cache, _ = model.start({}, None, 16, 256)
    width, depth, _ = SIZES["10M"]
    formula = 2 * depth * 16 * 256 * width * 4
    held = sum(a.nbytes for a in jax.tree.leaves(cache))
    report.fact("bytes of a cache over 2 x layers x rows x positions x width x 4", held / formula, "", "<= 1.05")


def main() -> None:
    if case := options().case:
        name = case.removesuffix("/served")
        if name.startswith("PyTorch, transformers "):
            size, rows = name.removeprefix("PyTorch, transformers ").split("/")
            return serve_transformers(size, int(rows))
        return serve(divided_step() if name == ON_DEVICES else torch_step(compiled="compiled" in name))
    report = Report("text")
    for part in (steps, generation, memory):
        if report.options.only in part.__name__:
            part(report)
    report.finish()


if __name__ == "__main__":
    main()
