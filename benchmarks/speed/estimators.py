"""Estimators as scripts call them: single methods at many sizes, ragged sequences, and the first fit of a process.

python -m benchmarks.speed.estimators [--only methods]      needs the extra `bench`

Both libraries have the same data and parameters, fitted by scikit-learn or hmmlearn; "quality" is the largest
difference of what they return (log-densities in nats, relative for sums), or how many labels agree. gen_jax computes in
the dtype of the data, which is float64 here.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import hmmlearn.hmm
import numpy as np
import sklearn.mixture
from sklearn.exceptions import ConvergenceWarning

from benchmarks.harness import Report, Seconds, beside, growth, in_turns
from gen_jax.estimators import GaussianHMM, GaussianMixture

SIZES = (100, 10_000, 1_000_000)
RAGGED = {
    "20,000 and 2,000 x 1": lambda rng: np.r_[20_000, np.ones(2000, int)],
    "1,000 log-normal": lambda rng: np.maximum(rng.lognormal(4.0, 1.0, size=1000), 1).astype(int),
    "one of 1,000,000": lambda rng: np.array([1_000_000]),
}
FIRST = {
    "GaussianMixture.fit, 10,000 x 8": (
        "x = r.normal(size=(10_000, 8)); x[::2] += 3; f = lambda: M(4, random_state=0).fit(x)",
        ("from gen_jax.estimators import GaussianMixture as M", "from sklearn.mixture import GaussianMixture as M"),
    ),
    "GaussianHMM.fit, 1,000 x 2": (
        "x = np.repeat(r.normal(size=(100, 2)) * 3, 10, axis=0) + r.normal(size=(1000, 2)); "
        "f = lambda: M(3, random_state=0).fit(x)",
        ("from gen_jax.estimators import GaussianHMM as M", "from hmmlearn.hmm import GaussianHMM as M"),
    ),
}


def difference(ours: Any, theirs: Any) -> str:
    """How much two results differ."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.dtype.kind in "iu":
        return f"{100 * np.mean(ours == theirs):.6g} % equal"
    return f"{np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1)):.0e} at most"


def methods(report: Report) -> None:
    """Methods of fitted models, at sizes from a hundred rows to a million."""
    rng = np.random.default_rng(0)
    for kind in ("full", "diag"):
        x = 2 * rng.normal(size=(16, 16))[rng.integers(16, size=max(SIZES))] + rng.normal(size=(max(SIZES), 16))
        theirs = sklearn.mixture.GaussianMixture(16, covariance_type=kind, random_state=0, max_iter=5).fit(x[:10_000])
        ours = GaussianMixture(16, covariance_type=kind)
        for name in ("weights_", "means_", "covariances_"):
            setattr(ours, name, getattr(theirs, name))
        ours.n_features_in_ = 16
        for n in SIZES:
            for method in ("predict", "predict_proba", "score_samples", "score"):
                compared(report, f"GaussianMixture({kind!r}).{method}", n, method, ours, theirs, x[:n])
    x = 3 * np.repeat(rng.normal(size=(SIZES[1] // 10, 4)), 10, axis=0) + rng.normal(size=(SIZES[1], 4))
    theirs = hmmlearn.hmm.GaussianHMM(8, "full", random_state=0, implementation="scaling").fit(x)
    ours = GaussianHMM(8, "full")
    for name in ("startprob_", "transmat_", "means_", "covars_"):
        setattr(ours, name, getattr(theirs, name))
    for n in SIZES[:2]:
        for method in ("score", "predict", "predict_proba"):
            compared(report, f"GaussianHMM('full').{method}", n, method, ours, theirs, x[:n])


def compared(report: Report, what: str, n: int, method: str, ours: Any, theirs: Any, x: np.ndarray) -> None:
    rival = type(theirs).__module__.partition(".")[0].replace("sklearn", "scikit-learn")
    calls = {"gen_jax": lambda: getattr(ours, method)(x), rival: lambda: getattr(theirs, method)(x)}
    quality = difference(*(call() for call in calls.values()))
    seconds = in_turns(calls, rounds=3)
    small = "checking the arguments and starting a compiled program take as long as the computation" if n < 1e6 else ""
    report.row(f"{what}, {n:,} rows", seconds["gen_jax"], rival, seconds[rival], ">= 1", quality, why=small)


def ragged(report: Report) -> None:
    """Sequences of very different lengths: five iterations of Baum-Welch, and the likelihood."""
    for name, draw in RAGGED.items():
        rng = np.random.default_rng(0)
        lengths = draw(rng)
        n = int(lengths.sum())
        x = 3 * np.repeat(rng.normal(size=(n // 10 + 1, 2)), 10, axis=0)[:n] + rng.normal(size=(n, 2))
        of_ragged(report, name, x, lengths)


def of_ragged(report: Report, name: str, x: np.ndarray, lengths: np.ndarray) -> None:
    given = dict(covariance_type="diag", n_iter=5, tol=-np.inf, init_params="", implementation="scaling")
    start = dict(startprob_=np.full(4, 0.25), transmat_=np.full((4, 4), 0.1) + 0.6 * np.eye(4))
    start |= dict(means_=x[:: len(x) // 4][:4], covars_=np.ones((4, 2)) * 2)

    def fresh(kind: Callable[..., Any]) -> Any:
        model = kind(4, **given)
        for attribute, value in start.items():
            setattr(model, attribute, value)
        return model

    fits = {
        "gen_jax": lambda: fresh(GaussianHMM).fit(x, lengths=lengths),
        "hmmlearn": lambda: fresh(hmmlearn.hmm.GaussianHMM).fit(x, lengths),
    }
    fitted = {rival: fit() for rival, fit in fits.items()}
    scores = {rival: (lambda model=model: model.score(x, lengths=lengths)) for rival, model in fitted.items()}
    quality = difference(*(score() for score in scores.values()))
    for what, calls in (("5 iterations", fits), ("score", scores)):
        seconds = in_turns(calls, rounds=3)
        row = f"GaussianHMM, {name}: {what}"
        report.row(row, seconds["gen_jax"], "hmmlearn", seconds["hmmlearn"], ">= 1", quality)
    grown = growth(fits["gen_jax"])
    report.fact(f"memory of a fit, {name}: {x.nbytes / 1e6:.1f} MB of data", grown, "MB more")


def first_calls(report: Report) -> None:
    """A fit in a new process, imports apart: with an empty cache of programs, and with what the last one kept."""
    for what, (code, imports) in FIRST.items():
        begin = (
            "import time, warnings; warnings.simplefilter('ignore'); import numpy as np; r = np.random.default_rng(0)"
        )
        timed = "t = time.perf_counter(); f(); print(time.perf_counter() - t)"
        with tempfile.TemporaryDirectory() as cache:
            found = {"gen_jax": [], "peer": []}
            cold = 0.0
            for turn in range(4):
                for rival, line in zip(found, imports):
                    command = [sys.executable, "-c", "; ".join([begin, line, code, timed])]
                    done = subprocess.run(command, env=beside(XDG_CACHE_HOME=cache), capture_output=True, text=True)
                    seconds = float(done.stdout.split()[-1])
                    if turn == 0 and rival == "gen_jax":
                        cold = seconds
                    else:
                        found[rival].append(seconds)
        why = "tracing in Python and loading the kept programs take longer than these fits"
        report.fact(f"first {what}, nothing kept", cold, "s", "< 1.5", "compiling takes the rest")
        report.fact(f"first {what}, programs kept", Seconds(found["gen_jax"]), "s", "< 0.7", why)
        report.fact(f"first {what}, the peer's", Seconds(found["peer"]), "s")


def main() -> None:
    logging.disable(logging.CRITICAL)  # of hmmlearn, that few iterations do not converge
    warnings.simplefilter("ignore", ConvergenceWarning)
    report = Report("estimators")
    began = time.perf_counter()
    for part in (methods, ragged, first_calls):
        if report.options.only in part.__name__:
            part(report)
            print(f"{time.perf_counter() - began:.0f} s, on {os.cpu_count()} cores", flush=True)
    report.finish()


if __name__ == "__main__":
    main()
