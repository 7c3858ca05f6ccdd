"""The command `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    n: int = 64,
    out: Path | None = None,
    seed: int = 0,
    label: int | None = None,
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Draws samples from a trained model.

    Args:
        n: number of samples
        out: a figure (.png, .pdf, .svg), the arrays (.npz), or a table in the units of the data (.csv); by default
            WORKDIR/samples.png
        seed: random seed
        label: class of the samples, for a model conditioned on labels; by default every class in turn
    """
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
    condition = None if label is None else _of_class(run.experiment.model, label, n)
    draw = jax.jit(run.experiment.model.sample, static_argnums=2)
    state = averaged(run.state(parse_step(step)))
    batch = {name: np.asarray(a) for name, a in draw(state, jax.random.key(seed), n, condition).items()}
    if out.suffix == ".npz":
        np.savez(out, **batch)
    elif out.suffix == ".csv":
        batch["x"] = run.experiment.split(run.data, "train").untransformed(batch["x"])
        write_csv(out, batch, run.data.info)
    else:
        plots.show({f"{n} samples": batch["x"]}).savefig(out)
    print(f"{n} samples of shape {batch['x'].shape[1:]} in {out}")


def _of_class(model: Any, label: int, n: int) -> dict[str, Any]:
    """The condition for n samples of one class."""
    import numpy as np

    from gen_jax.core import Conditional

    conditioning = model.conditioning if isinstance(model, Conditional) else None
    if conditioning is None or conditioning.classes is None:
        raise UserError("--label is for models conditioned on labels, which this one is not")
    if not 0 <= label < conditioning.classes:
        raise UserError(f"--label must be between 0 and {conditioning.classes - 1}, got {label}")
    return {conditioning.entry: np.full(n, label)}
