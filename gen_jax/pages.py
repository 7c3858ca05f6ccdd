"""Self-contained HTML pages: tables and pictures, without scripts or files beside them."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["bullets", "contents", "heading", "image", "page", "picture", "row_of", "table"]


def heading(text: str, level: int = 2) -> str:
    return f"<h{level} id='{_anchor(text)}'>{html.escape(text)}</h{level}>"


def _anchor(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def contents(titles: Sequence[str]) -> str:
    """Links to headings."""
    return "<nav>" + " ".join(f"<a href='#{_anchor(t)}'>{html.escape(t)}</a>" for t in titles) + "</nav>"


def bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", best: Collection[tuple[int, int]] = ()
) -> str:
    """A table whose first column names the rows. best: (row, column) of cells in bold."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in header)
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = ""
    for i, row in enumerate(rows):
        cells = [f"<td{' class=best' if (i, j) in best else ''}>{html.escape(c)}</td>" for j, c in enumerate(row)][1:]
        body += f"<tr><th scope='row'>{html.escape(row[0])}</th>{''.join(cells)}</tr>"
    return f"<div class='wide'><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def picture(path: Path, caption: str) -> str:
    """A PNG file with its caption."""
    return image(path.read_bytes(), caption)


def image(png: bytes, caption: str) -> str:
    """The content of a PNG with its caption."""
    coded, said = base64.b64encode(png).decode(), html.escape(caption, quote=True)
    return f"<figure><figcaption>{said}</figcaption><img alt='{said}' src='data:image/png;base64,{coded}'></figure>"


def row_of(figures: Sequence[str], wide: bool = False) -> str:
    """Figures side by side, as many as fit; wide ones below each other."""
    return "".join(figures) if wide else f"<div class='row'>{''.join(figures)}</div>"


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }}
nav a {{ margin-right: 1em; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
caption {{ text-align: left; color: GrayText; }}
th, td {{ padding: .3em .6em; text-align: right; border-bottom: 1px solid #8888; vertical-align: bottom; }}
th:first-child, td:last-child {{ text-align: left; }}
.best {{ font-weight: bold; }}
.row {{ display: flex; flex-wrap: wrap; gap: 1em; align-items: start; }}
figure {{ margin: 0; max-width: 100%; }} .row figure {{ max-width: 20em; }}
img {{ max-width: 100%; background: #fff; }}
</style></head><body>
{body}
</body></html>
"""
