"""TODO."""

from __future__ import annotations

import html
from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Make a table in HTML, of text that may hold anything; below a head, all columns but the first are flush right.

    >>> html_table([("sweep<>", 3)], head=("stage", "tasks")).count("&lt;")
    1
    """
    escaped = [[html.escape(str(cell)) for cell in row] for row in rows]
    return format_markup_table(escaped, [html.escape(name) for name in head])


def format_markup_table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Make a table of what is HTML."""
    lines = []
    for kind, row in [*[("th", head)] * bool(head), *(("td", row) for row in rows)]:
        sides = ("left", *["right" if head else "left"] * (len(row) - 1))
        cells = (f'<{kind} style="text-align: {side}">{text}</{kind}>' for side, text in zip(sides, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
