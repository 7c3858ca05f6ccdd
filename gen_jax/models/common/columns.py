"""p(x | z) for the columns of a table, each of its own kind: real, count, ordinal or categorical.

Nazabal, Olmos, Ghahramani & Valera 2020, Handling incomplete heterogeneous data using VAEs, arXiv:1807.03653,
section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import PyTree, fold_in
from gen_jax.data.dataset import Dataset
from gen_jax.data.options import listed
from gen_jax.errors import UserError

__all__ = ["Category", "Column", "Columns", "Count", "Ordinal", "Real", "column_names", "kinds_of"]

MOST = 100  # values of an ordinal column


class Column(Protocol):
    """The kind of a column."""

    @property
    def outputs(self) -> int:
        """How many outputs of a decoder it takes."""

    @property
    def inputs(self) -> int:
        """How many inputs of an encoder it makes."""

    @property
    def discrete(self) -> bool:
        """Whether its likelihood is a probability."""

    def unsupported(self, x: np.ndarray) -> str:
        """A message if known values x (n,) lie outside the support, else ""."""

    def encode(self, x: Array) -> Array:
        """(B, inputs) from values (B,)."""

    def log_prob(self, outputs: Array, x: Array) -> Array:
        """(B,) log p(x) in nats, given outputs (B, outputs)."""

    def sample(self, outputs: Array, key: Array) -> Array:
        """(B,)."""

    def center(self, outputs: Array) -> Array:
        """(B,) the mean of numbers, the most probable category."""


@dataclass(frozen=True)
class Real:
    """Real values: normal, or Student's t with `degrees` of freedom, whose location and scale a decoder outputs.

    least: the smallest scale, of standardized values.
    """

    degrees: float | None = None
    least: float = 1e-2
    outputs = 2
    inputs = 1
    discrete = False

    def unsupported(self, x):
        return ""

    def encode(self, x):
        return x[:, None]

    def _scale(self, outputs: Array) -> Array:
        return self.least + jax.nn.softplus(outputs[..., 1])

    def log_prob(self, outputs, x):
        scale = self._scale(outputs)
        z = (x - outputs[..., 0]) / scale
        if self.degrees is None:
            return -0.5 * z**2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)
        return jax.scipy.stats.t.logpdf(z, self.degrees) - jnp.log(scale)

    def sample(self, outputs, key):
        shape, dtype = outputs.shape[:-1], outputs.dtype
        normal = self.degrees is None
        noise = jax.random.normal(key, shape, dtype) if normal else jax.random.t(key, self.degrees, shape, dtype)
        return outputs[..., 0] + self._scale(outputs) * noise

    def center(self, outputs):
        return outputs[..., 0]


@dataclass(frozen=True)
class Count:
    """Whole numbers from 0 on: negative binomial with a mean and a dispersion r, variance mean + mean^2 / r."""

    outputs = 2
    inputs = 1
    discrete = True

    def unsupported(self, x):
        return "" if np.all((x == np.floor(x)) & (x >= 0)) else "holds other values than whole numbers from 0 on"

    def encode(self, x):
        return jnp.log1p(jnp.maximum(x, 0))[:, None]

    def _moments(self, outputs: Array) -> tuple[Array, Array]:
        return jnp.exp(jnp.clip(outputs[..., 0], -12.0, 14.0)), jnp.exp(jnp.clip(outputs[..., 1], -8.0, 12.0))

    def log_prob(self, outputs, x):
        mean, r = self._moments(outputs)
        x = jnp.maximum(x, 0)
        choose = jax.lax.lgamma(x + r) - jax.lax.lgamma(r) - jax.lax.lgamma(x + 1)
        return choose - r * jnp.log1p(mean / r) - x * jnp.log1p(r / mean)

    def sample(self, outputs, key):
        mean, r = self._moments(outputs)
        rate = jax.random.gamma(fold_in(key, "rate"), r) * mean / r
        return jax.random.poisson(fold_in(key, "count"), rate).astype(outputs.dtype)

    def center(self, outputs):
        return self._moments(outputs)[0]


@dataclass(frozen=True)
class Ordinal:
    """Ordered values: cumulative probabilities P(x <= value i) = sigmoid(c_i) with rising c (McCullagh 1980)."""

    values: tuple[float, ...]
    inputs = 1
    discrete = True

    def __post_init__(self):
        if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"an ordinal column needs at least two rising values, got {self.values}")

    @property
    def outputs(self) -> int:
        return len(self.values) - 1

    def unsupported(self, x):
        extra = np.setdiff1d(np.float32(x), np.float32(self.values))
        return f"holds {extra[0]:g}, which is not among its values" if len(extra) else ""

    def _code(self, x: Array) -> Array:
        middles = (np.array(self.values[1:]) + np.array(self.values[:-1])) / 2
        return jnp.searchsorted(jnp.asarray(middles, x.dtype), x)

    def encode(self, x):
        return (self._code(x) * (2.0 / (len(self.values) - 1)) - 1.0)[:, None]

    def _log_probs(self, outputs: Array) -> Array:
        """(B, values)."""
        steps = jnp.concatenate([outputs[..., :1], 1e-3 + jax.nn.softplus(outputs[..., 1:])], axis=-1)
        cuts = jnp.cumsum(steps, axis=-1)
        first, last = jax.nn.log_sigmoid(cuts[..., :1]), jax.nn.log_sigmoid(-cuts[..., -1:])
        low, high = cuts[..., :-1], cuts[..., 1:]
        between = jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + jnp.log(-jnp.expm1(low - high))
        return jnp.concatenate([first, between, last], axis=-1)

    def log_prob(self, outputs, x):
        return jnp.take_along_axis(self._log_probs(outputs), self._code(x)[..., None], axis=-1)[..., 0]

    def sample(self, outputs, key):
        return jnp.asarray(self.values, outputs.dtype)[jax.random.categorical(key, self._log_probs(outputs))]

    def center(self, outputs):
        return jnp.exp(self._log_probs(outputs)) @ jnp.asarray(self.values, outputs.dtype)


@dataclass(frozen=True)
class Category:
    """Codes 0 .. levels - 1 without an order, by a softmax."""

    levels: int
    discrete = True

    def __post_init__(self):
        if self.levels < 1:
            raise ValueError(f"a categorical column needs at least one level, got {self.levels}")

    @property
    def outputs(self) -> int:
        return self.levels

    @property
    def inputs(self) -> int:
        return self.levels

    def unsupported(self, x):
        inside = np.all((x == np.floor(x)) & (x >= 0) & (x < self.levels))
        return "" if inside else f"holds other codes than 0 .. {self.levels - 1}"

    def _code(self, x: Array) -> Array:
        return jnp.clip(x, 0, self.levels - 1).astype(jnp.int32)

    def encode(self, x):
        return jax.nn.one_hot(self._code(x), self.levels, dtype=x.dtype)

    def log_prob(self, outputs, x):
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), self._code(x)[..., None], axis=-1)[..., 0]

    def sample(self, outputs, key):
        return jax.random.categorical(key, outputs).astype(outputs.dtype)

    def center(self, outputs):
        return jnp.argmax(outputs, axis=-1).astype(outputs.dtype)


@dataclass(frozen=True)
class Columns:
    """Independent columns given z, each of its own kind: a likelihood as in `gen_jax.models.common.likelihoods`.

    NaN marks missing values: it is 0 for an encoder, which is also told where values are known. A decoder makes
    `outputs` values. Real columns should be standardized.
    """

    kinds: tuple[Column, ...]

    @property
    def discrete(self) -> bool:
        return all(kind.discrete for kind in self.kinds)

    @property
    def outputs(self) -> int:
        """Decoder outputs of a row."""
        return sum(kind.outputs for kind in self.kinds)

    def init(self) -> PyTree:
        return {}

    def unsupported(self, x: np.ndarray) -> str:
        if x.ndim != 2 or x.shape[1] != len(self.kinds):
            return f"there are {len(self.kinds)} kinds of columns, and examples have the shape {x.shape[1:]}"
        for i, kind in enumerate(self.kinds):
            if said := kind.unsupported(x[~np.isnan(x[:, i]), i]):
                return f"column {i} ({type(kind).__name__}) {said}"
        return ""

    def normalize(self, x: Array) -> Array:
        """(B, inputs of all columns, and 1 where a value is known)."""
        known = ~jnp.isnan(x)
        filled = jnp.where(known, x, 0)
        parts = [kind.encode(filled[:, i]) * known[:, i, None] for i, kind in enumerate(self.kinds)]
        return jnp.concatenate([*parts, known.astype(x.dtype)], axis=1)

    def __call__(self, outputs: Array, params: PyTree = None) -> distrax.Distribution:
        ends = np.cumsum([kind.outputs for kind in self.kinds])
        return Cells(self.kinds, tuple(jnp.split(outputs, ends[:-1], axis=-1)))


def column_names(data: Dataset) -> tuple[str, ...]:
    """The names of the columns of a table; their numbers from 0 where "x" has none. Raises UserError."""
    return data.info.columns or tuple(str(i) for i in range(data.vectors()))


def kinds_of(
    data: Dataset, counts: str = "", ordinals: str = "", degrees: float | None = None, least: float = 1e-2
) -> tuple[Column, ...]:
    """The kinds of the columns of a table: its categories, the counts and ordinal values that are named, and reals.

    counts, ordinals: names of columns with commas between them, or of "x" without names their numbers from 0. degrees:
    of freedom of Student's t of the real columns, None for normal ones. least: their smallest scale. Raises UserError.
    """
    info, names = data.info, column_names(data)
    named = {"counts": listed(counts), "ordinals": listed(ordinals)}
    categories = info.categories or ((),) * len(names)
    for option, chosen in named.items():
        if unknown := [name for name in chosen if name not in names]:
            raise UserError(f"--{option} {unknown[0]}: the columns are {', '.join(names)}")
        if texts := [name for name in chosen if categories[names.index(name)]]:
            raise UserError(f"--{option} {texts[0]}: holds categories, where numbers are needed")
    if both := [name for name in named["counts"] if name in named["ordinals"]]:
        raise UserError(f"--counts and --ordinals both name {both[0]}")
    kinds: list[Column] = []
    for i, name in enumerate(names):
        if categories[i]:
            kinds.append(Category(len(categories[i])))
        elif name in named["counts"]:
            if said := Count().unsupported(_values(data, i)):
                raise UserError(f"--counts {name}: {said}")
            kinds.append(Count())
        elif name in named["ordinals"]:
            values = _values(data, i)
            if not 2 <= len(values) <= MOST:
                raise UserError(f"--ordinals {name}: has {len(values):,} values, where 2 to {MOST} are needed")
            kinds.append(Ordinal(tuple(values.tolist())))
        else:
            kinds.append(Real(degrees, least))
    return tuple(kinds)


def _values(data: Dataset, i: int) -> np.ndarray:
    """The known values of a column in any split, each once."""
    values = np.unique(np.concatenate([np.asarray(arrays["x"][:, i]) for arrays in data.splits.values()]))
    return values[~np.isnan(values)]


class Cells(distrax.Distribution):
    """The distribution of the cells of rows, each by the kind of its column."""

    def __init__(self, kinds: Sequence[Column], outputs: tuple[Array, ...]):
        self._kinds, self._outputs = tuple(kinds), outputs

    @property
    def event_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return (*self._outputs[0].shape[:-1], len(self._kinds))

    def _each(self, f: Callable[[Column, Array, int], Any]) -> Array:
        found = [f(kind, outputs, i) for i, (kind, outputs) in enumerate(zip(self._kinds, self._outputs))]
        return jnp.stack(found, axis=-1)

    def log_prob(self, value: Array) -> Array:
        return self._each(lambda kind, outputs, i: kind.log_prob(outputs, value[..., i]))

    def _sample_n(self, key: Array, n: int) -> Array:
        repeated = lambda outputs: jnp.broadcast_to(outputs, (n, *outputs.shape))
        return self._each(lambda kind, outputs, i: kind.sample(repeated(outputs), fold_in(key, "column", i)))

    def mean(self) -> Array:
        """The means of numbers, and the most probable categories."""
        return self._each(lambda kind, outputs, i: kind.center(outputs))
