"""Plots of a benchmark: figures against the number of supervoxels, and against noise and blur."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from dseeds.benchmark.criteria import CRITERIA, RANKING, ROBUSTNESS
from dseeds.benchmark.methods import EXTRA
from dseeds.benchmark.summary import (
    GROUPS,
    Row,
    best_settings,
    comparable,
    mean_figure,
    rows_of,
    rows_of_method,
    undisturbed,
)
from dseeds.core.optional import import_optional
from dseeds.storage.owned_file import MARK

# Okabe and Ito's colours, which colour-blind people can distinguish: https://jfly.uni-koeln.de/color/.
COLOURS = {
    "dseeds": "#0072B2",
    "dseeds boundaries": "#56B4E9",
    "SLIC": "#D55E00",
    "SimpleITK SLIC": "#009E73",
    "ETPS": "#F0E442",
    "watershed": "#CC79A7",
    "bioimage-cpp watershed": "#E69F00",
    "3D SEEDS": "#000000",
}
# Text stays text, and one result gives one file.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "dseeds"}


def draw_figures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return SVG files by name: ``quality.svg`` and, if there was noise or blur, ``robustness.svg``.

    They show the setting of each peer whose mean achievable Dice is highest. Panels of one kind show the mean over its
    cases at each step.
    """
    groups = {name: group for has_map, name in GROUPS.items() if (group := comparable(rows_of(rows, has_map)))}
    if not groups:
        raise ValueError("there is nothing to draw: no method succeeded.")
    result = {"quality.svg": _to_svg(_draw_quality(groups))}
    if any(row["disturbance"] for group in groups.values() for row in group):
        result["robustness.svg"] = _to_svg(_draw_robustness(groups))
    return result


def _draw_quality(groups: dict[str, list[Row]]) -> Any:
    panels = [(kind, name) for name, group in groups.items() for kind in dict.fromkeys(row["kind"] for row in group)]
    figure, grid = _subplots(len(panels), len(RANKING))
    for axes, (kind, name) in zip(grid, panels, strict=True):
        of_kind = [row for row in undisturbed(groups[name]) if row["kind"] == kind]
        axes[0].set_title(f"{kind}, {name}", loc="left", fontsize=10)
        methods = best_settings(groups[name])
        for panel, criterion in zip(axes, RANKING, strict=True):
            for method in methods:
                points = _points_by_step(rows_of_method(of_kind, method), criterion)
                _draw_line(panel, method, groups[name], *zip(*points, strict=True))
            panel.set(xscale="log", ylabel=CRITERIA[criterion].heading, xlabel="supervoxels")
            # The powers of ten in between would hide each other.
            panel.minorticks_off()
            numbers = [number for number, _ in _points_by_step(rows_of_method(of_kind, methods[0]), criterion)]
            panel.set_xticks(numbers, [f"{number:.0f}" for number in numbers])
    return _with_legend(figure, grid)


def _points_by_step(rows: Sequence[Row], criterion: str) -> list[tuple[float, float]]:
    """Return the mean number of supervoxels and the mean figure at the first step of each case, the second, etc."""
    ranks: dict[str, list[Any]] = {}
    points: dict[int, list[Row]] = {}
    for row in rows:
        steps = ranks.setdefault(row["case"], [])
        points.setdefault(len(steps), []).append(row)
        steps.append(row["step"])
    return sorted((mean_figure(of_rank, "supervoxels"), mean_figure(of_rank, criterion)) for of_rank in points.values())


def _draw_robustness(groups: dict[str, list[Row]]) -> Any:
    kinds = [kind for kind in ("noise", "blur") if any(_strengths(group, kind) for group in groups.values())]
    columns = [(kind, criterion) for kind in kinds for criterion in ROBUSTNESS]
    figure, grid = _subplots(len(groups), len(columns))
    for axes, (name, group) in zip(grid, groups.items(), strict=True):
        axes[0].set_title(f"Means over kinds, {name}", loc="left", fontsize=10)
        for panel, (kind, criterion) in zip(axes, columns, strict=True):
            strengths = _strengths(group, kind)
            for method in best_settings(group):
                of_method = rows_of_method(group, method)
                values = [
                    mean_figure([row for row in of_method if row["disturbance"] == at], criterion)
                    for at in (None, *strengths.values())
                ]
                _draw_line(panel, method, group, (0.0, *strengths), values)
            panel.set(ylabel=CRITERIA[criterion].heading, xlabel=f"standard deviation of the {kind}")
    return _with_legend(figure, grid)


def _strengths(rows: Sequence[Row], kind: str) -> dict[float, str]:
    """Return the strengths of a kind of disturbance, with its names."""
    names = sorted({row["disturbance"] for row in rows if row["disturbance"]})
    return dict(sorted((float(name.split()[1]), name) for name in names if name.startswith(kind)))


def _draw_line(panel: Any, method: str, rows: Sequence[Row], x: Sequence[float], y: Sequence[float]) -> None:
    peer = next(row["peer"] for row in rows if row["method"] == method)
    panel.plot(x, y, color=COLOURS[peer], marker="o", markersize=4, label=peer)
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)


def _subplots(rows: int, columns: int) -> tuple[Any, Any]:
    # Without pyplot, which would choose a window system.
    module = import_optional("matplotlib.figure", "drawing a benchmark", EXTRA)
    figure = module.Figure(figsize=(3.3 * columns, 0.7 + 2.3 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _with_legend(figure: Any, grid: Any) -> Any:
    handles: dict[str, Any] = {}
    for panel in grid.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _to_svg(figure: Any) -> bytes:
    drawn = BytesIO()
    with import_optional("matplotlib", "drawing a benchmark", EXTRA).rc_context(_SVG):
        figure.savefig(drawn, format="svg", metadata={"Creator": MARK, "Date": None})
    return drawn.getvalue()
