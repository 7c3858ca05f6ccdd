"""VAEs against Keras on TensorFlow, PyTorch and Flax: the same networks, data and optimizer, rivals in turns.

python -m benchmarks.speed.vae [--only conv]          (needs the `bench` extra)
"""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.harness import Report, in_turns, options
from benchmarks.rivals import Elsewhere, Step, batches, compiled_step, images, serve, several, torch_device, trained

BATCH = 128


def keras(x: np.ndarray) -> Step:
    """The convolutional network in Keras, its step a tf.function."""
    import keras
    import tensorflow as tf
    from keras import layers

    conv = dict(strides=2, padding="same", activation="relu")
    encoder = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, **conv),
            layers.Conv2D(64, 3, **conv),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(4),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(7 * 7 * 64, activation="relu"),
            layers.Reshape((7, 7, 64)),
            layers.Conv2DTranspose(64, 3, **conv),
            layers.Conv2DTranspose(32, 3, **conv),
            layers.Conv2DTranspose(1, 3, padding="same"),
        ]
    )
    variables = encoder.trainable_variables + decoder.trainable_variables
    adam = keras.optimizers.Adam(1e-3)
    adam.build(variables)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(encoder(x, training=True), 2, axis=1)
            z = mean + tf.exp(log_variance / 2) * tf.random.normal(tf.shape(mean))
            logits = decoder(z, training=True)
            cross = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, logits), [1, 2, 3])
            kl = 0.5 * tf.reduce_sum(tf.exp(log_variance) + mean**2 - 1 - log_variance, 1)
            loss = tf.reduce_mean(cross + kl)
        adam.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    stream = batches(x, BATCH)
    return lambda: step(tf.constant(next(stream)))


def torch(x: np.ndarray, channels_last: bool, compiled: bool = False) -> Step:
    """The convolutional network in PyTorch; compiled, its loss is one program and Adam another."""
    import torch
    from torch import nn
    from torch.nn import functional

    device, layout = torch_device(), torch.channels_last if channels_last else torch.contiguous_format
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 16)
    )
    encoder.extend([nn.ReLU(), nn.Linear(16, 4)])
    first = nn.Sequential(nn.Linear(2, 3136), nn.ReLU(), nn.Unflatten(1, (64, 7, 7)))
    rest = nn.Sequential(
        nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, 2, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 3, 1, 1),
    )
    parts = [part.to(device, memory_format=layout) for part in (encoder, first, rest)]
    parameters = [p for part in parts for p in part.parameters()]
    adam = torch.optim.Adam(parameters, 1e-3, fused=True)
    data = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)

    def loss_of(x):
        mean, log_variance = encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        logits = rest(first(z).contiguous(memory_format=layout))
        cross = functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        return (cross + 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1)).mean()

    if compiled:
        loss_of = torch.compile(loss_of)

    def run():
        adam.zero_grad()
        batch = data[torch.randint(len(data), (BATCH,), device=device)]
        loss = loss_of(batch.contiguous(memory_format=layout))
        loss.backward()
        adam.step()
        return loss.detach()

    return run


class FlaxConv(nn.Module):
    """The convolutional network with Flax's own layers."""

    @nn.compact
    def __call__(self, x, key):
        h = nn.relu(nn.Conv(64, (3, 3), 2)(nn.relu(nn.Conv(32, (3, 3), 2)(x))))
        mean, log_variance = jnp.split(nn.Dense(4)(nn.relu(nn.Dense(16)(h.reshape(len(x), -1)))), 2, axis=1)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        h = nn.relu(nn.Dense(7 * 7 * 64)(z)).reshape(-1, 7, 7, 64)
        h = nn.relu(nn.ConvTranspose(64, (3, 3), (2, 2))(h))
        h = nn.relu(nn.ConvTranspose(32, (3, 3), (2, 2))(h))
        return nn.ConvTranspose(1, (3, 3))(h), mean, log_variance


class FlaxMLP(nn.Module):
    """The network of Flax's VAE example: one hidden layer of 500 either way, 20 latents."""

    @nn.compact
    def __call__(self, x, key):
        h = nn.relu(nn.Dense(500)(x.reshape(len(x), -1)))
        mean, log_variance = nn.Dense(20)(h), nn.Dense(20)(h)
        z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return nn.Dense(784)(nn.relu(nn.Dense(500)(z))).reshape(x.shape), mean, log_variance


def flax(module: nn.Module, x: np.ndarray, jit: bool = True, binarized: bool = False) -> Step:
    """A plain loop: batches from the host, a key split at every step, one step of Adam. Binarized once, before: ours is
    at every step."""
    tx = optax.adam(1e-3)

    def step(params, opt, x, key):
        def loss(params):
            logits, mean, log_variance = module.apply(params, x, key)
            cross = optax.sigmoid_binary_cross_entropy(logits, x).sum(axis=(1, 2, 3))
            return (cross + 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(axis=1)).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(gradient, opt, params)
        return optax.apply_updates(params, updates), opt, value

    step = jax.jit(step) if jit else step
    params = module.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jax.random.key(0))
    x = (np.random.default_rng(0).random(x.shape) < x).astype(np.float32) if binarized else x
    held, stream = [params, tx.init(params), jax.random.key(1)], batches(x, BATCH)

    def run():
        held[2], key = jax.random.split(held[2])
        held[0], held[1], value = step(held[0], held[1], next(stream), key)
        return value

    return run


ELSEWHERE = {
    "Keras on TensorFlow": keras,
    "PyTorch": partial(torch, channels_last=False),
    "PyTorch, channels last": partial(torch, channels_last=True),
    "PyTorch, compiled": partial(torch, channels_last=True, compiled=True),
}
ON_CPU = ("Keras on TensorFlow", "PyTorch", "PyTorch, channels last")
ON_GPU = ("PyTorch", "PyTorch, channels last", "PyTorch, compiled")


def compare(report: Report, what: str, rivals: dict[str, Step], targets: dict[str, str], n: int = 10) -> None:
    """Times per step of every rival, and the loss that each has after 100 steps (nats, mean of the last three)."""
    slow = {name: 1 if "not compiled" in name or "own layers" in name else n for name in rivals}
    after = lambda step: np.mean([float(step()) for _ in range(100)][-3:])
    losses = {name: after(step) for name, step in rivals.items() if slow[name] > 1}
    times = in_turns({name: several(step, slow[name]) for name, step in rivals.items()}, rounds=7)
    (mine, own), *others = ((name, times[name] / slow[name]) for name in rivals)
    for name, theirs in others:
        quality = f"{losses[mine]:.0f} / {losses[name]:.0f}" if name in losses else ""
        why = "oneDNN's convolutions, see `benchmarks/speed/convolutions.py`" if "Keras" in name else ""
        report.row(what, own, name, theirs, targets.get(name, ""), quality, why=why)


def throughput(report: Report, config: str, sizes: list[int]) -> None:
    found = []
    for size in sizes:
        step = trained(config, "loss", batch=size)
        seconds = in_turns({"": several(step, 5)}, rounds=3)[""] / 5
        found.append(f"{size}: {size / seconds:,.0f}")
    report.note(f"Examples per second by batch, {config}: {'; '.join(found)}.")


def main() -> None:
    if case := options().case:
        return serve(ELSEWHERE[case.removesuffix("/served")](images()))
    report, x = Report("vae"), images()
    only = report.options.only
    if only in "convolutional":
        rivals = {"gen_jax": trained("vae_mnist", "loss")}
        names = ON_CPU if jax.default_backend() == "cpu" else ON_GPU
        rivals |= {name: Elsewhere(__spec__.name, name) for name in names}
        rivals["Flax's own layers"] = flax(FlaxConv(), x)
        targets = {name: ">= 1" for name in rivals}
        compare(report, "convolutional, 2 latents, batch 128", rivals, targets)
    if only in "mlp":
        rivals = {
            "gen_jax": trained("vae_flax_example", "loss"),
            "Flax's example, not compiled": flax(FlaxMLP(), x, jit=False, binarized=True),
            "Flax's example, jitted": flax(FlaxMLP(), x, binarized=True),
        }
        compare(report, "MLP 500, 20 latents, batch 128", rivals, {"Flax's example, not compiled": ">= 3"})
    if not only:
        throughput(report, "vae_mnist", [32, 128, 512])
        throughput(report, "vae_flax_example", [32, 128, 512])
        for batch, parts in ((128, 4), (128, 1), (512, 4), (512, 1)):
            step, *arguments = compiled_step("vae_mnist", batch=batch, parts=parts)
            peak = step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 2**20
            report.note(f"Memory of a step, vae_mnist, batch {batch}, gradients in {parts} part(s): {peak:.0f} MB.")
    report.finish()


if __name__ == "__main__":
    main()
