"""`Imputer`: fills missing cells by a Gaussian mixture, with scikit-learn's methods."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from gen_jax.core import State
from gen_jax.estimators.common import precision
from gen_jax.estimators.mixture import GaussianMixture
from gen_jax.estimators.mixture_base import state_of
from gen_jax.estimators.scaling import column_moments, selected_mixture
from gen_jax.models.mixture.gmm import GMM

__all__ = ["Imputer"]

BLOCK = 1024  # rows at once


class Imputer(TransformerMixin, BaseEstimator):
    """Fills NaN with the mean of p(missing | observed) under a Gaussian mixture, which is exact for any pattern.

    The mixture is fitted to incomplete rows by exact EM, on standardized columns. estimator: a `GaussianMixture`; by
    default its number of components maximizes the likelihood of held-out rows. Cells that are there are kept, bit by
    bit. `sample` draws several imputations, as Rubin's rules need.
    """

    def __init__(self, estimator: GaussianMixture | None = None, *, random_state: Any = None):
        self.estimator = estimator
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> Imputer:
        """Fits the mixture to all rows with any known cell."""
        x = self._rows(X, reset=True)
        known = ~np.isnan(x)
        empty = np.flatnonzero(~known.any(axis=0))
        if len(empty):
            raise ValueError(f"column {empty[0]} of X has no known value: leave it out")
        x = x[known.any(axis=1)]
        self.scale_ = column_moments(x)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        density = selected_mixture(len(x), 10, seed) if self.estimator is None else clone(self.estimator)
        self.estimator_ = density.fit(self._scaled(x))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """X with NaN replaced by conditional means; a row without any known cell gets the mean of the mixture."""
        x = self._rows(X)
        return self._by_blocks(x, lambda model, state, x, mask, seed: _expected(model, state, x, mask)[None])[0]

    def sample(self, X: Any, n: int = 20) -> np.ndarray:
        """(n, N, D) draws of the missing cells from their posterior, beside the known ones."""
        x = self._rows(X)
        return self._by_blocks(x, lambda model, state, x, mask, seed: _complete(model, state, x, mask, seed, n))

    def _by_blocks(self, x: np.ndarray, fill: Any) -> np.ndarray:
        """(n, N, D) of a function of blocks of rows, in the units of the data."""
        mean, deviation = self.scale_
        scaled, mask, parts = self._scaled(x), ~np.isnan(x), []
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        with precision(x):
            model, state = state_of(self.estimator_, x.dtype)
            for i, start in enumerate(range(0, len(x), BLOCK)):
                rows = np.minimum(np.arange(start, start + min(BLOCK, len(x))), len(x) - 1)
                made = fill(model, state, np.where(mask[rows], scaled[rows], 0), mask[rows], np.uint32(seed + i))
                parts.append(np.asarray(made)[:, : len(x) - start])
        return np.where(mask, x, np.concatenate(parts, axis=1) * deviation + mean).astype(x.dtype)

    def _rows(self, X: Any, reset: bool = False) -> np.ndarray:
        if not reset:
            check_is_fitted(self)
        return validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", copy=True
        )

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        mean, deviation = self.scale_
        return ((x - mean) / deviation).astype(x.dtype)


@partial(jax.jit, static_argnums=0)
def _expected(model: GMM, state: State, x: Any, mask: Any) -> Any:
    return model.expected(state, x, mask)


@partial(jax.jit, static_argnums=(0, 5))
def _complete(model: GMM, state: State, x: Any, mask: Any, seed: Any, n: int) -> Any:
    return model.complete(state, x, mask, jax.random.key(seed), n)
