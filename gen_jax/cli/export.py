"""The command `export`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from gen_jax.cli.options import ConfigPath, DataDir, Member, Step, Workdir, open_workdir, parse_step

__all__ = ["export"]


def export(
    workdir: Workdir,
    folder: Positional[Path],
    step: Step = None,
    member: Member = 0,
    config: ConfigPath = None,
    data_dir: DataDir = None,
) -> None:
    """Writes a language model with GPT-2's parts in the files of Hugging Face: config.json and model.safetensors.

    Args:
        folder: the folder to write
    """
    from gen_jax.core import averaged
    from gen_jax.models.text.huggingface import save_gpt2

    run = open_workdir(workdir, config, data_dir, member)
    save_gpt2(folder, run.experiment.model, averaged(run.state(parse_step(step))).params)
    print(f"config.json and model.safetensors in {folder}")
