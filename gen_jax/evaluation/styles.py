"""Metrics of style-based generators: truncation curves, perceptual path length, state of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gen_jax.core import State, StyleBased, fold_in
from gen_jax.evaluation.metric import Estimate, Measure, Metric, Split, ask, with_group
from gen_jax.evaluation.samples.features import Encoder, small
from gen_jax.evaluation.samples.quality import resolve_encoder, sample_quality

__all__ = ["PSI", "path_smoothness", "style_state", "truncation_curve"]

PSI = (0.0, 0.3, 0.5, 0.7, 1.0, 1.2)


def truncation_curve(
    encoder: Encoder | Callable[[Split], Encoder] = small, samples: int = 2000, psis: Sequence[float] = PSI
) -> Metric:
    """Makes the metric of sample quality for several truncations psi (Karras et al. 2019, arXiv:1812.04948).

    frechet_distance_psi_P, precision_psi_P, recall_psi_P: see `sample_quality`. Small psi gives typical images, which
    raises precision, and few kinds of them, which lowers recall.
    """

    def truncation_curve(model: StyleBased) -> Measure:
        ask(model, StyleBased, "truncation_curve")
        measures = {psi: sample_quality(encoder, samples)(replace(model, psi=psi)) for psi in psis}

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            found = {}
            for psi, quality in measures.items():
                for name, estimate in quality(state, split, key).items():
                    what, at, of = name.partition("@")
                    if what in ("frechet_distance", "precision", "recall"):
                        plain = estimate._replace(headline=False, group="truncation")
                        found[f"{what}_psi_{psi:g}{at}{of}"] = plain
            return found

        return measure

    return truncation_curve


def path_smoothness(
    encoder: Encoder | Callable[[Split], Encoder] = small, paths: int = 1000, step: float = 1e-2
) -> Metric:
    """Makes the metric of the perceptual path length at end points in w (Karras et al. 2019, section 4.1).

    path_length@ENCODER: E d(G(w0), G(w0 + step (w1 - w0))) / step^2, where d is the squared distance of an encoder's
    features and both images have the same noise; without the lowest and highest percent. Smaller is smoother. It is
    not comparable between encoders. The `step` is larger than that of the paper, for which float32 is too coarse.
    """

    def path_smoothness(model: StyleBased) -> Measure:
        ask(model, StyleBased, "path_smoothness")
        model = replace(model, psi=1.0, cutoff=None)

        @jax.jit
        def ends(state: State, key: Array) -> tuple[Array, Array]:
            w, other = (model.map(state, model.noise(fold_in(key, name), 100)) for name in ("from", "to"))
            moved = w + step * (other - w)
            noise = fold_in(key, "noise")
            return model.synthesize(state, w, noise), model.synthesize(state, moved, noise)

        def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
            encode, found = resolve_encoder(encoder, split), []
            for number in range(-(-paths // 100)):
                seen = [encode(split.pixels(x)).features for x in ends(state, fold_in(key, number))]
                found.append(np.sum((seen[0] - seen[1]) ** 2, axis=1) / step**2)
            lengths = np.concatenate(found)[:paths]
            low, high = np.quantile(lengths, (0.01, 0.99))
            kept = lengths[(lengths >= low) & (lengths <= high)]
            how = f"{encode.detail}, end points in w, step {step:g}, without 1 % at either end"
            error = float(kept.std(ddof=1) / math.sqrt(len(kept)))
            name = f"path_length@{encode.name}"
            return with_group(
                {name: Estimate(float(kept.mean()), error, "features^2", "estimate", paths, how)},
                "styles",
                path_length="lower",
            )

        return measure

    return path_smoothness


def style_state(model: StyleBased) -> Measure:
    """State of a style-based GAN.

    style_deviation: root mean squared distance of w from the running mean, per dimension. style_bias: the distance of
    the mean of 1,000 w from it, in deviations; far from 0 truncation has a wrong center. noise_strength: the mean
    absolute strength of the layers' noise.
    """
    ask(model, StyleBased, "style_state")
    model = replace(model, psi=1.0, cutoff=None)
    mapped = jax.jit(lambda state, key: model.map(state, model.noise(key, 1000))[:, 0])

    def measure(state: State, split: Split, key: Array) -> dict[str, Estimate]:
        w = np.asarray(mapped(state, key))
        mean = np.asarray(state.extra["batch_stats"]["generator"]["mean"])
        deviation = float(np.sqrt(np.mean((w - mean) ** 2)))
        bias = float(np.sqrt(np.mean((w.mean(axis=0) - mean) ** 2))) / max(deviation, 1e-12)
        leaves = jax.tree_util.tree_leaves_with_path(state.params["generator"])
        strengths = [abs(float(a)) for path, a in leaves if jnp.ndim(a) == 0 and "noise" in jax.tree_util.keystr(path)]
        values = {"style_deviation": deviation, "style_bias": bias, "noise_strength": float(np.mean(strengths))}
        return {name: Estimate(value, math.nan, "", "estimate", 1000, group="styles") for name, value in values.items()}

    return measure
