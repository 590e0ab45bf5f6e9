"""Tables of results, and how their values are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dseeds.core.formatting import format_spacing

if TYPE_CHECKING:
    from dseeds.api.segment_many import VolumeResult

# Rows per group of a table of figures.
MOST_ROWS = 100
HEADINGS = {"shape": "shape (z, y, x)", "spacing": "spacing (z, y, x)"}


def print_description(description: Mapping[str, Any]) -> None:
    """Print a mapping such as the result of `dseeds.convert.describe.describe`, one row per item."""
    table = Table.grid(padding=(0, 2))
    for key, value in description.items():
        try:
            text = _format_value(key, value)
        except (AttributeError, TypeError, ValueError):
            # Another program may have put anything in the place of what this one noted.
            text = str(value)
        table.add_row(Text(HEADINGS.get(key, key), style="bold"), Text(text, overflow="fold"))
    Console().print(table)


def _format_value(key: str, value: Any) -> str:
    if value is None:
        return "none" if key == "shards" else "unknown"
    if key == "spacing":
        return format_spacing(value)
    if key in ("window", "windows"):
        return _format_window(value)
    if key == "notes":
        return "\n".join(value)
    if key == "source":
        sources = value.get("channels", [value])
        return ", ".join(str(source.get("path", source)) for source in sources)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(name, item)}" for name, item in value.items())
    return _join_sizes(value) if isinstance(value, list) else str(value)


def _format_window(value: Any) -> str:
    """Return an intensity window, or those of all channels, as text.

    >>> _format_window([[0, 100.5], "lung", None])
    '0 to 100.5; lung; percentiles'
    """
    if value is None or isinstance(value, str):
        return value or "percentiles"
    if all(isinstance(limit, int | float) for limit in value):
        return " to ".join(f"{limit:g}" for limit in value)
    return "; ".join(map(_format_window, value))


def _join_sizes(sizes: Sequence[Any]) -> str:
    """Return sizes along the axes as text.

    >>> _join_sizes([3, 0.5, 0.5])
    '3 x 0.5 x 0.5'
    """
    return " x ".join(f"{size:g}" if isinstance(size, int | float) else str(size) for size in sizes)


def print_volumes(results: Sequence[VolumeResult]) -> None:
    """Print what became of many volumes, one row per volume."""
    table = Table("volume", "labels", Column("supervoxels", justify="right"), Column("seconds", justify="right"))
    for result in results:
        report = result.report
        cells = (str(report.supervoxels), f"{report.seconds:.1f}") if report else ("", "")
        outcome = f"failed: {result.error}" if result.error is not None else result.target
        table.add_row(result.source, f"{outcome} (there already)" if result.skipped else outcome, *cells)
    Console().print(table, markup=False)


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print the figures of `dseeds.evaluate`: single ones first, then a group for each mapping."""
    table = Table("figure", "value")
    table.columns[1].justify = "right"
    groups = {name: value for name, value in figures.items() if isinstance(value, Mapping)}
    for name, value in figures.items():
        if name not in groups:
            table.add_row(name.replace("_", " "), _format_figure(value))
    for name, values in groups.items():
        table.add_section()
        figure, _, item = name.replace("_", " ").partition(" per ")
        for key, value in list(values.items())[:MOST_ROWS]:
            table.add_row(f"{figure} of {item} {key}", _format_figure(value))
        if len(values) > MOST_ROWS:
            table.add_row(f"{len(values) - MOST_ROWS} more, see --json", "")
    Console().print(table)


def _format_figure(value: Any) -> str:
    """Return a figure as text.

    >>> _format_figure(3.0), _format_figure(0.5), _format_figure(None), _format_figure([8, 8, 8])
    ('3', '0.5000', 'unknown', '8 x 8 x 8')
    """
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return _join_sizes(value)
    return f"{value:.0f}" if value == int(value) else f"{value:.4f}"
