"""Estimators against the truth: models of known density are the data, so that the bias of each metric can be seen.

python -m benchmarks.quality.estimator_bias [--out docs/images/oracle.png]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import ROOT, results
from gen_jax.algorithms import descent, em
from gen_jax.core import State
from gen_jax.data import Resident, load
from gen_jax.evaluation import importance_weighted, log_likelihood, log_likelihood_per_step
from gen_jax.evaluation.metric import Split
from gen_jax.evaluation.samples.distances import (
    Moments,
    frechet,
    jackknifed_frechet,
    kernel_distance,
    manifold,
)
from gen_jax.files import write_json
from gen_jax.logs import machine
from gen_jax.loop import fit
from gen_jax.markdown import markdown_table
from gen_jax.models.common.likelihoods import Gaussian
from gen_jax.models.common.networks import MLP
from gen_jax.models.hmm import HMM
from gen_jax.models.hmm.emissions import Gaussian as GaussianEmission
from gen_jax.models.mixture import GMM
from gen_jax.models.vae import VAE
from gen_jax.plots.style import panels

SEEDS = 10
Row = tuple[str, str, str, str]  # what, truth, estimates, how far off


def mixture(means: np.ndarray, scale: float = 1.0) -> tuple[GMM, State]:
    """A mixture of equally likely spherical normals, as a model with a State."""
    k, d = means.shape
    model = GMM(k)
    covariances = jnp.broadcast_to(scale**2 * jnp.eye(d), (k, d, d))
    params = {"logits": jnp.zeros(k), **model.gaussians.pack(jnp.asarray(means, jnp.float32), covariances)}
    return model, State(jnp.int32(0), jax.random.key(0), {"gmm": params}, (), {})


def drawn(model: GMM, state: State, n: int, seed: int) -> np.ndarray:
    return np.asarray(jax.jit(model.sample, static_argnums=2)(state, jax.random.key(seed), n)["x"])


def moments(model: GMM, state: State) -> Moments:
    """Those of the mixture itself, of as good as infinitely many examples."""
    means, covariances = (np.asarray(a, np.float64) for a in model.covariances(state))
    covariance = covariances.mean(axis=0) + np.cov(means.T, bias=True)
    many = 10**12
    return Moments(many, means.mean(axis=0), covariance * (many - 1))


def distances(axis) -> list[Row]:
    """The Frechet distance and its extrapolation, against N."""
    centers = 3 * np.random.default_rng(0).normal(size=(5, 16))
    p, q = mixture(centers), mixture(1.05 * centers, 1.1)
    reference, truth = moments(*p), frechet(moments(*p), moments(*q))
    sizes, found, kernels = [50, 100, 200, 500, 1000, 2000, 5000], [], []
    for n in sizes:
        runs = [drawn(*q, n, seed) for seed in range(SEEDS)]
        found.append([jackknifed_frechet([Moments.of(a) for a in np.array_split(x, 10)], reference) for x in runs])
        kernels.append([kernel_distance(x, drawn(*p, n, 100 + i))[0] for i, x in enumerate(runs)])
    for label, values in (
        ("value", [[f.value for f in row] for row in found]),
        ("unbiased", [[f.unbiased for f in row] for row in found]),
    ):
        name = {"value": "frechet_distance", "unbiased": "frechet_infinity"}[label]
        axis.errorbar(sizes, np.mean(values, axis=1), np.std(values, axis=1), label=name, marker=".", capsize=2)
    axis.axhline(truth, color="black", linestyle="--", label="truth")
    axis.set(xscale="log", yscale="log", xlabel="samples", title="Frechet distance, D = 16")
    axis.legend(fontsize=8)
    at = sizes.index(500)
    value, unbiased = (np.mean([getattr(f, name) for f in found[at]]) for name in ("value", "unbiased"))
    large, few, error = np.mean(kernels[-1]), np.mean(kernels[0]), np.std(kernels[0]) / math.sqrt(SEEDS)
    return [
        ("frechet_distance, 500 samples, D = 16", f"{truth:.3f}", f"{value:.3f}", f"{value - truth:+.3f}"),
        ("frechet_infinity, the same samples", f"{truth:.3f}", f"{unbiased:.3f}", f"{unbiased - truth:+.3f}"),
        ("kernel_distance, 50 samples", f"{large:.1f} (5,000)", f"{few:.0f} ± {error:.0f}", f"{few - large:+.0f}"),
    ]


def bounds(axis) -> list[Row]:
    """The importance-weighted bound of a VAE with a linear decoder, whose likelihood has a closed form, against k."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(4, 12))
    x = (rng.normal(size=(6000, 4)) @ loadings + 0.3 * rng.normal(size=(6000, 12))).astype(np.float32)
    model = VAE(MLP((16,), 8), MLP((), (12,)), Gaussian(0.5), latent=4)
    state = fit(descent(model, {"vae": optax.adam(3e-3)}), Resident({"x": x[:5000]}, 100), 2000, chunk=100)
    split = Split("test", {"x": x[5000:]})
    decode = lambda z: model.decoder.apply({"params": state.params["vae"]["decoder"]}, z).reshape(-1, 12)
    offset = np.asarray(decode(jnp.zeros((1, 4))))[0]
    weights = np.asarray(decode(jnp.eye(4))) - offset
    from scipy.stats import multivariate_normal

    truth = multivariate_normal(offset, weights.T @ weights + 0.25 * np.eye(12)).logpdf(split.arrays["x"]).mean()
    ks = [1, 5, 50, 500, 5000]
    found = [importance_weighted(k)(model)(state, split, jax.random.key(0))[f"iwae_{k}"].value for k in ks]
    axis.plot(ks, truth - np.array(found), marker=".")
    axis.axhline(0, color="black", linestyle="--")
    axis.set(xscale="log", xlabel="importance samples k", title="log p(x) - iwae_k (nats), exact log p(x)")
    return [
        (f"iwae_{k}", f"{truth:.3f}", f"{value:.3f}", f"{value - truth:+.4f}")
        for k, value in zip(ks, found)
        if k != 500
    ]


def supports(axis) -> list[Row]:
    """Precision and recall of samples that miss one of five modes and make one up, against k."""
    centers = 20 * np.eye(6)
    p, q = mixture(centers[:5]), mixture(centers[1:])
    x, y = drawn(*p, 2000, 0), drawn(*q, 2000, 1)
    ks, found = [1, 2, 3, 5, 10, 20, 50], []
    for k in ks:
        m = manifold(x, y, k)
        found.append([m.covered.mean(), m.reached.mean(), m.balls.mean() / k, m.occupied.mean()])
    for name, values in zip(("precision", "recall", "density", "coverage"), np.array(found).T):
        axis.plot(ks, values, marker=".", label=name)
    axis.axhline(0.8, color="black", linestyle="--", label="truth")
    axis.set(xscale="log", xlabel="k-th neighbor", title="samples: 4 of 5 modes, and one of their own", ylim=(0, 1))
    axis.legend(fontsize=8)
    at = dict(zip(ks, found))
    return [
        (f"{name}, k = {k}", "0.8", f"{at[k][i]:.3f}", f"{at[k][i] - 0.8:+.3f}")
        for i, name in enumerate(("precision", "recall", "density", "coverage"))
        for k in ((1, 5, 50) if i < 2 else (5,))
    ]


def divergences(axis) -> list[Row]:
    """KL(p || q) by examples of p, KL(q || p) by samples of q, for normals."""
    d, scale, shift = 4, 1.3, 0.5
    p, q = mixture(np.zeros((1, d))), mixture(np.full((1, d), shift), scale)
    gap = d * shift**2 / 2
    forward = d * (math.log(scale) + 0.5 / scale**2 - 0.5) + gap / scale**2
    reverse = d * (-math.log(scale) + 0.5 * scale**2 - 0.5) + gap
    sizes, rows = [50, 200, 1000, 5000, 20000], []
    for name, truth, (one, other) in (("forward", forward, (p, q)), ("reverse", reverse, (q, p))):
        values, errors = [], []
        for n in sizes:
            split = Split("test", {"x": drawn(*one, n, 7)})
            terms = [log_likelihood(m)(s, split, jax.random.key(0))["log_likelihood"] for m, s in (one, other)]
            values.append(terms[0].value - terms[1].value)
            errors.append(math.hypot(*(t.error for t in terms)))
        axis.errorbar(sizes, values, errors, label=f"{name} KL", marker=".", capsize=2)
        axis.axhline(truth, color="black", linestyle="--", linewidth=0.8)
        rows.append(
            (f"{name} KL (nats), 20,000 examples", f"{truth:.3f}", f"{values[-1]:.3f}", f"{values[-1] - truth:+.3f}")
        )
    axis.set(xscale="log", xlabel="examples", title="KL by log-likelihoods; dashed: closed form")
    axis.legend(fontsize=8)
    return rows


def sequences(axis) -> list[Row]:
    """The nats per step that an HMM of too few states loses, against the number of sequences."""
    truth_model, small_model = HMM(3, GaussianEmission()), HMM(2, GaussianEmission())
    data = load("gaussian_hmm")["train"]
    truth = fit(em(truth_model), data, 60)
    made = lambda n, seed: {"x": np.asarray(truth_model.sample(truth, jax.random.key(seed), n)["x"])}
    fitted = fit(em(small_model), made(500, 0), 60)
    per_step = lambda model, state, split: log_likelihood_per_step(model)(state, split, None)["log_likelihood_per_step"]
    many = Split("test", made(4000, 1))
    exact = per_step(truth_model, truth, many).value - per_step(small_model, fitted, many).value
    sizes, values = [10, 30, 100, 300, 1000], []
    for n in sizes:
        splits = [Split("test", made(n, 10 + seed)) for seed in range(SEEDS)]
        values.append([per_step(truth_model, truth, s).value - per_step(small_model, fitted, s).value for s in splits])
    axis.errorbar(sizes, np.mean(values, axis=1), np.std(values, axis=1), marker=".", capsize=2)
    axis.axhline(exact, color="black", linestyle="--", label="4,000 sequences")
    axis.set(xscale="log", xlabel="sequences", title="nats per step that 2 of 3 states lose")
    axis.legend(fontsize=8)
    value, data_variance = np.mean(values[0]), np.std(values[0])
    return [
        (
            "KL rate of a 2-state for a 3-state HMM, 10 sequences",
            f"{exact:.3f}",
            f"{value:.3f} ± {data_variance:.2g}",
            f"{value - exact:+.3f}",
        )
    ]


def classes(axis) -> list[Row]:
    """KL(samples || uniform) over 1,000 classes of samples that are uniform."""
    sizes, found = [1000, 3000, 10_000, 26_000, 100_000], []
    for n in sizes:
        shares = [np.bincount(np.random.default_rng(s).integers(0, 1000, n), minlength=1000) / n for s in range(SEEDS)]
        found.append(np.mean([np.sum(p[p > 0] * np.log(1000 * p[p > 0])) for p in shares]))
    axis.plot(sizes, found, marker=".", label="class_kl")
    axis.plot(sizes, 999 / 2 / np.array(sizes), color="black", linestyle="--", label="(classes - 1) / 2 n")
    axis.set(xscale="log", yscale="log", xlabel="samples", title="class_kl of perfect samples, 1,000 classes")
    axis.legend(fontsize=8)
    return [("class_kl of 26,000 perfect samples, 1,000 classes", "0", f"{found[3]:.4f}", f"{found[3]:+.4f}")]


CHECKS: tuple[Callable, ...] = (distances, bounds, supports, divergences, sequences, classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "oracle.png")
    chosen = parser.parse_args()
    figure, axes = panels(len(CHECKS))
    rows = [row for check, axis in zip(CHECKS, axes) for row in check(axis)]
    figure.savefig(chosen.out)
    write_json(results() / "estimator_bias.json", {"where": machine(), "rows": rows})
    print(markdown_table(["metric", "truth", "estimate", "error"], rows))


if __name__ == "__main__":
    main()
