"""Lower bounds on log p(x): the ELBO, its weighted variants, and the importance-weighted bound.

A bound is a function `(terms, beta) -> (B,) nats` to be maximized; `functools.partial` sets its other arguments.
A schedule of beta is a function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["BoundFunction", "BoundTerms", "cyclical", "elbo", "iwae", "linear", "mmd"]


class BoundTerms(NamedTuple):
    """The terms of a bound, at k samples z ~ q(z | x), in nats."""

    log_likelihood: Array  # (k, B) log p(x | z)
    log_prior: Array  # (k, B) log p(z)
    log_posterior: Array  # (k, B) log q(z | x)
    kl: Array | None  # (B, parts) KL(q || p) in closed form, by dimension or group; None if unavailable
    sizes: Array | float = 1.0  # (parts,) number of latents per part
    z: Array | None = None  # (k, B, latent) the samples, of one group of latents
    prior: Array | None = None  # (k, B, latent) as many samples of p(z)

    @property
    def log_weights(self) -> Array:
        """(k, B) log p(x, z) / q(z | x)."""
        return self.log_likelihood + self.log_prior - self.log_posterior

    @property
    def divergence(self) -> Array:
        """(B, parts) KL(q || p), estimated from the samples if there is no closed form."""
        return self.kl if self.kl is not None else (self.log_posterior - self.log_prior).mean(axis=0)[:, None]


BoundFunction = Callable[[BoundTerms, Any], Array]


def elbo(
    terms: BoundTerms, beta: Any = 1.0, analytic: bool = True, free_bits: float = 0.0, balanced: bool = False
) -> Array:
    """E[log p(x | z)] - beta KL(q || p) (Kingma & Welling 2013, eq. 10; beta: Higgins et al. 2017).

    analytic: use the KL in closed form where available; otherwise it is estimated from the samples.
    free_bits: nats per part (dimension, or group) below which its mean KL is free (Kingma et al. 2016, eq. 15).
    balanced: while beta < 1, parts with more KL per latent get larger weights (Vahdat & Kautz 2020, appendix A).
    Both average over the batch they receive: with microbatches, over each of them.
    """
    if free_bits < 0:
        raise ValueError(f"free_bits cannot be negative, got {free_bits}")
    sampled = (terms.log_posterior - terms.log_prior).mean(axis=0)[:, None]
    kl = terms.divergence if analytic else sampled
    if free_bits:
        mean = kl.mean(axis=0)
        kl = jnp.where(mean > free_bits, kl, jnp.full_like(kl, free_bits))
    if balanced:
        share = (lax.stop_gradient(kl.mean(axis=0)) + 1e-3) / terms.sizes
        kl = kl * jnp.where(beta < 1.0, share / share.mean(), 1.0)
    return terms.log_likelihood.mean(axis=0) - beta * kl.sum(axis=-1)


def iwae(terms: BoundTerms, beta: Any = 1.0) -> Array:
    """log (1/k) sum_i p(x, z_i) / q(z_i | x), tighter with larger k (Burda, Grosse & Salakhutdinov 2016, eq. 8)."""
    log_weights = terms.log_likelihood + beta * (terms.log_prior - terms.log_posterior)
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def mmd(terms: BoundTerms, beta: Any = 1.0) -> Array:
    """E[log p(x | z)] - beta MMD^2(q(z), p(z)) of the batch (WAE, Tolstikhin et al. 2018, section 4; Zhao et al. 2019).

    The unbiased estimate with a sum of inverse multiquadratic kernels of several scales. It is no bound on log p(x).
    """
    if terms.z is None or terms.prior is None:
        raise ValueError("the bound mmd needs one group of latents: use it with a VAE")
    z, prior = terms.z.reshape(-1, terms.z.shape[-1]), terms.prior.reshape(-1, terms.prior.shape[-1])
    n, latent = z.shape
    if n < 2:
        raise ValueError("the bound mmd compares at least two samples: take a larger batch")

    def kernel(a: Array, b: Array) -> Array:
        squares = ((a[:, None] - b) ** 2).sum(axis=-1)
        scales = 2 * latent * jnp.array([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], z.dtype)[:, None, None]
        return (scales / (scales + squares)).sum(axis=0)

    within = sum((kernel(a, a).sum() - 7 * n) / (n * (n - 1)) for a in (z, prior))  # 7 on the diagonals
    return terms.log_likelihood.mean(axis=0) - beta * (within - 2 * kernel(z, prior).mean())


def linear(beta: float, steps: int) -> Callable[[Array], Array]:
    """Linear annealing from 0 to beta over the first `steps` steps (Bowman et al. 2016; Sonderby et al. 2016)."""
    if steps < 1:
        raise ValueError(f"annealing needs at least one step, got {steps}")
    return lambda step: beta * jnp.minimum(1.0, step / steps)


def cyclical(beta: float, period: int, rising: float = 0.5) -> Callable[[Array], Array]:
    """Cyclical annealing: from 0 to beta over the fraction `rising` of every period, then constant (Fu et al. 2019)."""
    if period < 1 or not 0 < rising <= 1:
        raise ValueError(f"cycles need a period of at least 1 and a rising share in (0, 1], got {period} and {rising}")
    return lambda step: beta * jnp.minimum(1.0, (step % period) / (rising * period))
