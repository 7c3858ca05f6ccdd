"""Variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Mean, Objective, Params, PyTree, State, fold, weights


@dataclass(frozen=True)
class VAE:
    """x ~ p(x | z), z ~ N(0, I), with the posterior q(z | x) a diagonal normal.

    encoder: a module (B, *x) -> (B, 2 * latent), the mean and the log standard deviation of q.
    decoder: a module (B, latent) -> what `likelihood` needs; see `gen_jax.models.likelihoods`.
    beta: the weight of the KL term (Higgins et al. 2017), or a function of the step, to anneal it. The ELBO that
    `elbo` returns always has weight 1.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Any
    latent: int
    beta: float | Callable[[Array], Array] = 1.0

    def __post_init__(self):
        if self.latent < 1:
            raise ValueError(f"latent must be at least 1, got {self.latent}")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = self.likelihood.normalise(batch["x"][:1])
        encoder = self.encoder.init(fold(key, "encoder"), x)
        decoder = self.decoder.init(fold(key, "decoder"), jnp.zeros((1, self.latent)))
        return {"vae": {"encoder": encoder["params"], "decoder": decoder["params"]}}, {}

    def posterior(self, params: PyTree, x: Array) -> distrax.MultivariateNormalDiag:
        """q(z | x)."""
        outputs = self.encoder.apply({"params": params["encoder"]}, self.likelihood.normalise(x))
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return distrax.MultivariateNormalDiag(mean, jnp.exp(log_std))

    def decode(self, params: PyTree, z: Array) -> distrax.Distribution:
        """p(x | z)."""
        return self.likelihood(self.decoder.apply({"params": params["decoder"]}, z))

    def terms(self, params: PyTree, x: Array, key: Array) -> tuple[Array, Array]:
        """(B,) log p(x | z) at one z ~ q(z | x), and (B,) KL(q(z | x) || p(z)), in nats (eq. 10)."""
        posterior = self.posterior(params, x)
        prior = distrax.MultivariateNormalDiag(jnp.zeros(self.latent), jnp.ones(self.latent))
        z = posterior.sample(seed=key)
        return self.decode(params, z).log_prob(x), posterior.kl_divergence(prior)

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        log_likelihood, kl = self.terms(params, batch["x"], key)
        beta = self.beta(state.step) if callable(self.beta) else self.beta
        metrics = {"reconstruction": Mean.of(-log_likelihood), "kl": Mean.of(kl)}
        return jnp.mean(beta * kl - log_likelihood), ({}, metrics)

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("vae", self.loss),)

    def elbo(self, state: State, batch: Batch, key: Array) -> Array:
        log_likelihood, kl = self.terms(weights(state, "vae"), batch["x"], key)
        return log_likelihood - kl

    def sample(self, state: State, key: Array, n: int) -> Batch:
        z = jax.random.normal(fold(key, "z"), (n, self.latent))
        return {"x": self.decode(weights(state, "vae"), z).sample(seed=fold(key, "x")), "z": z}

    def reconstruct(self, state: State, batch: Batch) -> Array:
        """The mean of p(x | z) at the mean of q(z | x)."""
        params = weights(state, "vae")
        return self.decode(params, self.posterior(params, batch["x"]).mean()).mean()
