"""p(x | z) for decoders: each likelihood turns a decoder's outputs into distributions of the individual values of x.

The values are independent given z: the batch shape is that of x, so that a log-likelihood is a sum over all values, or
over the observed ones. A likelihood is a class with

    discrete                    whether it is a probability of integers, so that bits per dimension are defined
    channels                    decoder outputs per channel of the data
    init()                      parameters of its own, {} if it has none
    unsupported(x)              a message if x lies outside the support, else ""
    normalize(x)                data scaled for an encoder
    __call__(outputs, params)   a distrax distribution with the shape of x
"""

from __future__ import annotations

from dataclasses import dataclass

import distrax
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.core import PyTree
from gen_jax.models.common.columns import Columns

__all__ = [
    "Bernoulli",
    "BinnedLogistic",
    "Categorical",
    "DiscretizedLogistic",
    "Gaussian",
    "Mixed",
    "Modal",
    "check_outputs",
    "refuse_missing",
]


@dataclass(frozen=True)
class Bernoulli:
    """Binary pixels 0.0 or 1.0. Values in between are accepted, as is common, but then it is not a likelihood."""

    channels = 1
    discrete = True

    def init(self) -> PyTree:
        return {}

    def unsupported(self, x: np.ndarray) -> str:
        return _beyond(x, 0, 1, "Bernoulli", "binarize or scale it: see gen_jax.data.transforms")

    def normalize(self, x: jax.Array) -> jax.Array:
        """Data scaled for an encoder, to about [-1, 1]."""
        return 2.0 * x - 1.0

    def __call__(self, outputs: jax.Array, params: PyTree = None) -> distrax.Distribution:
        return distrax.Bernoulli(logits=outputs, dtype=jnp.float32)


@dataclass(frozen=True)
class Gaussian:
    """Real values, normal with the decoder's output as mean. scale: the standard deviation.

    A number fixes it; "shared" learns one for all values (Rybkin, Daniilidis & Levine 2021, sigma-VAE); "learned" lets
    the decoder output it per value. Learned ones are bounded below by `least`.
    """

    scale: float | str = 1.0
    least: float = 1e-3
    discrete = False  # a density, not a probability of integers

    def __post_init__(self):
        if isinstance(self.scale, str) and self.scale not in ("shared", "learned"):
            raise ValueError(f'the scale of a Gaussian is a number, "shared" or "learned", got {self.scale!r}')
        if not isinstance(self.scale, str) and not self.scale > 0:
            raise ValueError(f"the scale of a Gaussian must be positive, got {self.scale}")

    @property
    def channels(self) -> int:
        return 2 if self.scale == "learned" else 1

    def init(self) -> PyTree:
        return {"log_scale": jnp.zeros((), jnp.float32)} if self.scale == "shared" else {}

    def unsupported(self, x: np.ndarray) -> str:
        return ""

    def normalize(self, x: jax.Array) -> jax.Array:
        return x

    def __call__(self, outputs: jax.Array, params: PyTree = None) -> distrax.Distribution:
        if self.scale == "learned":
            outputs, log_scale = jnp.split(outputs, 2, axis=-1)
        elif self.scale == "shared":
            log_scale = jnp.broadcast_to(params["log_scale"], outputs.shape)
        else:
            return distrax.Normal(outputs, jnp.full(outputs.shape, self.scale))
        return distrax.Normal(outputs, jnp.maximum(jnp.exp(log_scale), self.least))


@dataclass(frozen=True)
class Categorical:
    """Unordered integers 0 .. levels - 1, with a softmax."""

    levels: int
    discrete = True

    def __post_init__(self):
        if self.levels < 2:
            raise ValueError(f"a categorical needs at least two levels, got {self.levels}")

    @property
    def channels(self) -> int:
        return self.levels

    def init(self) -> PyTree:
        return {}

    def unsupported(self, x: np.ndarray) -> str:
        return _not_levels(x, self.levels, "Categorical")

    def normalize(self, x: jax.Array) -> jax.Array:
        return _unit(x, self.levels)

    def __call__(self, outputs: jax.Array, params: PyTree = None) -> distrax.Distribution:
        return Modal(logits=_last(outputs, self.levels))


class Modal(distrax.Categorical):
    """A categorical whose "mean" is its mode, for plots."""

    def mean(self) -> jax.Array:
        return self.mode()


@dataclass(frozen=True)
class DiscretizedLogistic:
    """Integers 0 .. levels - 1 by logistics integrated over bins, the outer ones open (Salimans et al. 2017, eq. 2).

    components: number of mixed logistics per value. A proper probability of the stored integers: its mean is comparable
    between models in bits per dimension. Channels are independent given z, without coupling between colors.
    """

    levels: int = 256
    components: int = 1
    discrete = True

    def __post_init__(self):
        if self.levels < 2 or self.components < 1:
            raise ValueError(
                f"a discretized logistic needs 2 levels and 1 component at least, got {self.levels} and "
                f"{self.components}"
            )

    @property
    def channels(self) -> int:
        """Locations and log scales, and weights if there are several components."""
        return 2 if self.components == 1 else 3 * self.components

    def init(self) -> PyTree:
        return {}

    def unsupported(self, x: np.ndarray) -> str:
        return _not_levels(x, self.levels, "DiscretizedLogistic")

    def normalize(self, x: jax.Array) -> jax.Array:
        return _unit(x, self.levels)

    def __call__(self, outputs: jax.Array, params: PyTree = None) -> distrax.Distribution:
        if self.components == 1:
            location, log_scale = jnp.split(outputs, 2, axis=-1)
            return BinnedLogistic(location, log_scale, self.levels)
        location, log_scale, logits = jnp.split(_last(outputs, self.channels), 3, axis=-1)
        start = jnp.linspace(-1.0, 1.0, self.components + 2)[1:-1]  # spread apart
        return Mixed(distrax.Categorical(logits=logits), BinnedLogistic(location + start, log_scale, self.levels))


class Mixed(distrax.MixtureSameFamily):
    """A mixture of binned logistics, with samples and mean rounded to levels."""

    def _sample_n(self, key: jax.Array, n: int) -> jax.Array:
        return super()._sample_n(key, n).astype(jnp.int32)

    def mean(self) -> jax.Array:
        return jnp.round(
            jnp.sum(self.mixture_distribution.probs * self.components_distribution.mean(), axis=-1)
        ).astype(jnp.int32)


class BinnedLogistic(distrax.Distribution):
    """P(k) = F((k + 1/2)) - F((k - 1/2)) for k = 0 .. levels - 1, F a logistic distribution function.

    location and scale are in units where the levels span [-1, 1]; the log scale is bounded below at -7.
    """

    def __init__(self, location: jax.Array, log_scale: jax.Array, levels: int):
        self._location, self._log_scale, self._levels = location, jnp.maximum(log_scale, -7.0), levels

    @property
    def event_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self._location.shape

    def _value(self, unit: jax.Array) -> jax.Array:
        """Maps positions in [-1, 1] to the nearest level."""
        return jnp.clip(jnp.round((unit + 1.0) * ((self._levels - 1) / 2)), 0, self._levels - 1).astype(jnp.int32)

    def log_prob(self, value: jax.Array) -> jax.Array:
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)), whose logarithm is accurate far out in the tails.
        k = value.astype(jnp.float32)
        inverse_scale = jnp.exp(-self._log_scale)
        half = 1.0 / (self._levels - 1)
        centered = k * (2.0 * half) - 1.0 - self._location
        above, below = (centered + half) * inverse_scale, (centered - half) * inverse_scale
        log_upper = jnp.where(k >= self._levels - 1, 0.0, jax.nn.log_sigmoid(above))
        log_lower = jnp.where(k <= 0, 0.0, jax.nn.log_sigmoid(-below))
        inside = (k > 0) & (k < self._levels - 1)
        log_width = jnp.where(inside, jnp.log(-jnp.expm1(-2.0 * half * inverse_scale)), 0.0)
        return log_upper + log_lower + log_width

    def _sample_n(self, key: jax.Array, n: int) -> jax.Array:
        noise = jax.random.logistic(key, (n, *self.batch_shape))
        return self._value(self._location + jnp.exp(self._log_scale) * noise)

    def mean(self) -> jax.Array:
        """The level nearest to the location."""
        return self._value(self._location)


def check_outputs(likelihood, x: jax.Array, outputs: jax.Array) -> None:
    """Raises ValueError if the decoder's outputs do not fit the likelihood for data like x."""
    per_row = likelihood.outputs if isinstance(likelihood, Columns) else x.shape[-1] * likelihood.channels
    expected = (*x.shape[:-1], per_row)
    if outputs.shape != expected:
        raise ValueError(
            f"data of shape {x.shape[1:]} with {type(likelihood).__name__} needs a decoder that makes {expected[1:]}, "
            f"not {outputs.shape[1:]}"
        )


def refuse_missing(x: np.ndarray) -> str:
    """A message if values are missing, else ""."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        return "values are missing (NaN), which VAE(missing=True) accepts"
    return ""


def _last(outputs: jax.Array, channels: int) -> jax.Array:
    """(..., channels * C) -> (..., C, channels)."""
    return outputs.reshape(*outputs.shape[:-1], channels, -1).swapaxes(-1, -2)


def _unit(x: jax.Array, levels: int) -> jax.Array:
    """Maps levels to [-1, 1]."""
    return x.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0


def _not_levels(x: np.ndarray, levels: int, name: str) -> str:
    if x.dtype.kind not in "iu" and np.any(x[~np.isnan(x)] % 1):
        return f"{name}({levels}) explains integers 0 .. {levels - 1}; the data has fractions: leave it as stored"
    return _beyond(x, 0, levels - 1, f"{name}({levels})", "give the likelihood as many levels as the data has")


def _beyond(x: np.ndarray, low: float, high: float, name: str, advice: str) -> str:
    least, most = np.nanmin(x), np.nanmax(x)
    if not (least >= low and most <= high):
        return f"{name} explains values from {low} to {high}; the data goes from {least} to {most}: {advice}"
    return ""
