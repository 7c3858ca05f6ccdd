"""Hidden Markov models: forward, forward-backward, Viterbi and Baum-Welch against hmmlearn and dynamax.

python -m benchmarks.speed.hmm [--only 50]      needs the extra `bench`

All have the same parameters and data; "quality" is how much what they find differs: log-likelihoods relatively, the
largest difference of posteriors, states of the most probable paths. hmmlearn computes in float64, with the faster of
its two recursions (scaling); dynamax and gen_jax in float32. dynamax's M-step has weak priors.
"""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from hmmlearn.hmm import GaussianHMM

from benchmarks.harness import Report, compiled, in_turns
from gen_jax.algorithms import chunk, em
from gen_jax.core import State
from gen_jax.data import Resident
from gen_jax.models.common.linalg import matmul
from gen_jax.models.hmm import ASSOCIATIVE, HMM, Scan
from gen_jax.models.hmm.emissions import Gaussian
from gen_jax.models.hmm.inference import log_evidence
from gen_jax.models.mixture import DIAGONAL

CASES = {  # name: sequences, steps, K, D, target
    "50 x 100, K=10, 1-D": (50, 100, 10, 1, ">= 3"),
    "64 x 1,000, K=16, 4-D": (64, 1000, 16, 4, ">= 3"),
    "1 x 100,000, K=16, 4-D": (1, 100_000, 16, 4, ">= 1.2"),
}
ITERATIONS = 5


def problem(batch: int, steps: int, k: int, d: int) -> SimpleNamespace:
    """Parameters, and sequences drawn from them."""
    rng = np.random.default_rng(0)
    p = SimpleNamespace(
        initial=rng.dirichlet(np.ones(k)),
        transition=rng.dirichlet(np.ones(k), size=k) * 0.5 + 0.5 * np.eye(k),
        means=3 * rng.normal(size=(k, d)),
        variances=rng.uniform(0.5, 2, size=(k, d)),
    )
    path = np.zeros((batch, steps), int)
    choose = lambda rows: (rng.uniform(size=(batch, 1)) > rows.cumsum(axis=1)[:, :-1]).sum(axis=1)
    for t in range(steps):
        path[:, t] = choose(np.broadcast_to(p.initial, (batch, k)) if t == 0 else p.transition[path[:, t - 1]])
    noise = rng.normal(size=(batch, steps, d))
    p.x = (p.means[path] + noise * np.sqrt(p.variances[path])).astype(np.float32)
    return p


def hmmlearn_model(p: SimpleNamespace) -> GaussianHMM:
    k = len(p.initial)
    model = GaussianHMM(
        k,
        "diag",
        n_iter=ITERATIONS,
        tol=-np.inf,
        init_params="",
        min_covar=0,
        covars_prior=0,
        covars_weight=0,
        implementation="scaling",
    )
    model.startprob_, model.transmat_, model.means_, model.covars_ = p.initial, p.transition, p.means, p.variances
    return model


def dynamax_model(p: SimpleNamespace):
    from dynamax.hidden_markov_model import DiagonalGaussianHMM

    k, d = p.means.shape
    model = DiagonalGaussianHMM(k, d)
    as32 = lambda a: jnp.asarray(a, jnp.float32)
    params, props = model.initialize(
        jax.random.key(0),
        initial_probs=as32(p.initial),
        transition_matrix=as32(p.transition),
        emission_means=as32(p.means),
        emission_scale_diags=as32(np.sqrt(p.variances)),
    )
    return model, params, props


def our_state(model: HMM, p: SimpleNamespace) -> State:
    as32 = lambda a: jnp.asarray(a, jnp.float32)
    params = {
        "initial": jnp.log(as32(p.initial)),
        "transition": jnp.log(as32(p.transition)),
        "emission": {"means": as32(p.means), "log_scale": 0.5 * jnp.log(as32(p.variances))},
    }
    extra = {"emission": {"variance": as32(p.x.reshape(-1, p.x.shape[-1]).var(axis=0))}}
    state = State(jnp.int32(0), jax.random.key(0), {"hmm": params}, (), extra)
    stats = jax.eval_shape(model.e_step, state, {"x": as32(p.x)})[0]
    return state._replace(opt=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats))


def recursion_alone(p: SimpleNamespace):
    """The textbook's forward recursion and nothing else, from likelihoods that are there: what a scan of XLA takes."""
    batch, steps, k = len(p.x), p.x.shape[1], len(p.initial)
    likelihood = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, size=(steps, k, batch)), jnp.float32)
    transition = jnp.asarray(p.transition.T, jnp.float32)
    start = jnp.broadcast_to(jnp.asarray(p.initial, jnp.float32)[:, None], (k, batch))

    def run(transition, start, likelihood):
        def step(predicted, likelihood):
            joint = predicted * likelihood
            scale = joint.sum(axis=0)
            return matmul(transition, joint / scale), scale

        return jnp.log(jax.lax.scan(step, start, likelihood)[1]).sum()

    program = jax.jit(run)
    return lambda: program(transition, start, likelihood)


def measure(report: Report, name: str) -> None:
    batch_size, steps, k, d, target = CASES[name]
    p = problem(batch_size, steps, k, d)
    batch = {"x": jnp.asarray(p.x)}
    joined, lengths = p.x.reshape(-1, d).astype(np.float64), [steps] * batch_size
    model = HMM(k, Gaussian(DIAGONAL, floor=0.0))
    state, learner, (peer, params, props) = our_state(model, p), hmmlearn_model(p), dynamax_model(p)
    source = Resident(batch)

    of_all = lambda f: jax.jit(jax.vmap(f, (None, 0)))
    tasks = {  # ours, hmmlearn's, dynamax's, what they find, and how much that differs
        "forward": (
            model.log_prob,
            lambda: learner.score(joined, lengths),
            of_all(peer.marginal_log_prob),
            (jnp.sum, np.sum, jnp.sum),
            lambda a, b: f"{(a - b) / abs(b):+.1e}",
        ),
        "forward-backward": (
            model.smooth,
            lambda: learner.score_samples(joined, lengths),
            of_all(peer.smoother),
            (lambda found: found.marginals, lambda found: found[1], lambda found: found.smoothed_probs),
            lambda a, b: f"{np.abs(a - b).max():.0e} at most",
        ),
        "Viterbi": (
            model.decode,
            lambda: learner.decode(joined, lengths),
            of_all(peer.most_likely_states),
            (lambda found: found.states, lambda found: found[1], lambda found: found),
            lambda a, b: f"{100 * np.mean(a == b):.4g} % equal",
        ),
    }
    gpu = jax.default_backend() == "gpu"
    why = "steps that wait for each other take longer to start than to compute" if gpu or batch_size < 64 else ""
    if not gpu and batch_size < 64:
        why += "; the recursion alone takes a third of dynamax's forward pass, densities and layout the rest"
    for task, (of_ours, of_hmmlearn, of_dynamax, found, differ) in tasks.items():
        program, compiling = compiled(of_ours, state, batch)
        rivals = {
            "gen_jax": partial(program, state, batch),
            "hmmlearn": of_hmmlearn,
            "dynamax": partial(of_dynamax, params, batch["x"]),
        }
        values = {name: np.asarray(f(rivals[name]())) for name, f in zip(rivals, found)}
        if task == "forward":
            rivals["recursion alone"] = recursion_alone(p)
        seconds = in_turns(rivals)
        if task == "forward":
            alone = seconds["recursion alone"]
            report.row(f"{name}: {task}", seconds["gen_jax"], "recursion alone", alone, compiling=compiling)
            compiling = 0.0
        for rival in ("hmmlearn", "dynamax"):
            quality = differ(values["gen_jax"].reshape(values[rival].shape), values[rival])
            report.row(f"{name}: {task}", seconds["gen_jax"], rival, seconds[rival], target, quality, compiling, why)
            compiling = 0.0

    baum_welch, compiling = compiled(chunk(em(model), ITERATIONS).step, state, source)
    # dynamax's `fit_em` compiles anew at every call; here it does so once.
    fit_em = jax.jit(lambda start, x: peer.fit_em(start, props, x, num_iters=ITERATIONS, verbose=False)[0])
    rivals = {
        "gen_jax": lambda: baum_welch(state, source)[0],
        "hmmlearn": lambda: hmmlearn_model(p).fit(joined, lengths),
        "dynamax": partial(fit_em, params, batch["x"]),
    }
    evidence = {
        "gen_jax": lambda trained: float(model.log_prob(trained, batch).sum()),
        "hmmlearn": lambda trained: trained.score(joined, lengths),
        "dynamax": lambda trained: float(tasks["forward"][2](trained, batch["x"]).sum()),
    }
    if gpu and steps > 10_000:
        del rivals["dynamax"]  # whose steps one after the other would take minutes
    values = {name: evidence[name](run()) for name, run in rivals.items()}
    seconds = in_turns(rivals, rounds=3)
    for rival in list(rivals)[1:]:
        quality = f"{(values['gen_jax'] - values[rival]) / abs(values[rival]):+.1e}"
        what = f"{name}: {ITERATIONS} Baum-Welch iterations"
        report.row(what, seconds["gen_jax"], rival, seconds[rival], target, quality, compiling, why)
        compiling = 0.0


def scans(report: Report) -> None:
    """Serial against associative and chunked scans on one sequence, K = 16."""
    rng = np.random.default_rng(0)
    for time_ in (1000, 10_000) if jax.default_backend() == "cpu" else (1000, 100_000):
        chain = (
            jnp.log(jnp.asarray(rng.dirichlet(np.ones(16)), jnp.float32)),
            jnp.log(jnp.asarray(rng.dirichlet(np.ones(16), size=16), jnp.float32)),
            jnp.asarray(rng.normal(size=(1, time_, 16)), jnp.float32),
        )
        rivals = {"serial": Scan(), "associative": ASSOCIATIVE, "pieces of 32, associative": Scan(32, True)}
        rivals["pieces of T / 64"] = Scan(-(-time_ // 64))
        programs = {}
        for name, scan in rivals.items():
            programs[name] = compiled(partial(log_evidence, scan=scan), *chain)[0]
        seconds = in_turns({name: partial(run, *chain) for name, run in programs.items()})
        exact = float(programs["serial"](*chain)[0])
        for name in list(rivals)[1:]:
            quality = f"{(float(programs[name](*chain)[0]) - exact) / abs(exact):+.1e}"
            report.row(
                f"T = {time_:,}, K=16: {name}", seconds[name], "serial scan", seconds["serial"], "", quality, 0.0
            )


def main() -> None:
    logging.disable(logging.CRITICAL)  # of hmmlearn, that five iterations do not converge
    report = Report("hmm")
    for name in CASES:
        if report.options.only in name:
            measure(report, name)
    if report.options.only in "scans":
        scans(report)
    report.finish()


if __name__ == "__main__":
    main()
