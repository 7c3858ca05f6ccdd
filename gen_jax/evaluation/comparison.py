"""Comparison of models of any family on the same data: likelihood, sample quality, diversity, use, speed and cost."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from gen_jax.evaluation.metric import Estimate, rounded
from gen_jax.evaluation.report import as_json, from_json
from gen_jax.files import write_json, write_text
from gen_jax.markdown import markdown_table
from gen_jax.pages import bullets, contents, heading, image, page, row_of, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GROUPS", "Column", "Comparison", "Row", "lower_is_better", "sign", "tightest"]

GROUPS = (
    "likelihood",
    "sample quality",
    "diversity",
    "human evaluation",
    "use",
    "speed and cost",
)  # first, in this order; then others


@dataclass(frozen=True)
class Row:
    """A model, or data in its place, and its metrics."""

    name: str
    family: str
    found: Mapping[str, Estimate]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    competes: bool = True  # data is the reference, and never marked as best


@dataclass(frozen=True)
class Column:
    """A quantity, and its estimate for each row; None where not applicable."""

    name: str
    cells: Sequence[Estimate | None]
    best: int | None

    def text(self, row: int) -> str:
        e = self.cells[row]
        if e is None:
            return ""
        if e.kind == "undefined":
            return "undefined"
        if math.isnan(e.value):
            return "—"
        value, error = rounded(e.value, e.error)
        said = f"{sign(e) if self.name.startswith('likelihood') else ''}{value}{error and f' ± {error}'}"
        return said if math.isnan(e.spread) else f"{said} ({e.spread:.2g})"

    @property
    def head(self) -> str:
        """The name in words, without that of the encoder."""
        return self.name.partition("@")[0].replace("_", " ")

    @property
    def encoder(self) -> str:
        return self.name.partition("@")[2]

    @property
    def note(self) -> str:
        """The protocol of the numbers: what they share, then where they differ."""
        parts_of = lambda e: [part for part in e.how.split(", ") if not part.startswith("bias about")]  # differs by row
        said = [parts_of(e) for e in self.cells if e is not None and e.how]
        shared = [part for part in said[0] if all(part in parts for parts in said)] if said else []
        rest = [", ".join(part for part in parts if part not in shared) for parts in said]
        return "; ".join(filter(None, [", ".join(shared), " | ".join(dict.fromkeys(filter(None, rest)))]))


@dataclass(frozen=True)
class Comparison:
    """Models evaluated on the same split of the same data."""

    data: str
    split: str
    rows: Sequence[Row]
    where: str = ""  # machine and date

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Comparison:
        """The comparison that `json` described, without its figures."""
        rows = [
            Row(row["model"], row["family"], from_json(row["found"]), competes=row["family"] != "data")
            for row in record["rows"]
        ]
        return cls(record["data"], record["split"], rows, record["where"])

    def groups(self) -> dict[str, list[Column]]:
        """The columns with at least one estimate."""
        found = [{**tightest(row.found), **row.found} for row in self.rows]
        groups: dict[str, list[Column]] = {group: [] for group in GROUPS}
        for name, estimate in {name: e for one in found for name, e in one.items() if e.group}.items():
            cells = [one.get(name) for one in found]
            if name.startswith("likelihood"):
                cells = [cell or _undefined(one) for cell, one in zip(cells, found)]
            column = Column(name, cells, self._best(cells, estimate.better))
            groups.setdefault(estimate.group, []).append(column)
        return {group: columns for group, columns in groups.items() if columns}

    def _best(self, cells: Sequence[Estimate | None], better: str) -> int | None:
        """The row best by more than two standard errors, which must be known, if all share a protocol.

        No bound beats an exact value.
        """
        there = [
            (e.value, i)
            for i, (e, row) in enumerate(zip(cells, self.rows))
            if row.competes and e is not None and math.isfinite(e.value)
        ]
        if not better or len(there) < 2 or len({_alike(cells[i]) for _, i in there}) > 1:
            return None
        (value, best), (next_value, second), *_ = sorted(there, reverse=better == "higher")
        return best if abs(value - next_value) > 2 * math.hypot(cells[best].error, cells[second].error) else None

    @property
    def title(self) -> str:
        return f"{self.data}, {self.split} split"

    def tables(self) -> list[Table]:
        """Tables for the terminal, one per group."""
        out = []
        for group, columns in self.groups().items():
            title, heads = _heads(group, columns)
            table = Table(title=escape(f"{self.title}: {title}"), title_justify="left")
            table.add_column("model")
            for head in heads:
                table.add_column(escape(head), justify="right")
            for i, row in enumerate(self.rows):
                cells = [escape(column.text(i)) for column in columns]
                if any(cells):
                    bold = [f"[bold]{c}[/bold]" if column.best == i else c for c, column in zip(cells, columns)]
                    table.add_row(escape(row.name), *bold)
            out.append(table)
        return out

    def markdown(self, level: int = 1) -> str:
        """One Markdown table per group, and the notes. level: of the first heading."""
        first, other = "#" * level, "#" * (level + 1)
        parts = [f"{first} {self.title}"]
        for group, columns, rows in self._texts():
            bold = [
                [name, *(f"**{c}**" if column.best == i else c for c, column in zip(cells, columns))]
                for i, name, cells in rows
            ]
            parts += [f"{other} {group}", markdown_table(["model", *(column.name for column in columns)], bold)]
        return "\n\n".join([*parts, f"{other} notes", "\n".join(f"- {note}" for note in self.notes())]) + "\n"

    def short(self) -> str:
        """One Markdown table: likelihoods, and the headlines of the other groups."""
        columns = [
            column
            for group, columns in self.groups().items()
            for column in columns
            if group == "likelihood" or any(e is not None and e.headline for e in column.cells)
        ]
        rows = [[row.name, *(column.text(i) for column in columns)] for i, row in enumerate(self.rows)]
        table = markdown_table(["model", *(column.name for column in columns)], rows)
        return f"{table}\n\n{self.title}; {self.where}"

    def _texts(self):
        for group, columns in self.groups().items():
            rows = [(i, row.name, [column.text(i) for column in columns]) for i, row in enumerate(self.rows)]
            yield group, columns, [row for row in rows if any(row[2])]

    def _several_seeds(self) -> bool:
        return any(not math.isnan(e.spread) for row in self.rows for e in row.found.values())

    def notes(self) -> list[str]:
        named: dict[str, list[str]] = {}
        for columns in self.groups().values():
            for column in columns:
                named.setdefault(column.note, []).append(column.name)
        said = [f"{', '.join(names)}: {note}" for note, names in named.items() if note]
        return [
            "likelihood: = exact, ≤ or ≥ a bound, ≈ an estimate; undefined where the model has no density",
            "bold: the best by more than two standard errors, where these are known and all numbers were got alike",
            *(["in parentheses: the standard deviation over seeds"] if self._several_seeds() else []),
            *said,
            self.where,
        ]

    def csv(self) -> str:
        """CSV with one line per number."""
        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(["model", "family", "metric", *Estimate._fields])
        for row in self.rows:
            for name, e in row.found.items():
                lines.writerow([row.name, row.family, name, *("" if _missing(v) else v for v in e)])
        return out.getvalue()

    def json(self) -> dict:
        rows = [{"model": row.name, "family": row.family, "found": as_json(row.found)} for row in self.rows]
        return {"data": self.data, "split": self.split, "where": self.where, "rows": rows}

    def html(self) -> str:
        """A self-contained page with tables, samples and learning curves."""
        parts, titles = [], []
        for group, columns, rows in self._texts():
            title, heads = _heads(group, columns)
            best = {(at, j) for at, (i, *_) in enumerate(rows) for j, c in enumerate(columns, 1) if c.best == i}
            cells = [[name, *texts] for _, name, texts in rows]
            parts += [heading(group.capitalize()), table(["model", *heads], cells, title, best)]
            titles.append(group.capitalize())
        for title in dict.fromkeys(title for row in self.rows for title in row.figures):
            shown = [image(_png(row.figures[title]), row.name) for row in self.rows if title in row.figures]
            parts += [heading(title.capitalize()), row_of(shown, wide=title == "learning curves")]
            titles.append(title.capitalize())
        notes = [heading("Notes"), bullets(self.notes())]
        return page(self.title, [heading(self.title, 1), contents([*titles, "Notes"]), *parts, *notes])

    def write(self, folder: Path) -> list[Path]:
        """Writes compare.md, .csv, .json and .html, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"md": self.markdown(), "csv": self.csv(), "html": self.html()}
        for ending, text in texts.items():
            write_text(folder / f"compare.{ending}", text)
        write_json(folder / "compare.json", self.json())
        return [folder / f"compare.{ending}" for ending in ("html", "md", "csv", "json")]


def _undefined(found: Mapping[str, Estimate]) -> Estimate | None:
    """The estimate of kind "undefined" of a model without a likelihood, if any."""
    one = found.get("log_likelihood")
    return one if one is not None and one.kind == "undefined" else None


def _alike(e: Estimate) -> tuple[str, str]:
    """Kind and protocol, which must match to compare two numbers; the bias stated in each note is ignored."""
    return e.kind, ", ".join(part for part in e.how.split(", ") if not part.startswith("bias"))


def tightest(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The tightest likelihood of a model for a table, named by unit and protocol.

    The importance-weighted bound before the ELBO. Integers have bits/dim, which dequantized and discrete models share,
    sequences nats/step.
    """
    names = [n for n in found if n.split("_bits")[0] in ("log_likelihood", "elbo") or n.startswith("iwae_")]
    known = [found[n] for n in names if found[n].kind != "undefined"]
    if "log_likelihood_per_step" in found:
        known = [found["log_likelihood_per_step"]]
    if bits := [e for e in known if e.unit == "bits/dim"]:
        known = bits
    if not known:
        return {}
    rank = {"exact": 0, "estimate": 1, "bound": 2}
    best = min(known, key=lambda e: (rank[e.kind], e.value if lower_is_better(e.unit) else -e.value))
    shared = lambda part: not part or part.endswith(" samples") or part == "dequantized"  # bounds on the same integers
    protocol = ", ".join(part for part in best.how.split(", ") if not shared(part))
    best = best._replace(group="likelihood", better="lower" if lower_is_better(best.unit) else "higher")
    return {f"likelihood ({', '.join(filter(None, [best.unit, protocol]))})": best}


def lower_is_better(unit: str) -> bool:
    return "bits" in unit


def sign(e: Estimate) -> str:
    """The relation of an estimate to the true value: equal, approximate, or a bound."""
    bound = "≤ " if lower_is_better(e.unit) else "≥ "
    return {"exact": "= ", "estimate": "≈ ", "bound": bound}[e.kind]


def _missing(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _heads(group: str, columns: Sequence[Column]) -> tuple[str, list[str]]:
    """The title of a table and the names of its columns; an encoder that they share is named in the title alone."""
    encoders = {column.encoder for column in columns if column.encoder}
    if len(encoders) == 1:
        return f"{group} (encoder {min(encoders)})", [column.head for column in columns]
    return group, [f"{c.head} ({c.encoder})" if c.encoder else c.head for c in columns]


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()
