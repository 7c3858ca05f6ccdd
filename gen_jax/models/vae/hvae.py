"""Hierarchical VAE: groups of latent images from coarse to fine, each conditioned on the previous ones.

Inference is top-down and shares the generative path (Sonderby et al. 2016, ladder VAE). The posterior of a group is
parametrized relative to its prior (after Vahdat & Kautz 2020, here with the shift in units of the prior's scale).
Blocks are residual, scaled by 1 / sqrt(depth) (Child 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Params, PyTree, State, fold_in
from gen_jax.models.common.arrays import depth_to_space, sum_except_batch
from gen_jax.models.common.convolutions import Conv
from gen_jax.models.common.networks import Residual
from gen_jax.models.vae.base import BoundModel
from gen_jax.models.vae.bounds import BoundFunction, BoundTerms, elbo

__all__ = ["HVAE", "Ladder", "Latent", "EncoderBlock"]


class Latent(nn.Module):
    """A stochastic block: one latent image z (B, h, w, channels) and its update of the top-down features.

    Takes features h_BHWC and bottom-up features of x at this resolution, or None to sample from the prior; `spread`
    scales the noise. Returns new features, and (log p, log q, KL) of z, each (B,).
    """

    width: int
    channels: int
    scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h_BHWC: Array, seen_BHWC: Array | None, spread: Array):
        prior = _normal(self._conv(2 * self.channels, "prior")(nn.relu(h_BHWC)))
        posterior = prior
        if seen_BHWC is not None:
            both = nn.relu(jnp.concatenate([h_BHWC, seen_BHWC], axis=-1))
            posterior = _normal(self._conv(2 * self.channels, "posterior")(both), prior)
        noise = jax.random.normal(self.make_rng("z"), posterior.loc.shape, posterior.loc.dtype)
        z = posterior.loc + spread * posterior.scale * noise
        h_BHWC = h_BHWC + nn.Dense(self.width, dtype=self.dtype)(z.astype(self.dtype))
        h_BHWC = Residual(self.width, self.scale, self.dtype)(h_BHWC)
        of_each = (prior.log_prob(z), posterior.log_prob(z), posterior.kl_divergence(prior))
        return h_BHWC, tuple(a.sum(axis=(1, 2, 3)) for a in of_each)

    def _conv(self, features: int, name: str) -> Conv:
        """Zero-initialized, so that posteriors start as priors, and priors as standard normals."""
        return Conv(features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name=name)


class EncoderBlock(Residual):
    """A residual block with the signature of `nn.scan`."""

    def __call__(self, x_BHWC: Array) -> tuple[Array, None]:
        return super().__call__(x_BHWC), None


def _normal(outputs: Array, around: distrax.Normal | None = None) -> distrax.Normal:
    """A normal from means and log standard deviations, relative to those of another normal if given."""
    mean, log_std = jnp.split(outputs.astype(jnp.float32), 2, axis=-1)
    log_std = 4.0 * jnp.tanh(log_std / 4.0)  # bounded, so that a diverging step stays finite
    if around is None:
        return distrax.Normal(mean, jnp.exp(log_std))
    return distrax.Normal(around.loc + around.scale * mean, around.scale * jnp.exp(log_std))


class Ladder(nn.Module):
    """The bottom-up pass on x, if not None, then the groups of latents from the coarsest resolution to pixels."""

    size: tuple[int, int]
    groups: int
    depth: int
    width: int
    channels: int
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Array | None, n: int, spread: Array = 1.0):
        """(n, H, W, outputs), and (log p, log q, KL) of the latents, each (groups, n)."""
        conv = lambda features, **more: Conv(features, dtype=self.dtype, **more)
        scale = 1.0 / math.sqrt(self.groups * self.depth)
        seen = [None] * self.groups
        if x_BHWC is not None:
            up_BHWC = conv(self.width)(x_BHWC)
            for level in range(self.groups):
                if level:
                    up_BHWC = conv(self.width, strides=2)(up_BHWC)
                up_BHWC, _ = _deep(EncoderBlock, self.depth)(self.width, scale, self.dtype, name=f"up{level}")(up_BHWC)
                seen[level] = jnp.tile(up_BHWC, (n // len(x_BHWC), 1, 1, 1))
        coarsest = tuple(side // 2 ** (self.groups - 1) for side in self.size)
        start = self.param("start", nn.initializers.zeros, (*coarsest, self.width), jnp.float32)
        h_BHWC = jnp.broadcast_to(start, (n, *start.shape)).astype(self.dtype)
        found = []
        for level in reversed(range(self.groups)):
            group = _deep(Latent, self.depth)(self.width, self.channels, scale, self.dtype, name=f"down{level}")
            h_BHWC, of_group = group(h_BHWC, seen[level], spread)
            found.append([a.sum(axis=0) for a in of_group])
            if level:
                h_BHWC = depth_to_space(conv(4 * self.width, name=f"grow{level}")(nn.relu(h_BHWC)))
        out = conv(self.outputs, name="pixels")(nn.relu(h_BHWC)).astype(jnp.float32)
        return out, tuple(jnp.stack(a) for a in zip(*found))


def _deep(block: Any, depth: int):
    """Repeats a block by `nn.scan`: the program size does not depend on depth."""
    rngs = {"params": True, "z": True}
    return nn.scan(block, variable_axes={"params": 0}, split_rngs=rngs, in_axes=nn.broadcast, length=depth)


@dataclass(frozen=True)
class HVAE(BoundModel):
    """x ~ p(x | z_1 .. z_groups), each group of latent images at twice the resolution of the previous.

    shape: of the data (H, W, C). groups: number of latent resolutions, the finest that of the data; H and W must be
    divisible by 2 ** (groups - 1). depth: latents per group. width: features. channels: of each latent.
    beta, bound, samples: as in `VAE`; free bits and balancing are by group.
    """

    shape: tuple[int, int, int]
    likelihood: Any
    groups: int = 3
    depth: int = 1
    width: int = 32
    channels: int = 8
    beta: float | Callable[[Array], Array] = 1.0
    bound: BoundFunction = elbo
    samples: int = 1
    dtype: Any = jnp.float32

    def __post_init__(self):
        height, width, _ = self.shape
        self.check_training()
        if min(self.groups, self.depth, self.width, self.channels) < 1:
            raise ValueError("groups, depth, width and channels must all be at least 1")
        most = 1
        while height % 2**most == 0 and width % 2**most == 0:
            most += 1
        if self.groups > most:
            sides = " ".join(f"{height // 2**i}x{width // 2**i}" for i in range(most))
            raise ValueError(
                f"{self.groups} latent groups need as many resolutions; {height}x{width} has {most}: {sides}"
            )

    @cached_property
    def ladder(self) -> Ladder:
        outputs = self.shape[-1] * self.likelihood.channels
        return Ladder(self.shape[:2], self.groups, self.depth, self.width, self.channels, outputs, self.dtype)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = self.likelihood.normalize(batch["x"][:1])
        if x.shape[1:] != tuple(self.shape):
            raise ValueError(f"this model is for data of shape {tuple(self.shape)}, got {x.shape[1:]}")
        params = self.ladder.init({"params": fold_in(key, "ladder"), "z": key}, x, 1)["params"]
        own = self.likelihood.init()
        return {"vae": {"ladder": params} | ({"likelihood": own} if own else {})}, {}

    def _run(self, params: PyTree, x: Array | None, n: int, key: Array, spread: float = 1.0):
        out, found = self.ladder.apply({"params": params["ladder"]}, x, n, jnp.float32(spread), rngs={"z": key})
        return self.likelihood(out, params.get("likelihood")), found

    def terms(self, params: PyTree, batch: Batch, key: Array, samples: int = 1, training: bool = False) -> BoundTerms:
        x = batch["x"]
        pixels, found = self._run(params, self.likelihood.normalize(x), samples * len(x), key)
        log_prior, log_posterior, kl = (a.reshape(self.groups, samples, len(x)) for a in found)
        log_likelihood = sum_except_batch(pixels.log_prob(jnp.tile(x, (samples, 1, 1, 1)))).reshape(samples, len(x))
        sizes = jnp.array([4.0**level for level in range(self.groups)])  # relative sizes, coarse to fine
        return BoundTerms(log_likelihood, log_prior.sum(axis=0), log_posterior.sum(axis=0), kl.mean(axis=1).T, sizes)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None, spread: float = 1.0) -> Batch:
        """n samples. spread: scale of the latent noise; below 1 samples are more typical and less diverse."""
        pixels, _ = self._run(state.params["vae"], None, n, fold_in(key, "z"), spread)
        return {"x": pixels.sample(seed=fold_in(key, "x"))}

    def resample(self, state: State, batch: Batch, key: Array) -> Array:
        """Draws from p(x | z), for z from q(z | x)."""
        x = self.likelihood.normalize(batch["x"])
        pixels, _ = self._run(state.params["vae"], x, len(x), fold_in(key, "z"))
        return pixels.sample(seed=fold_in(key, "x"))

    def reconstruct(self, state: State, batch: Batch) -> Array:
        """The mean of p(x | z), with every latent at the mean of its posterior given the previous ones."""
        x = batch["x"]
        key = jax.random.key(0)  # unused, as the noise is scaled by 0
        return self._run(state.params["vae"], self.likelihood.normalize(x), len(x), key, spread=0.0)[0].mean()
