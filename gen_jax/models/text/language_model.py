"""Decoder-only Transformer language models: p(x) of sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.attention import sinusoids
from gen_jax.models.common.autoregressive import Sampling, generate
from gen_jax.models.common.tokens import counted_tokens, soft_capped, token_log_probs
from gen_jax.models.common.transformer import Cache, Parts, Stack

__all__ = ["Embedding", "LanguageModel"]


@dataclass(frozen=True)
class Embedding:
    """Token embeddings with positions, and the head that maps vectors back to logits.

    positions: learned (up to `context`), sinusoidal, or none, where attention knows them. tied: the head is the
    embedding. std, head_std: of the initial weights; 0 for a head of zeros. normed: vectors have length sqrt(D) at the
    start of the stack. soft_cap: bounds logits (see `soft_capped`); 0: none.
    """

    vocabulary: int
    context: int
    parts: Parts
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    tied: bool = True
    std: float = 0.02
    head_std: float = 0.02
    normed: bool = False
    soft_cap: float = 0.0

    def init(self, key: Array) -> PyTree:
        rows, width = self.vocabulary, self.parts.width
        normal = lambda name, std, *shape: std * jax.random.normal(fold_in(key, name), shape)
        params = {"tokens": normal("tokens", self.std, rows, width)}
        if self.positions == "learned":
            params["positions"] = normal("positions", self.std, self.context, width)
        if not self.tied:
            params["head"] = normal("head", self.head_std, width, rows)
        return params

    def __call__(self, params: PyTree, tokens: Array, positions: Array, key: Array | None = None) -> Array:
        """(B, T, D) vectors. key: for dropout, in training."""
        h = params["tokens"][tokens]
        if self.positions == "learned":
            h = h + params["positions"][positions]
        elif self.positions == "sinusoidal":
            h = h * self.parts.width**0.5 + sinusoids(positions, self.parts.width)
        if self.normed:
            h = h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)
        if key is not None and self.parts.dropout:
            keep = jax.random.bernoulli(fold_in(key, "embedding"), 1 - self.parts.dropout, h.shape)
            h = jnp.where(keep, h / (1 - self.parts.dropout), 0)
        return h.astype(self.parts.dtype)

    def logits(self, params: PyTree, h: Array) -> Array:
        """(..., V) logits of vectors (..., D)."""
        head = params["tokens"].T if self.tied else params["head"]
        logits = h @ head.astype(h.dtype)
        return soft_capped(logits.astype(jnp.promote_types(h.dtype, jnp.float32)), self.soft_cap)


@dataclass(frozen=True)
class LanguageModel:
    """p(x) = prod_t p(x_t | x_<t) by a Transformer, of sequences "x" (B, T + 1) whose first token is given.

    The first token is the one before the text, or `end`, the token between documents. documents: positions see their
    own document only, where several are in one sequence; those are separated by `end`. block: see `token_log_probs`.
    "mask" (B, T + 1) chooses the tokens that count.
    """

    embedding: Embedding
    stack: Stack
    end: int
    documents: bool = False
    block: int = 0

    def __post_init__(self):
        if not 0 <= self.end < self.embedding.vocabulary:
            raise ValueError(f"the end token must be below {self.embedding.vocabulary}, got {self.end}")

    @property
    def context(self) -> int:
        return self.embedding.context

    @property
    def vocabulary(self) -> int:
        return self.embedding.vocabulary

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        self._check(batch)
        return {"lm": {"embedding": self.embedding.init(fold_in(key, "embedding")), "stack": self.stack.init(key)}}, {}

    def _check(self, batch: Batch) -> None:
        x = batch["x"]
        if x.ndim != 2 or x.dtype.kind not in "iu":
            raise ValueError(f"a language model needs tokens (B, T), got {x.dtype} {list(x.shape)}")
        if self.embedding.positions == "learned" and x.shape[1] - 1 > self.context:
            raise ValueError(f"sequences of {x.shape[1] - 1} tokens are longer than the context of {self.context}")

    def _inputs(self, params: PyTree, tokens: Array, key: Array | None = None) -> tuple[Array, Array, Array | None]:
        """Inputs of the stack for tokens (B, T): vectors, positions, and numbers of the documents, if kept apart."""
        positions = jnp.arange(tokens.shape[1])
        segments = jnp.cumsum(tokens == self.end, axis=1) if self.documents else None
        return self.embedding(params["embedding"], tokens, positions, key), positions, segments

    def _hidden(self, params: PyTree, tokens: Array, key: Array | None = None) -> Array:
        """(B, T, D) vectors after tokens (B, T)."""
        return self.stack(params["stack"], *self._inputs(params, tokens, key), key=key)

    def _log_probs(self, params: PyTree, x: Array, key: Array | None = None) -> Array:
        h = self._hidden(params, x[:, :-1], key)
        return token_log_probs(partial(self.embedding.logits, params["embedding"]), h, x[:, 1:], self.block)[0]

    def logits(self, state: State, tokens: Array) -> Array:
        """(B, T, V) logits of the token after each of tokens (B, T)."""
        params = state.params["lm"]
        return self.embedding.logits(params["embedding"], self._hidden(params, tokens))

    def attention(self, state: State, tokens: Array) -> Array:
        """(depth, B, H, T, T) the attention weights of every position of tokens (B, T)."""
        params = state.params["lm"]
        return self.stack.maps(params["stack"], *self._inputs(params, tokens))

    def log_probs(self, state: State, batch: Batch) -> Array:
        """(B, T + 1) log-probabilities of tokens given those before, in nats; 0 for the first."""
        x = batch["x"].astype(jnp.int32)
        return jnp.pad(self._log_probs(state.params["lm"], x), ((0, 0), (1, 0)))

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-probabilities of the tokens that count, given the first, in nats."""
        weights = counted_tokens(batch, skip=1, weighted=False)
        return jnp.sum(self._log_probs(state.params["lm"], batch["x"].astype(jnp.int32)) * weights, axis=1)

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean cross-entropy of the tokens that count, in nats."""
        log_probs = self._log_probs(params, batch["x"].astype(jnp.int32), key)
        return Mean.of(-log_probs, counted_tokens(batch, skip=1)), ({}, {})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("lm", self.loss),)

    def start(self, params: Params, condition: PyTree, n: int, size: int) -> tuple[Cache, Array]:
        """An empty cache for n sequences of at most `size` tokens, and the token before the first."""
        return self.stack.empty(n, size), jnp.full(n, self.end, jnp.int32)

    def next(self, params: Params, condition: PyTree, cache: Cache, token: Array) -> tuple[Cache, Array]:
        """The cache after tokens (n,), and the logits (n, V) of the next."""
        cache, h, _ = self._read(params, cache, token[:, None])
        return cache, self.embedding.logits(params["lm"]["embedding"], h[:, 0])

    def extend(self, params: Params, condition: PyTree, cache: Cache, tokens: Array, lengths: Array) -> Cache:
        """The cache after the first `lengths` (n,) of tokens (n, P), all at once."""
        after, _, starts = self._read(params, cache, tokens)
        first = jnp.take_along_axis(starts, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        first = jnp.where(lengths > 0, first, cache.first)
        return after._replace(count=cache.count + lengths, first=first)  # what follows overwrites the rest

    def _read(self, params: Params, cache: Cache, tokens: Array) -> tuple[Cache, Array, Array]:
        """The cache after tokens (n, P), vectors (n, P, D), and the first position (n, P) that each token sees."""
        positions = cache.count[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        h = self.embedding(params["lm"]["embedding"], tokens, positions)
        starts = jnp.broadcast_to(cache.first[:, None], tokens.shape)
        if self.documents:  # that of the end before its document
            starts = jax.lax.cummax(jnp.where(tokens == self.end, positions, starts), axis=1)
        cache, h = self.stack.step(params["lm"]["stack"], cache, h, starts)
        return cache._replace(first=starts[:, -1]), h, starts

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, sampling: Sampling = Sampling()
    ) -> Batch:
        """n texts "x" (n, context + 1) from the start of a document; after one ends, the next begins."""
        cache, first = self.start(state.params, None, n, self.context)
        tokens = generate(partial(self.next, state.params, None), cache, first, key, self.context, sampling)
        return {"x": jnp.concatenate([first[:, None], tokens], axis=1)}
