"""Mode coverage of two-dimensional mixtures.

The protocol is that of VEEGAN (Srivastava et al. 2017) and PacGAN (Lin et al. 2018).
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax import Array

from gen_jax.core import Model, State
from gen_jax.evaluation.metric import Estimate, Metric, Split, with_group

__all__ = ["mode_coverage"]


def mode_coverage(centers: np.ndarray, deviation: float, samples: int = 2500) -> Metric:
    """Makes the metric for equally likely Gaussian modes: (K, 2) centers with a common standard deviation.

    modes: number of modes with a high-quality sample, i.e. one within three standard deviations. high_quality: fraction
    of such samples. reverse_kl: KL(generated || uniform) in nats over the modes, every sample assigned to its nearest.
    """

    def mode_coverage(model: Model):
        draw = jax.jit(lambda state, key: model.sample(state, key, samples)["x"])

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            x = np.asarray(draw(state, key), np.float64)
            distance = np.linalg.norm(x[:, None] - centers[None], axis=-1)
            nearest = distance.argmin(axis=1)
            good = distance.min(axis=1) < 3 * deviation
            share = np.bincount(nearest, minlength=len(centers)) / samples
            quality = float(good.mean())
            kl = float(sum(p * math.log(p * len(centers)) for p in share if p > 0))
            found = {
                "modes": Estimate(
                    float(len(np.unique(nearest[good]))), math.nan, f"of {len(centers)}", "estimate", samples
                ),
                "high_quality": Estimate(
                    quality, math.sqrt(quality * (1 - quality) / samples), "share", "estimate", samples
                ),
                "reverse_kl": Estimate(kl, math.nan, "nats", "estimate", samples),
            }
            found = with_group(found, "sample quality", headline=True, high_quality="higher")
            return with_group(found, "diversity", headline=True, modes="higher", reverse_kl="lower")

        return measure

    return mode_coverage
