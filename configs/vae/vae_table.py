"""VAE of a table with columns of several kinds and missing cells (MIWAE, Mattei & Frellsen 2019).

python train.py configs/vae/vae_table.py
python train.py configs/vae/vae_table.py --data people.csv --counts children --ordinals grade --mask high
"""

from typing import Literal

import numpy as np

from gen_jax import plots
from gen_jax.algorithms import descent, with_ema
from gen_jax.checkpoint import Best
from gen_jax.data import load
from gen_jax.data.options import listed
from gen_jax.data.transforms import standardize
from gen_jax.errors import UserError
from gen_jax.evaluation import elbo, iwae_50
from gen_jax.experiment import Experiment
from gen_jax.models.common.columns import Columns, Real, column_names, kinds_of
from gen_jax.models.common.networks import MLP
from gen_jax.models.vae import VAE, bounds
from gen_jax.models.vae.masks import Dependent, SelfMasking
from gen_jax.optimizers import adamw


def config(
    data: str = "diabetes",
    counts: str = "",
    ordinals: str = "",
    degrees: float = 0.0,
    least: float = 0.1,
    mask: Literal["random", "high", "low", "any", "row"] = "random",
    masked: str = "",
    latent: int = 4,
    hidden: int = 64,
    samples: int = 20,
    lr: float = 1e-3,
    batch: int = 128,
    steps: int = 2000,
    weight_decay: float = 1.0,
    smoke: bool = False,
) -> Experiment:
    """Likelihoods are of standardized numbers.

    Args:
        data: a table by name or path; texts are categories, and empty cells are missing
        counts: columns of counts (negative binomial), with commas between them
        ordinals: columns of ordered values (cumulative logits)
        degrees: of freedom of Student's t of all other numbers, 0 for a normal
        least: smallest scale of these, of standardized ones; it keeps small tables from being learned by heart
        mask: values are missing at random given the known ones; or high values are, low ones, or values with odds that
            are learned (not-MIWAE, Ipsen et al. 2021), from the value itself or from all of its row
        masked: the columns of numbers that this holds for, by default all with missing cells
        latent: dimensions of z
        hidden: units of the two hidden layers of encoder and decoder
        samples: of z per row in the importance-weighted bound
        lr: learning rate of AdamW at the start of its cosine decay
        batch: rows per step
        weight_decay: pull of AdamW towards zero
    """
    if masked and mask == "random":
        raise UserError("--masked names columns for --mask high, low, any or row: give one of these too")
    table = load(data)
    kinds = kinds_of(table, counts, ordinals, degrees or None, least)
    likelihood, train = Columns(kinds), table["train"]["x"]
    unscaled = [i for i, kind in enumerate(kinds) if not isinstance(kind, Real)]
    widths = (8, 8) if smoke else (hidden, hidden)
    model = VAE(
        MLP(widths, 2 * latent),
        MLP(widths, likelihood.outputs),
        likelihood,
        latent,
        bound=bounds.iwae,
        samples=samples,
        missing=True,
        mask=None if mask == "random" else _mask(mask, masked, table, kinds),
    )
    rows = min(batch, len(train))
    return Experiment(
        model,
        with_ema(descent(model, {"vae": adamw(lr, steps, weight_decay)}), "vae", 0.99),
        data=table,
        transforms=[standardize(train, unscaled)],
        missing=table.info.missing,
        batch=rows,
        steps=min(steps, 20) if smoke else steps,
        metrics=[elbo, iwae_50],
        plots=[plots.marginals],
        evaluate_every=250,
        checkpoint_every=250,
        best=Best("validation/iwae_50", "max"),
    )


def _mask(mask: str, masked: str, table, kinds):
    """The model of which numbers are missing."""
    names = column_names(table)
    if unknown := [name for name in listed(masked) if name not in names]:
        raise UserError(f"--masked {unknown[0]}: the columns are {', '.join(names)}")
    gaps = np.isnan(np.asarray(table["train"]["x"])).any(axis=0)
    for name in listed(masked):
        if not isinstance(kinds[names.index(name)], Real):
            raise UserError(f"--masked {name}: holds no real numbers, to which models of the mask are limited")
        if not gaps[names.index(name)]:
            raise UserError(f"--masked {name}: has no missing cells")
    chosen = [i for i, name in enumerate(names) if (name in listed(masked) if masked else gaps[i])]
    columns = tuple(i for i in chosen if isinstance(kinds[i], Real))
    if not columns:
        raise UserError(f"--mask {mask}: no column of numbers has missing cells")
    return Dependent(columns) if mask == "row" else SelfMasking(mask, columns)
