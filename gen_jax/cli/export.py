"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gen_jax.cli.options import ConfigPath, DataDir, Member, Step, Workdir, open_workdir, parse_step

__all__ = ["export"]


def export(
    workdir: Workdir,
    folder: Positional[Path],
    format: Literal["gen_jax", "huggingface", "programs"] = "gen_jax",
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Writes a trained model to a folder that can be carried away; `train CONFIG --from FOLDER` reads its parameters.

    Args:
        folder: the folder to write
        format: gen_jax: safetensors, config and a model card; huggingface: config.json and model.safetensors, of a
            language model with GPT-2's parts; programs: `sample` and `log_prob`, which JAX calls without this package
    """
    from gen_jax.core import averaged

    run = open_workdir(workdir, config, data_dir, member)
    state = run.state(parse_step(step))
    if format == "huggingface":
        from gen_jax.models.text.huggingface import save_gpt2

        save_gpt2(folder, run.experiment.model, averaged(state).params)
        print(f"config.json and model.safetensors in {folder}")
        return
    if format == "programs":
        from gen_jax.programs import export_programs

        print(*(path.name for path in export_programs(run, state, folder)), f"in {folder}")
        return
    from gen_jax.portable import export_run

    print(*(path.name for path in export_run(run, state, folder)), f"in {folder}")
