"""Transformers: one block with its parts by choice, stacked; for training, prefill and cached decoding.

Dimensions: B batch, T steps, D width, H heads. Parameters of all layers are stacked, with the layer as leading axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import PyTree, fold_in
from gen_jax.models.common.attention import (
    attention,
    attention_weights,
    cached_attention,
    relative_buckets,
    rotate,
)

__all__ = ["Cache", "Parts", "Stack", "gpt2_parts", "modern_parts", "t5_parts"]

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu"]


@dataclass(frozen=True)
class Parts:
    """The parts of a Transformer block.

    kv_heads: heads of keys and values (grouped queries, Ainslie et al. 2023); 0: as many as queries. hidden: width
    inside the feed-forward network; 0: four times the width. norm: of the inputs of both branches, LayerNorm or RMSNorm
    without parameters of their own unless `scales`. rotary: base of rotary positions; 0: none. qk_norm: normalizes
    queries and keys and multiplies them by this; 0: not (Henry et al. 2020). scaled: scores by 1 / sqrt(head width).
    window: each position sees this many; 0: all. relative: buckets of learned relative positions, shared by all layers
    (Raffel et al. 2020); 0: none. dropout: of both branches and of the attention's output. zero_init: branches start
    at 0, else with standard deviation `std` / sqrt(2 depth) as in GPT-2. dtype: of activations.
    """

    width: int
    heads: int
    kv_heads: int = 0
    head_width: int = 0
    hidden: int = 0
    activation: Activation = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    scales: bool = True
    epsilon: float = 1e-5
    bias: bool = False
    rotary: float = 0.0
    qk_norm: float = 0.0
    scaled: bool = True
    window: int = 0
    relative: int = 0
    dropout: float = 0.0
    std: float = 0.02
    zero_init: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.width % self.heads and not self.head_width:
            raise ValueError(f"a width of {self.width} cannot be divided into {self.heads} heads")
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads cannot share {self.groups} heads of keys and values")
        if self.rotary and self.size % 2:
            raise ValueError(f"rotary positions need heads of even width, got {self.size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads

    @property
    def size(self) -> int:
        """The width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def scale(self) -> float:
        """The factor of scores."""
        return self.size**-0.5 if self.scaled else 1.0

    @property
    def inner(self) -> int:
        return self.hidden or 4 * self.width

    def normalization(self) -> nn.Module:
        kind = nn.LayerNorm if self.norm == "layer" else nn.RMSNorm
        more = {"use_bias": self.bias} if self.norm == "layer" else {}
        return kind(epsilon=self.epsilon, use_scale=self.scales, dtype=self.dtype, **more)

    def dense(self, features: int, std: float, name: str | None = None) -> nn.Module:
        init = nn.initializers.normal(std) if std else nn.initializers.zeros
        return nn.Dense(features, self.bias, self.dtype, kernel_init=init, name=name)

    def projection(self, depth: int) -> nn.Module:
        """The output of a branch in a stack of `depth` layers."""
        return self.dense(self.width, 0.0 if self.zero_init else self.std / math.sqrt(2 * depth))


def gpt2_parts(width: int, heads: int, **more: Any) -> Parts:
    """The block of GPT-2 (Radford et al. 2019), as nanoGPT has it: LayerNorm, GELU, no biases by default."""
    return Parts(width, heads, **more)


def modern_parts(width: int, heads: int, **more: Any) -> Parts:
    """Rotary positions, RMSNorm without scales, normalized queries and keys, squared ReLU, branches that start at 0."""
    given = {"activation": "relu2", "norm": "rms", "scales": False, "rotary": 10_000.0, "qk_norm": 1.2}
    return Parts(width, heads, **{**given, "zero_init": True, "std": width**-0.5, **more})


def t5_parts(width: int, heads: int, **more: Any) -> Parts:
    """The block of T5 (Raffel et al. 2020): RMSNorm, relative positions, scores scaled by the initial queries only."""
    given = {"activation": "relu", "norm": "rms", "epsilon": 1e-6, "relative": 32, "scaled": False}
    return Parts(width, heads, **{**given, "std": width**-0.5, **more})


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, for each layer (n, K, S, D), and what is constant of a sequence."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    count: Array  # (n,) positions seen
    first: Array  # (n,) the first position that is still seen
    memory: PyTree = ()  # for decoders with cross-attention: its keys, values and mask


class Heads(nn.Module):
    """Queries (B, T, H, D), keys and values (B, T, K, D) of an input."""

    parts: Parts
    queries: bool = True
    keys: bool = True

    @nn.compact
    def __call__(self, x: Array, positions: Array | None) -> dict[str, Array]:
        p, found = self.parts, {}
        wanted = {"query": p.heads} if self.queries else {}
        wanted |= {"key": p.groups, "value": p.groups} if self.keys else {}
        for name, heads in wanted.items():
            std = p.std * (p.size**-0.5 if name == "query" and not p.scaled else 1)
            h = p.dense(heads * p.size, std, name)(x)
            h = h.reshape(*x.shape[:-1], heads, p.size)
            if name != "value" and positions is not None and p.rotary:
                h = rotate(h, positions, p.rotary)
            if name != "value" and p.qk_norm:
                h = p.qk_norm * _unit(h)
            found[name] = h
        return found


def _unit(x: Array, epsilon: float = 1e-6) -> Array:
    """x divided by the root mean square of its last axis."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * lax.rsqrt(square + epsilon)).astype(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), with cross-attention to a memory if `cross`, then + MLP(norm(x))."""

    parts: Parts
    depth: int = 1
    causal: bool = True
    cross: bool = False

    def setup(self):
        p = self.parts
        self.norm, self.heads, self.out = p.normalization(), Heads(p), p.projection(self.depth)
        if self.cross:
            self.cross_norm, self.cross_out = p.normalization(), p.projection(self.depth)
            self.cross_queries, self.cross_keys = Heads(p, keys=False), Heads(p, queries=False)
        self.mlp_norm, self.up, self.down = p.normalization(), p.dense(p.inner, p.std), p.projection(self.depth)
        self.gate = p.dense(p.inner, p.std) if p.activation in ("swiglu", "geglu") else None
        self.drop = nn.Dropout(p.dropout)

    def __call__(self, x, positions, segments, bias=None, memory=None, train=False):
        """The block on whole sequences. memory: keys, values and their segments."""
        h = self.heads(self.norm(x), positions)
        seen = None if segments is None else (segments, segments)
        a = self._attend(h["query"], h["key"], h["value"], self.causal, segments=seen, bias=bias)
        return self._mlp(self._cross(x + self._dropped(self.out(a), train), segments, memory, train), train)

    def step(self, x, positions, kept, count, first, bias=None, memory=None):
        """The block on new positions (n, P, D), which see those from `first` (n, 1 or P) on; their keys and values are
        added to those `kept` at `count` (n,)."""
        h = self.heads(self.norm(x), positions)
        rows, places = jnp.arange(len(x))[:, None], count[:, None] + jnp.arange(x.shape[1])
        keys, values = (a.at[rows, :, places].set(new) for a, new in zip(kept, (h["key"], h["value"])))
        here = jnp.arange(keys.shape[2])
        distance = places[:, :, None] - here
        mask = (distance >= 0) & (distance < (self.parts.window or keys.shape[2])) & (here >= first[..., None])
        a = cached_attention(h["query"], keys, values, self.parts.scale, mask, bias)
        a = a.reshape(*a.shape[:2], -1)
        x = self._mlp(self._cross(x + self.out(a), None, memory, False), False)
        return x, (keys, values)

    def maps(self, x, positions, segments, bias=None):
        """The attention weights (B, H, T, T) of whole sequences."""
        p, h = self.parts, self.heads(self.norm(x), positions)
        seen = None if segments is None else (segments, segments)
        more = {"causal": self.causal, "window": p.window if self.causal else 0, "segments": seen, "bias": bias}
        return attention_weights(h["query"], h["key"], scale=p.scale, **more)

    def remember(self, memory):
        """Keys and values (B, S, K, D) of a memory (B, S, D), for cross-attention."""
        h = self.cross_keys(memory, None)
        return h["key"], h["value"]

    def _dropped(self, h, train):
        return self.drop(h, deterministic=False) if train else h

    def _attend(self, q, k, v, causal, **more):
        p = self.parts
        found = attention(q, k, v, causal=causal, window=p.window if causal else 0, scale=p.scale, **more)
        return found.reshape(*found.shape[:2], -1)

    def _cross(self, x, segments, memory, train):
        if not self.cross:
            return x
        keys, values, of_memory = memory
        q = self.cross_queries(self.cross_norm(x), None)["query"]
        if segments is None:  # one sequence in each row: all that is no padding, segment 0
            seen = {"mask": (of_memory > 0)[:, None]}
        else:
            seen = {"segments": (segments, jnp.where(of_memory > 0, of_memory, -1))}
        return x + self._dropped(self.cross_out(self._attend(q, keys, values, False, **seen)), train)

    def _mlp(self, x, train):
        h = self.mlp_norm(x)
        up = self.up(h)
        match self.parts.activation:
            case "swiglu":
                h = nn.silu(self.gate(h)) * up
            case "geglu":
                h = nn.gelu(self.gate(h)) * up
            case "relu2":
                h = jnp.square(nn.relu(up))
            case "gelu":
                h = nn.gelu(up, approximate=False)
            case "gelu_tanh":
                h = nn.gelu(up)
            case "relu":
                h = nn.relu(up)
        return x + self._dropped(self.down(h), train)


@dataclass(frozen=True)
class Stack:
    """A stack of blocks and a final normalization.

    remat: recompute activations in the backward pass, which saves their memory. unroll: layers that are compiled as one
    body of the loop over them; 0: all on CPU, one elsewhere.
    """

    parts: Parts
    depth: int
    causal: bool = True
    cross: bool = False
    remat: bool = False
    unroll: int = 0

    @property
    def block(self) -> Block:
        return Block(self.parts, self.depth, self.causal, self.cross)

    def init(self, key: Array) -> PyTree:
        """Parameters: of the layers, stacked; of the normalization; of relative positions."""
        x = jnp.zeros((1, 1, self.parts.width), self.parts.dtype)
        here, one = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32)

        def init_all(block: Block, x: Array):
            memory = (*block.remember(x), one) if self.cross else None
            return block(x, here, None, None, memory)

        make = lambda key: self.block.init(key, x, method=init_all)["params"]
        params = {"layers": jax.vmap(make)(jax.vmap(partial(fold_in, key))(jnp.arange(self.depth)))}
        params["norm"] = self._norm.init(key, x).get("params", {})
        if self.parts.relative:
            shape = (self.parts.relative, self.parts.heads)
            params["relative"] = self.parts.std * jax.random.normal(fold_in(key, "relative"), shape)
        return params

    @property
    def _norm(self) -> nn.Module:
        return self.parts.normalization()

    def __call__(
        self,
        params: PyTree,
        x: Array,
        positions: Array,
        segments: Array | None = None,
        memory: tuple[Array, Array] | None = None,
        key: Array | None = None,
    ) -> Array:
        """(B, T, D) of whole sequences. memory: (B, S, D) and its segments (B, S). key: for dropout, in training."""
        bias = self._bias_within(params, x.shape[1])

        def body(x: Array, layer: tuple[PyTree, Array]) -> tuple[Array, None]:
            weights, number = layer
            variables = {"params": weights}
            of_layer = None
            if memory is not None:
                of_layer = (*self.block.apply(variables, memory[0], method=Block.remember), memory[1])
            rngs = {"dropout": fold_in(key, number)} if key is not None and self.parts.dropout else {}
            x = self.block.apply(variables, x, positions, segments, bias, of_layer, train=bool(rngs), rngs=rngs)
            return x, None

        body = jax.checkpoint(body) if self.remat else body
        unroll = self.unroll or (self.depth if jax.default_backend() == "cpu" else 1)
        x, _ = lax.scan(body, x, (params["layers"], jnp.arange(self.depth)), unroll=unroll)
        return self._norm.apply({"params": params["norm"]}, x)

    def maps(self, params: PyTree, x: Array, positions: Array, segments: Array | None = None) -> Array:
        """(depth, B, H, T, T) the attention weights of whole sequences (B, T, D), without memory."""
        bias, found = self._bias_within(params, x.shape[1]), []
        for i in range(self.depth):
            variables = {"params": _layer(params, i)}
            found.append(self.block.apply(variables, x, positions, segments, bias, method=Block.maps))
            x = self.block.apply(variables, x, positions, segments, bias)
        return jnp.stack(found)

    def _bias_within(self, params: PyTree, length: int) -> Array | None:
        """`_bias` between the positions of whole sequences."""
        here = jnp.arange(length)
        return self._bias(params, here - here[:, None])

    def _bias(self, params: PyTree, distance: Array) -> Array | None:
        """Learned relative positions as biases (..., H, T, S) of scores, for distances (..., T, S) key - query."""
        if not self.parts.relative:
            return None
        buckets = relative_buckets(distance, self.causal, self.parts.relative)
        return jnp.moveaxis(params["relative"][buckets], -1, -3)

    def empty(self, n: int, size: int, memory: PyTree = ()) -> Cache:
        """A cache for n sequences of at most `size` positions."""
        shape = (n, self.parts.groups, size, self.parts.size)
        zeros = lambda: tuple(jnp.zeros(shape, self.parts.dtype) for _ in range(self.depth))
        return Cache(zeros(), zeros(), jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32), memory)

    def remember(self, params: PyTree, memory: Array, segments: Array) -> PyTree:
        """Keys, values and segments of a memory (n, S, D), for decoding."""
        make = lambda i: self.block.apply({"params": _layer(params, i)}, memory, method=Block.remember)
        return tuple(make(i) for i in range(self.depth)), segments

    def step(self, params: PyTree, cache: Cache, x: Array, first: Array | None = None) -> tuple[Cache, Array]:
        """(n, P, D) of the next P positions of each sequence, given those in the cache.

        first: (n, P) the first position that each of them sees.
        """
        first = cache.first[:, None] if first is None else first
        places = cache.count[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)
        bias = self._bias(params, jnp.arange(cache.keys[0].shape[2]) - places[:, :, None])
        keys, values = [], []
        for i in range(self.depth):
            of_layer = (*cache.memory[0][i], cache.memory[1]) if self.cross else None
            kept = cache.keys[i], cache.values[i]
            x, (k, v) = self.block.apply(
                {"params": _layer(params, i)}, x, places, kept, cache.count, first, bias, of_layer, method=Block.step
            )
            keys.append(k)
            values.append(v)
        cache = cache._replace(keys=tuple(keys), values=tuple(values), count=cache.count + x.shape[1])
        return cache, self._norm.apply({"params": params["norm"]}, x)


def _layer(params: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda a: a[i], params["layers"])
