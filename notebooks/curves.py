"""Results of the benchmark study: means at equal numbers of supervoxels, a table and plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITY = ("achievable_dice", "undersegmentation_error", "boundary_recall", "explained_variation")
PANELS = {
    "achievable_dice": "Achievable Dice",
    "undersegmentation_error": "Undersegmentation error",
    "seconds_per_mvoxel": "Time (s per million voxels)",
}
# Okabe and Ito's colours, which colour-blind people can distinguish: https://jfly.uni-koeln.de/color/.
STYLES = {
    "dseeds": ("dseeds", "#0072B2", "o"),
    "SLIC": ("SLIC (scikit-image), compactness", "#D55E00", "s"),
    "SimpleITK SLIC": ("SLIC (SimpleITK), weight", "#009E73", "^"),
    "3D SEEDS": ("3D SEEDS (C++), blocks of", "#CC79A7", "D"),
}
# Methods are compared at so many numbers of supervoxels, in the range that all of them reach.
POINTS = 9

Row = dict[str, Any]


def comparable(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the cases and counts at which every method succeeded, so that means are over the same cases.

    A method that failed everywhere in a task does not restrict that task.
    """
    successes = [row for row in rows if not row["error"]]
    result = []
    for task in dict.fromkeys(row["task"] for row in successes):
        task_rows = [row for row in successes if row["task"] == task]
        names = set(_names(task_rows))
        for _, group in groupby(task_rows, lambda row: (row["case"], row["asked"])):
            members = list(group)
            if set(_names(members)) == names:
                result += members
    return result


def mean(rows: Sequence[Row]) -> Row:
    """Return one method's figures at one requested number: the mean over tasks of their means over cases.

    The time of a task is that of all its cases, divided by their voxels.
    """
    tasks = []
    for task in dict.fromkeys(row["task"] for row in rows):
        task_rows = [row for row in rows if row["task"] == task]
        figures = {name: float(np.mean([row[name] for row in task_rows])) for name in ("made", *QUALITY)}
        seconds, voxels = (sum(row[name] for row in task_rows) for name in ("seconds", "voxels"))
        tasks.append(figures | {"seconds_per_mvoxel": seconds / voxels * 1e6})
    return {name: float(np.mean([task[name] for task in tasks])) for name in tasks[0]}


def curve(rows: Sequence[Row]) -> list[Row]:
    """Return one method's mean figures at each requested number, in the order of the supervoxels made."""
    counts = {row["asked"] for row in rows}
    means = [mean([row for row in rows if row["asked"] == count]) for count in sorted(counts)]
    return sorted(means, key=lambda row: row["made"])


def summary(rows: Iterable[Row]) -> list[Row]:
    """Return the figures of each method at equal numbers of supervoxels, and mark each peer's best setting.

    Peers make fewer supervoxels than requested. So the means of each task are interpolated, linearly in the logarithm
    of the number made, at points of the range that all methods cover. Without such a range, for example with a single
    requested number, the figures are those at the number that each method made.

    Returns
    -------
    list of dict
        ``method``, ``peer``, ``setting``; ``best``, whether no setting of the peer has a higher achievable Dice;
        ``made``, the mean number of supervoxels of the figures; the means over tasks; ``ratio``, the time relative to
        the first method. A method that is missing from a task is left out.
    """
    kept = comparable(rows)
    tasks = [[row for row in kept if row["task"] == task] for task in dict.fromkeys(row["task"] for row in kept)]
    names = [name for name in _names(kept) if all(name in _names(task) for task in tasks)]
    means: dict[str, list[Row]] = {name: [] for name in names}
    for task in tasks:
        curves = {name: curve([row for row in task if row["method"] == name]) for name in names}
        fewest, most = max(c[0]["made"] for c in curves.values()), min(c[-1]["made"] for c in curves.values())
        for name, points in curves.items():
            counts = np.array([point["made"] for point in points])
            positions = np.geomspace(fewest, most, POINTS) if fewest < most else counts
            figures = {
                figure: np.interp(np.log(positions), np.log(counts), [point[figure] for point in points]).mean()
                for figure in points[0]
            }
            means[name].append(figures | {"made": positions.mean()})
    result: list[Row] = []
    for name, task_means in means.items():
        first = next(row for row in kept if row["method"] == name)
        figures = {figure: float(np.mean([task[figure] for task in task_means])) for figure in task_means[0]}
        result.append({key: first[key] for key in ("method", "peer", "setting")} | {"best": False} | figures)
        result[-1]["ratio"] = figures["seconds_per_mvoxel"] / result[0]["seconds_per_mvoxel"]
    for peer in dict.fromkeys(row["peer"] for row in result):
        settings = [row for row in result if row["peer"] == peer]
        max(settings, key=lambda row: row["achievable_dice"])["best"] = True
    return result


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def table(rows: Iterable[Row]) -> str:
    """Return the summary as a Markdown table, with the best setting of each peer in bold."""
    headings = ["", "supervoxels", *(figure.replace("_", " ").replace("dice", "Dice") for figure in QUALITY)]
    lines = ["| " + " | ".join((*headings, "s per million voxels", "times as long")) + " |", "|---" * 8 + "|"]
    for row in summary(rows):
        name = f"**{row['method']}**" if row["best"] else row["method"]
        figures = [f"{row[figure]:.3f}" for figure in QUALITY]
        lines.append("| " + " | ".join((name, f"{row['made']:.0f}", *figures)))
        lines[-1] += f" | {row['seconds_per_mvoxel']:.2f} | {row['ratio']:.1f} |"
    return "\n".join(lines)


def plot(rows: Iterable[Row]) -> Figure:
    """Draw the figures against the number of supervoxels: a row of panels for each task, and their mean on top.

    The setting of each peer with the highest mean achievable Dice is drawn bold, the others thin.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    kept, methods = comparable(rows), summary(rows)
    if not methods:
        raise ValueError("there is nothing to draw: no method succeeded.")
    tasks = list(dict.fromkeys(row["task"] for row in kept))
    names = [f"Mean over {len(tasks)} tasks", *tasks] if len(tasks) > 1 else tasks
    figure, grid = plt.subplots(
        len(names), 3, figsize=(10.5, 0.7 + 2.4 * len(names)), sharex=True, squeeze=False, layout="constrained"
    )
    for panels, task in zip(grid, names, strict=True):
        panel_rows = kept if task not in tasks else [row for row in kept if row["task"] == task]
        cases = len({(row["task"], row["case"]) for row in panel_rows})
        panels[0].set_title(f"{task}{', ' * bool(task)}{cases} case{'s' * (cases > 1)}", loc="left", fontsize=10)
        for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
            for method in methods:
                _draw(panel, [row for row in panel_rows if row["method"] == method["method"]], method, name)
            panel.set_ylabel(title)
            panel.grid(color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
        panels[2].set_yscale("log")
        panels[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for panel in grid[-1]:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(sorted({row["asked"] for row in kept})))
        panel.set_xlabel("Supervoxels")
    for axis in (*(panel.xaxis for panel in grid[-1]), *(panel.yaxis for panel in grid[:, 2])):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw(panel: Any, rows: Sequence[Row], method: Row, figure: str) -> None:
    title, colour, marker = STYLES.get(method["peer"], (method["peer"], "0.3", "x"))
    style: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6}
    if method["best"]:
        label = f"{title} {method['setting']}".strip()
        style = {"linewidth": 1.8, "marker": marker, "markersize": 5, "label": label, "zorder": 3}
    points = curve(rows)
    panel.plot([point["made"] for point in points], [point[figure] for point in points], color=colour, **style)
