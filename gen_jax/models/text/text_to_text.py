"""Encoder-decoder Transformers (Vaswani et al. 2017): p(y | x) of a target text given a source text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.autoregressive import Sampling, generate
from gen_jax.models.common.tokens import counted_tokens, token_log_probs
from gen_jax.models.common.transformer import Cache, Stack
from gen_jax.models.text.copying import Copier
from gen_jax.models.text.language_model import Embedding

__all__ = ["TextToText"]


@dataclass(frozen=True)
class TextToText:
    """p(y | x) by an encoder of sources "x" (B, S) and a decoder of targets "y" (B, T) with one vocabulary.

    Targets begin and end with `end`, sources end with it. Rows are padded, with "length" and "y_length"; or hold
    several pairs, numbered from 1 in "segments" and "y_segments", which do not see each other. smoothing: of labels, in
    training (Szegedy et al. 2016). length: tokens of a sampled target. copies: a token is taken from the vocabulary, or
    copied from the source, with a probability of its own (pointer-generator, See et al. 2017); smoothing is then over
    the distribution of the vocabulary.
    """

    embedding: Embedding
    encoder: Stack
    decoder: Stack
    end: int
    smoothing: float = 0.0
    block: int = 0
    length: int = 64
    copies: bool = False

    def __post_init__(self):
        if self.encoder.causal or not self.decoder.causal or not self.decoder.cross or self.encoder.cross:
            raise ValueError("the encoder must be Stack(causal=False), the decoder Stack(cross=True)")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        for entry in ("x", "y"):
            if entry not in batch or batch[entry].ndim != 2 or batch[entry].dtype.kind not in "iu":
                raise ValueError(f'text-to-text needs tokens "x" and "y" (B, T), got {sorted(batch)}')
        params = {
            "embedding": self.embedding.init(fold_in(key, "embedding")),
            "encoder": self.encoder.init(fold_in(key, "encoder")),
            "decoder": self.decoder.init(fold_in(key, "decoder")),
        }
        if self.copies:
            params["copier"] = self._copier.init(fold_in(key, "copier"))
        return {"text_to_text": params}, {}

    @property
    def _copier(self) -> Copier:
        return Copier(self.decoder.parts.width)

    def _encode(self, params: PyTree, x: Array, segments: Array, key: Array | None = None) -> Array:
        """(B, S, D) vectors of sources."""
        positions = _positions(segments)
        h = self.embedding(params["embedding"], x, positions, key if key is None else fold_in(key, "source"))
        return self.encoder(params["encoder"], h, positions, segments, key=key)

    def _log_probs(self, params: PyTree, batch: Batch, key: Array | None = None) -> tuple[Array, Array]:
        """(B, T - 1) log-probabilities of target tokens after the first, and their means over all tokens."""
        x, y = (batch[entry].astype(jnp.int32) for entry in ("x", "y"))
        sources, targets = segments_of(batch, "x"), segments_of(batch, "y")
        memory = self._encode(params, x, sources, key)
        key = key if key is None else fold_in(key, "target")
        before, positions = targets[:, :-1], _positions(targets[:, :-1])
        h = self.embedding(params["embedding"], y[:, :-1], positions, key)
        h = self.decoder(params["decoder"], h, positions, before, (memory, sources), key)
        log_probs, mean = token_log_probs(partial(self.embedding.logits, params["embedding"]), h, y[:, 1:], self.block)
        if self.copies:
            seen = before[:, :, None] == jnp.where(sources > 0, sources, -1)[:, None]
            keys = self._copier.keys(params["copier"], memory)
            log_probs = self._copier.log_probs(params["copier"], h, keys, x, seen, y[:, 1:], log_probs)
        return log_probs, mean

    def _counted(self, batch: Batch, weighted: bool) -> Array:
        """(B, T - 1) weights of the target tokens after the first: those in the pair of the token before."""
        weights = counted_tokens(batch, "y", skip=1, weighted=weighted)
        segments = segments_of(batch, "y")
        return weights * ((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0))

    def log_prob(self, state: State, batch: Batch) -> Array:
        """(B,) log-probabilities of targets given their sources, in nats."""
        log_probs, _ = self._log_probs(state.params["text_to_text"], batch)
        return jnp.sum(log_probs * self._counted(batch, weighted=False), axis=1)

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        """The mean cross-entropy of target tokens in nats, with smoothed labels."""
        log_probs, mean = self._log_probs(params, batch, key)
        weights = self._counted(batch, weighted=True)
        loss = -(1 - self.smoothing) * log_probs - self.smoothing * mean
        return Mean.of(loss, weights), ({}, {"nats_per_token": Mean.of(-log_probs, weights)})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("text_to_text", self.loss),)

    def unpenalized(self) -> TextToText:
        """The same model trained without smoothed labels."""
        return replace(self, smoothing=0.0)

    def encode_source(self, params: Params, batch: Batch) -> PyTree:
        """The condition for decoding: what the decoder keeps of sources "x" (n, S) with "length"."""
        params = params["text_to_text"]
        x, segments = batch["x"].astype(jnp.int32), segments_of(batch, "x")
        memory = self._encode(params, x, segments)
        kept = self.decoder.remember(params["decoder"], memory, segments)
        return (kept, x, self._copier.keys(params["copier"], memory)) if self.copies else (kept,)

    def start(self, params: Params, condition: PyTree, n: int, size: int) -> tuple[Cache, Array]:
        """An empty cache for n targets of at most `size` tokens, and the token before the first."""
        return self.decoder.empty(n, size), jnp.full(n, self.end, jnp.int32)

    def next(self, params: Params, condition: PyTree, cache: Cache, token: Array) -> tuple[Cache, Array]:
        """The cache after tokens (n,), and the logits (n, V) of the next; condition: see `encode_source`."""
        params = params["text_to_text"]
        h = self.embedding(params["embedding"], token[:, None], cache.count[:, None])
        after, h = self.decoder.step(params["decoder"], cache._replace(memory=condition[0]), h)
        logits = self.embedding.logits(params["embedding"], h[:, 0])
        if self.copies:
            (_, segments), x, keys = condition
            logits = self._copier.all_log_probs(params["copier"], h[:, 0], keys, x, segments > 0, logits)
        return after._replace(memory=()), logits

    def sample(
        self, state: State, key: Array, n: int, condition: Batch | None = None, sampling: Sampling = Sampling()
    ) -> Batch:
        """n targets "y" (n, length) of the sources "x" (n, S) in the condition; after its end a target stays `end`."""
        if condition is None:
            raise ValueError('a text-to-text model needs a condition with the sources "x"')
        memory, steps = self.encode_source(state.params, condition), self.length - 1
        cache, first = self.start(state.params, memory, n, steps)
        follow = partial(self.next, state.params, memory)
        tokens = generate(follow, cache, first, key, steps, sampling, end=self.end)
        return {"x": condition["x"], "y": jnp.concatenate([first[:, None], tokens], axis=1)}


def segments_of(batch: Batch, entry: str) -> Array:
    """(B, T) the number of the pair that each token belongs to, 0 for padding."""
    prefix = "" if entry == "x" else f"{entry}_"
    if f"{prefix}segments" in batch:
        return batch[f"{prefix}segments"].astype(jnp.int32)
    tokens = batch[entry]
    if f"{prefix}length" not in batch:
        return jnp.ones(tokens.shape, jnp.int32)
    return (jnp.arange(tokens.shape[1]) < batch[f"{prefix}length"][:, None]).astype(jnp.int32)


def _positions(segments: Array) -> Array:
    """(B, T) positions within each segment."""
    here = jnp.arange(segments.shape[1])
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return here - lax.cummax(jnp.where(starts, here, 0), axis=1)
