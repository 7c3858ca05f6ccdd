"""Data sets, sources and transforms."""

from gen_jax.data.catalogue import CATALOGUE, prepare
from gen_jax.data.dataset import Dataset
from gen_jax.data.loading import load
from gen_jax.data.source import Resident, Streamed
from gen_jax.data.transforms import (
    binarize,
    binarize_once,
    dequantize,
    dequantize_once,
    scale,
    threshold,
)

__all__ = [
    "CATALOGUE",
    "Dataset",
    "Resident",
    "Streamed",
    "binarize",
    "binarize_once",
    "dequantize",
    "dequantize_once",
    "load",
    "prepare",
    "scale",
    "threshold",
]
