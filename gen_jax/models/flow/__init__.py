"""Normalizing flows and their bases; the layers are in `gen_jax.models.bijections`."""

from gen_jax.models.flow.bases import Base, Mixture, Normal, StudentT
from gen_jax.models.flow.dequantized import Dequantized
from gen_jax.models.flow.flow import Flow
from gen_jax.models.flow.matching import FlowMatching
from gen_jax.models.flow.variational import Variational

__all__ = ["Base", "Dequantized", "Flow", "FlowMatching", "Mixture", "Normal", "StudentT", "Variational"]
