"""Training stability of a GAN."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import Adversarial, PyTree, State
from gen_jax.evaluation.metric import Estimate, Measure, Split, ask
from gen_jax.evaluation.samples.distances import neighbors

__all__ = ["duplicate_rate", "largest_singular_value", "stability"]


def stability(model: Adversarial) -> Measure:
    """Stability metrics from up to 2,000 examples of the split and as many samples.

    real_accuracy, fake_accuracy: accuracy of the discriminator. loss_ratio: its loss divided by the generator's.
    spectral_norm_PLAYER: the largest singular value of any kernel, as stored. duplicates: the fraction of samples
    closer to another sample than 99 % of the examples are to another example; 1 % if as diverse as the data.
    logit_gap: the mean logit of training examples less that of others, in deviations of the former; above 0 the
    discriminator overfits, and augmentation (ADA) may help.
    """
    ask(model, Adversarial, "stability")
    draw = jax.jit(lambda state, key, given: model.sample(state, key, len(given["x"]), given)["x"])
    discriminate = jax.jit(model.discriminate)
    discriminate_samples = jax.jit(lambda state, key, given: model.sample_logits(state, key, len(given["x"]), given))

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        n = _whole(min(2000, split.size), model.packing)
        batch = split.head(n)
        fake = draw(state, key, batch)
        logits = discriminate(state, batch), discriminate_samples(state, key, batch)
        losses = [float(model.adversarial.of(player, *logits, key)) for player in ("discriminator", "generator")]
        shares = {
            "real_accuracy": float(jnp.mean(model.adversarial.correct(*logits)[0])),
            "fake_accuracy": float(jnp.mean(model.adversarial.correct(*logits)[1])),
            "duplicates": duplicate_rate(np.asarray(fake), np.asarray(batch["x"])),
        }
        error = lambda p: math.sqrt(p * (1 - p) * model.packing / n)
        found = {name: Estimate(p, error(p), "share", "estimate", n) for name, p in shares.items()}
        ratio = losses[0] / losses[1] if losses[1] else math.inf
        if split.training is not None and split.arrays is not split.training:
            own = discriminate(state, split.reference.head(_whole(min(n, split.reference.size), model.packing)))
            apart = float((own.mean() - logits[0].mean()) / own.std())
            found["logit_gap"] = Estimate(apart, math.sqrt(2 / len(own)), "deviations", "estimate", n)
        found["loss_ratio"] = Estimate(ratio, math.nan, "", "estimate", n)
        for player in state.params:
            norm = largest_singular_value(state.params[player])
            found[f"spectral_norm_{player}"] = Estimate(norm, math.nan, "", "exact", 1)
        return found

    return measure


def _whole(n: int, packing: int) -> int:
    """At most n, a multiple of the packing, and of 16 if there are so many: of groups of minibatch deviation."""
    return n // (16 * packing) * (16 * packing) or n // packing * packing


def duplicate_rate(samples: np.ndarray, examples: np.ndarray) -> float:
    """The fraction of duplicates, see `stability`."""
    apart = lambda x: neighbors(x.reshape(len(x), -1))[:, 0]
    return float(np.mean(apart(samples) < np.quantile(apart(examples), 0.01)))


def largest_singular_value(params: PyTree) -> float:
    """Largest singular value over all kernels, each as a matrix from inputs (of all taps) to outputs."""
    named = jax.tree_util.tree_leaves_with_path(params)
    kernels = (np.asarray(a, np.float64) for path, a in named if a.ndim >= 2 and "kernel" in jax.tree_util.keystr(path))
    return max((float(np.linalg.norm(a.reshape(-1, a.shape[-1]), 2)) for a in kernels), default=math.nan)
