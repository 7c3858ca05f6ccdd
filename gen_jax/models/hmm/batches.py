"""Batches of sequences and probabilities of chains, as all hidden Markov models treat them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from gen_jax.core import Batch, Mean, PyTree
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.mixture.covariances import ratio

__all__ = [
    "Mask",
    "allowed_states",
    "check_chain",
    "check_no_padding",
    "check_shapes",
    "held",
    "maximized_logits",
    "mean_per_sequence",
    "observed_steps",
    "sequence_weights",
]

Mask = tuple[tuple[bool, ...], ...]


def check_chain(states: int, length: int, emission: Any, transitions: Mask | None) -> None:
    """Raises ValueError for arguments of a chain that make no sense."""
    if states < 1 or length < 1:
        raise ValueError(f"states and length must be at least 1, got {states} and {length}")
    if not isinstance(emission, Emission):
        raise ValueError(f"emission must be an Emission, such as Gaussian(), got {emission!r}")
    rows = transitions
    if rows is not None and (len(rows) != states or any(len(r) != states or not any(r) for r in rows)):
        raise ValueError(f"transitions must be {states} rows of {states}, each with a state to go to")


def allowed_states(states: int, transitions: Mask | None) -> tuple[Array, Array]:
    """Masks of initial states (K,) and transitions (K, K) with nonzero probability.

    A chain that only goes on to later states, such as a left-right one, begins in state 0.
    """
    everywhere = jnp.ones(states, bool)
    if transitions is None:
        return everywhere, jnp.ones((states, states), bool)
    back = any(transitions[i][j] for i in range(states) for j in range(i))
    on = any(transitions[i][j] for i in range(states) for j in range(i + 1, states))
    return jnp.arange(states) == 0 if on and not back else everywhere, jnp.asarray(transitions, bool)


def held(params: PyTree, emission: Emission, fixed: tuple[str, ...]) -> PyTree:
    """The parameters, without gradients of those that are fixed."""
    params = {**params, "emission": emission.held(params["emission"])}
    return {name: lax.stop_gradient(p) if name in fixed else p for name, p in params.items()}


def check_shapes(batch: Batch) -> None:
    """Raises ValueError for entries of a batch of sequences whose shapes do not fit together."""
    if "x" not in batch or batch["x"].ndim < 2:
        got = "none" if "x" not in batch else f"shape {batch['x'].shape}"
        raise ValueError(f'a batch must hold sequences "x" (sequences, steps, ...), got {got}')
    sequences, steps = batch["x"].shape[:2]
    expected = {"length": (sequences,), "weight": (sequences,), "observed": (sequences, steps)}
    for name, shape in {**expected, "starts": (sequences, steps), "input": (sequences, steps)}.items():
        if name in batch and batch[name].shape[: 2 if name == "input" else None] != shape:
            raise ValueError(f'"{name}" must have the axes {shape} of "x", got shape {batch[name].shape}')


def check_no_padding(batch: Batch) -> None:
    """Raises ValueError for sequences with padding, which cannot be continued in place."""
    if "length" in batch:
        raise ValueError("extend continues sequences of one length: cut off their padding, and leave out 'length'")


def observed_steps(emission: Emission, batch: Batch, weighted: bool = False) -> tuple[Batch, Array, Array]:
    """The batch with unobserved values filled in; masks of the existing (B, T) and the observed steps.

    weighted: sequences of weight 0 are unobserved too.
    """
    batch = {name: jnp.asarray(a) for name, a in batch.items()}
    check_shapes(batch)
    x = batch["x"]
    if x.dtype.kind == "f":
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    there = jnp.ones(x.shape[:2], bool)
    if "length" in batch:
        there = jnp.arange(x.shape[1]) < batch["length"][:, None]
    seen = there & ~emission.unseen(x)
    if "observed" in batch:
        seen &= jnp.asarray(batch["observed"], bool)
    if weighted and "weight" in batch:
        seen &= batch["weight"][:, None] > 0
    fill = jnp.zeros((), x.dtype)
    if x.dtype.kind == "f":  # the data mean, so that nothing overflows
        fill = jnp.where(seen.reshape(*seen.shape, *[1] * (x.ndim - 2)), x, jnp.nan)
        fill = jnp.nan_to_num(jnp.nanmean(fill, axis=(0, 1)))
    keep = seen.reshape(*seen.shape, *[1] * (x.ndim - 2))
    return {**batch, "x": jnp.where(keep, x, fill)}, there, seen


def sequence_weights(batch: Batch, there: Array, dtype: Any) -> Array:
    """(B,) weights of the sequences; one of length 0 has none."""
    weight = jnp.asarray(batch.get("weight", jnp.ones(len(there))), dtype)
    return jnp.where(there.any(axis=1), weight, 0)


def mean_per_sequence(log_evidence: Array, weight: Array, batch: Batch) -> Mean:
    """The mean log-likelihood of the sequences, of which a row (B,) may hold several."""
    mean = Mean.of(log_evidence, weight)
    return mean if "starts" not in batch else Mean(mean.total, jnp.sum(weight * (1 + batch["starts"].sum(axis=1))))


def maximized_logits(count: Array, old: Array, allowed: Array) -> Array:
    """Log-probabilities (..., K) from expected counts; those that are 0 stay 0, rows without counts are unchanged."""
    count = jnp.where(allowed & (old > -jnp.inf), jnp.maximum(count, 0), 0)
    total = count.sum(axis=-1, keepdims=True)
    share = jnp.maximum(ratio(count, total), 2e-12)  # never 0 by underflow: see `inference.log_evidence`
    new = jnp.where(old > -jnp.inf, jnp.log(share), old)
    return jnp.where(total > 0, jnp.where(allowed, new, 0), old)
