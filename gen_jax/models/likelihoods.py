"""p(x | z) for decoders: each likelihood turns a decoder's output into a distrax distribution over one example."""

from __future__ import annotations

from dataclasses import dataclass

import distrax
import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Bernoulli:
    """Binary pixels, 0.0 or 1.0."""

    channels = 1  # decoder outputs per channel of the data

    def normalise(self, x: jax.Array) -> jax.Array:
        """Data as an encoder likes it, about [-1, 1]."""
        return 2.0 * x - 1.0

    def __call__(self, outputs_BHWC: jax.Array) -> distrax.Distribution:
        return distrax.Independent(distrax.Bernoulli(logits=outputs_BHWC, dtype=jnp.float32), 3)


@dataclass(frozen=True)
class DiscretizedLogistic:
    """Integers 0 .. levels - 1 by a logistic summed over bins, the outer ones open (Salimans et al. 2017, eq. 2).

    A proper probability of the stored integers: its mean is comparable between models in bits per dimension.
    """

    levels: int = 256
    channels = 2  # a location and a log scale

    def normalise(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) * (2.0 / (self.levels - 1)) - 1.0

    def __call__(self, outputs_BHWC: jax.Array) -> distrax.Distribution:
        location, log_scale = jnp.split(outputs_BHWC, 2, axis=-1)
        return distrax.Independent(BinnedLogistic(location, log_scale, self.levels), 3)


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
        """Position in [-1, 1] to the nearest level."""
        return jnp.clip(jnp.round((unit + 1.0) * ((self._levels - 1) / 2)), 0, self._levels - 1).astype(jnp.int32)

    def log_prob(self, value: jax.Array) -> jax.Array:
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)), whose logarithm keeps its digits far out in the tails.
        k = value.astype(jnp.float32)
        inverse_scale = jnp.exp(-self._log_scale)
        half = 1.0 / (self._levels - 1)
        centred = k * (2.0 * half) - 1.0 - self._location
        above, below = (centred + half) * inverse_scale, (centred - half) * inverse_scale
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
