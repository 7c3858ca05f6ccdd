"""Reopens the run of a working directory."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from gen_jax.configs import load
from gen_jax.data.options import spell, split_name
from gen_jax.errors import UserError
from gen_jax.logs import read_record
from gen_jax.run import Run
from gen_jax.sharding import Layout

__all__ = ["open_run"]


def open_run(
    workdir: Path | str, config: Path | None = None, data_dir: Path | None = None, member: int = 0
) -> tuple[Run, str]:
    """The run of a working directory, and a warning ("" if none) if its config file has changed.

    member: of several seeds, the one whose State is used.
    """
    workdir = Path(workdir)
    record = read_record(workdir)
    if record is None:
        raise UserError(f"{workdir} is not the working directory of a run: it has no run.json")
    candidates = [config] if config else [Path(record["config_absolute"]), Path(record["config"])]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise UserError(
            f"the config file of this run, {record['config']}, is gone: give one with --config; "
            f"{workdir / 'config.py'} holds its text"
        )
    file = load(path)
    knobs = dict(file.with_recorded(record["knobs"]).knobs)
    absolute = record.get("data", {}).get("path")
    if "data" in knobs and absolute and not os.path.exists((parts := split_name(knobs["data"]))[0]):
        knobs["data"] = spell(absolute, parts[1])  # from another folder
    prepare = partial(
        Run.prepare,
        workdir=workdir,
        seed=record["seed"],
        data_dir=data_dir,
        layout=Layout(data=1),  # whatever layout the run was trained with
        training=False,
        seeds=record.get("seeds", 1),
    )
    run = prepare(file.with_knobs(knobs))
    kept = workdir / "tokenizer.json"
    if kept.is_file() and "data" in knobs and kept.read_text() != run.data.info.tokenizer:  # the text has changed
        knobs["data"] = spell(knobs["data"], {"tokenizer": str(kept)})
        run = prepare(file.with_knobs(knobs))
    changes, other = run.folder.changes(), run.folder.changed_data(record)
    edited = f"{path} has changed since this run; it is used with the recorded knobs\n{changes}" if changes else ""
    if not 0 <= member < run.experiment.seeds:
        seeds = run.experiment.seeds
        raise UserError(
            f"--member {member}: {workdir} has {f'the seeds 0 to {seeds - 1}' if seeds > 1 else 'one seed'}"
        )
    return replace(run, member=member), "\n".join(filter(None, [other, edited]))
