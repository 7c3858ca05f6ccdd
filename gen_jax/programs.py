"""Trained models as programs: `sample` and `log_prob` with their parameters, called by JAX without this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from gen_jax.core import Conditional, Density, ImageTranslator, Model, Seq2Seq, State, averaged
from gen_jax.errors import UserError
from gen_jax.files import check_empty, write_bytes, write_text
from gen_jax.markdown import markdown_table
from gen_jax.run import Run

__all__ = ["export_programs"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export_programs(run: Run, state: State, folder: Path, n: int = 64) -> list[Path]:
    """Writes sample.jax, and log_prob.jax of a density, as `jax.export` serializes them, and a README.md.

    n: how many samples a call draws. Programs are of all platforms where the model can be lowered for them.
    """
    model, state = run.experiment.model, averaged(state)
    if isinstance(model, (ImageTranslator, Seq2Seq)) or not isinstance(model, Model):
        raise UserError(f"a {type(model).__name__} draws nothing from noise alone: export it with --format gen_jax")
    check_empty(folder)
    conditioning = model.conditioning if isinstance(model, Conditional) else None
    given = {} if conditioning is None else {conditioning.entry: conditioning.example(n)[conditioning.entry]}
    shape = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.asarray(a).dtype)
    seed = jax.ShapeDtypeStruct((), jnp.int32)

    def sample(seed: Any, **condition: Any) -> Any:
        return model.sample(state, jax.random.key(seed), n, condition or None)["x"]

    programs = {"sample": _exported(sample, seed, jax.tree.map(shape, given))}
    if isinstance(model, Density):
        batch = run.experiment.split(run.data, run.experiment.test).head(2)
        entries = ["x", *given, *(name for name in ("length",) if name in batch)]
        programs["log_prob"] = _log_prob(model, state, {name: batch[name] for name in entries})
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        write_bytes(folder / f"{name}.jax", program.serialize())
    write_text(folder / "README.md", _readme(run.config.name, int(state.step), n, programs))
    return sorted(folder.iterdir())


def _log_prob(model: Density, state: State, batch: Mapping[str, Any]) -> export.Exported:
    """`log_prob` of any number of examples: of one, under vmap, as models use the number itself."""
    one = lambda batch: model.log_prob(state, {name: a[None] for name, a in batch.items()})[0]
    [size] = export.symbolic_shape("examples")
    x, *more = ((name, jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)) for name, a in batch.items())
    return _exported(lambda x, **more: jax.vmap(one)({"x": x, **more}), x[1], dict(more))


def _exported(call: Callable[..., Any], first: Any, named: Mapping[str, Any]) -> export.Exported:
    """A program for all platforms, or where an operation is of this one, for this one."""
    function = jax.jit(call)
    try:
        return export.export(function, platforms=PLATFORMS)(first, **named)
    except NotImplementedError:  # an operation without a lowering
        return export.export(function, platforms=(jax.default_backend(),))(first, **named)


def _readme(name: str, step: int, n: int, programs: Mapping[str, export.Exported]) -> str:
    def row(file: str, p: export.Exported) -> list[str]:
        positional, named = jax.tree.unflatten(p.in_tree, [a.str_short() for a in p.in_avals])
        arguments = [
            f"{'seed' if file == 'sample' else 'x'}: {positional[0]}",
            *(f"{k}: {a}" for k, a in named.items()),
        ]
        result = ", ".join(a.str_short() for a in p.out_avals)
        return [f"`{file}.jax`", ", ".join(arguments), result, ", ".join(p.platforms)]

    rows = [row(file, p) for file, p in programs.items()]
    parts = [
        f"# {name}, step {step:,}",
        "Programs with their parameters, for any JAX of this version or of the next half year:",
        "```python\nfrom jax import export\n\n"
        'program = export.deserialize(bytearray(open("sample.jax", "rb").read()))\n'
        "x = program.call(0)  # a seed; conditions follow by name, as below\n```",
        markdown_table(["file", "arguments", "results", "platforms"], rows),
        f"`sample` draws {n} examples and `log_prob` gives nats of any number of them, both as the model sees them: "
        "after the transforms of its config.",
    ]
    return "\n\n".join(parts) + "\n"
