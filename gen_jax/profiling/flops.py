"""Products of a training step by formulas from shapes alone, to hold XLA's count against.

A multiply-add is two operations. A layer with a kernel takes 2 x (its output's size / features) x (its kernel's size);
a network that is trained takes three times its forward pass, one with fixed weights that a gradient passes through
twice (Kaplan et al. 2020, section 2.1). What is not a product (activations, optimizers, random numbers) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.core import Batch
from gen_jax.models.common.convolutions import ConvTranspose
from gen_jax.models.flow.flow import Flow
from gen_jax.models.gan.gan import GAN
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.models.hmm.hmm import HMM
from gen_jax.models.mixture.gmm import GMM
from gen_jax.models.vae.hvae import HVAE
from gen_jax.models.vae.vae import VAE
from gen_jax.models.vae.vqvae import VQVAE


@singledispatch
def products(model: Any, batch: Batch) -> float | None:
    """Operations of one training step on a batch (or its shapes); None where there is no formula."""
    return None


@products.register
def _(model: GMM, batch: Batch) -> float:
    """Two products per example, component and feature: densities, then weighted sums."""
    n, *shape = batch["x"].shape
    return 4.0 * n * model.components * model.kind.features(math.prod(shape))


@products.register
def _(model: HMM, batch: Batch) -> float | None:
    """Forward, backward and pairs of states; and densities and sums of the emission at every step."""
    if not isinstance(model.emission, Gaussian):
        return None
    n, steps, *shape = batch["x"].shape
    seen = model.emission.kind.features(math.prod(shape))
    return n * steps * model.states * (6.0 * model.states + 4.0 * seen)


@products.register
def _(model: VAE, batch: Batch) -> float:
    n, context = len(batch["x"]), _context(model)
    x = jax.eval_shape(model.likelihood.normalize, _one(batch)["x"])
    z = jax.ShapeDtypeStruct((1, model.latent + sum(c.shape[1] for c in context)), "float32")
    return 3.0 * n * (forward(model.encoder.init, x, *context) + model.samples * forward(model.decoder.init, z))


@products.register
def _(model: HVAE, batch: Batch) -> float:
    return 3.0 * len(batch["x"]) * forward(model.init, _one(batch))


@products.register
def _(model: VQVAE, batch: Batch) -> float:
    """The networks; and two products with the codebook: distances, and the sums of what each code stands for."""
    _, extra = jax.eval_shape(model.init, jax.random.key(0), _one(batch))
    codebook = 4.0 * math.prod(model.grid) * extra["codebook"].size
    return len(batch["x"]) * (3.0 * forward(model.init, _one(batch)) + codebook)


@products.register
def _(model: Flow, batch: Batch) -> float | None:
    """Of vectors, every entry of a kernel takes part once per example."""
    if batch["x"].ndim != 2:
        return None
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch)
    kernels = [a for path, a in jax.tree_util.tree_leaves_with_path(params) if "kernel" in jax.tree_util.keystr(path)]
    return 6.0 * len(batch["x"]) * sum(a.size for a in kernels)


@products.register
def _(model: GAN, batch: Batch) -> float | None:
    """The generator is trained (3 passes) on what the discriminator has been trained on too (2 x 3 passes), and sees it
    through the discriminator held fixed (2). A penalty on gradients takes 6 more passes of the discriminator, and one
    of the generator where it has steps of its own; a mode-seeking generator is trained on two sets of samples."""
    if model.unrolling is not None:
        return None
    n, context = len(batch["x"]), _context(model)
    z = jax.ShapeDtypeStruct((1, model.latent), "float32")
    x = jax.ShapeDtypeStruct((1, *batch["x"].shape[1:-1], batch["x"].shape[-1] * model.packing), "float32")
    made = forward(model.generator.init, z, *context)
    judged = forward(model.discriminator.init, x, *([] if model.auxiliary else context)) / model.packing
    penalties = sum(6.0 / r.every for r in model.regularizers if r.per_example)
    lazy = sum(1.0 / r.every for r in model.regularizers if r.every > 1)
    seeking = any(r.name == "mode_seeking" for r in model.regularizers)
    zero, one = jnp.zeros(1), jnp.ones(1)
    loss = model.adversarial.generator
    of_real = float(loss(zero, zero) != loss(one, zero))  # a relativistic generator is shown the real ones too
    turn = (2.0 + 3.0 * seeking) * made + (2.0 + of_real) * judged
    return n * ((1.0 + lazy) * made + (6.0 + penalties) * judged + turn / model.every)


def _one(batch: Batch) -> Batch:
    """The shapes of a batch of one example."""
    return {name: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for name, a in batch.items()}


def _context(model: Any) -> list[jax.ShapeDtypeStruct]:
    return [] if model.conditioning is None else [jax.ShapeDtypeStruct((1, model.conditioning.size), "float32")]


class Called(NamedTuple):
    """A layer with a kernel, as it is called on one example."""

    layer: nn.Module
    x: tuple[int, ...]
    y: tuple[int, ...]
    kernel: tuple[int, ...]
    times: int  # how often `nn.scan` repeats it

    @property
    def products(self) -> float:
        places = self.x if isinstance(self.layer, ConvTranspose) else self.y
        return 2.0 * math.prod(places[:-1]) * math.prod(self.kernel) * self.times


def forward(init: Callable[..., Any], *shapes: Any) -> float:
    """Operations of one pass through the layers that `init` calls."""
    return sum(called.products for called in layers(init, *shapes))


def layers(init: Callable[..., Any], *shapes: Any) -> list[Called]:
    """The layers with kernels that `init(key, *shapes)` calls; nothing is computed."""
    found, networks = {}, []

    def note(call, arguments, keywords, context):
        module = context.module
        if not module.path and context.method_name == "__call__":
            networks.append(module)  # whose layers are called from here on; a layer in a loop is traced twice
        out = call(*arguments, **keywords)
        if context.method_name == "__call__" and module.has_variable("params", "kernel"):
            kernel = module.get_variable("params", "kernel").shape
            found[len(networks), module.path] = Called(module, arguments[0].shape, out.shape, kernel, 1)
        return out

    with nn.intercept_methods(note):
        made = jax.eval_shape(init, jax.random.key(0), *shapes)
    stored = {jax.tree_util.keystr(p, simple=True, separator="/"): a.shape for p, a in jax.tree.leaves_with_path(made)}

    def repeats(path: tuple[str, ...], kernel: tuple[int, ...]) -> int:
        """A layer that `nn.scan` repeats is called with one kernel of those that are stored."""
        ending = "/" + "/".join([*path, "kernel"])
        same = [n for n, shape in stored.items() if n.endswith(ending) and shape[len(shape) - len(kernel) :] == kernel]
        return math.prod(stored[min(same, key=len)]) // math.prod(kernel) if path and same else 1

    return [called._replace(times=repeats(path, called.kernel)) for (_, path), called in found.items()]
