"""The command `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    mix: Path | None = None,
    seed: int = 0,
    step: Step = None,
    member: int | None = None,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Evaluates a trained model with all applicable metrics, prints a table and writes WORKDIR/evaluation.json.

    Args:
        metrics: names of metrics, instead of all applicable ones and those of the config
        split: train, validation, test, or a part such as test[:100]
        mix: the run of another model of the same tokens: also the likelihood of the mixture of both, whose weight is
            the best on the validation split
        member: of a run of several seeds, the one to evaluate, from 0; by default all of them, and their mean
        seed: random seed for samples and everything else random
    """
    from gen_jax.evaluation.report import as_json, console, evaluator, find_metrics, over_seeds, table
    from gen_jax.evaluation.suite import suite

    if metrics == []:
        raise UserError("--metrics takes one or more names; leave it out for all that apply")
    encode = resolve_encoder(encoder, samples)
    run = open_workdir(workdir, config, data_dir, member or 0)
    part = run.experiment.split(run.data, split)
    wanted = suite(run.experiment.model, part, run.experiment.metrics, encode, samples)
    wanted = wanted if metrics is None else find_metrics(wanted, metrics)
    measure = evaluator(run.experiment.model, wanted, seed)
    wanted_step = parse_step(step)
    states = run.states(wanted_step) if member is None else [run.state(wanted_step)]
    said = wanted_step if isinstance(wanted_step, str) and wanted_step != "best" else int(states[0].step)
    mixed = _mixing(run, open_workdir(mix, None, data_dir), part) if mix else lambda _: {}
    found = over_seeds([{**mixed(state), **measure(state, part)} for state in states])
    one = "" if member is None else f", member {member}"
    run.folder.keep_evaluation(part.name + one, said, as_json(found), seed)
    console().print(table(f"{workdir}, step {said}, {part.name} split{one}", found))


def _mixing(run: Any, other: Any, part: Any) -> Callable[[Any], dict[str, Any]]:
    """Makes the function from a State to the likelihood of the mixture of the models of two runs."""
    from gen_jax.core import TokenDensity, averaged
    from gen_jax.evaluation.text import mixture_likelihood

    if not run.data.info.tokenizer or run.data.info.tokenizer != other.data.info.tokenizer:
        raise UserError(f"--mix {other.workdir}: mixtures need models of the same tokens")
    for one in (run, other):
        if not isinstance(one.experiment.model, TokenDensity):
            kind = type(one.experiment.model).__name__
            raise UserError(f"--mix: {one.workdir} is an {kind}; language models and n-gram models can be mixed")
    splits = lambda one: {name: one.experiment.split(one.data, name) for name in ("validation", part.name)}
    own, theirs = splits(run), (other.experiment.model, averaged(other.state(None)), splits(other))

    def mixed(state: Any) -> dict[str, Any]:
        found, weight = mixture_likelihood((run.experiment.model, averaged(state), own), theirs, part.name)
        said = f"{weight:.2f} {run.workdir.name} + {1 - weight:.2f} {other.workdir.name}; "
        return {name: estimate._replace(how=said + estimate.how) for name, estimate in found.items()}

    return mixed
