"""The command `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from gen_jax.cli.options import DataDir
from gen_jax.errors import UserError

__all__ = ["data"]


def data(
    action: Positional[Literal["list", "prepare"]],
    name: Positional[str | None] = None,
    manual_dir: Path | None = None,
    data_dir: DataDir = None,
) -> None:
    """Lists the data sets, or prepares one.

    Args:
        action: list, or prepare
        name: the data set to prepare
        manual_dir: a folder with its original files, which are then not downloaded
    """
    from gen_jax.data import catalogue

    if action == "list":
        table = Table()
        for column in ("data set", "what it is", "state"):
            table.add_column(column)
        for key, row in catalogue.CATALOGUE.items():
            ready = (
                "prepared" if catalogue.is_prepared(key, data_dir) else "on first use" if row.embedded else "to prepare"
            )
            table.add_row(key, row.summary, ready)
        Console().print(table)
        print("Any other name of the tensorflow-datasets catalogue works too, prepared with the `tfds` extra.")
    elif name is None:
        raise UserError("which data set? `python -m gen_jax data list` lists them")
    else:
        print(f"{name} is prepared in {catalogue.prepare(name, data_dir, manual_dir)}")
