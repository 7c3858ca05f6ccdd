"""The command `configs`."""

from __future__ import annotations

import ast
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from gen_jax.errors import UserError

__all__ = ["configs"]


def configs(folder: Positional[Path] = Path("configs"), runs: Path = Path("runs"), out: Path | None = None) -> None:
    """Lists the configs with the first line of their docstring and their results.

    Args:
        folder: the folder of the configs
        runs: the folder of their runs; a run with the default knobs shows its time and test metrics
        out: write them to this JSON file
    """
    from gen_jax.files import write_json

    files = sorted(folder.rglob("*.py"))
    if not files:
        raise UserError(f"there are no configs in {folder}")
    table = Table()
    table.add_column("config", no_wrap=True)
    table.add_column("description; test split")
    record = {}
    for path in files:
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        reached, time, where = _reached(runs / path.stem)
        table.add_row(path.stem, f"{said}\n{reached}".strip())
        if reached:
            record[path.stem] = {"reached": reached, "time": time, "where": where}
    Console().print(table)
    if out:
        write_json(out, record)


def _reached(workdir: Path) -> list[str]:
    """The main test metrics, time, device and date of a finished run; blanks if there is none."""
    from gen_jax.evaluation.comparison import sign, tightest
    from gen_jax.evaluation.metric import Estimate, rounded
    from gen_jax.evaluation.report import from_json
    from gen_jax.files import read_json
    from gen_jax.logs import read_record

    record = read_record(workdir) or {}
    if "summary" not in record:
        return ["", "", ""]
    summary = record["summary"]
    measured = (read_json(workdir / "evaluation.json") or {}).get("test", {})
    found = from_json(measured if measured.get("step") == summary["step"] else summary["evaluation"])

    def said(label: str, e: Estimate, unit: str) -> str:
        return f"{label}{' ± '.join(filter(None, rounded(e.value, e.error)))} {unit}".strip()

    texts = [said(f"likelihood {sign(e)}", e, name[12:-1]) for name, e in tightest(found).items()]
    texts += [said(f"{name} ", e, e.unit) for name, e in found.items() if e.headline]
    time = f"{summary['seconds']:.0f} s" if not summary["resumed_at"] else "resumed"
    devices = record["environment"]["devices"]
    where = f"{len(devices)} x {devices[0]}, {record['environment']['cores']} cores, {summary['finished'].split()[0]}"
    return ["; ".join(texts), time, where]
