"""Gaussian mixtures, trained by EM (Dempster, Laird & Rubin 1977; Bishop 2006, section 9.2) or by descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gen_jax.core import Batch, Extra, Mean, Metrics, Objective, Params, PyTree, State, fold_in
from gen_jax.models.common.blocks import by_blocks, over_blocks
from gen_jax.models.mixture.covariances import FULL, Evaluation, Full, Stats, occupied
from gen_jax.models.mixture.gaussians import Gaussians, Prior, check_fixed, condition, data_moments
from gen_jax.models.mixture.kmeans import Start, kmeans_plus_plus

__all__ = ["GMM", "criteria_of", "information_criteria", "shapes_of"]


@dataclass(frozen=True)
class GMM:
    """p(x) = sum_k w_k N(x; mean_k, covariance_k) over vectors (B, D).

    components: K. kind: FULL, TIED, DIAGONAL or SPHERICAL covariances. start: initialization of EM. floor: the minimum
    variance of any component, relative to the variance of the first batch. regularization: added to all variances, in
    units of the data. missing: NaN marks missing coordinates, which are marginalized. prior: for maximum a posteriori
    estimates. fixed: parameters that training leaves as they are: "weights", "means" or "covariances". active: number
    of components in use, all by default; it may be traced, so that one program tries several.

    shape: of one example, if it is not a vector.

    A batch may hold "weight" (B,): example weights, of which only the ratios matter unless there is a prior. Parameters
    are logits, means and Cholesky factors of the covariances with log diagonals, so that the same model can be trained
    by `em` and by `descent`.
    """

    components: int
    floor: float = 1e-6
    kind: Full = FULL
    start: Start = kmeans_plus_plus
    regularization: float = 0.0
    missing: bool = False
    prior: Prior = field(default_factory=Prior)
    shape: tuple[int, ...] = ()
    fixed: tuple[str, ...] = ()
    active: int | Array | None = None

    def __post_init__(self):
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")
        check_fixed(self.fixed, ("weights", "means", "covariances"))
        _ = self.gaussians

    @property
    def gaussians(self) -> Gaussians:
        fixed = tuple(name for name in self.fixed if name != "weights")
        return Gaussians(self.kind, self.floor, self.regularization, self.missing, self.prior, fixed)

    def init(self, key: Array, batch: Batch) -> tuple[Params, Extra]:
        """Initializes each component to the moments of the points that `start` assigns to it."""
        x, weight = _points(batch)
        mean, variance = data_moments(x, weight)
        x = jnp.where(jnp.isnan(x) | (weight[:, None] == 0), mean, x)  # for initialization only
        extra = {"variance": variance, "reseeded": jnp.zeros((), x.dtype)}
        if (prior := self._prior(x, weight, mean, variance)) is not None:
            extra["prior"] = prior
        assign = self.start(fold_in(key, "start"), x, weight, self.components)
        params = self.gaussians.start(x, self.components, extra["variance"])

        def gather(evaluation: Evaluation) -> Stats:
            def block(x: Array, index: Array, weight: Array) -> PyTree:
                return evaluation.sums(
                    evaluation.prepare(x), assign(x, index) * weight * self._used(self.components)[:, None]
                )

            return evaluation.stats(over_blocks(block, x, jnp.arange(len(x)), weight, rows=evaluation.rows))

        stats = replace(self.gaussians, missing=False).evaluate(params, x, gather)
        params = {"logits": jnp.zeros(self.components, x.dtype), **params}
        begin = replace(self, fixed=())
        return begin.m_step(State(jnp.int32(0), key, {"gmm": params}, (), extra), stats)[0], extra

    def _prior(self, x: Array, weight: Array, mean: Array, variance: Array) -> PyTree:
        """Priors of the weights and the components, in the units of the data; None if both are flat."""
        components = self.gaussians.conjugate(mean, variance, self.components)
        if components is None and self.prior.concentration == 1:
            return None
        pseudo_counts = jnp.full(self.components, self.prior.concentration - 1, variance.dtype)
        return {"weights": pseudo_counts, "components": components}

    def e_step(self, state: State, batch: Batch) -> tuple[Stats, Metrics]:
        params = state.params["gmm"]
        x, weight = _points(batch)
        weighted = weight if "weight" in batch else None
        log_weights = self.log_weights(params, state.extra)[:, None]

        def gather(evaluation: Evaluation) -> tuple[Stats, Array]:
            def block(x: Array, weight: Array) -> PyTree:
                if weighted is not None:  # what has no weight may be anything, even NaN
                    x = jnp.where(weight[:, None] > 0, x, 0)
                prepared = evaluation.prepare(x)
                joint = jnp.maximum(
                    evaluation.log_prob(prepared) + log_weights, -1e30
                )  # finite, however far away a point is
                best = joint.max(axis=0)
                each = jnp.exp(joint - best)  # shared by the density and the responsibilities
                density = each.sum(axis=0)
                return evaluation.sums(prepared, each * (weight / density)), jnp.sum((jnp.log(density) + best) * weight)

            sums, total = over_blocks(block, x, weight, rows=evaluation.rows)
            return evaluation.stats(sums), total

        stats, total = self.gaussians.evaluate(shapes_of(params), x, gather, weighted)
        return stats, {"log_likelihood": Mean(total, weight.sum()), "reseeded": Mean.of(state.extra["reseeded"])}

    def m_step(self, state: State, stats: Stats) -> tuple[Params, Extra]:
        """The M-step, then reseeds components without points from the heaviest ones, unless parameters are fixed."""
        old, variance = state.params["gmm"], state.extra["variance"]
        prior = state.extra.get("prior") or {"weights": 0, "components": None}
        new = self.gaussians.maximize(shapes_of(old), stats, variance, prior["components"])
        used = self._used(len(stats.count))
        share = jnp.where(used, jnp.maximum(stats.count + prior["weights"], 0), 0)
        share = share / share.sum()
        lost = used & ~occupied(stats.count) & (not self.fixed)
        shapes, share = self._reseeded(new, share, lost, stats)
        logits = jnp.where(used, jnp.log(jnp.maximum(share, 1e-30)), -jnp.inf)
        params = {"logits": old["logits"] if "weights" in self.fixed else logits, **shapes}
        return {"gmm": params}, {"reseeded": state.extra["reseeded"] + lost.sum()}

    def recenter(self, state: State, stats: Stats, params: Params) -> Stats:
        """Statistics recentered from the means of the State to those of `params`."""
        return self.kind.recenter(stats, params["gmm"]["means"] - state.params["gmm"]["means"])

    def _used(self, k: int) -> Array:
        return jnp.arange(k) < (k if self.active is None else self.active)

    def _reseeded(self, params: PyTree, share: Array, lost: Array, stats: Stats) -> tuple[PyTree, Array]:
        """Splits heavy components: each lost one takes half the weight and the shape of a heavy one, its mean moved a
        quarter of a standard deviation along the widest coordinate; the heaviest are split first."""
        heaviest, living = jnp.argsort(-stats.count), jnp.maximum(occupied(stats.count).sum(), 1)
        rank = jnp.cumsum(lost) - 1
        donor = jnp.where(lost, heaviest[rank % living], jnp.arange(len(lost)))
        takers = jnp.zeros_like(share).at[donor].add(jnp.ones_like(share))  # including the donor itself
        variances = self.kind.variances(params)[donor]
        widest = jnp.argmax(variances / variances.mean(axis=0), axis=1)
        step = jax.nn.one_hot(widest, variances.shape[1], dtype=share.dtype) * jnp.sqrt(variances)
        away = 0.25 * (1 + rank // living)[:, None] * step
        moved = self.kind.gather(params, donor)
        return {**moved, "means": moved["means"] + jnp.where(lost[:, None], away, 0)}, (share / takers)[donor]

    def loss(self, params: PyTree, state: State, batch: Batch, key: Array):
        x, weight = _points(batch)
        params = self._held(params)
        log_prob = Mean.of(self._log_prob(params, jnp.where(weight[:, None] > 0, x, 0)), weight)
        return Mean(-log_prob.total, log_prob.count), ({}, {"log_likelihood": log_prob})

    @property
    def objectives(self) -> Sequence[Objective]:
        return (Objective("gmm", self.loss),)

    def _held(self, params: PyTree) -> PyTree:
        """The parameters, without gradients of those that are fixed."""
        logits = jax.lax.stop_gradient(params["logits"]) if "weights" in self.fixed else params["logits"]
        return {"logits": logits, **self.gaussians.held(shapes_of(params))}

    def log_joint(self, state: State, batch: Batch) -> Array:
        """(B, K) log p(x, k)."""
        params = state.params["gmm"]
        return self.gaussians.log_prob(shapes_of(params), _points(batch)[0]) + self.log_weights(params, state.extra)

    def log_weights(self, params: PyTree, extra: Extra) -> Array:
        """(K,) log-weights of the components."""
        return jax.nn.log_softmax(params["logits"])

    def _log_joint(self, params: PyTree, x: Array) -> Array:
        return self.gaussians.log_prob(shapes_of(params), x) + jax.nn.log_softmax(params["logits"])

    def _log_prob(self, params: PyTree, x: Array) -> Array:
        return jax.nn.logsumexp(self._log_joint(params, x), axis=1)

    def log_prob(self, state: State, batch: Batch) -> Array:
        return by_blocks(lambda x: self._log_prob(state.params["gmm"], x), _points(batch)[0], rows=1 << 16)

    def log_prior(self, state: State) -> Array | None:
        """Log-prior of the parameters, up to a constant; None if it is flat."""
        if "prior" not in state.extra:
            return None
        params, prior = state.params["gmm"], state.extra["prior"]
        log_weights = jnp.where(self._used(self.components), jax.nn.log_softmax(params["logits"]), 0)
        value = jnp.sum(prior["weights"] * log_weights)
        if prior["components"] is not None:
            value += self.kind.log_prior(shapes_of(params), prior["components"])
        return value

    def responsibilities(self, state: State, batch: Batch) -> Array:
        """(B, K) p(k | x)."""
        return jax.nn.softmax(self.log_joint(state, batch), axis=1)

    def predict(self, state: State, batch: Batch) -> Array:
        """(B,) the most probable component."""
        return jnp.argmax(self.log_joint(state, batch), axis=1)

    def sample(self, state: State, key: Array, n: int, condition: Batch | None = None) -> Batch:
        params = state.params["gmm"]
        component = jax.random.categorical(fold_in(key, "component"), params["logits"], shape=(n,))
        noise = jax.random.normal(fold_in(key, "noise"), (n, params["means"].shape[1]), params["means"].dtype)
        x = self.kind.draw(params, component, noise)
        return {"x": x.reshape(n, *self.shape or x.shape[1:]), "component": component}

    def distribution(self, state: State) -> distrax.MixtureSameFamily:
        """The mixture as a distrax distribution."""
        params = state.params["gmm"]
        return distrax.MixtureSameFamily(
            distrax.Categorical(logits=params["logits"]), self.kind.distribution(shapes_of(params))
        )

    def marginal(self, state: State, columns: Sequence[int]) -> State:
        """The State of the marginal mixture over some coordinates, in the given order."""
        params, columns = state.params["gmm"], _columns(columns, state)
        marginal = {"logits": params["logits"], **self.kind.select(shapes_of(params), columns)}
        extra = {**state.extra, "variance": state.extra["variance"][columns]}
        return state._replace(params={"gmm": marginal}, extra={k: v for k, v in extra.items() if k != "ema"}, opt=())

    def conditional(self, state: State, columns: Sequence[int], values: Array) -> distrax.MixtureSameFamily:
        """p(other coordinates | these), the others in order: one mixture per row of `values` (B, len(columns)).

        Bishop 2006, equations 2.81 and 2.82.
        """
        params, given = state.params["gmm"], _columns(columns, state)
        free = np.setdiff1d(np.arange(params["means"].shape[1]), given)
        if not len(free):
            raise ValueError("columns must leave some coordinates free")
        marginal = self.marginal(state, given)
        means, covariances = params["means"], self.kind.dense(params)
        among, across = covariances[:, given][..., given], covariances[:, free][..., given]
        gain = jnp.linalg.solve(among, across.mT).mT
        residual = jnp.asarray(values, means.dtype)[:, None] - means[:, given]
        shifted = means[:, free] + jnp.einsum("kij,bkj->bki", gain, residual)
        rest = covariances[:, free][..., free] - gain @ across.mT
        factor = jnp.broadcast_to(jnp.linalg.cholesky(rest), (len(residual), *rest.shape))
        logits = self._log_joint(marginal.params["gmm"], jnp.asarray(values, means.dtype))
        return distrax.MixtureSameFamily(
            distrax.Categorical(logits=logits), distrax.MultivariateNormalTri(shifted, factor)
        )

    def with_missing(self) -> GMM:
        """The same mixture, which integrates out NaN in "x"."""
        return replace(self, missing=True)

    def complete(self, state: State, x: Array, mask: Array, key: Array, n: int) -> Array:
        """(n, B, D) exact draws from p(missing | observed) beside x (B, D), observed where `mask` (B, D).

        The component is drawn given the observed coordinates; then a draw y of it is moved by the gain of what was
        observed, y + S O' (O S O')^-1 (x - y) (Matheron's rule).
        """
        means, covariances = self.covariances(state)
        x, log_joint = self._observed(state, x, mask)
        factors = jnp.linalg.cholesky(covariances)

        def one(x: Array, mask: Array, log_joint: Array, key: Array) -> Array:
            k = jax.random.categorical(fold_in(key, "component"), log_joint)
            y = means[k] + factors[k] @ jax.random.normal(fold_in(key, "x"), x.shape, means.dtype)
            return condition(x, mask, y, covariances[k])

        draw = jax.vmap(one)
        return lax.map(lambda key: draw(x, mask, log_joint, jax.random.split(key, len(x))), jax.random.split(key, n))

    def expected(self, state: State, x: Array, mask: Array) -> Array:
        """(B, D) the mean of p(missing | observed) beside x (B, D), observed where `mask` (B, D); exact."""
        means, covariances = self.covariances(state)
        x, log_joint = self._observed(state, x, mask)

        def one(x: Array, mask: Array, log_joint: Array) -> Array:
            each = jax.vmap(lambda mean, covariance: condition(x, mask, mean, covariance))(means, covariances)
            return jnp.where(mask, x, jax.nn.softmax(log_joint) @ each)

        return lax.map(lambda row: one(*row), (x, mask, log_joint), batch_size=min(256, len(x)))

    def _observed(self, state: State, x: Array, mask: Array) -> tuple[Array, Array]:
        """x (B, D) with zeros where `mask` is False, and the log-density of the rest with each component (B, K)."""
        x = jnp.where(mask, jnp.asarray(x, state.params["gmm"]["means"].dtype), 0)
        return x, replace(self, missing=True)._log_joint(state.params["gmm"], jnp.where(mask, x, jnp.nan))

    def parameters(self, state: State) -> tuple[Array, Array, Array]:
        """Weights (K,), means (K, D) and covariances in the shape of their type."""
        return tuple(self.unpack(state.params["gmm"]).values())

    def pack(self, given: PyTree, params: PyTree) -> PyTree:
        """Parameters from the given "weights" (K,), "means" (K, D) and "covariances" (K, D, D); the others are those of
        `params`."""
        logits = jnp.log(given["weights"]) if "weights" in given else params["logits"]
        means = given["means"] if "means" in given else params["means"]
        covariances = given["covariances"] if "covariances" in given else self.kind.dense(shapes_of(params))
        return {"logits": logits, **self.gaussians.pack(means, covariances, jax.nn.softmax(logits))}

    def unpack(self, params: PyTree) -> PyTree:
        """Weights and means, and covariances in the shape of their type."""
        weights, covariances = jax.nn.softmax(params["logits"]), self.kind.covariances(shapes_of(params))
        return {"weights": weights, "means": params["means"], "covariances": covariances}

    def covariances(self, state: State) -> tuple[Array, Array]:
        """Means (K, D) and covariances (K, D, D)."""
        params = state.params["gmm"]
        return params["means"], self.kind.dense(shapes_of(params))

    def free_parameters(self, dimensions: int) -> int:
        """Number of free parameters, without those that are fixed."""
        k = self.components
        free = {"weights": k - 1, "means": k * dimensions, "covariances": self.kind.free(k, dimensions)}
        return sum(n for name, n in free.items() if name not in self.fixed)

    def criteria(self, state: State, batch: Batch) -> dict[str, Array]:
        """AIC, BIC (Schwarz 1978) and ICL (Biernacki, Celeux & Govaert 2000) on a data set; lower is better."""
        x, weight = _points(batch)
        return criteria_of(self.log_joint(state, batch), weight, self.free_parameters(x.shape[1]))


def criteria_of(joint: Array, weight: Array, free: int) -> dict[str, Array]:
    """AIC, BIC and ICL from log p(x, k) (N, K), weights (N,) and the number of free parameters."""
    log_prob = jnp.where(weight > 0, jax.nn.logsumexp(joint, axis=1), 0)
    entropy = jnp.sum(jnp.where(weight > 0, weight, 0)[:, None] * jax.scipy.special.entr(jax.nn.softmax(joint, axis=1)))
    return information_criteria(jnp.sum(weight * log_prob), entropy, free, jnp.log(weight.sum()))


def information_criteria(log_likelihood: Array, entropy: Array, free: int, log_n: Array) -> dict[str, Array]:
    """AIC, BIC and ICL; entropy: of the responsibilities of all points, log_n: the logarithm of their number."""
    bic = -2 * log_likelihood + free * log_n
    return {"aic": -2 * log_likelihood + 2 * free, "bic": bic, "icl": bic + 2 * entropy}


def _points(batch: Batch) -> tuple[Array, Array]:
    """x (N, D) and its weights (N,), as floats."""
    x = jnp.asarray(batch["x"])
    x = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    return x, jnp.asarray(batch.get("weight", jnp.ones(len(x), x.dtype)), x.dtype)


def shapes_of(params: PyTree) -> PyTree:
    """The parameters of the components, without the mixture weights."""
    return {name: a for name, a in params.items() if name not in ("logits", "count")}


def _columns(columns: Sequence[int], state: State) -> np.ndarray:
    columns, d = np.asarray(columns, int), state.params["gmm"]["means"].shape[1]
    if (
        columns.ndim != 1
        or not len(columns)
        or len(set(columns)) < len(columns)
        or not np.all((0 <= columns) & (columns < d))
    ):
        raise ValueError(f"columns must be different numbers from 0 to {d - 1}, got {columns.tolist()}")
    return columns
