"""Products of emissions: real, categorical and count columns side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import fold_in
from gen_jax.models.common.linalg import after
from gen_jax.models.hmm.emissions.emission import Emission

__all__ = ["Product"]


@dataclass(frozen=True)
class Product(Emission):
    """Independent distributions of groups of columns of x (B, T, D), given the state.

    parts: pairs of columns and their emission, e.g. `(((0, 1), Gaussian()), ((2,), Categorical(5)))`; each column
    belongs to one part. Where a part is NaN it is unobserved at that step, and the other parts still count.
    """

    parts: tuple[tuple[tuple[int, ...], Emission], ...]

    def __post_init__(self):
        columns = sorted(c for columns, _ in self.parts for c in columns)
        if not columns or columns != list(range(len(columns))):
            raise ValueError(f"parts must hold each column from 0 up once, got columns {columns}")

    @property
    def independent(self):
        return all(emission.independent for _, emission in self.parts)

    def init(self, key, batch, seen, k):
        started = [
            emission.init(fold_in(key, "part", i), {**batch, "x": x}, seen & there, k)
            for i, (emission, x, there) in enumerate(self._cut(batch["x"]))
        ]
        made = tuple(params for params, _ in started), {"parts": tuple(extra for _, extra in started)}
        dtype = jnp.result_type(batch["x"].dtype, jnp.float32)  # of all parts, also those of symbols
        return jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, made)

    def _cut(self, x: Array) -> Iterator[tuple[Emission, Array, Array]]:
        """For each part: its emission, its observations, and the steps that have one (B, T)."""
        for columns, emission in self.parts:
            mine = x[..., jnp.asarray(columns)]
            there = ~emission.unseen(mine)
            yield emission, emission.read(jnp.where(there[..., None], mine, 0)), there

    def _each(self, f: Callable[..., Any], *trees: Any) -> tuple[Any, ...]:
        """f(emission, entries of the trees) for all parts."""
        return tuple(f(emission, *entries) for (_, emission), *entries in zip(self.parts, *trees))

    def distribution(self, params):
        raise TypeError("the parts of a Product have distributions of their own: see `parts`")

    def log_prob(self, params, extra, batch):
        terms: list[Array] = []
        for (emission, x, there), own, more in zip(self._cut(batch["x"]), params, extra["parts"]):
            own = after(own, terms[-1]) if terms else own
            terms.append(jnp.where(there[..., None], emission.log_prob(own, more, {**batch, "x": x}), 0))
        return sum(terms[1:], terms[0])

    def stats(self, params, extra, batch, r):
        found = []
        for (emission, x, there), own, more in zip(self._cut(batch["x"]), params, extra["parts"]):
            last = jax.tree.leaves(found[-1])[0] if found else r
            found.append(emission.stats(after(own, last), more, {**batch, "x": x}, r * there[..., None]))
        return tuple(found)

    def maximize(self, params, extra, stats):
        return self._each(lambda emission, *own: emission.maximize(*own), params, extra["parts"], stats)

    def log_prior(self, params, extra):
        terms = self._each(lambda emission, *own: emission.log_prior(*own), params, extra["parts"])
        terms = [term for term in terms if term is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def pack(self, given, params):
        """Given is a tuple with one entry for each part, {} to keep its parameters."""
        return self._each(lambda emission, *own: emission.pack(*own), given, params) if given else params

    def unpack(self, params):
        return self._each(lambda emission, own: emission.unpack(own), params)

    def held(self, params):
        return self._each(lambda emission, own: emission.held(own), params)

    def free_parameters(self, params):
        return sum(self._each(lambda emission, own: emission.free_parameters(own), params))

    def recenter(self, stats, old, new):
        return self._each(lambda emission, *own: emission.recenter(*own), stats, old, new)

    def draw(self, params, extra, key, states, past=None):
        drawn = [
            emission.draw(own, more, fold_in(key, "part", i), states)
            for i, ((_, emission), own, more) in enumerate(zip(self.parts, params, extra["parts"]))
        ]
        drawn = [(x if x.ndim == 3 else x[..., None]).astype(jnp.float32) for x in drawn]
        order = [c for columns, _ in self.parts for c in columns]
        return jnp.concatenate(drawn, axis=-1)[..., jnp.argsort(jnp.asarray(order))]

    def with_missing(self):
        return replace(self, parts=tuple((columns, emission.with_missing()) for columns, emission in self.parts))

    def complete(self, params, extra, key, states, x, seen):
        for i, ((columns, emission), own, more) in enumerate(zip(self.parts, params, extra["parts"])):
            mine = jnp.asarray(columns)
            made = emission.complete(own, more, fold_in(key, "part", i), states, x[:, mine], seen[:, mine])
            x = x.at[:, mine].set(made)
        return x

    def mean(self, params):
        """(K, ...) the means of the parts side by side, for categorical ones the probabilities of their symbols."""
        means = self._each(lambda emission, own: emission.mean(own), params)
        return jnp.concatenate([m.reshape(len(m), -1) for m in means], axis=1)

    def unseen(self, x):
        parts = [emission.unseen(x[..., jnp.asarray(columns)]) for columns, emission in self.parts]
        return jnp.stack(parts).all(axis=0)
