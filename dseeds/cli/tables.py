"""Results for people: tables, and numbers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Structures in a table of figures.
SHOWN = 100
HEADINGS = {"shape": "shape (z, y, x)", "spacing": "spacing (mm)"}


def print_description(description: Mapping[str, Any]) -> None:
    """Print what `dseeds.convert.describe.describe` gives."""
    table = Table.grid(padding=(0, 2))
    for key, value in description.items():
        table.add_row(Text(HEADINGS.get(key, key), style="bold"), Text(_words(key, value), overflow="fold"))
    Console().print(table)


def _words(key: str, value: Any) -> str:
    if value is None:
        return "none" if key == "shards" else "unknown"
    if key in ("window", "windows"):
        return _window(value)
    if key == "source":
        parts = value.get("channels", [value])
        return ", ".join(str(part.get("path", part)) for part in parts)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(name, item)}" for name, item in value.items())
    return by(value) if isinstance(value, list) else str(value)


def _window(value: Any) -> str:
    """Write an intensity window, or those of channels.

    >>> _window([[0, 100.5], "lung", None])
    '0 to 100.5; lung; percentiles'
    """
    if value is None or isinstance(value, str):
        return value or "percentiles"
    if all(isinstance(limit, int | float) for limit in value):
        return " to ".join(f"{limit:g}" for limit in value)
    return "; ".join(map(_window, value))


def by(values: Sequence[Any]) -> str:
    """Write sizes along the axes.

    >>> by([3, 0.5, 0.5])
    '3 x 0.5 x 0.5'
    """
    return " x ".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in values)


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print what `dseeds.evaluate` gives."""
    table = Table("figure", "value")
    table.columns[1].justify = "right"
    parts = {name: value for name, value in figures.items() if isinstance(value, Mapping)}
    for name, value in figures.items():
        if name not in parts:
            table.add_row(name.replace("_", " "), _figure(value))
    for name, values in parts.items():
        table.add_section()
        what, _, of = name.replace("_", " ").partition(" per ")
        for key, value in list(values.items())[:SHOWN]:
            table.add_row(f"{what} of {of} {key}", _figure(value))
        if len(values) > SHOWN:
            table.add_row(f"{len(values) - SHOWN} more, see --json", "")
    Console().print(table)


def _figure(value: Any) -> str:
    """Write a figure.

    >>> _figure(3.0), _figure(0.5), _figure(None), _figure([8, 8, 8])
    ('3', '0.5000', 'unknown', '8 x 8 x 8')
    """
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return by(value)
    return f"{value:.0f}" if value == int(value) else f"{value:.4f}"
