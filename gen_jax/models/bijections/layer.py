"""The interface of bijections, and combinators: chain, stack, inverse, flatten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import distrax
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree, fold_in

__all__ = ["Chain", "Flattened", "Inverse", "Layer", "Mapped", "Stack", "Wrapper", "check_vectors", "solve", "unrolled"]

Mapped = tuple[Array, Array]  # result of a map: values (B, *event), and log|det| (B,) of its Jacobian


class Layer:
    """A bijection between noise z and data x, both (B, *event), optionally conditioned on a context (B, C).

    A layer holds hyper-parameters; its parameters are initialized from example inputs on the data side. `forward` maps
    noise to data and `inverse` data to noise. Called with parameters, a layer returns a distrax bijector.
    """

    support: tuple[float, float] | None = None  # the interval that data must lie in
    triangular = False  # whether value i of either side depends only on values 0 .. i of the other side
    estimated = False  # whether log-determinants are unbiased estimates

    def init(self, key: Array, x: Array, context: Array | None = None) -> PyTree:
        """Parameters for data like x (B, *event), {} if there are none. Raises ValueError for unsupported shapes."""
        return {}

    def forward(self, params: PyTree, z: Array, context: Array | None = None) -> Mapped:
        raise NotImplementedError

    def inverse(self, params: PyTree, x: Array, context: Array | None = None) -> Mapped:
        raise NotImplementedError

    def __call__(self, params: PyTree, context: Array | None = None, ndims: int = 1) -> distrax.Bijector:
        """The distrax bijector for events with `ndims` axes."""
        return _Bound(self, params, context, ndims)


class _Bound(distrax.Bijector):
    """A layer with its parameters and context, for any number of leading axes."""

    def __init__(self, layer: Layer, params: PyTree, context: Array | None, ndims: int):
        super().__init__(event_ndims_in=ndims)
        self.layer, self.params, self.context = layer, params, context

    def forward_and_log_det(self, x: Array) -> Mapped:
        return self._run(self.layer.forward, x)

    def inverse_and_log_det(self, y: Array) -> Mapped:
        return self._run(self.layer.inverse, y)

    def _run(self, f: Callable[..., Mapped], x: Array) -> Mapped:
        leading = x.shape[: x.ndim - self.event_ndims_in]
        context = self.context
        if context is not None:
            context = jnp.broadcast_to(context, (*leading, context.shape[-1])).reshape(-1, context.shape[-1])
        y, log_det = f(self.params, x.reshape(-1, *x.shape[len(leading) :]), context)
        return y.reshape(*leading, *y.shape[1:]), log_det.reshape(leading)


@dataclass(frozen=True)
class Chain(Layer):
    """Composition of layers: the first takes the noise, the last outputs the data."""

    layers: Sequence[Layer]

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise ValueError(f"a chain is made of bijections, and {layer!r} is none")
        for layer in self.layers[:-1]:
            if layer.support is not None:
                raise ValueError(f"{layer!r} gives only values in {layer.support}: it must be the last layer")

    @property
    def support(self) -> tuple[float, float] | None:
        return self.layers[-1].support if self.layers else None

    @property
    def triangular(self) -> bool:
        return all(layer.triangular for layer in self.layers)

    @property
    def estimated(self) -> bool:
        return any(layer.estimated for layer in self.layers)

    def init(self, key, x, context=None):
        params = {}
        for i in reversed(range(len(self.layers))):
            params[_name(i)] = self.layers[i].init(fold_in(key, i), x, context)
            x, _ = self.layers[i].inverse(params[_name(i)], x, context)
        return {name: own for name, own in params.items() if own}

    def forward(self, params, z, context=None):
        return self._through([(i, layer.forward) for i, layer in enumerate(self.layers)], params, z, context)

    def inverse(self, params, x, context=None):
        maps = [(i, layer.inverse) for i, layer in enumerate(self.layers)]
        return self._through(maps[::-1], params, x, context)

    def _through(self, maps, params: PyTree, x: Array, context: Array | None) -> Mapped:
        total = jnp.zeros(len(x), x.dtype)
        for i, f in maps:
            x, log_det = f(params.get(_name(i), {}), x, context)
            total += log_det
        return x, total


class Wrapper(Layer):
    """Base of layers that wrap another one and share its properties."""

    layer: Layer

    @property
    def triangular(self) -> bool:
        return self.layer.triangular

    @property
    def estimated(self) -> bool:
        return self.layer.estimated


def _name(i: int) -> str:
    return f"layer_{i}"


@dataclass(frozen=True)
class Stack(Wrapper):
    """`depth` copies of a layer, each with its own parameters, as a loop.

    unroll: layers per iteration of the loop. Compile time is that of so many layers, however deep the stack is. On
    CPUs a loop is slow at storing residuals for its gradient: 1 takes up to twice as long as 2, and 2 up to 1.6 times
    as long as 4; a stack of at most `unroll` layers has no loop.
    """

    layer: Layer
    depth: int
    unroll: int = 4

    def __post_init__(self):
        if min(self.depth, self.unroll) < 1:
            raise ValueError(f"depth and unroll must be at least 1, got {self.depth} and {self.unroll}")
        if self.layer.support is not None:
            raise ValueError(f"{self.layer!r} gives only values in {self.layer.support} and cannot be repeated")

    def init(self, key, x, context=None):
        def one(x: Array, i: Array) -> tuple[Array, PyTree]:
            params = self.layer.init(fold_in(key, i), x, context)
            return self.layer.inverse(params, x, context)[0], params

        return lax.scan(one, x, jnp.arange(self.depth), reverse=True)[1]

    def forward(self, params, z, context=None):
        return self._through(self.layer.forward, params, z, context, reverse=False)

    def inverse(self, params, x, context=None):
        return self._through(self.layer.inverse, params, x, context, reverse=True)

    def _through(self, f, params: PyTree, x: Array, context: Array | None, reverse: bool) -> Mapped:
        def one(carry: Mapped, params: PyTree) -> tuple[Mapped, None]:
            x, total = carry
            x, log_det = f(params, x, context)
            return (x, total + log_det), None

        start = x, jnp.zeros(len(x), x.dtype)
        return lax.scan(one, start, params, length=self.depth, reverse=reverse, unroll=self.unroll)[0]


@dataclass(frozen=True)
class Inverse(Wrapper):
    """The inverse of a layer: fast sampling instead of fast densities, or vice versa."""

    layer: Layer

    def __post_init__(self):
        if self.layer.support is not None:
            raise ValueError(f"{self.layer!r} the other way round would need noise in {self.layer.support}")

    def init(self, key, x, context=None):
        return self.layer.init(key, x, context)

    def forward(self, params, z, context=None):
        return self.layer.inverse(params, z, context)

    def inverse(self, params, x, context=None):
        return self.layer.forward(params, x, context)


@dataclass(frozen=True)
class Flattened(Wrapper):
    """A vector layer applied to flattened data of any shape."""

    layer: Layer

    @property
    def support(self) -> tuple[float, float] | None:
        return self.layer.support

    def init(self, key, x, context=None):
        return self.layer.init(key, x.reshape(len(x), -1), context)

    def forward(self, params, z, context=None):
        return self._flat(self.layer.forward, params, z, context)

    def inverse(self, params, x, context=None):
        return self._flat(self.layer.inverse, params, x, context)

    def _flat(self, f, params: PyTree, x: Array, context: Array | None) -> Mapped:
        y, log_det = f(params, x.reshape(len(x), -1), context)
        return y.reshape(x.shape), log_det


def check_vectors(layer: Layer, x: Array) -> None:
    """Raises ValueError for examples that are not vectors."""
    if x.ndim != 2:
        raise ValueError(f"a layer {type(layer).__name__} takes vectors, got {x.shape[1:]}: put it in Flattened")


def unrolled(layer: Layer, params: PyTree) -> list[tuple[Layer, PyTree]]:
    """The individual layers of chains and stacks, noise first, each with its parameters."""
    if isinstance(layer, Chain):
        own = ((part, params.get(_name(i), {})) for i, part in enumerate(layer.layers))
        return [pair for part, its in own for pair in unrolled(part, its)]
    if isinstance(layer, Stack):
        leaves, tree = jax.tree.flatten(params)
        of_each = (jax.tree.unflatten(tree, [a[i] for a in leaves]) for i in range(layer.depth))
        return [pair for its in of_each for pair in unrolled(layer.layer, its)]
    return [(layer, params)]


def solve(f: Callable[[Array], Mapped], y: Array, low: Array, high: Array) -> Array:
    """Solves f(x) = y elementwise by bisection from a bracket, for an increasing f that also returns its log-slopes.

    A final Newton step refines the root and makes it differentiable, once, with respect to y and the parameters of f.
    """
    steps = 30 if jnp.finfo(y.dtype).bits == 32 else 60

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = f(middle)[0] > y
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = lax.fori_loop(0, steps, halve, lax.stop_gradient((low, high)))
    x = lax.stop_gradient(0.5 * (low + high))
    value, log_slope = f(x)
    return x - (value - y) * lax.stop_gradient(jnp.exp(-log_slope))
