"""Variational autoencoders; their parts are in `bounds`, `priors` and `posteriors`."""

from gen_jax.models.vae.hvae import HVAE
from gen_jax.models.vae.vae import VAE
from gen_jax.models.vae.vqvae import VQVAE

__all__ = ["HVAE", "VAE", "VQVAE"]
