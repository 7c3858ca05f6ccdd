"""The command `evaluate`."""

from __future__ import annotations

from gen_jax.cli.options import (
    ConfigPath,
    DataDir,
    EncoderName,
    Samples,
    Step,
    Workdir,
    open_workdir,
    parse_step,
    resolve_encoder,
)
from gen_jax.errors import UserError

__all__ = ["evaluate"]


def evaluate(
    workdir: Workdir,
    metrics: list[str] | None = None,
    split: str = "test",
    encoder: EncoderName = "",
    samples: Samples = 10_000,
    seed: int = 0,
    step: Step = None,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Evaluates a trained model with all applicable metrics, prints a table and writes WORKDIR/evaluation.json.

    Args:
        metrics: names of metrics, instead of all applicable ones and those of the config
        split: train, validation, test, or a part such as test[:100]
        seed: random seed for samples and everything else random
    """
    from gen_jax.evaluation.report import as_json, console, evaluator, find_metrics, table
    from gen_jax.evaluation.suite import suite

    if metrics == []:
        raise UserError("--metrics takes one or more names; leave it out for all that apply")
    encode = resolve_encoder(encoder, samples)
    run = open_workdir(workdir, config, data_dir)
    part = run.experiment.split(run.data, split)
    wanted = suite(run.experiment.model, part, run.experiment.metrics, encode, samples)
    wanted = wanted if metrics is None else find_metrics(wanted, metrics)
    measure = evaluator(run.experiment.model, wanted, seed)
    state = run.state(parse_step(step))
    found = measure(state, part)
    run.folder.keep_evaluation(part.name, int(state.step), as_json(found), seed)
    console().print(table(f"{workdir}, step {int(state.step)}, {part.name} split", found))
