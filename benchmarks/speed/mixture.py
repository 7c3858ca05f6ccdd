"""Gaussian mixtures: seconds per EM iteration against scikit-learn and gmmx, from the same parameters on the same data.

python -m benchmarks.speed.mixture [--only full]      needs the extra `bench`

Before anything is timed, all take the same iterations from the same start, and their mean log-likelihoods must agree.
"""

from __future__ import annotations

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from benchmarks.harness import Report, compiled, growth, in_turns, options, peak_megabytes
from gen_jax.algorithms import em
from gen_jax.core import State
from gen_jax.estimators.common import KINDS
from gen_jax.models.common.blocks import block_size
from gen_jax.models.common.linalg import matmul
from gen_jax.models.mixture import GMM

REGULARIZATION = 1e-6
CASES = {  # name: N, D, K, covariance type; all in float32
    "full (100k, 8) K=16": (100_000, 8, 16, "full"),
    **{f"full (100k, 16) K=16, condition {c:.0e}": (100_000, 16, 16, "full") for c in (1e2, 1e4, 1e6)},
    "full (100k, 32) K=32": (100_000, 32, 32, "full"),
    "full (100k, 64) K=100": (100_000, 64, 100, "full"),
    "diag (1M, 64) K=64": (1_000_000, 64, 64, "diag"),
}
TOLERANCE = 1e-3  # nats, of mean log-likelihoods


def problem(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters, and means to begin from; covariances of a condition number if the case names one."""
    n, d, k, _ = CASES[name]
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(k, d))
    component, noise = rng.integers(k, size=n), rng.normal(size=(n, d))
    if "condition" in name:
        widths = np.geomspace(1, float(name.split()[-1]) ** -0.5, d)
        turns = np.stack([np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(k)])
        noise = np.einsum("nij,nj->ni", (turns * widths)[component], noise)
    x = centers[component] + noise
    return x.astype(np.float32), (centers + 0.3 * rng.normal(size=(k, d))).astype(np.float32)


def start(model: GMM, means: np.ndarray) -> State:
    """Equal weights and unit covariances around the means."""
    k, d = means.shape
    unit = jnp.broadcast_to(jnp.eye(d), (k, d, d))
    params = {"logits": jnp.zeros(k), **model.gaussians.pack(jnp.asarray(means), unit)}
    extra = {"variance": jnp.ones(d), "reseeded": jnp.zeros(())}
    state = State(jnp.int32(0), jax.random.key(0), {"gmm": params}, (), extra)
    stats = jax.eval_shape(model.e_step, state, {"x": jnp.asarray(means)})[0]
    return state._replace(opt=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats))


def scikit_learn(x, means, kind: str, iterations: int) -> GaussianMixture:
    k, d = means.shape
    precisions = np.tile(np.eye(d), (k, 1, 1)) if kind == "full" else np.ones((k, d))
    model = GaussianMixture(
        k,
        covariance_type=kind,
        tol=0.0,
        max_iter=iterations,
        reg_covar=REGULARIZATION,
        weights_init=np.full(k, 1 / k, x.dtype),
        means_init=means,
        precisions_init=precisions.astype(x.dtype),
        init_params="random_from_data",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x)


def gmmx_step(x, means, kind: str):
    """One EM iteration of gmmx as a compiled function, and where it begins; None where the (N, K, D) array it makes
    would not fit."""
    k, d = means.shape
    if x.nbytes * k > 8e9:
        return None
    import gmmx

    covariances = np.tile(np.eye(d), (k, 1, 1)) if kind == "full" else np.ones((k, d))
    begin = gmmx.GaussianMixtureModelJax.from_squeezed(
        means=jnp.asarray(means),
        covariances=jnp.asarray(covariances, jnp.float32),
        weights=jnp.full(k, 1 / k),
        covariance_type=kind,
    )
    fitter = gmmx.EMFitter(reg_covar=REGULARIZATION)

    def step(x, model):
        log_likelihood, responsibilities = fitter.e_step(x, model)
        return fitter.m_step(x, model, responsibilities), log_likelihood

    return jax.jit(step), begin


def products_alone(n: int, k: int, features: int):
    """The two matrix products of an iteration and nothing else, block by block."""
    block = min(block_size(features + k), n)
    natural, ones = jnp.ones((k, features)), jnp.ones((features, block))

    def run(natural, ones):
        def body(_, natural):
            joint = lax.optimization_barrier(matmul(natural, ones))  # not turned into the product of the transposes
            return lax.optimization_barrier(matmul(ones, joint.T)).T / ones.size  # which stays 1

        return lax.fori_loop(0, -(-n // block), body, natural)

    program = jax.jit(run)
    return lambda: program(natural, ones)


def measure(report: Report, name: str) -> None:
    n, d, k, kind = CASES[name]
    x, means = problem(name)
    batch = {"x": jnp.asarray(x)}
    model = GMM(k, floor=0.0, kind=KINDS[kind], regularization=REGULARIZATION)
    state = start(model, means)
    step, compiling = compiled(em(model).step, state, batch)
    after, iterations = state, 10 if "condition" in name else 3  # from unit covariances, narrow ones take a while
    for _ in range(iterations):
        after, _ = step(after, batch)
    ours = float(step(after, batch)[1]["log_likelihood"].value)
    scikit_learn(x[:20_000], means, kind, 1)  # to warm up
    began = time.perf_counter()
    learner = scikit_learn(x, means, kind, iterations)
    whole = time.perf_counter() - began
    theirs = learner.score(x)
    rivals = {"gen_jax": lambda: step(after, batch)}
    rivals["products alone"] = products_alone(n, k, KINDS[kind].features(d))
    apart = {"scikit-learn": ours - theirs}
    if peer := gmmx_step(batch["x"], means, kind):
        advance, model_ = peer
        for _ in range(iterations):
            model_, _ = advance(batch["x"], model_)
        apart["gmmx"] = ours - float(advance(batch["x"], model_)[1])
        rivals["gmmx"] = lambda: advance(batch["x"], model_)
    seconds = in_turns(rivals, rounds=3 if n * d * k < 5e8 else 2)
    seconds["scikit-learn"] = per_iteration(x, means, kind, whole, iterations)
    tf32 = "its products are TF32, with which likelihoods are off by 1e-4 nats and more; ours are float32"
    kernels = "an iteration is some 60 kernels, which take longer to start than to run where there is little to compute"
    why = {"gmmx": tf32, "products alone": kernels} if jax.default_backend() == "gpu" else {}
    if seconds["products alone"] / seconds["gen_jax"] > 0.5:
        why["scikit-learn"] = "XLA's products alone take more than half of an iteration"
    least = ">= 12" if "condition" in name else ">= 6"
    if "condition" in name:
        why["scikit-learn"] = "data whitened by each component takes two products of K D^2 multiplications a row"
    for rival, target in (("scikit-learn", least), ("gmmx", ">= 4"), ("products alone", ">= 0.33")):
        if not abs(apart.get(rival, 0.0)) <= TOLERANCE:
            report.note(f"{name}: {rival} is left out, whose likelihood is {apart[rival]:+.1e} nats from ours.")
        elif rival in seconds:
            quality = f"{apart[rival]:+.1e} nats" if rival in apart else ""
            cells = seconds["gen_jax"], rival, seconds[rival], target, quality, compiling
            report.row(name, *cells, why.get(rival, ""))
            compiling = 0.0


def per_iteration(x, means, kind: str, whole: float, iterations: int) -> float:
    """Seconds per iteration of scikit-learn: what fits of several, of which one took `whole`, take more than of one."""

    def seconds(iterations: int) -> float:
        begin = time.perf_counter()
        scikit_learn(x, means, kind, iterations)
        return time.perf_counter() - begin

    found = [whole - seconds(1)]
    if jax.default_backend() == "cpu":
        found.append(seconds(iterations) - seconds(1))
    return float(np.median(found)) / (iterations - 1)


def memory_of(name: str) -> None:
    """Prints by how much memory grows, in megabytes, while EM runs on data that is already there."""
    n, d, k, kind = CASES[name]
    x, means = problem(name)
    model = GMM(k, floor=0.0, kind=KINDS[kind], regularization=REGULARIZATION)
    state, batch = start(model, means), {"x": jnp.asarray(x)}
    del x
    step, _ = compiled(em(model).step, state, batch)
    print(growth(lambda: [jax.block_until_ready(step(state, batch)) for _ in range(3)]))


def main() -> None:
    chosen = options()
    if chosen.case:
        return memory_of(chosen.case)
    report = Report("mixture")
    for name in CASES:
        if chosen.only in name:
            measure(report, name)
    for name in ("full (100k, 64) K=100", "diag (1M, 64) K=64"):
        if chosen.only in name and jax.default_backend() == "cpu":
            n, d, k, kind = CASES[name]
            numbers = KINDS[kind].features(d) + k
            block = block_size(numbers) * numbers * 4 / 1e6
            data = 4 * n * d / 1e6
            grown = peak_megabytes(__spec__.name, name)
            what = f"memory of EM, {name}: {data:.0f} MB of data, {grown:.0f} MB more, of which a block {block:.1f}"
            report.fact(what, 1 + max(grown - block, 0) / data, "times the data, and a block", "< 1.5")
    report.finish()


if __name__ == "__main__":
    main()
