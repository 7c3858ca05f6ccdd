"""The command `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gen_jax.cli.latent_space import Cutoff, Psi, class_condition, parse_numbers, truncated
from gen_jax.cli.options import (
    PICTURES,
    ConfigPath,
    DataDir,
    Member,
    Step,
    Workdir,
    check_ending,
    check_folder,
    open_workdir,
    parse_step,
)
from gen_jax.errors import UserError

__all__ = ["sample"]


def sample(
    workdir: Workdir,
    n: int | None = None,
    out: Path | None = None,
    seed: int | None = None,
    seeds: str | None = None,
    psi: Psi = None,
    cutoff: Cutoff = None,
    label: int | None = None,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Draws samples from a trained model.

    Args:
        n: number of samples; 64 by default
        out: a figure (.png, .pdf, .svg), the arrays (.npz), or a table in the units of the data (.csv); by default
            WORKDIR/samples.png
        seed: random seed; 0 by default
        seeds: a seed for each sample, numbers and ranges such as "0-63,100", instead of --n and --seed; a sample then
            depends on its own seed alone
        label: class of the samples, for a model conditioned on labels; by default every class in turn
    """
    chosen = None if seeds is None else parse_numbers("--seeds", seeds)
    if chosen is not None and (n is not None or seed is not None):
        raise UserError("--seeds says which samples are drawn: leave out --n and --seed")
    n = len(chosen) if chosen is not None else 64 if n is None else n
    out = out or workdir / "samples.png"
    check_ending(out, (*PICTURES, ".npz", ".csv"))
    if not 1 <= n <= 1_000_000:
        raise UserError(f"--n must be between 1 and 1,000,000, got {n}")
    import jax
    import numpy as np

    from gen_jax import plots
    from gen_jax.core import ImageTranslator, Seq2Seq, averaged
    from gen_jax.data.tables import write_csv

    run = open_workdir(workdir, config, data_dir, member)
    check_folder(out)
    if isinstance(run.experiment.model, (Seq2Seq, ImageTranslator)):
        raise UserError(f"{workdir} maps what it is given: use `gen_jax translate`")
    model = truncated(run.experiment.model, psi, cutoff, workdir)
    condition = None if label is None else class_condition(model, label, n)
    state = averaged(run.state(parse_step(step)))
    if chosen is None:
        drawn = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(seed or 0), n, condition)
    else:
        drawn = _by_seeds(model, state, chosen, condition)
    batch = {name: np.asarray(a) for name, a in drawn.items()}
    if out.suffix == ".npz":
        np.savez(out, **batch)
    elif out.suffix == ".csv":
        batch["x"] = run.experiment.split(run.data, "train").untransformed(batch["x"])
        write_csv(out, batch, run.data.info)
    else:
        plots.show({f"{n} samples": batch["x"]}).savefig(out)
    print(f"{n} samples of shape {batch['x'].shape[1:]} in {out}")


def _by_seeds(model: Any, state: Any, seeds: list[int], condition: dict[str, Any] | None) -> dict[str, Any]:
    """One sample per seed; without a condition, that of a conditional model is chosen by the seed."""
    import jax
    import numpy as np

    from gen_jax.core import Conditional

    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    if condition is None and isinstance(model, Conditional) and model.conditioning is not None:
        every = model.conditioning.example(model.conditioning.classes or 1)
        condition = {name: np.asarray(a)[np.array(seeds) % len(a)] for name, a in every.items()}
    one = lambda key, given: model.sample(state, key, 1, {name: a[None] for name, a in given.items()} or None)
    drawn = jax.jit(jax.vmap(one))(keys, condition or {})
    return {name: a[:, 0] for name, a in drawn.items()}
