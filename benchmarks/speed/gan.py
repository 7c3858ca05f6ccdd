"""GANs against Keras on TensorFlow and PyTorch: the same networks, data and optimizer; and what ten seeds cost.

python -m benchmarks.speed.gan [--only plane]          (needs the `bench` extra)

A step is one of the discriminator and one of the generator, who see the same generated images, but for the tutorial's
loop, which makes new ones for the generator. Keras is measured as tutorials write its loop (`predict`
and `train_on_batch`), and with both turns in one `tf.function`.
"""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Report, in_turns, options
from benchmarks.rivals import Elsewhere, Step, batches, images, serve, several, torch_device, trained
from gen_jax.algorithms import descent
from gen_jax.data import Resident, load
from gen_jax.loop import compile_steps, initial_state, zero_metrics
from gen_jax.models.common.networks import MLP
from gen_jax.models.gan import GAN
from gen_jax.restarts import population

BATCH, LATENT, CHUNK = 32, 100, 500


def points() -> np.ndarray:
    return np.asarray(load("ring8")["train"]["x"])


def _keras_networks():
    from keras import Input, Sequential, layers

    leaky = lambda: layers.LeakyReLU(negative_slope=0.2)
    norm = lambda: layers.BatchNormalization(momentum=0.8)
    conv = lambda width, **more: layers.Conv2D(width, 3, padding="same", **more)
    generator = [Input((LATENT,)), layers.Dense(128 * 49, activation="relu"), layers.Reshape((7, 7, 128)), norm()]
    for width in (128, 64):
        generator += [layers.UpSampling2D(), conv(width), leaky(), norm()]
    generator += [conv(1, activation="sigmoid")]
    discriminator = [Input((28, 28, 1))]
    for width in (32, 64, 128):
        discriminator += [conv(width, strides=2), leaky(), layers.Dropout(0.25)]
    discriminator += [layers.Flatten(), layers.Dense(1, activation="sigmoid")]
    return Sequential(generator), Sequential(discriminator)


def keras_tutorial(x: np.ndarray) -> Step:
    """As tutorials write it: two calls of `train_on_batch` on halves, `predict` for the fakes, a combined model."""
    import keras

    generator, discriminator = _keras_networks()
    adam = lambda: keras.optimizers.Adam(2e-4, beta_1=0.5)
    rng, stream = np.random.default_rng(0), batches(x, BATCH)
    real, fake = np.ones((BATCH, 1)), np.zeros((BATCH, 1))
    discriminator.compile(loss="binary_crossentropy", optimizer=adam(), metrics=["accuracy"])
    discriminator.train_on_batch(next(stream), real)  # what is trained is what is trainable at the first call
    noise = keras.Input((LATENT,))
    discriminator.trainable = False
    combined = keras.Model(noise, discriminator(generator(noise)))
    combined.compile(loss="binary_crossentropy", optimizer=adam())
    before = [np.array(v) for v in discriminator.weights]
    combined.train_on_batch(rng.normal(size=(BATCH, LATENT)), real)
    assert all(np.array_equal(a, b) for a, b in zip(before, discriminator.weights))

    def run():
        drawn = generator.predict(rng.normal(size=(BATCH, LATENT)), verbose=0)
        discriminator.train_on_batch(next(stream), real)
        discriminator.train_on_batch(drawn, fake)
        return combined.train_on_batch(rng.normal(size=(BATCH, LATENT)), real)

    return run


def keras_compiled(x: np.ndarray) -> Step:
    """Both turns in one `tf.function`."""
    import keras
    import tensorflow as tf

    generator, discriminator = _keras_networks()
    players = generator, discriminator
    adams = [keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in players]
    for adam, player in zip(adams, players):
        adam.build(player.trainable_variables)
    cross = lambda label, p: tf.reduce_mean(keras.losses.binary_crossentropy(label * tf.ones_like(p), p))

    def descend(tape, loss, which: int):
        variables = players[which].trainable_variables
        adams[which].apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    @tf.function
    def step(real):
        judge = partial(discriminator, training=True)
        with tf.GradientTape() as outer:
            fake = generator(tf.random.normal((BATCH, LATENT)), training=True)
            with tf.GradientTape() as inner:
                loss = cross(1.0, judge(real)) + cross(0.0, judge(tf.stop_gradient(fake)))
            descend(inner, loss, 1)
            loss = cross(1.0, judge(fake))
        return descend(outer, loss, 0)

    stream = batches(x, BATCH)
    return lambda: step(tf.constant(next(stream)))


def torch_images(x: np.ndarray, channels_last: bool) -> Step:
    import torch
    from torch import nn

    device, layout = torch_device(), torch.channels_last if channels_last else torch.contiguous_format
    leaky, norm = lambda: nn.LeakyReLU(0.2), lambda width: nn.BatchNorm2d(width, momentum=0.2)
    first = nn.Sequential(nn.Linear(LATENT, 128 * 49), nn.ReLU(), nn.Unflatten(1, (128, 7, 7)))
    rest = [norm(128)]
    for before, width in ((128, 128), (128, 64)):
        rest += [nn.Upsample(scale_factor=2), nn.Conv2d(before, width, 3, 1, 1), leaky(), norm(width)]
    rest = nn.Sequential(*rest, nn.Conv2d(64, 1, 3, 1, 1), nn.Sigmoid()).to(device, memory_format=layout)
    judge = []
    for before, width in ((1, 32), (32, 64), (64, 128)):
        judge += [nn.Conv2d(before, width, 3, 2, 1), leaky(), nn.Dropout(0.25)]
    judge = nn.Sequential(*judge, nn.Flatten(), nn.Linear(128 * 16, 1)).to(device, memory_format=layout)
    first = first.to(device)
    generate = lambda: rest(first(torch.randn(BATCH, LATENT, device=device)).contiguous(memory_format=layout))
    data = torch.from_numpy(x).permute(0, 3, 1, 2).to(device)
    real = lambda: data[torch.randint(len(data), (BATCH,), device=device)].contiguous(memory_format=layout)
    return _torch_step(generate, [*first.parameters(), *rest.parameters()], judge, real, 2e-4)


def torch_plane(x: np.ndarray) -> Step:
    import torch
    from torch import nn

    device = torch_device()
    mlp = lambda outputs: nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)
    ).to(device)
    generator, judge, data = mlp(2), mlp(1), torch.from_numpy(x).to(device)
    real = lambda: data[torch.randint(len(data), (64,), device=device)]
    return _torch_step(lambda: generator(torch.randn(64, 2, device=device)), generator.parameters(), judge, real, 1e-3)


def _torch_step(generate, parameters, judge, real, rate: float) -> Step:
    import torch
    from torch.nn.functional import softplus

    adams = [torch.optim.Adam(p, rate, betas=(0.5, 0.999), fused=True) for p in (judge.parameters(), list(parameters))]

    def run():
        fake = generate()
        adams[0].zero_grad()
        (softplus(-judge(real())).mean() + softplus(judge(fake.detach())).mean()).backward()
        adams[0].step()
        adams[1].zero_grad()
        judge.requires_grad_(False)
        loss = softplus(-judge(fake)).mean()
        loss.backward()
        judge.requires_grad_(True)
        adams[1].step()
        return loss.detach()

    return run


def plane(seeds: int = 0):
    """CHUNK steps in one call on points, of one seed or of several."""
    model = GAN(MLP((32, 32), 2), MLP((32, 32), 1), latent=2)
    tx = optax.adam(1e-3, b1=0.5)
    algorithm = descent(model, {"discriminator": tx, "generator": tx})
    algorithm = population(algorithm, seeds) if seeds else algorithm
    source = jax.tree.map(jnp.asarray, Resident({"x": points()}, 64))
    state = initial_state(algorithm, source)
    advance, zeros = compile_steps(algorithm, CHUNK), zero_metrics(algorithm, state, source)
    held = [state]

    def run() -> float:
        held[0], totals, _ = advance(held[0], zeros(), source, CHUNK)
        return float(jnp.mean(totals["generator_loss"].value))

    return run


ELSEWHERE = {
    "Keras, tutorial's loop": (keras_tutorial, images),
    "Keras, one tf.function": (keras_compiled, images),
    "PyTorch": (partial(torch_images, channels_last=False), images),
    "PyTorch, channels last": (partial(torch_images, channels_last=True), images),
    "PyTorch, plane": (torch_plane, points),
}


def main() -> None:
    if case := options().case:
        rival, data = ELSEWHERE[case.removesuffix("/served")]
        return serve(rival(data()))
    report = Report("gan")
    only = report.options.only
    if only in "convolutional":
        rivals = {"gen_jax": several(trained("dcgan_mnist", "generator_loss"), 5)}
        libraries = ("Keras", "PyTorch") if jax.default_backend() == "cpu" else ("PyTorch",)
        names = [name for name in ELSEWHERE if "plane" not in name and name.startswith(libraries)]
        rivals |= {name: several(Elsewhere(__spec__.name, name), 5) for name in names}
        times = in_turns(rivals, rounds=5)
        for name in list(rivals)[1:]:
            target = ">= 4" if "tutorial" in name else ">= 1" if "PyTorch" in name else ""
            compiled = times["Keras, one tf.function"] / times["gen_jax"] if "tutorial" in name else 0.0
            why = "XLA's matrix products take most of the step"
            why += f"; Keras in one tf.function takes {compiled:.2f} times ours" if compiled else ""
            what = f"DCGAN 28x28, batch {BATCH}"
            report.row(what, times["gen_jax"] / 5, name, times[name] / 5, target, why=why)
    if only in "plane":
        one, ten = plane(), plane(10)
        times = in_turns({"one": one, "torch": several(Elsewhere(__spec__.name, "PyTorch, plane"), 100), "ten": ten}, 5)
        what = f"points, 2 x 32, batch 64, chunk {CHUNK}"
        why = "each of a step's 150 or so operations costs XLA half a microsecond to start"
        if jax.default_backend() == "gpu":
            why = "steps of such small networks are kernels that take longer to start than to run"
        report.row(what, times["one"] / CHUNK, "PyTorch", times["torch"] / 100, ">= 20", why=why)
        share = (times["ten"] / times["one"] - 1) / 9  # if what a step takes is a part per seed and one in common
        seeds = f"by this ratio {100 * share:.0f} % of a step is work that every seed brings again"
        report.fact(f"ten seeds as one program, {what}", times["ten"] / times["one"], "times one seed", "< 5", seeds)
    report.finish()


if __name__ == "__main__":
    main()
