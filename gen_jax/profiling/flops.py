"""Analytic FLOPs of the matrix products in a training step, from shapes alone, to check XLA's count.

A multiply-add is two operations. A layer with a kernel takes 2 x (its output's size / features) x (its kernel's size);
training a network takes three times its forward pass, backpropagating through fixed weights twice (Kaplan et al. 2020,
section 2.1). Everything but products (activations, optimizers, random numbers) is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr

from gen_jax.algorithms import descent, em
from gen_jax.core import Batch, ExpectationMaximization, State, Trainable
from gen_jax.models.common.convolutions import ConvTranspose
from gen_jax.models.flow.flow import Flow
from gen_jax.models.gan.gan import GAN
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.models.hmm.hmm import HMM
from gen_jax.models.mixture.gmm import GMM
from gen_jax.models.vae.hvae import HVAE
from gen_jax.models.vae.vae import VAE
from gen_jax.models.vae.vqvae import VQVAE

__all__ = ["Called", "counted_products", "forward", "layers", "of_algorithm", "products"]


def of_algorithm(model: Any, step: Callable[..., Any], state: State, batch: Batch) -> float | None:
    """FLOPs of one step of an algorithm by the formula of its model; None if there is none.

    The formula is of one pass, as `descent` or `em` makes it. An algorithm that makes more products, such as the two
    passes of sharpness-aware minimization, has as many times more.
    """
    formula = products(model, batch)
    if formula is None:
        return None
    if isinstance(model, Trainable):
        plain = descent(model, {player: optax.sgd(0.0) for player in state.params})
    elif isinstance(model, ExpectationMaximization):
        plain = em(model)
    else:
        return formula
    key = jax.eval_shape(lambda: jax.random.key(0))
    begun = jax.eval_shape(plain.init, key, batch)
    once = counted_products(jax.make_jaxpr(plain.step)(begun, batch).jaxpr)
    found = counted_products(jax.make_jaxpr(step)(state, batch).jaxpr)
    return formula * found / once if once and found > 1.5 * once else formula


def counted_products(jaxpr: Jaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a traced function, with every turn of known loops.

    Of a conditional, the most expensive branch counts; a loop of unknown length counts once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inside = [inner for value in params.values() for inner in _jaxprs(value)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / features
        elif name == "cond":
            total += max(map(counted_products, inside))
        else:
            total += (params["length"] if name == "scan" else 1) * sum(map(counted_products, inside))
    return total


def _jaxprs(value: Any) -> list[Jaxpr]:
    """The functions among the parameters of an operation."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values if isinstance(v, (ClosedJaxpr, Jaxpr))]


@singledispatch
def products(model: Any, batch: Batch) -> float | None:
    """FLOPs of one training step on a batch (or its shapes); None if there is no formula."""
    return None


@products.register
def _(model: GMM, batch: Batch) -> float:
    """Two products per example, component and feature: densities, then weighted sums."""
    n, *shape = batch["x"].shape
    return 4.0 * n * model.components * model.kind.features(math.prod(shape))


@products.register
def _(model: HMM, batch: Batch) -> float | None:
    """Forward, backward and pairwise state posteriors; and emission densities and weighted sums at every step."""
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
    """The networks; and two products with the codebook: distances, and sums of the encodings assigned to each code."""
    _, extra = jax.eval_shape(model.init, jax.random.key(0), _one(batch))
    codebook = 4.0 * math.prod(model.grid) * extra["codebook"].size
    return len(batch["x"]) * (3.0 * forward(model.init, _one(batch)) + codebook)


@products.register
def _(model: Flow, batch: Batch) -> float | None:
    """For vectors, every kernel entry is used once per example."""
    if batch["x"].ndim != 2:
        return None
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch)
    kernels = [a for path, a in jax.tree_util.tree_leaves_with_path(params) if "kernel" in jax.tree_util.keystr(path)]
    return 6.0 * len(batch["x"]) * sum(a.size for a in kernels)


@products.register
def _(model: GAN, batch: Batch) -> float | None:
    """The generator is trained (3 passes) on the samples that also train the discriminator (2 x 3 passes), through the
    fixed discriminator (2). A gradient penalty takes 6 more passes of the discriminator, and one of the generator if it
    is lazy; a mode-seeking generator is trained on two sets of samples."""
    if model.unrolling is not None:
        return None
    n, context = len(batch["x"]), _context(model)
    z = jax.ShapeDtypeStruct((1, model.latent), "float32")
    x = jax.ShapeDtypeStruct((1, *batch["x"].shape[1:-1], batch["x"].shape[-1] * model.packing), "float32")
    made = forward(model.generator.init, z, *context)
    judged = forward(model.discriminator.init, x, *([] if model.auxiliary else context)) / model.packing
    penalties = sum(6.0 / r.every for r in model.regularizers if r.per_example)
    lazy = sum(1.0 / r.every for r in model.regularizers if r.every > 1)
    seeking = any(r.resamples for r in model.regularizers)
    zero, one = jnp.zeros(1), jnp.ones(1)
    loss = model.adversarial.generator
    of_real = float(loss(zero, zero) != loss(one, zero))  # a relativistic generator loss uses real examples too
    turn = (2.0 + 3.0 * seeking) * made + (2.0 + of_real) * judged
    return n * ((1.0 + lazy) * made + (6.0 + penalties) * judged + turn / model.every)


def _one(batch: Batch) -> Batch:
    """The shapes of a batch with one example."""
    return {name: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for name, a in batch.items()}


def _context(model: Any) -> list[jax.ShapeDtypeStruct]:
    return [] if model.conditioning is None else [jax.ShapeDtypeStruct((1, model.conditioning.size), "float32")]


class Called(NamedTuple):
    """A layer with a kernel, as called on one example."""

    layer: nn.Module
    x: tuple[int, ...]
    y: tuple[int, ...]
    kernel: tuple[int, ...]
    times: int  # repetitions by `nn.scan`

    @property
    def products(self) -> float:
        places = self.x if isinstance(self.layer, ConvTranspose) else self.y
        return 2.0 * math.prod(places[:-1]) * math.prod(self.kernel) * self.times


def forward(init: Callable[..., Any], *shapes: Any) -> float:
    """FLOPs of one forward pass through the layers that `init` calls."""
    return sum(called.products for called in layers(init, *shapes))


def layers(init: Callable[..., Any], *shapes: Any) -> list[Called]:
    """The layers with kernels that `init(key, *shapes)` calls; nothing is computed."""
    found, networks = {}, []

    def note(call, arguments, keywords, context):
        module = context.module
        if not module.path and context.method_name == "__call__":
            networks.append(module)  # its layers are called from here on; a layer in a loop is traced twice
        out = call(*arguments, **keywords)
        if context.method_name == "__call__" and module.has_variable("params", "kernel"):
            kernel = module.get_variable("params", "kernel").shape
            found[len(networks), module.path] = Called(module, arguments[0].shape, out.shape, kernel, 1)
        return out

    with nn.intercept_methods(note):
        made = jax.eval_shape(init, jax.random.key(0), *shapes)
    stored = {jax.tree_util.keystr(p, simple=True, separator="/"): a.shape for p, a in jax.tree.leaves_with_path(made)}

    def repeats(path: tuple[str, ...], kernel: tuple[int, ...]) -> int:
        """Repetitions of a layer: `nn.scan` stacks kernels and calls the layer with one of them."""
        ending = "/" + "/".join([*path, "kernel"])
        same = [n for n, shape in stored.items() if n.endswith(ending) and shape[len(shape) - len(kernel) :] == kernel]
        return math.prod(stored[min(same, key=len)]) // math.prod(kernel) if path and same else 1

    return [called._replace(times=repeats(path, called.kernel)) for (_, path), called in found.items()]
