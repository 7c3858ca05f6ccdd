"""Latent-variable metrics: active units, reconstruction error, accuracy of a linear probe on labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Batch, Latent, Reconstructing, State
from gen_jax.data.source import apply_transforms, epoch
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import Estimate, Measure, Split, ask, mean_over
from gen_jax.models.vae.posteriors import kl_by_dimension, mean

__all__ = [
    "ACTIVE",
    "Latents",
    "active_units",
    "count_active",
    "kl_per_dimension",
    "latent_accuracy",
    "latents",
    "reconstruction_error",
]

ACTIVE = 0.01  # the variance of posterior means above which a latent dimension is active


def active_units(model: Any) -> Measure:
    """Active latent dimensions (Burda, Grosse & Salakhutdinov 2016, section 5.3), to detect posterior collapse.

    active_units: number of dimensions whose mean of q(z | x) has a variance above 0.01 over the data.
    kl_min, kl_median, kl_max: minimum, median and maximum over dimensions of the mean KL(q || p) in nats.
    """
    encoded = latents(model)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        (means, kl), n = encoded(state, split), split.size
        active = count_active(means)
        found = {"active_units": Estimate(active, math.nan, f"of {means.shape[1]}", "estimate", n, headline=True)}
        if kl is not None:
            of_each = kl.mean(axis=0)
            for name, value in (("min", of_each.min()), ("median", np.median(of_each)), ("max", of_each.max())):
                found[f"kl_{name}"] = Estimate(float(value), math.nan, "nats", "exact", n)
        return found

    return measure


def count_active(means: np.ndarray) -> int:
    """Number of active columns of posterior means (N, latent)."""
    return int((means.var(axis=0) > ACTIVE).sum())


def kl_per_dimension(model: Any) -> Measure:
    """The mean KL(q || p) in nats of each latent dimension."""
    encoded = latents(model)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        kl = encoded(state, split).kl
        if kl is None:
            raise UserError(
                "this model's KL has no closed form by latent dimension: kl_per_dimension cannot be measured"
            )
        errors = kl.std(axis=0, ddof=1) / math.sqrt(len(kl))
        pairs = zip(kl.mean(axis=0), errors)
        return {f"kl_{i}": Estimate(float(v), float(e), "nats", "exact", len(kl)) for i, (v, e) in enumerate(pairs)}

    return measure


def latent_accuracy(model: Any) -> Measure:
    """Accuracy of a logistic regression of "label" on posterior means, fitted on half the split, tested on the rest.

    There is none if that half has examples of one class only.
    """
    encoded = latents(model)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        means, labels = encoded(state, split).means, np.asarray(split.arrays["label"])
        half = len(means) // 2
        if len(np.unique(labels[:half])) < 2:
            return {}
        scaler = StandardScaler().fit(means[:half])
        regression = LogisticRegression(max_iter=1000).fit(scaler.transform(means[:half]), labels[:half])
        right = regression.predict(scaler.transform(means[half:])) == labels[half:]
        error = math.sqrt(right.var() / len(right))
        estimate = Estimate(float(right.mean()), error, "share", "estimate", len(right), "", "use", "higher", True)
        return {"latent_accuracy": estimate}

    return measure


def reconstruction_error(model: Reconstructing) -> Measure:
    """Root-mean-square error of reconstructions, in the units of x."""
    ask(model, Reconstructing, "reconstruction_error")
    reconstruct = model.reconstruct

    def squares(state: State, batch: Batch, key: Array) -> Array:
        difference = batch["x"].astype(jnp.float32) - reconstruct(state, batch).astype(jnp.float32)
        return jnp.mean(difference.reshape(len(difference), -1) ** 2, axis=1)

    run = mean_over(squares)

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        mean, error = run(state, split, key)
        root = math.sqrt(max(mean, 1e-30))
        estimate = Estimate(root, error / (2 * root), "units of x", "exact", split.size, headline=True)
        return {"reconstruction_rmse": estimate}

    return measure


class Latents(NamedTuple):
    """Posterior summaries of N examples."""

    means: np.ndarray  # (N, latent)
    kl: np.ndarray | None  # (N, latent) KL(q || p) in nats; None if there is no closed form by dimension


def latents(model: Latent) -> Callable[[State, Split], Latents]:
    """Makes (state, split) -> Latents for a model with a prior and a posterior of vectors."""
    ask(model, Latent, "a metric of latent dimensions")
    prior_of = model.prior_of

    @jax.jit
    def encode(state: State, batch: Batch):
        posterior = model.encode(state, batch)
        return mean(posterior), kl_by_dimension(posterior, prior_of(state))

    def run(state: State, split: Split) -> Latents:
        means, kls = [], []
        for number, (raw, mask) in enumerate(epoch(split.arrays, min(split.batch, split.size))):
            m, kl = encode(state, apply_transforms(raw, split.transforms, 0, number))
            kl = kl if kl is not None and kl.shape == m.shape else None
            means.append(np.asarray(m, np.float64)[mask > 0])
            kls.append(None if kl is None else np.asarray(kl, np.float64)[mask > 0])
        return Latents(np.concatenate(means), None if kls[0] is None else np.concatenate(kls))

    return run
