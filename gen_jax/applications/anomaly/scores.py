"""Anomaly scores of trained models of any family: higher for examples that are more anomalous.

The score of an example depends on that example alone: what is random, such as dequantization or posterior samples, is
drawn from a key made of its values.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from scipy.spatial import KDTree

from gen_jax.algorithms import em
from gen_jax.core import (
    Adversarial,
    Batch,
    Bound,
    ComparesExamples,
    Density,
    ImportanceWeighted,
    Imputable,
    Invertible,
    Latent,
    Reconstructing,
    State,
)
from gen_jax.data.dataset import has_missing
from gen_jax.data.source import Arrays, apply_transforms, epoch
from gen_jax.data.transforms import Transform
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.features import Encoder
from gen_jax.loop import fit
from gen_jax.models.common.arrays import sum_except_batch
from gen_jax.models.mixture import GMM

__all__ = ["SCORES", "Scored", "Scorer", "scorers"]

Scorer = Callable[[Split], np.ndarray]  # the scores (N,) of the examples of a split
PerExample = Callable[[State, Batch, Array], Array]  # (state, batch, key) -> (B,)
DRAWS = 16  # samples of the posterior
REFERENCE = 5000  # training examples that scores are compared with, at most
NEIGHBOR = 5
STEPS, RATE = 100, 0.05  # of the search for the best posterior of an example


@dataclass(frozen=True)
class Scored:
    """A trained model, and what its scores may need; several scores share `nll` and `size`."""

    model: Any
    state: State
    training: Split  # its training examples, as a split
    background: tuple[Any, State] | None = None  # another density of the same examples
    encode: Encoder | None = None

    @cached_property
    def nll(self) -> Scorer | None:
        return _remembered(_nll(self))

    @cached_property
    def size(self) -> Scorer | None:
        return _remembered(_size(self))


def _remembered(scorer: Scorer | None) -> Scorer | None:
    """The scorer, which computes the scores of the same arrays once."""
    known: list[tuple[Arrays, np.ndarray]] = []

    def score(split: Split) -> np.ndarray:
        for arrays, values in known:
            if arrays is split.arrays:
                return values
        known.append((split.arrays, scorer(split)))
        return known[-1][1]

    return scorer and score


def scorers(scored: Scored, names: Sequence[str] | None = None) -> dict[str, Scorer]:
    """The scores that a model has, by name, all or those of `names`; see `SCORES`."""
    made = {name: SCORES[name](scored) for name in SCORES if names is None or name in names}
    return {name: scorer for name, scorer in made.items() if scorer is not None}


def _each(per_example: PerExample, state: State, block: int = 256) -> Scorer:
    """Makes the scorer of a function of a batch, applied to one example at a time by one vectorized program."""

    @partial(jax.jit, static_argnums=1)
    def program(state: State, transforms: tuple[Transform, ...], raw: Batch, seeds: Array) -> Array:
        def one(raw: Batch, seed: Array) -> Array:
            alone = _alone({**raw, "index": seed.astype(jnp.int32)})
            return per_example(state, apply_transforms(alone, transforms, seed, 0), jax.random.key(seed))[0]

        return jax.vmap(one)(raw, seeds)

    def score(split: Split) -> np.ndarray:
        found = []
        for raw, mask in epoch(split.arrays, min(block, split.size)):
            seeds = np.array([zlib.crc32(np.ascontiguousarray(x)) for x in raw["x"]], np.uint32)
            raw = {name: a for name, a in raw.items() if name != "index"}
            found.append(np.asarray(program(state, split.transforms, raw, seeds), np.float64)[mask > 0])
        values = np.concatenate(found)
        if np.isnan(values).any():
            first = int(np.flatnonzero(np.isnan(values))[0])
            raise UserError(
                f"{int(np.isnan(values).sum()):,} of {len(values):,} scores of {split.name} are NaN, the first in row "
                f"{first + 1}: where cells are missing, use a model that was trained with missing cells"
            )
        return values

    return score


def _bound(model: Any) -> PerExample | None:
    """(B,) the log-density, or the tightest bound on it that the model has."""
    if isinstance(model, Density):
        return lambda state, batch, key: model.log_prob(state, batch)
    if isinstance(model, ImportanceWeighted):
        weigh = lambda state, batch, key: model.log_weights(state, batch, key, DRAWS)
        return lambda *given: jax.nn.logsumexp(weigh(*given), axis=0) - math.log(DRAWS)
    if isinstance(model, Bound):
        return lambda state, batch, key: _mean(lambda k: model.elbo(state, batch, k), key)
    return None


def _mean(draw: Callable[[Array], Array], key: Array) -> Array:
    return lax.map(draw, jax.random.split(key, DRAWS)).mean(axis=0)


def _nll(scored: Scored) -> Scorer | None:
    """-log p(x), or of its lower bound; of rows with missing cells, of the others where the model knows that."""
    log_prob = _bound(scored.model)
    if log_prob is None:
        return None
    whole = _each(lambda *given: -log_prob(*given), scored.state)
    if not isinstance(scored.model, Imputable):
        return whole
    marginal = scored.model.with_missing()
    partly = _each(lambda state, batch, key: -marginal.log_prob(state, batch), scored.state)
    return lambda split: (partly if has_missing(split.arrays["x"]) else whole)(split)


def _typicality(scored: Scored) -> Scorer | None:
    """The distance of -log p(x) to its mean over training examples (Nalisnick et al. 2019, with one example)."""
    own = scored.nll
    if own is None:
        return None
    entropy = own(_head(scored.training, REFERENCE)).mean()
    return lambda split: np.abs(own(split) - entropy)


def _complexity(scored: Scored) -> Scorer | None:
    """-log2 p(x) less the bits of x as a PNG file (Serra et al. 2020), of images of whole numbers."""
    own, size = scored.nll, scored.size
    transforms = scored.training.transforms_of("x")
    if own is None or size is None or not all(t.lossless for t in transforms):
        return None
    volume = sum(math.log2(t.levels) for t in transforms) * math.prod(scored.training.arrays["x"].shape[1:])
    return lambda split: own(split) / math.log(2) + volume + size(split)


def _size(scored: Scored) -> Scorer | None:
    """The negative bits of x as a PNG file: what complexity alone tells, whatever the model."""
    x = scored.training.arrays["x"]
    if x.ndim != 4 or x.dtype != np.uint8 or x.shape[-1] not in (1, 3):
        return None
    return lambda split: -np.array([8.0 * _png(np.asarray(image)) for image in split.arrays["x"]])


def _png(image: np.ndarray) -> int:
    """Bytes of the pixels as a PNG file."""
    from PIL import Image

    kept = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(kept, "png", optimize=True)
    return kept.tell()


def _ratio(scored: Scored) -> Scorer | None:
    """log p0(x) - log p(x), p0 being the background model (Ren et al. 2019)."""
    own = scored.nll
    if own is None or scored.background is None:
        return None
    model, state = scored.background
    if (log_prob := _bound(model)) is None:
        raise UserError(f"the background model, {type(model).__name__}, has no likelihood")
    other = _each(lambda *given: -log_prob(*given), state)
    return lambda split: own(split) - other(split)


def _latent(scored: Scored) -> Scorer | None:
    """-log density of the latent vector: of a mixture fitted to the encoder's means, or of a flow's noise."""
    model = scored.model
    if isinstance(model, Invertible):
        prior = lambda state, batch, key: model.distribution(state, batch).distribution.log_prob(
            model.latent(state, batch)[0]
        )
        return _each(lambda *given: -prior(*given).reshape(-1), scored.state)
    if not isinstance(model, Latent):
        return None
    mean = jax.jit(jax.vmap(lambda batch: model.encode(scored.state, _alone(batch)).mean()[0]))

    def codes(split: Split) -> np.ndarray:
        parts = [mean(_transformed(split, raw))[mask > 0] for raw, mask in epoch(split.arrays, min(256, split.size))]
        return np.concatenate([np.asarray(part) for part in parts])

    z = codes(_head(scored.training, REFERENCE))
    mixture = GMM(min(10, max(1, len(z) // 50)), floor=1e-3)
    fitted = fit(em(mixture), {"x": z}, steps=50)
    log_prob = jax.jit(lambda z: mixture.log_prob(fitted, {"x": z}))
    return lambda split: -np.asarray(log_prob(codes(split)), np.float64)


def _alone(batch: Batch) -> Batch:
    return jax.tree.map(lambda a: a[None], batch)


def _transformed(split: Split, raw: Batch) -> Batch:
    return apply_transforms({name: jnp.asarray(a) for name, a in raw.items()}, split.transforms, 0, 0)


def _reconstruction(scored: Scored) -> Scorer | None:
    """-E log p(x | z) over the posterior, or the squared error of the reconstruction."""
    model = scored.model
    if isinstance(model, Latent):

        def log_likelihood(state: State, batch: Batch, key: Array) -> Array:
            posterior = model.encode(state, batch)
            draw = lambda k: sum_except_batch(model.decode(state, posterior.sample(seed=k), batch).log_prob(batch["x"]))
            return _mean(draw, key)

        return _each(lambda *given: -log_likelihood(*given), scored.state)
    if not isinstance(model, Reconstructing):
        return None
    error = lambda state, batch, key: sum_except_batch((model.reconstruct(state, batch) - batch["x"]) ** 2)
    return _each(error, scored.state)


def _regret(scored: Scored) -> Scorer | None:
    """The most that the bound gains if the posterior of x is fitted to x alone (Xiao et al. 2020).

    The posterior is normal with independent coordinates; Adam starts at the encoder's.
    """
    model = scored.model
    if not isinstance(model, Latent):
        return None
    optimizer = optax.adam(RATE)

    def regret(state: State, batch: Batch, key: Array) -> Array:
        prior, posterior = model.prior_of(state), model.encode(state, batch)
        noise = jax.random.normal(key, (DRAWS, *posterior.mean().shape))

        def bound(q: tuple[Array, Array]) -> Array:
            mean, log_scale = q
            z = mean + jnp.exp(log_scale) * noise
            entropy = (log_scale + 0.5 * math.log(2 * math.pi * math.e)).sum(axis=-1)
            of = lambda z: sum_except_batch(model.decode(state, z, batch).log_prob(batch["x"])) + prior.log_prob(z)
            return jnp.mean(jax.vmap(of)(z), axis=0) + entropy

        def step(carry, _):
            q, memory = carry
            value, gradient = jax.value_and_grad(lambda q: -bound(q).sum())(q)
            change, memory = optimizer.update(gradient, memory)
            return (optax.apply_updates(q, change), memory), -value

        start = posterior.mean(), jnp.log(posterior.stddev())
        (end, _), curve = lax.scan(step, (start, optimizer.init(start)), None, length=STEPS)
        return (jnp.maximum(curve.max(), bound(end).sum()) - curve[0])[None]

    return _each(regret, scored.state, block=64)


def _discriminator(scored: Scored) -> Scorer | None:
    """The discriminator's logit of being generated."""
    model = scored.model
    alone = not (isinstance(model, ComparesExamples) and model.compares_examples)
    if not isinstance(model, Adversarial) or model.packing > 1 or not alone:
        return None
    logit = lambda state, batch, key: -model.discriminate(state, batch).reshape(1, -1).mean(axis=1)
    return _each(logit, scored.state)


def _features(scored: Scored) -> Scorer | None:
    """The distance to the fifth nearest training example, of features."""
    encode, reference = scored.encode, _head(scored.training, REFERENCE)
    if encode is None or has_missing(reference.arrays["x"]):
        return None
    tree = KDTree(encode(_pixels(reference)).features)
    nearest = min(NEIGHBOR, reference.size)

    def distance(split: Split) -> np.ndarray:
        if has_missing(split.arrays["x"]):
            return np.full(split.size, np.nan)
        return tree.query(encode(_pixels(split)).features, k=[nearest])[0][:, 0]

    return distance


def _pixels(split: Split) -> np.ndarray:
    """All examples of a split, as encoders see them."""
    parts = [_transformed(split, raw)["x"][mask > 0] for raw, mask in epoch(split.arrays, min(1000, split.size))]
    return split.pixels(np.concatenate([np.asarray(part) for part in parts]))


def _head(split: Split, n: int) -> Split:
    return split.part(0, min(n, split.size))


SCORES: Mapping[str, Callable[[Scored], Scorer | None]] = {
    "nll": lambda scored: scored.nll,
    "typicality": _typicality,
    "complexity": _complexity,
    "ratio": _ratio,
    "latent": _latent,
    "reconstruction": _reconstruction,
    "regret": _regret,
    "discriminator": _discriminator,
    "features": _features,
    "size": lambda scored: scored.size,
}
