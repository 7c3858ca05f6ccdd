"""Fitting, scoring and decoding with hmmlearn's methods, for estimators of any emission."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from gen_jax.algorithms import em
from gen_jax.core import Batch, PyTree, State
from gen_jax.estimators.common import (
    at_least,
    key_of,
    one_of,
    points,
    precision,
    probabilities,
)
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.hmm import HMM
from gen_jax.restarts import member, population, until_converged

__all__ = ["BaumWelchEstimator", "Monitor"]


@dataclass
class Monitor:
    """Convergence history: the log-likelihood of all data (nats) at each iteration."""

    history: list[float] = field(default_factory=list)
    converged: bool = False

    @property
    def iter(self) -> int:
        return len(self.history)


class BaumWelchEstimator(BaseEstimator):
    """Base class of hmmlearn's models. X holds all sequences concatenated, `lengths` the length of each."""

    parts: tuple[str, ...]  # fitted attributes of the emission

    def fit(self, X: Any, lengths: Any = None):
        """Runs Baum-Welch until the log-likelihood grows by less than `tol`, from `n_init` starts; the best is kept."""
        at_least(1, n_components=self.n_components, n_iter=self.n_iter, n_init=self.n_init)
        x = self._points(X, reset=True)
        batch, _ = _padded(x, lengths)
        model = self._model(x)
        unknown = set(self.init_params) - set(self.letters)
        if unknown:
            raise ValueError(f"init_params may hold the letters {self.letters!r}, got {self.init_params!r}")
        with precision(self._floats(x)):
            given = self._given(model)
            tolerance = self.tol / len(batch["x"])
            key = jax.random.key(key_of(self.random_state))
            state, metrics = _fit(model, self.n_iter, self.n_init, batch, key, tolerance, given)
            best = int(np.argmax(np.asarray(metrics["log_likelihood"].value)))
            self._keep(model, member(state, best))
        curve = np.asarray(state.extra["curve"], np.float64) * len(batch["x"])
        self.curves_ = curve
        self.monitor_ = Monitor(curve[best][~np.isnan(curve[best])].tolist(), bool(metrics["converged"].total[best]))
        if not self.monitor_.converged and self.n_iter > 1:
            warnings.warn(
                f"not converged in {self.n_iter} iterations: raise n_iter or tol", ConvergenceWarning, stacklevel=2
            )
        return self

    def score(self, X: Any, lengths: Any = None) -> float:
        """The log-likelihood of all sequences (nats)."""
        return float(np.sum(self._infer(_log_prob, X, lengths)[0]))

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, np.ndarray]:
        """The log-likelihood of all sequences, and p(state | sequence) (n_samples, K)."""
        found, lengths = self._infer(_smooth, X, lengths)
        return float(np.sum(found.log_evidence)), _joined(found.marginals, lengths)

    def predict_proba(self, X: Any, lengths: Any = None) -> np.ndarray:
        return self.score_samples(X, lengths)[1]

    def decode(self, X: Any, lengths: Any = None, algorithm: str | None = None) -> tuple[float, np.ndarray]:
        """States (n_samples,): "viterbi", with their joint log-probability, or "map", the most probable per step."""
        algorithm = algorithm or self.algorithm
        if one_of("algorithm", algorithm, {"viterbi": True, "map": False}):
            found, lengths = self._infer(_decode, X, lengths)
            return float(np.sum(found.log_joint)), _joined(found.states, lengths)
        p = self.predict_proba(X, lengths)
        return float(np.sum(p.max(axis=1))), p.argmax(axis=1)

    def predict(self, X: Any, lengths: Any = None) -> np.ndarray:
        return self.decode(X, lengths)[1]

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Samples one sequence of n_samples steps, and its states."""
        at_least(1, n_samples=n_samples)
        model = self._model(None)
        with precision(np.zeros(0)):
            seed = self.random_state if random_state is None else random_state
            drawn = model.sample(self._state(model), jax.random.key(key_of(seed)), 1, length=int(n_samples))
            x = np.asarray(drawn["x"][0])
            return (x[:, None] if x.ndim == 1 else x), np.asarray(drawn["state"][0])

    def bic(self, X: Any, lengths: Any = None) -> float:
        return -2 * self.score(X, lengths) + self._free() * np.log(len(X))

    def aic(self, X: Any, lengths: Any = None) -> float:
        return -2 * self.score(X, lengths) + 2 * self._free()

    @property
    def letters(self) -> str:
        return "st" + "".join(name[0] for name in self.parts)

    def _infer(self, function: Any, X: Any, lengths: Any) -> tuple[Any, np.ndarray]:
        x = self._points(X)
        batch, lengths = _padded(x, lengths)
        model = self._model(x)
        with precision(self._floats(x)):
            return jax.tree.map(np.asarray, function(model, self._state(model), batch)), lengths

    def _state(self, model: HMM) -> State:
        """The State made from the fitted attributes, which may have been set manually."""
        missing = [f"{n}_" for n in ("startprob", "transmat", *self.parts) if not hasattr(self, f"{n}_")]
        if missing:
            raise NotFittedError(f"{type(self).__name__} has no {missing[0]} yet: call fit, or set it")
        given = self._given(model, everything=True)
        return State(jnp.int32(0), jax.random.key(0), {"hmm": given}, (), {"emission": {}})

    def _given(self, model: HMM, everything: bool = False) -> PyTree:
        """Parameters from the attributes that are set and not to be initialized, under the model's names."""
        k = self.n_components
        wanted = lambda name: hasattr(self, f"{name}_") and (everything or name[0] not in self.init_params)
        given = {}
        with np.errstate(divide="ignore"):
            if wanted("startprob"):
                given["initial"] = np.log(np.maximum(probabilities("startprob_", self.startprob_, (k,)), 0))
            if wanted("transmat"):
                given["transition"] = np.log(probabilities("transmat_", self.transmat_, (k, k)))
        kept = [name for name in self.parts if wanted(name)]
        if kept and len(kept) < len(self.parts):
            names = ", ".join(f"{n}_" for n in self.parts)
            raise ValueError(f"set all of {names}, or let fit find all of them (init_params)")
        if kept:
            given["emission"] = self._emission()
        return jax.tree.map(jnp.asarray, given)

    def _keep(self, model: HMM, state: State) -> None:
        initial, transition = (np.asarray(a, np.float64) for a in model.chain(state))
        self.startprob_ = initial / initial.sum()
        self.transmat_ = transition / transition.sum(axis=1, keepdims=True)
        self._keep_emission(model, state.params["hmm"]["emission"])

    def _hmm(self, emission: Emission) -> HMM:
        if self.startprob_prior != self.transmat_prior:
            raise ValueError("startprob_prior and transmat_prior must be equal here")
        at_least(1, transmat_prior=self.transmat_prior)
        return HMM(
            int(self.n_components),
            emission,
            transitions=self.transitions,
            concentration=float(self.transmat_prior),
            stickiness=float(self.stickiness),
        )

    def _floats(self, x: np.ndarray) -> np.ndarray:
        return x if x.dtype.kind == "f" else np.zeros(0)

    def _points(self, X: Any, reset: bool = False) -> np.ndarray:
        x = points(X, features=None if reset else self._features())
        self.n_features = x.shape[1] if reset else getattr(self, "n_features", x.shape[1])
        return x

    def _features(self) -> int | None:
        return np.shape(self.means_)[-1] if hasattr(self, "means_") else None

    def _model(self, x: np.ndarray | None) -> HMM:
        raise NotImplementedError

    def _emission(self) -> PyTree:
        raise NotImplementedError

    def _keep_emission(self, model: HMM, params: PyTree) -> None:
        raise NotImplementedError

    def _free(self) -> int:
        """Number of free parameters."""
        k = self.n_components
        return k * k - 1 + sum(np.size(getattr(self, f"{name}_")) for name in self.parts)


def _padded(x: np.ndarray, lengths: Any) -> tuple[Batch, np.ndarray]:
    """Pads concatenated sequences to a batch (B, T, ...), with their lengths."""
    lengths = np.asarray([len(x)] if lengths is None else lengths)
    if lengths.ndim != 1 or not np.all(lengths == np.floor(lengths)) or (lengths < 1).any():
        raise ValueError(f"lengths must be whole numbers of at least 1, got {lengths.tolist()}")
    if lengths.sum() != len(x):
        raise ValueError(f"lengths add up to {int(lengths.sum())}, but X has {len(x)} rows")
    padded = np.zeros((len(lengths), int(lengths.max()), *x.shape[1:]), x.dtype)
    inside = np.arange(padded.shape[1]) < lengths[:, None]
    padded[inside] = x
    return {"x": padded, "length": lengths.astype(np.int32)}, lengths


def _joined(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates the valid steps of all padded sequences."""
    return padded[np.arange(padded.shape[1]) < lengths[:, None]]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _fit(model: HMM, iterations: int, restarts: int, batch: Batch, key: Any, tolerance: Any, given: PyTree):
    """Runs every restart to convergence, as one program."""
    algorithm = until_converged(population(em(model), restarts), "log_likelihood", tolerance, iterations)
    state = algorithm.init(key, batch)
    everywhere = lambda new, old: jnp.broadcast_to(new, old.shape).astype(old.dtype)
    params = {
        name: jax.tree.map(everywhere, given[name], old) if name in given else old
        for name, old in state.params["hmm"].items()
    }
    return algorithm.step(state._replace(params={"hmm": params}), batch)


@partial(jax.jit, static_argnums=0)
def _log_prob(model: HMM, state: State, batch: Batch) -> Any:
    return model.log_prob(state, batch)


@partial(jax.jit, static_argnums=0)
def _smooth(model: HMM, state: State, batch: Batch) -> Any:
    return model.smooth(state, batch)


@partial(jax.jit, static_argnums=0)
def _decode(model: HMM, state: State, batch: Batch) -> Any:
    return model.decode(state, batch)
