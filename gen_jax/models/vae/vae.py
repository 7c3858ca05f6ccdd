"""Variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114) with interchangeable parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import distrax
import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gen_jax.core import Batch, Extra, Params, PyTree, State, fold_in
from gen_jax.models.common.arrays import sum_except_batch
from gen_jax.models.common.conditioning import Conditioning, embed, resolve_condition
from gen_jax.models.common.likelihoods import check_outputs
from gen_jax.models.vae.base import BoundModel
from gen_jax.models.vae.bounds import BoundFunction, BoundTerms, elbo
from gen_jax.models.vae.masks import MaskModel
from gen_jax.models.vae.posteriors import Diagonal, draw, kl_by_dimension, mean
from gen_jax.models.vae.priors import StandardNormal, VampPrior

__all__ = ["VAE"]


@dataclass(frozen=True)
class VAE(BoundModel):
    """x ~ p(x | z), z ~ p(z), with the posterior q(z | x).

    encoder: a module (B, *x) -> (B, posterior.outputs(latent)); for the diagonal normal 2 * latent.
    decoder: a module (B, latent) -> inputs of `likelihood`; see `gen_jax.models.common.likelihoods`.
    beta: weight of the KL term (Higgins et al. 2017), or a schedule, a function of the step; `elbo` always uses 1.
    prior, posterior: see `gen_jax.models.vae.priors` and `posteriors`.
    bound, samples: the training objective, see `gen_jax.models.vae.bounds`, and its number of samples of z.
    conditioning: see `gen_jax.models.common.conditioning` (conditional VAE, Sohn, Lee & Yan 2015). The encoder then
    takes a second argument (B, conditioning.size), the decoder a concatenated vector (B, latent + conditioning.size).
    missing: NaN marks missing values, which are 0 for the encoder and do not count in the bound, with the bound `iwae`
    that of MIWAE (Mattei & Frellsen 2019). mask: a model of which are missing, see `gen_jax.models.vae.masks`.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Any
    latent: int
    beta: float | Callable[[Array], Array] = 1.0
    prior: Any = StandardNormal()
    posterior: Any = Diagonal()
    bound: BoundFunction = elbo
    samples: int = 1
    conditioning: Conditioning | None = None
    missing: bool = False
    mask: MaskModel | None = None

    def __post_init__(self):
        if self.latent < 1:
            raise ValueError(f"latent must be at least 1, got {self.latent}")
        if self.mask is not None and not self.missing:
            raise ValueError("a model of the mask needs missing=True")
        self.check_training()
        if self.conditioning and isinstance(self.prior, VampPrior):
            raise ValueError("a VampPrior is made of unconditional posteriors: choose another prior")

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        x = self._inputs(batch["x"][:1])
        one = {name: a[:1] for name, a in batch.items()} if self.conditioning else {}
        own = {"conditioning": self.conditioning.init(fold_in(key, "context"), one)} if self.conditioning else {}
        context = self._condition(own, one)
        outputs, encoder = self.encoder.init_with_output(fold_in(key, "encoder"), x, *context)
        expected = (1, self.posterior.outputs(self.latent))
        if outputs.shape != expected:
            raise ValueError(
                f"{type(self.posterior).__name__} in {self.latent} dimensions needs {expected[1]} outputs of the "
                f"encoder, which gives {outputs.shape[1:]}"
            )
        z = jnp.concatenate([jnp.zeros((1, self.latent)), *context], axis=-1)
        made, decoder = self.decoder.init_with_output(fold_in(key, "decoder"), z)
        check_outputs(self.likelihood, batch["x"][:1], made)
        own |= {
            "likelihood": self.likelihood.init(),
            "mask": self.mask.init(batch["x"].shape[-1]) if self.mask else {},
            "posterior": self.posterior.init(fold_in(key, "posterior"), self.latent),
            "prior": self.prior.init(fold_in(key, "prior"), self.latent, x),
        }
        networks = {"encoder": encoder["params"], "decoder": decoder["params"]}
        return {"vae": networks | {name: params for name, params in own.items() if params}}, {}

    def unsupported(self, batch: Batch) -> str:
        """A message if the batch lies outside the support, else ""."""
        return super().unsupported(batch) or (self.conditioning.unsupported(batch) if self.conditioning else "")

    def _condition(self, params: PyTree, batch: Batch, key: Array | None = None) -> list[Array]:
        """[(B, size)], the condition of a batch, or [] if unconditional."""
        return [embed(self.conditioning, batch, params.get("conditioning"), key)] if self.conditioning else []

    def _inputs(self, x: Array) -> Array:
        """Data scaled for the encoder, with 0 where they are missing."""
        x = self.likelihood.normalize(x)
        return jnp.where(jnp.isnan(x), 0, x) if self.missing else x

    def _posterior(self, params: PyTree, x: Array, *context: Array) -> distrax.Distribution:
        """q(z | x), for data normalized for the encoder."""
        outputs = self.encoder.apply({"params": params["encoder"]}, x, *context)
        return self.posterior(outputs, params.get("posterior"))

    def _prior(self, params: PyTree) -> distrax.Distribution:
        return self.prior(params.get("prior"), self.latent, partial(self._posterior, params))

    def _likelihood(self, params: PyTree, z: Array, *context: Array) -> distrax.Distribution:
        """p(x | z) for z (n, latent), over individual values of x."""
        outputs = self.decoder.apply({"params": params["decoder"]}, jnp.concatenate([z, *context], axis=-1))
        return self.likelihood(outputs, params.get("likelihood"))

    def terms(self, params: PyTree, batch: Batch, key: Array, samples: int = 1, training: bool = False) -> BoundTerms:
        x = batch["x"]
        condition = self._condition(params, batch, fold_in(key, "condition") if training else None)
        posterior = self._posterior(params, self._inputs(x), *condition)
        prior = self._prior(params)
        z, log_posterior = draw(posterior, key, samples)
        pixels = self._likelihood(params, z.reshape(-1, self.latent), *(jnp.tile(c, (samples, 1)) for c in condition))
        log_likelihood = self._log_observed(params, pixels, jnp.tile(x, (samples, *[1] * (x.ndim - 1))), key)
        log_likelihood = log_likelihood.reshape(samples, len(x))
        other = prior.sample(seed=fold_in(key, "prior"), sample_shape=z.shape[:2])
        kl = kl_by_dimension(posterior, prior)
        return BoundTerms(log_likelihood, prior.log_prob(z), log_posterior, kl, z=z, prior=other)

    def _log_observed(self, params: PyTree, given_z: distrax.Distribution, x: Array, key: Array) -> Array:
        """(n,) log p(x | z) of the observed values, and of the mask with missing values from p(x | z)."""
        if not self.missing:
            return sum_except_batch(given_z.log_prob(x))
        seen = ~jnp.isnan(x)
        filled = jnp.where(seen, x, 0)
        found = sum_except_batch(jnp.where(seen, given_z.log_prob(filled), 0))
        if self.mask is None:
            return found
        drawn = given_z.sample(seed=fold_in(key, "missing")).astype(x.dtype)
        return found + self.mask.log_prob(params["mask"], jnp.where(seen, x, drawn), seen)

    def log_mask(self, state: State, x: Array, seen: Array) -> Array:
        """(B,) log p(mask | x), by the model of the mask; 0 without one."""
        return self.mask.log_prob(state.params["vae"]["mask"], x, seen) if self.mask else jnp.zeros(len(x))

    def encode(self, state: State, batch: Batch) -> distrax.Distribution:
        """q(z | x)."""
        params = state.params["vae"]
        return self._posterior(params, self._inputs(batch["x"]), *self._condition(params, batch))

    def decode(self, state: State, z: Array, condition: Batch | None = None) -> distrax.Distribution:
        """p(x | z) for z (n, latent), over individual values of x; `condition` defaults to that of the conditioning."""
        condition = resolve_condition(self.conditioning, len(z), condition)
        params = state.params["vae"]
        return self._likelihood(params, z, *self._condition(params, condition))

    def prior_of(self, state: State) -> distrax.Distribution:
        """p(z)."""
        return self._prior(state.params["vae"])

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        """n samples. condition: the conditioning inputs of each, e.g. {"label": jnp.full(n, 3)}."""
        condition = resolve_condition(self.conditioning, n, condition)
        z = self.prior_of(state).sample(seed=fold_in(key, "z"), sample_shape=(n,))
        return {**condition, "x": self.decode(state, z, condition).sample(seed=fold_in(key, "x")), "z": z}

    def reconstruct(self, state: State, batch: Batch) -> Array:
        """The mean of p(x | z) at the mean of q(z | x)."""
        return self.decode(state, mean(self.encode(state, batch)), batch).mean()
