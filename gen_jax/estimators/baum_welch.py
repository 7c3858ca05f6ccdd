"""Fitting, scoring and decoding with hmmlearn's methods, for estimators of any emission."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from gen_jax.algorithms import em
from gen_jax.compilation import Kept
from gen_jax.core import Batch, Extra, Params, PyTree, State
from gen_jax.estimators.common import at_least, broadcast, key_of, one_of, points, precision, probabilities, whole
from gen_jax.estimators.packing import Placement, pack_sequences, rounded
from gen_jax.models.hmm.emissions import Emission
from gen_jax.models.hmm.hmm import HMM
from gen_jax.restarts import population, until_converged

__all__ = ["BaumWelchEstimator", "Monitor"]


@dataclass
class Monitor:
    """Convergence history: the objective at each iteration in nats, the log-likelihood of all data plus the log-prior.

    Without a prior, which GaussianHMM has by default (`covars_prior`), that is the log-likelihood.
    """

    tol: float
    n_iter: int
    verbose: bool = False
    history: list[float] = field(default_factory=list)
    converged: bool = False

    @property
    def iter(self) -> int:
        return len(self.history)


class BaumWelchEstimator(BaseEstimator):
    """Base class of hmmlearn's models. X holds all sequences concatenated, `lengths` the length of each."""

    parts: tuple[str, ...]  # fitted attributes of the emission

    def fit(self, X: Any, y: Any = None, lengths: Any = None):
        """Runs Baum-Welch until the objective grows by less than `tol`, from `n_init` starts; the best is kept.

        As with hmmlearn, the second argument may hold the lengths; in a pipeline they are passed by name.
        """
        whole(1, n_components=self.n_components, n_iter=self.n_iter, n_init=self.n_init)
        at_least(-np.inf, tol=self.tol)
        one_of("algorithm", self.algorithm, ALGORITHMS)
        for name, value in (("init_params", self.init_params), ("params", self.params)):
            if set(value) - set(self.letters):
                raise ValueError(f"{name} may hold the letters {self.letters!r}, got {value!r}")
        entries = self._entries(X, reset=True)
        if "means" in self.parts and self.n_components > len(entries["x"]):
            got = f"X has {len(entries['x'])} rows"
            raise ValueError(f"n_components = {self.n_components}, but {got}: take fewer components")
        batch, placement = _packed(entries, y if lengths is None else lengths)
        model = self._fitted_model(entries)
        with precision(_floats(entries["x"])):
            given, prior = self._given(), self._priors()
            if self.stationary:
                given.pop("initial", None)
            tolerance, seed = self.tol / placement.sequences, np.uint32(key_of(self.random_state))
            start = self._start(model)
            found = _fit(model, start, self.n_iter, self.n_init, batch, seed, tolerance, given, prior)
        found = jax.tree.map(np.array, found)
        best = int(np.argmax(np.where(np.isnan(found["objective"]), -np.inf, found["objective"])))
        self._keep(jax.tree.map(lambda a: a[best], found["parameters"]))
        curve = np.asarray(found["curve"], np.float64) * placement.sequences
        self.curves_ = curve
        history, converged = curve[best][~np.isnan(curve[best])].tolist(), bool(found["converged"][best])
        self.monitor_ = Monitor(self.tol, self.n_iter, self.verbose, history, converged)
        if self.verbose:
            for i, (value, before) in enumerate(zip(history, [np.nan, *history])):
                print(f"{i + 1:>10d} {value:>16.8f} {value - before:>+16.8f}", file=sys.stderr)
        if not converged and self.n_iter > 1:
            warnings.warn(
                f"not converged in {self.n_iter} iterations: raise n_iter or tol", ConvergenceWarning, stacklevel=2
            )
        return self

    def score(self, X: Any, y: Any = None, lengths: Any = None) -> float:
        """The log-likelihood of all sequences (nats)."""
        return float(np.sum(self._infer(_log_prob, X, y if lengths is None else lengths)[0]))

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, np.ndarray]:
        """The log-likelihood of all sequences, and p(state | sequence) (n_samples, K)."""
        found, placement = self._infer(_smooth, X, lengths)
        return float(np.sum(found[0])), placement.unpacked(found[1])

    def predict_proba(self, X: Any, lengths: Any = None) -> np.ndarray:
        return self.score_samples(X, lengths)[1]

    def decode(self, X: Any, lengths: Any = None, algorithm: str | None = None) -> tuple[float, np.ndarray]:
        """States (n_samples,): "viterbi", with their joint log-probability, or "map", the most probable per step."""
        if one_of("algorithm", algorithm or self.algorithm, ALGORITHMS):
            found, placement = self._infer(_decode, X, lengths)
            return float(np.sum(found.log_joint)), placement.unpacked(found.states)
        p = self.predict_proba(X, lengths)
        return float(np.sum(p.max(axis=1))), p.argmax(axis=1)

    def predict(self, X: Any, lengths: Any = None) -> np.ndarray:
        return self.decode(X, lengths)[1]

    def sample(
        self, n_samples: int = 1, random_state: Any = None, currstate: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Samples one sequence of n_samples steps, and its states, the first of which is `currstate` if given."""
        whole(1, n_samples=n_samples)
        parameters = self._parameters()
        if currstate is not None:
            if currstate not in range(self.n_components):
                raise ValueError(f"currstate must be a state from 0 to {self.n_components - 1}, got {currstate!r}")
            with np.errstate(divide="ignore"):
                parameters["initial"] = np.log(np.eye(self.n_components)[int(currstate)])
        model = self._model(None)
        with precision(np.zeros(0)):
            seed = self.random_state if random_state is None else random_state
            drawn = _sample(model, parameters, np.uint32(key_of(seed)), rounded(int(n_samples)))
            x, states = (np.asarray(a)[0, :n_samples] for a in drawn)
            return (x[:, None] if x.ndim == 1 else x), states

    def get_stationary_distribution(self) -> np.ndarray:
        """(K,) probabilities of the states in the long run: the eigenvector of `transmat_` to the eigenvalue 1."""
        self._check_fitted("transmat")
        values, vectors = np.linalg.eig(np.asarray(self.transmat_).T)
        vector = np.real(vectors[:, np.argmax(np.real(values))])
        return vector / vector.sum()

    def bic(self, X: Any, lengths: Any = None) -> float:
        """-2 log-likelihood + log(n_samples) per free parameter; those that `params` or zeros fix are not free."""
        return -2 * self.score(X, lengths) + self._free() * np.log(len(X))

    def aic(self, X: Any, lengths: Any = None) -> float:
        return -2 * self.score(X, lengths) + 2 * self._free()

    @property
    def letters(self) -> str:
        return "st" + "".join(name[0] for name in self.parts)

    def _infer(self, function: Any, X: Any, lengths: Any) -> tuple[Any, Placement]:
        parameters, entries = self._parameters(), self._entries(X)
        batch, placement = _packed(entries, lengths)
        model = self._model(entries)
        with precision(_floats(entries["x"])):
            return jax.tree.map(np.asarray, function(model, parameters, batch)), placement

    def _check_fitted(self, *names: str) -> None:
        if missing := [f"{name}_" for name in names if not hasattr(self, f"{name}_")]:
            raise NotFittedError(f"{type(self).__name__} has no {missing[0]} yet: call fit, or set it")

    def _parameters(self) -> dict[str, Any]:
        """The model's parameters from the fitted attributes, which may have been set manually."""
        self._check_fitted("startprob", "transmat", *self.parts)
        return self._given(everything=True)

    def _given(self, everything: bool = False) -> dict[str, Any]:
        """Parameters from the attributes that are set and not to be initialized, under the model's names."""
        k, given = self.n_components, {}
        wanted = lambda name: hasattr(self, f"{name}_") and (everything or name[0] not in self.init_params)
        with np.errstate(divide="ignore"):
            if wanted("startprob"):
                given["initial"] = np.log(probabilities("startprob_", self.startprob_, (k,)))
            if wanted("transmat"):
                given["transition"] = np.log(probabilities("transmat_", self.transmat_, (k, k)))
        emission = self._emission([name for name in self.parts if wanted(name)])
        return given | ({"emission": emission} if emission else {})

    def _keep(self, found: PyTree) -> None:
        initial, transition = (np.asarray(a, np.float64) for a in found["chain"])
        self.startprob_ = initial / initial.sum()
        self.transmat_ = transition / transition.sum(axis=1, keepdims=True)
        self._keep_emission(found["emission"])

    def _hmm(self, emission: Emission) -> HMM:
        at_least(0, stickiness=self.stickiness)
        fixed = [name for name, letter in (("initial", "s"), ("transition", "t")) if letter not in self.params]
        if not any(name[0] in self.params for name in self.parts):
            fixed.append("emission")
        k, allowed = self.n_components, None
        if self.transitions is not None:
            allowed = np.asarray(self.transitions)
            if allowed.shape != (k, k) or not np.isin(allowed, (0, 1)).all():
                raise ValueError(f"transitions must be True or False of shape {(k, k)}, got shape {allowed.shape}")
            allowed = tuple(tuple(bool(one) for one in row) for row in allowed)
        return HMM(int(k), emission, transitions=allowed, fixed=tuple(fixed))

    def _fitted_model(self, entries: Batch | None) -> HMM:
        """The model that `fit` trains; for all else `startprob_` is as good as a stationary start."""
        model = self._model(entries)
        if not self.stationary:
            return model
        return replace(model, stationary=True, fixed=tuple(name for name in model.fixed if name != "initial"))

    def _held(self) -> tuple[str, ...]:
        """Parts of the emission that `params` leaves as they are, under the model's names."""
        names = {"means": "means", "covars": "covariances", "weights": "weights"}
        return tuple(names[name] for name in self.parts if name in names and name[0] not in self.params)

    def _priors(self) -> Extra:
        """Priors of the chain and, under "emission", of the emission; those that are flat are left out."""
        k = self.n_components
        initial = broadcast("startprob_prior", self.startprob_prior, (k,), 0) - 1
        transition = broadcast("transmat_prior", self.transmat_prior, (k, k), 0) - 1 + self.stickiness * np.eye(k)
        chain = {"prior": {"initial": initial, "transition": transition}} if initial.any() or transition.any() else {}
        emission = self._emission_prior()
        return chain | ({"emission": emission} if emission else {})

    def _start(self, model: HMM) -> HMM:
        """The model that initializes the parameters."""
        return model

    def _points(self, X: Any, reset: bool = False) -> np.ndarray:
        x = points(X, features=None if reset else self._features())
        self.n_features = x.shape[1] if reset else getattr(self, "n_features", x.shape[1])
        return x

    def _features(self) -> int | None:
        return np.shape(self.means_)[-1] if hasattr(self, "means_") else None

    def _entries(self, X: Any, reset: bool = False) -> Batch:
        """Validated entries of a batch (N, ...), the sequences still concatenated."""
        return {"x": self._points(X, reset)}

    def _model(self, entries: Batch | None) -> HMM:
        raise NotImplementedError

    def _emission(self, names: list[str]) -> PyTree:
        """Parameters of the emission from these attributes, all of `parts` or some."""
        raise NotImplementedError

    def _emission_prior(self) -> Extra:
        raise NotImplementedError

    def _keep_emission(self, found: PyTree) -> None:
        """Stores the emission's parameters, as its `unpack` gives them."""
        raise NotImplementedError

    def _free(self) -> int:
        """Number of free parameters."""
        return self._free_of(self._fitted_model(None))

    def _free_of(self, model: HMM) -> int:
        parameters = self._parameters()
        if self.stationary:
            del parameters["initial"]
        with precision(np.zeros(0)):
            params = jax.eval_shape(partial(_complete, model, params={}), parameters)
            params |= {name: a for name, a in parameters.items() if name != "emission"}
            return model.free_parameters(State(jnp.int32(0), jax.random.key(0), {"hmm": params}, (), {}))


ALGORITHMS = {"viterbi": True, "map": False}  # whether states are decoded together


def _floats(x: np.ndarray) -> np.ndarray:
    """An array whose dtype decides the precision: integers are computed in float64."""
    return x if x.dtype.kind == "f" else np.zeros(0)


def _objective(prior: Extra) -> str:
    return "log_posterior" if prior else "log_likelihood"


def _packed(entries: Batch, lengths: Any) -> tuple[Batch, Placement]:
    n = len(entries["x"])
    lengths = np.asarray([n] if lengths is None else lengths)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iuf" or not np.all(lengths == np.floor(lengths)):
        raise ValueError(f"lengths must be whole numbers, one per sequence, got {lengths.tolist()}")
    if (lengths < 0).any():
        raise ValueError(f"lengths must not be negative, got {int(lengths.min())}")
    if lengths.sum() != n:
        raise ValueError(f"lengths add up to {int(lengths.sum())}, but X has {n} rows")
    return pack_sequences(entries, lengths.astype(np.int64))


def _complete(model: HMM, given: PyTree, params: Params) -> Params:
    """Parameters of the model, with those given in the terms of `Emission.pack` in place of `params`."""
    given = jax.tree.map(jnp.asarray, given)
    if "emission" in given:
        given["emission"] = model.emission.pack(given["emission"], params.get("emission", {}))
    return {**params, **given}


def _state(model: HMM, parameters: PyTree) -> State:
    params = _complete(model, parameters, {})
    return State(jnp.int32(0), jax.random.key(0), {"hmm": params}, (), {"emission": {}})


@partial(Kept, statics=4)
def _fit(
    model: HMM,
    start: HMM,
    iterations: int,
    restarts: int,
    batch: Batch,
    seed: Any,
    tolerance: Any,
    given: PyTree,
    prior: Extra,
) -> PyTree:
    """Runs every restart to convergence, as one program: parameters, objectives and curves of each."""

    def init(key: Any, batch: Batch) -> State:
        state = em(start).init(key, batch)
        params = _complete(model, given, state.params["hmm"])
        as_before = lambda new, old: jnp.asarray(new).astype(old.dtype)
        params = jax.tree.map(as_before, params, state.params["hmm"])
        dtype = jnp.result_type(*jax.tree.leaves(params))
        exact = lambda a: jnp.asarray(a).astype(dtype)
        extra = {**state.extra, **jax.tree.map(exact, {k: v for k, v in prior.items() if k != "emission"})}
        emission = {name: a for name, a in extra["emission"].items() if name not in ("prior", "weights_prior")}
        extra["emission"] = emission | jax.tree.map(exact, prior.get("emission", {}))
        return state._replace(params={"hmm": params}, extra=extra)

    algorithm = population(em(model)._replace(init=init), restarts)
    algorithm = until_converged(algorithm, _objective(prior), tolerance, iterations)
    state, metrics = algorithm.step(algorithm.init(jax.random.key(seed), batch), batch)

    def unpack(params: Params) -> PyTree:
        chain = model.chain(state._replace(params={"hmm": params}))
        raw = {name: params[name] for name in ("initial", "transition") if name in params}
        return {"chain": chain, "raw": raw, "emission": model.emission.unpack(params["emission"])}

    return {
        "parameters": jax.vmap(unpack)(state.params["hmm"]),
        "objective": metrics[_objective(prior)].value,
        "converged": metrics["converged"].total,
        "curve": state.extra["curve"],
    }


@partial(jax.jit, static_argnums=0)
def _log_prob(model: HMM, parameters: PyTree, batch: Batch) -> Any:
    return model.log_prob(_state(model, parameters), batch)


@partial(jax.jit, static_argnums=0)
def _smooth(model: HMM, parameters: PyTree, batch: Batch) -> Any:
    found = model.smooth(_state(model, parameters), batch)
    return found.log_evidence, found.marginals


@partial(jax.jit, static_argnums=0)
def _decode(model: HMM, parameters: PyTree, batch: Batch) -> Any:
    return model.decode(_state(model, parameters), batch)


@partial(jax.jit, static_argnums=(0, 3))
def _sample(model: HMM, parameters: PyTree, seed: Any, length: int) -> Any:
    drawn = model.sample(_state(model, parameters), jax.random.key(seed), 1, length=length)
    return drawn["x"], drawn["state"]
