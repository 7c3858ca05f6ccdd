"""Trained models in a folder of their own: weights as safetensors, the resolved config, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gen_jax
from gen_jax.core import State, averaged
from gen_jax.errors import UserError
from gen_jax.evaluation.metric import rounded
from gen_jax.evaluation.report import from_json
from gen_jax.evaluation.samples.weights_io import read_tensors, write_tensors
from gen_jax.files import check_empty, read_json, write_json, write_text
from gen_jax.markdown import markdown_table
from gen_jax.run import Run

__all__ = ["KIND", "export_run", "is_exported", "read_params"]

KIND = "gen_jax parameters"


def export_run(run: Run, state: State, folder: Path) -> list[Path]:
    """Writes params.safetensors (averaged ones, where there are), config.py, export.json and README.md."""
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, record = averaged(state), run.folder.recorded()
    kept = ("name", "knobs", "seed", "data", "environment")
    about = {name: record[name] for name in kept if name in record}
    about["data"] = {name: value for name, value in about.get("data", {}).items() if name != "path"}
    about |= {"step": int(state.step), "gen_jax": gen_jax.__version__, "model": type(run.experiment.model).__name__}
    evaluation = read_json(run.workdir / "evaluation.json") or {}
    arrays = {name: np.asarray(a, np.float32 if a.dtype == jnp.bfloat16 else None) for name, a in _flat(state.params)}
    write_tensors(folder / "params.safetensors", arrays, {"kind": KIND, "about": json.dumps(about, default=str)})
    write_text(folder / "config.py", run.config.text)
    write_json(folder / "export.json", about | {"evaluation": evaluation})
    write_text(folder / "README.md", _card(about, evaluation, arrays))
    return sorted(folder.iterdir())


def is_exported(folder: Path) -> bool:
    return (folder / "export.json").is_file()


def read_params(folder: Path) -> dict[str, Any]:
    """The parameters of an exported run, by player."""
    arrays, _ = read_tensors(folder / "params.safetensors", KIND)
    params: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        place = params
        for part in path:
            place = place.setdefault(part, {})
        place[last] = jnp.asarray(array)
    return params


def _flat(params: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """("player/module/name", array) of all parameters. Raises UserError if they are not nested dicts."""
    found = []
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        if not all(isinstance(part, jax.tree_util.DictKey) and "/" not in str(part.key) for part in path):
            raise UserError("the parameters of this model are not nested dicts of arrays: they cannot be exported")
        found.append(("/".join(str(part.key) for part in path), array))
    return found


def _card(about: Mapping[str, Any], evaluation: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """A model card: what it is, what it was trained on, how good it is, and how to load it."""
    knobs = [[f"`{name}`", f"`{value}`"] for name, value in about["knobs"].items()]
    parts = [
        f"# {about['name']}",
        f"A {about['model']} with {sum(a.size for a in arrays.values()):,} parameters, trained for "
        f"{about['step']:,} steps on {about['data'].get('name', 'own data')} by gen_jax {about['gen_jax']}.",
        "## Evaluation",
    ]
    for split, found in evaluation.items():
        rows = [[name, *rounded(e.value, e.error), e.unit, e.kind, e.how] for name, e in from_json(found).items()]
        parts += [f"{split} split, step {found.get('step', '')}:"]
        parts += [markdown_table(["metric", "value", "standard error", "unit", "kind", "how"], rows)]
    parts += ["## Settings", markdown_table(["knob", "value"], knobs)]
    parts += [
        "## Use",
        "```sh\npython -m gen_jax train config.py --from .     # goes on from these parameters\n```",
        "`params.safetensors` holds the arrays by player, module and name; `export.json` all of the above.",
    ]
    return "\n\n".join(parts) + "\n"
