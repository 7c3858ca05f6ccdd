"""Fitting, scoring and selection of mixtures with scikit-learn's methods, for any components."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from gen_jax.algorithms import em
from gen_jax.compilation import Kept
from gen_jax.core import Batch, Extra, PyTree, State
from gen_jax.estimators.common import at_least, key_of, one_of, precision, probabilities, whole
from gen_jax.estimators.packing import map_rows, pad_rows, rounded
from gen_jax.models.mixture.gmm import GMM, information_criteria
from gen_jax.models.mixture.mixture import Mixture
from gen_jax.restarts import population, until_converged

__all__ = ["InformationCriteria", "MixtureEstimator", "state_of"]


class MixtureEstimator(DensityMixin, BaseEstimator):
    """Base class of mixtures: EM from several starts as one compiled program, and selection among several sizes."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MixtureEstimator:
        """Runs EM until the mean objective changes by less than `tol`, from `n_init` starts; the best is kept."""
        ks = self._sizes()
        whole(1, max_iter=self.max_iter, n_init=self.n_init, verbose_interval=self.verbose_interval)
        at_least(0, tol=self.tol)
        x = self._points(X, reset=True)
        weight = _weights(sample_weight, x)
        counted = weight > 0
        x, weight = (x, weight) if counted.all() else (x[counted], weight[counted])
        if len(x) < max(ks):
            raise ValueError(f"n_components = {max(ks)}, but X has {len(x)} samples: take fewer components")
        held = {}
        if len(ks) > 1 and self.criterion == "held_out":
            held = self._held_out(ks, x, weight)
            ks = [min(held, key=held.__getitem__)]
        model, found, firsts, restarts = self._run(ks, x, weight)
        self.criteria_ = held or self._criteria_of(ks, firsts, model, found, x, weight)
        best = firsts[0] if len(ks) == 1 else firsts[int(np.argmin(list(self.criteria_.values())))]
        self.n_components_ = int(ks[best // restarts])
        parameters = jax.tree.map(lambda a: a[best], found["parameters"])
        weights = parameters.pop("weights")[: self.n_components_]
        self.weights_ = weights / weights.sum()
        self._keep(parameters)
        self.lower_bound_ = float(found["objective"][best])
        self.curves_ = np.asarray(found["curve"], np.float64)
        self.lower_bounds_ = self.curves_[best][~np.isnan(self.curves_[best])].tolist()
        self.n_iter_, self.converged_ = int(found["iterations"][best]), bool(found["converged"][best])
        self.n_reseeded_ = int(found["reseeded"][best])
        self._report()
        return self

    def _run(self, ks: list[int], x: np.ndarray, weight: np.ndarray) -> tuple[Any, dict[str, Any], list[int], int]:
        """The model, what was found by all members of the population, the best of each size, and restarts of each."""
        model = self._model(max(ks), x)
        given = self._given(x, len(ks), max(ks))
        restarts, size = 1 if self.warm_start and given else self.n_init, rounded(len(x))
        with precision(x):
            sizes, seed = np.repeat(ks, restarts) if len(ks) > 1 else None, np.uint32(key_of(self.random_state))
            batch = {"x": pad_rows(x, size), "weight": pad_rows(weight.astype(x.dtype), size)}
            found = jax.tree.map(
                np.array, _fit(model, self._objective(), self.max_iter, restarts, batch, sizes, seed, self.tol, given)
            )
        values = np.where(np.isnan(found["objective"]), -np.inf, found["objective"])
        firsts = [i * restarts + int(np.argmax(values[i * restarts : (i + 1) * restarts])) for i in range(len(ks))]
        return model, {**found, "objective": values}, firsts, restarts

    def _criteria_of(
        self, ks: list[int], firsts: list[int], model: Any, found: Any, x: np.ndarray, weight: np.ndarray
    ) -> dict[int, float]:
        """The criterion of the best of each size, on these examples; of a single size none."""
        criteria: dict[int, float] = {}
        for k, i in zip(ks, firsts) if len(ks) > 1 else ():
            params = jax.tree.map(lambda a, i=i: a[i], found["params"])
            with precision(x):
                joint = map_rows(partial(_log_joint, model, params, self._extra(x.dtype)), x)
                criteria[int(k)] = _criteria(joint, self._free(int(k), x.shape[1]), weight)[self.criterion]
        return criteria

    def _held_out(self, ks: list[int], x: np.ndarray, weight: np.ndarray) -> dict[int, float]:
        """-2 times the log-likelihood of a random quarter of the examples, of each size fitted to the others."""
        order = np.random.default_rng(key_of(self.random_state)).permutation(len(x))
        fitted, judged = np.split(order, [len(x) - len(x) // 4])
        if len(fitted) < max(ks) or not len(judged):
            raise ValueError(f"n_components = {max(ks)}, but three quarters of X are {len(fitted)} samples")
        model, found, firsts, _ = self._run(ks, x[fitted], weight[fitted])
        return self._criteria_of(ks, firsts, model, found, x[judged], weight[judged])

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        return self.fit(X, y, sample_weight).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """(N,) log-likelihoods in nats."""
        return _normalized(self._joint(X)[0])[0]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean log-likelihood in nats."""
        values = self.score_samples(X)
        if sample_weight is None:
            return float(np.mean(values))
        weight = _weights(sample_weight, values)
        return float(np.average(values[weight > 0], weights=weight[weight > 0]))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, K) responsibilities of the components."""
        return _normalized(self._joint(X)[0])[1]

    def predict(self, X: Any) -> np.ndarray:
        return self._joint(X)[0].argmax(axis=1)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Samples (n, D) and their components (n,)."""
        check_is_fitted(self)
        whole(1, n_samples=n_samples)
        dtype = np.asarray(self.weights_).dtype
        with precision(np.zeros(0, dtype)):
            model = self._model(len(self.weights_), None)
            seed = np.uint32(key_of(self.random_state))
            x, component = _sample(model, self._parameters(dtype), self._extra(dtype), seed, rounded(int(n_samples)))
        return np.asarray(x)[:n_samples], np.asarray(component)[:n_samples]

    def _joint(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) log p(x, component), and the validated X."""
        check_is_fitted(self)
        x = self._points(X)
        with precision(x):
            model = self._model(len(self.weights_), x)
            return map_rows(partial(_log_joint, model, *self._packed(model, x.dtype)), x), x

    def _packed(self, model: GMM | Mixture, dtype: Any) -> tuple[PyTree, Extra]:
        """The model's parameters and extras, checked and computed again only when a fitted attribute has changed."""
        fitted = {name: value for name, value in vars(self).items() if name.endswith("_")}
        known = _PACKED.get(self)
        if known is None or known[:2] != (model, dtype) or not _same(known[2], fitted):
            packed = _pack(model, self._parameters(dtype)), jax.tree.map(jnp.asarray, self._extra(dtype))
            known = _PACKED[self] = model, dtype, copy.deepcopy(fitted), packed
        return known[3]

    def _sizes(self) -> list[int]:
        """The numbers of components to try; a ValueError that names the first argument that makes no sense."""
        whole(1, n_components=self.n_components)
        return [self.n_components]

    def _report(self) -> None:
        """Prints the history of a fit if `verbose`, and warns of what went wrong."""
        if self.verbose:
            for i in range(0, self.n_iter_, self.verbose_interval):
                print(f"  Iteration {i + 1}\t lower bound {self.lower_bounds_[i]:.5f}")
            print(f"Initialization converged: {self.converged_}")
        if not self.converged_ and self.max_iter > 1:
            warnings.warn(
                f"not converged in {self.max_iter} iterations: raise max_iter or tol", ConvergenceWarning, stacklevel=3
            )
        if self.n_reseeded_:
            warnings.warn(
                f"{self.n_reseeded_} times a component lost all its points and was given part of another's: "
                "n_components may be too large",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _extra(self, dtype: Any) -> Extra:
        """Extras of the fitted State that inference needs."""
        return {"component": {}}

    def _parameters(self, dtype: Any) -> dict[str, np.ndarray]:
        """Weights and parameters from the fitted attributes, which may have been set manually."""
        weights, attributes = probabilities("weights_", self.weights_, (len(self.weights_),)), self._attributes()
        if "means" in attributes and len(attributes["means"]) != len(weights):
            raise ValueError(f"weights_ has {len(weights)} entries, but means_ has {len(attributes['means'])} rows")
        return jax.tree.map(lambda a: np.asarray(a, dtype), {"weights": weights, **attributes})

    def _points(self, X: Any, reset: bool = False) -> np.ndarray:
        """Validated rows (N, D), with NaN for what is missing."""
        raise NotImplementedError

    def _model(self, k: int, x: np.ndarray | None) -> GMM | Mixture:
        """The model of k components, for rows x or for sampling."""
        raise NotImplementedError

    def _given(self, x: np.ndarray, several: int, k: int) -> dict[str, np.ndarray]:
        """Initial parameters set by the user, under the model's names."""
        raise NotImplementedError

    def _keep(self, parameters: PyTree) -> None:
        """Stores the parameters of the first `n_components_` components as fitted attributes."""
        raise NotImplementedError

    def _objective(self) -> str:
        """The metric that EM climbs."""
        raise NotImplementedError

    def _attributes(self) -> dict[str, Any]:
        """Parameters of the components from the fitted attributes, under the model's names."""
        raise NotImplementedError


class InformationCriteria(MixtureEstimator):
    """Point estimators: information criteria select among sizes, and `params` holds the letters of what is fitted."""

    fitted: Mapping[str, str]  # letters of `params`, and the model's names of what they fit

    def bic(self, X: Any) -> float:
        return self._criterion(X, "bic")

    def aic(self, X: Any) -> float:
        return self._criterion(X, "aic")

    def icl(self, X: Any) -> float:
        """BIC plus twice the entropy of the responsibilities (Biernacki, Celeux & Govaert 2000)."""
        return self._criterion(X, "icl")

    def _sizes(self) -> list[int]:
        ks = [self.n_components] if np.ndim(self.n_components) == 0 else list(self.n_components)
        if not ks:
            raise ValueError("n_components is empty: give one number or several")
        for k in ks:
            whole(1, n_components=k)
        one_of("criterion", self.criterion, dict.fromkeys(("bic", "aic", "icl", "held_out")))
        if set(self.params) - set(self.fitted):
            raise ValueError(f"params may hold the letters {''.join(self.fitted)!r}, got {self.params!r}")
        return ks

    def _fixed(self) -> tuple[str, ...]:
        """The model's names of what `params` leaves as it is."""
        return tuple(name for letter, name in self.fitted.items() if letter not in self.params)

    def _criterion(self, X: Any, name: str) -> float:
        joint, x = self._joint(X)
        return _criteria(joint, self._free(len(self.weights_), x.shape[1]), np.ones(len(x)))[name]

    def _free(self, k: int, d: int) -> int:
        """Number of free parameters of k components."""
        raise NotImplementedError


def _weights(sample_weight: Any, x: np.ndarray) -> np.ndarray:
    if sample_weight is None:
        return np.ones(len(x))
    weight = np.asarray(sample_weight, np.float64)
    if weight.ndim == 0:
        weight = np.full(len(x), float(weight))
    if weight.shape != (len(x),):
        raise ValueError(f"sample_weight must have shape ({len(x)},), got {weight.shape}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("sample_weight must be finite and not negative")
    if not weight.sum() > 0:
        raise ValueError("all of sample_weight is zero")
    return weight


# Of each estimator: the model, the dtype, copies of the fitted attributes, and what was made of them.
_PACKED: WeakKeyDictionary[MixtureEstimator, tuple] = WeakKeyDictionary()


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether attributes are equal, NaN included."""

    def equal(a: Any, b: Any) -> bool:
        if type(a) is not type(b) or isinstance(a, (bool, int, float, str, list, dict)):
            return type(a) is type(b) and a == b
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and a.dtype == b.dtype and a.dtype != object and a.tobytes() == b.tobytes()

    return a.keys() == b.keys() and all(equal(value, b[name]) for name, value in a.items())


def _normalized(joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) (N,) and p(component | x) (N, K), NaN where p(x) is 0, from log p(x, component) (N, K)."""
    best = joint.max(axis=1)
    p = joint - np.where(np.isfinite(best), best, 0)[:, None]
    np.exp(p, out=p)
    total = p.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p /= total[:, None]
        return np.log(total) + best, p


def _criteria(joint: np.ndarray, free: int, weight: np.ndarray) -> dict[str, float]:
    """AIC, BIC and ICL from log p(x, component) (N, K)."""
    joint = np.asarray(joint, np.float64)
    log_prob, p = _normalized(joint)
    entropy = np.sum(weight[:, None] * entr(p))
    found = information_criteria(np.sum(weight * log_prob), entropy, free, np.log(weight.sum()))
    held_out = -2 * np.sum(weight * log_prob)
    return {**{name: float(value) for name, value in found.items()}, "held_out": float(held_out)}


@partial(Kept, statics=4)
def _fit(
    model: GMM | Mixture,
    objective: str,
    iterations: int,
    restarts: int,
    batch: Batch,
    sizes: Any,
    seed: Any,
    tolerance: Any,
    given: PyTree,
) -> PyTree:
    """Runs every member of the population to convergence, as one program: parameters, objectives, curves of each."""
    if sizes is None:
        several = population(em(model), restarts)
    else:
        several = population(lambda k: em(replace(model, active=k)), sizes)
    algorithm = until_converged(several, objective, tolerance, iterations)
    state = algorithm.init(jax.random.key(seed), batch)
    (player,) = state.params
    if given:
        begin = jax.vmap(lambda params: model.pack(given, params))
        state = state._replace(params={player: begin(state.params[player])})
    state, metrics = algorithm.step(state, batch)
    params = state.params[player]
    unused = jnp.zeros_like(metrics["iterations"].total)
    return {
        "params": params,
        "parameters": jax.vmap(model.unpack)(params) | {n: a for n, a in state.extra.items() if n == "prior"},
        "objective": metrics[objective].value,
        "converged": metrics["converged"].total,
        "iterations": metrics["iterations"].total,
        "curve": state.extra["curve"],
        "reseeded": state.extra.get("reseeded", unused),
    }


def state_of(estimator: MixtureEstimator, dtype: Any) -> tuple[Any, State]:
    """The model of a fitted estimator, and its State."""
    check_is_fitted(estimator)
    model = estimator._model(len(estimator.weights_), None)
    return model, _state(*estimator._packed(model, dtype))


def _state(params: PyTree, extra: Extra) -> State:
    return State(jnp.int32(0), jax.random.key(0), {"mixture" if "component" in params else "gmm": params}, (), extra)


@partial(jax.jit, static_argnums=0)
def _pack(model: GMM | Mixture, parameters: PyTree) -> PyTree:
    return model.pack(parameters, {})


@partial(jax.jit, static_argnums=0)
def _log_joint(model: GMM | Mixture, params: PyTree, extra: Extra, x: Any) -> Any:
    return model.log_joint(_state(params, extra), {"x": x})


@partial(jax.jit, static_argnums=(0, 4))
def _sample(model: GMM | Mixture, parameters: PyTree, extra: Extra, seed: Any, n: int) -> Any:
    drawn = model.sample(_state(model.pack(parameters, {}), extra), jax.random.key(seed), n)
    return drawn["x"], drawn["component"]
