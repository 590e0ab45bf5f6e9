"""What comes of the benchmark study: means at equal numbers of supervoxels, a table and plots."""

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
# Colours that the colour-blind can tell apart: Okabe and Ito, https://jfly.uni-koeln.de/color/.
STYLES = {
    "dseeds": ("dseeds", "#0072B2", "o"),
    "SLIC": ("SLIC (scikit-image), compactness", "#D55E00", "s"),
    "SimpleITK SLIC": ("SLIC (SimpleITK), weight", "#009E73", "^"),
    "3D SEEDS": ("3D SEEDS (C++), blocks of", "#CC79A7", "D"),
}
# Numbers of supervoxels at which methods are compared, between the fewest and the most that all of them make.
POINTS = 9

Row = dict[str, Any]


def comparable(rows: Iterable[Row]) -> list[Row]:
    """Keep what every method has done: means over different cases would tell nothing.

    Within a task, a method counts if it has done anything at all.
    """
    done = [row for row in rows if not row["error"]]
    found = []
    for task in dict.fromkeys(row["task"] for row in done):
        own = [row for row in done if row["task"] == task]
        names = set(_names(own))
        for _, group in groupby(own, lambda row: (row["case"], row["asked"])):
            each = list(group)
            if set(_names(each)) == names:
                found += each
    return found


def mean(rows: Sequence[Row]) -> Row:
    """Average the figures of one method at one number of supervoxels: over tasks, in each over cases.

    The time is that of all cases of a task by the voxels of them all.
    """
    tasks = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        figures = {name: float(np.mean([row[name] for row in own])) for name in ("made", *QUALITY)}
        seconds, voxels = (sum(row[name] for row in own) for name in ("seconds", "voxels"))
        tasks.append(figures | {"seconds_per_mvoxel": seconds / voxels * 1e6})
    return {name: float(np.mean([task[name] for task in tasks])) for name in tasks[0]}


def curve(rows: Sequence[Row]) -> list[Row]:
    """Average the figures of one method at each number that was asked for, from the fewest supervoxels to the most."""
    asked = {row["asked"] for row in rows}
    means = [mean([row for row in rows if row["asked"] == count]) for count in sorted(asked)]
    return sorted(means, key=lambda row: row["made"])


def summary(rows: Iterable[Row]) -> list[Row]:
    """Average the figures of each method over equal numbers of supervoxels, and tell each peer's best setting.

    Peers make fewer than they are asked for. So the means of each task are interpolated, along the logarithm of the
    number that was made, at points between the fewest and the most that all methods made. If there is no such range, as
    where one number alone was asked for, the figures are those at the numbers that each made.

    Returns
    -------
    list of dict
        ``method``, ``peer``, ``setting``; ``best``, whether no setting of the peer has a higher achievable Dice;
        ``made``, how many supervoxels the figures are for, on average; the means over tasks; ``ratio``, how many times
        as long as the first method it takes. A method that is missing from a task is left out.
    """
    kept = comparable(rows)
    tasks = [[row for row in kept if row["task"] == task] for task in dict.fromkeys(row["task"] for row in kept)]
    names = [name for name in _names(kept) if all(name in _names(task) for task in tasks)]
    means: dict[str, list[Row]] = {name: [] for name in names}
    for task in tasks:
        curves = {name: curve([row for row in task if row["method"] == name]) for name in names}
        fewest, most = max(c[0]["made"] for c in curves.values()), min(c[-1]["made"] for c in curves.values())
        for name, points in curves.items():
            at = np.geomspace(fewest, most, POINTS) if fewest < most else np.array([p["made"] for p in points])
            made = np.log([point["made"] for point in points])
            figures = {f: np.interp(np.log(at), made, [point[f] for point in points]).mean() for f in points[0]}
            means[name].append(figures | {"made": at.mean()})
    found: list[Row] = []
    for name, each in means.items():
        own = next(row for row in kept if row["method"] == name)
        figures = {figure: float(np.mean([task[figure] for task in each])) for figure in each[0]}
        found.append({key: own[key] for key in ("method", "peer", "setting")} | {"best": False} | figures)
        found[-1]["ratio"] = figures["seconds_per_mvoxel"] / found[0]["seconds_per_mvoxel"]
    for peer in dict.fromkeys(row["peer"] for row in found):
        settings = [row for row in found if row["peer"] == peer]
        max(settings, key=lambda row: row["achievable_dice"])["best"] = True
    return found


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def table(rows: Iterable[Row]) -> str:
    """Write the summary as a table in Markdown, the best setting of each peer in bold."""
    heads = ("", "supervoxels", "achievable Dice", "undersegmentation error", "boundary recall", "explained variation")
    lines = ["| " + " | ".join((*heads, "s per million voxels", "times as long")) + " |", "|---" * 8 + "|"]
    for row in summary(rows):
        name = f"**{row['method']}**" if row["best"] else row["method"]
        figures = [f"{row[figure]:.3f}" for figure in QUALITY]
        lines.append("| " + " | ".join((name, f"{row['made']:.0f}", *figures)))
        lines[-1] += f" | {row['seconds_per_mvoxel']:.2f} | {row['ratio']:.1f} |"
    return "\n".join(lines)


def plot(rows: Iterable[Row]) -> Figure:
    """Draw the figures against the number of supervoxels: a row of panels for each task, with their mean on top.

    The setting of each peer that has the highest mean achievable Dice is drawn bold, the others thin.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    kept, shown = comparable(rows), summary(rows)
    if not shown:
        raise ValueError("there is nothing to draw: no method has done anything.")
    tasks = list(dict.fromkeys(row["task"] for row in kept))
    names = [f"Mean over {len(tasks)} tasks", *tasks] if len(tasks) > 1 else tasks
    figure, grid = plt.subplots(
        len(names), 3, figsize=(10.5, 0.7 + 2.4 * len(names)), sharex=True, squeeze=False, layout="constrained"
    )
    for panels, task in zip(grid, names, strict=True):
        own = kept if task not in tasks else [row for row in kept if row["task"] == task]
        cases = len({(row["task"], row["case"]) for row in own})
        panels[0].set_title(f"{task}{', ' * bool(task)}{cases} case{'s' * (cases > 1)}", loc="left", fontsize=10)
        for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
            for method in shown:
                _draw(panel, [row for row in own if row["method"] == method["method"]], method, name)
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


def _draw(panel: Any, rows: Sequence[Row], method: Row, name: str) -> None:
    title, colour, marker = STYLES.get(method["peer"], (method["peer"], "0.3", "x"))
    style: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6}
    if method["best"]:
        label = f"{title} {method['setting']}".strip()
        style = {"linewidth": 1.8, "marker": marker, "markersize": 5, "label": label, "zorder": 3}
    points = curve(rows)
    panel.plot([point["made"] for point in points], [point[name] for point in points], color=colour, **style)
