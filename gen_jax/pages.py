"""Self-contained HTML pages: tables and pictures, without scripts or files beside them."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

__all__ = ["bullets", "heading", "page", "picture", "table"]


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in header)
    cells = lambda row: "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
    body = "".join(f"<tr><th scope='row'>{html.escape(row[0])}</th>{cells(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(path: Path, caption: str) -> str:
    """A PNG with its caption."""
    coded, said = base64.b64encode(path.read_bytes()).decode(), html.escape(caption, quote=True)
    return f"<figure><figcaption>{said}</figcaption><img alt='{said}' src='data:image/png;base64,{coded}'></figure>"


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .3em .8em; text-align: right; border-bottom: 1px solid #8888; }}
th:first-child, td:last-child {{ text-align: left; }}
.row {{ display: flex; flex-wrap: wrap; gap: 1em; align-items: start; }}
figure {{ margin: 0; max-width: 100%; }} .row figure {{ max-width: 20em; }}
img {{ max-width: 100%; background: #fff; }}
</style></head><body>
{body}
</body></html>
"""
