"""The command `configs`."""

from __future__ import annotations

import ast
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from gen_jax.errors import UserError


def configs(folder: Positional[Path] = Path("configs"), runs: Path = Path("runs"), write: Path | None = None) -> None:
    """Lists the configs with the first line of what they say of themselves, and what they reached.

    Args:
        folder: where they lie
        runs: where their runs lie; a run with the default knobs shows its time and test metrics
        write: write the table into this Markdown file, between its configs markers
    """
    from gen_jax.markdown import markdown_table, write_section

    files = sorted(folder.rglob("*.py"))
    if not files:
        raise UserError(f"there are no configs in {folder}")
    header = ["config", "what it is", "test split", "whole run", "device, date"]
    rows = []
    for path in files:
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        rows.append([path.stem, said, *_reached(runs / path.stem)])
    if write:
        write_section(write, "configs", markdown_table(header, [[f"`{row[0]}`", *row[1:]] for row in rows]))
    table = Table()
    table.add_column(header[0], no_wrap=True)
    table.add_column("what it is; test split")
    for name, said, reached, *_ in rows:
        table.add_row(name, f"{said}\n{reached}".strip())
    Console().print(table)


HEADLINES = (
    "frechet_distance classes class_kl confidence modes high_quality reverse_kl accuracy train_on_synthetic "
    "latent_accuracy active_units reconstruction_rmse log_integral"
).split()


def _reached(workdir: Path) -> list[str]:
    """The main test metrics, time, device and date of a finished run; blanks if there is none."""
    from gen_jax.evaluation.comparison import sign, tightest
    from gen_jax.evaluation.metric import Estimate
    from gen_jax.evaluation.report import from_json
    from gen_jax.logs import read_json, read_record

    record = read_record(workdir) or {}
    if "summary" not in record:
        return ["", "", ""]
    summary = record["summary"]
    measured = (read_json(workdir / "evaluation.json") or {}).get("test", {})
    found = from_json(measured if measured.get("step") == summary["step"] else summary["evaluation"])

    def said(label: str, e: Estimate, unit: str) -> str:
        error = "" if math.isnan(e.error) else f" ± {e.error:.1g}"
        return f"{label}{e.value:.4g}{error} {unit}".strip()

    texts = [said(f"likelihood {sign(e)}", e, name[12:-1]) for name, e in tightest(found).items()]
    texts += [said(f"{name} ", e, e.unit) for name, e in found.items() if name.partition("@")[0] in HEADLINES]
    time = f"{summary['seconds']:.0f} s" if not summary["resumed_at"] else "resumed"
    devices = record["environment"]["devices"]
    where = f"{len(devices)} x {devices[0]}, {record['environment']['cores']} cores, {summary['finished'].split()[0]}"
    return ["; ".join(texts), time, where]
