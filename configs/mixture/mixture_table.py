"""Mixture by EM of a table with columns of several kinds and missing cells.

python train.py configs/mixture/mixture_table.py
python train.py configs/mixture/mixture_table.py --data people.csv --counts children
"""

from typing import Literal

from gen_jax import plots
from gen_jax.algorithms import em
from gen_jax.data import load
from gen_jax.data.transforms import standardize
from gen_jax.errors import UserError
from gen_jax.evaluation import log_likelihood
from gen_jax.experiment import Experiment
from gen_jax.hooks import StopWhen
from gen_jax.models.common.columns import Category, Column, Count, Ordinal, Real, column_names, kinds_of
from gen_jax.models.hmm.emissions import Categorical, Gaussian, Poisson, Product
from gen_jax.models.mixture import DIAGONAL, FULL, Mixture
from gen_jax.restarts import best_restart


def config(
    data: str = "diabetes",
    counts: str = "",
    ordinals: str = "",
    components: int = 5,
    covariance: Literal["full", "diagonal"] = "full",
    regularization: float = 1e-2,
    concentration: float = 1.5,
    restarts: int = 8,
    steps: int = 200,
    tolerance: float = 1e-4,
    smoke: bool = False,
) -> Experiment:
    """Columns of different kinds are independent given the component; likelihoods are of standardized numbers.

    Args:
        data: a table by name or path; texts are categories, and empty cells are missing
        counts: columns of counts (Poisson), with commas between them
        ordinals: columns of whole numbers from 0 on that are taken as categories
        components: number of components
        covariance: of the other numbers given the component
        regularization: added to all variances
        concentration: of the Dirichlet prior of categories; 1 gives those that a component has not seen no probability
        restarts: starts from random points, of which the best after 20 iterations goes on
        steps: iterations at most
        tolerance: stop when the log-posterior (nats per row) changes by less
    """
    table = load(data)
    kinds = kinds_of(table, counts, ordinals)
    reals = tuple(i for i, kind in enumerate(kinds) if isinstance(kind, Real))
    gaussian = Gaussian(FULL if covariance == "full" else DIAGONAL, regularization=regularization, missing=True)
    parts = [(reals, gaussian)] if reals else []
    names = column_names(table)
    parts += [((i,), _emission(kind, concentration, names[i])) for i, kind in enumerate(kinds) if i not in reals]
    model = Mixture(components, Product(tuple(parts)))
    return Experiment(
        model,
        best_restart(em(model), 2 if smoke else restarts, "log_posterior", iterations=2 if smoke else 20),
        data=table,
        transforms=[standardize(table["train"]["x"], [i for i in range(len(kinds)) if i not in reals])],
        missing=table.info.missing,
        steps=min(steps, 20) if smoke else steps,
        report_every=1,
        metrics=[log_likelihood],
        plots=[plots.marginals, plots.restarts],
        evaluate_every=50,
        plot_every=50,
        checkpoint_every=50,
        hooks=[StopWhen("log_posterior", tolerance)],
    )


def _emission(kind: Column, concentration: float, name: str):
    if isinstance(kind, Category):
        return Categorical(kind.levels, concentration)
    if isinstance(kind, Count):
        return Poisson(prior=0.1)
    if isinstance(kind, Ordinal) and all(value >= 0 and value == int(value) for value in kind.values):
        return Categorical(int(kind.values[-1]) + 1, concentration)
    raise UserError(f"--ordinals {name}: its values must be whole numbers from 0 on")
