"""Tables in HTML, for notebooks and reports."""

from __future__ import annotations

import html
from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Return a table whose cells are escaped; with a head, all columns but the first are right-aligned.

    >>> format_table([("sweep<>", 3)], head=("stage", "tasks")).count("&lt;")
    1
    """
    escaped = [[html.escape(str(cell)) for cell in row] for row in rows]
    return format_markup_table(escaped, [html.escape(name) for name in head])


def format_markup_table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table whose cells are HTML already; see `format_table`."""
    lines = []
    for tag, row in [*[("th", head)] * bool(head), *(("td", row) for row in rows)]:
        sides = ("left", *["right" if head else "left"] * (len(row) - 1))
        cells = (f'<{tag} style="text-align: {side}">{text}</{tag}>' for side, text in zip(sides, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
