"""Means of a benchmark, in which kinds of volumes count alike, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dseeds.benchmark.criteria import CRITERIA, RANKING, ROBUSTNESS

Row: TypeAlias = dict[str, Any]

GROUPS = {False: "without boundary maps", True: "with boundary maps"}


@dataclass(frozen=True)
class SummaryTable:
    """A table of texts; the first column holds names."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    note: str = ""

    def to_markdown(self) -> str:
        """Return the table in Markdown below its title.

        >>> print(SummaryTable("Means", ["method", "UE"], [["dseeds", "0.062"]]).to_markdown())
        ### Means
        <BLANKLINE>
        | method | UE |
        |---|---:|
        | dseeds | 0.062 |
        """
        rule = "|---" + "|---:" * (len(self.headings) - 1) + "|"
        body = [f"| {' | '.join(cells)} |" for cells in (self.headings, *self.lines)]
        lines = [f"### {self.title}", "", body[0], rule, *body[1:]]
        return "\n".join([*lines, "", self.note] if self.note else lines)


def tabulate_all(rows: Sequence[Row]) -> list[SummaryTable]:
    """Return all tables, for the cases without boundary maps and for those with them."""
    result = []
    for has_map, name in GROUPS.items():
        group = comparable(rows_of(rows, has_map))
        if group:
            left_out = [method for method in names_of(rows_of(rows, has_map)) if method not in names_of(group)]
            result += [tabulate_means(group, name, left_out), tabulate_kinds(group, name)]
            if any(row["disturbance"] for row in group) or has_several_steps(group):
                result.append(tabulate_robustness(group, name))
    return result


def rows_of(rows: Iterable[Row], has_map: bool) -> list[Row]:
    """Return the rows of the cases with, or of those without, a boundary map."""
    return [row for row in rows if (row["boundaries"] is not None) == has_map]


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the methods that have figures wherever any has, so that means are of the same cases."""
    wanted = {_place(row) for row in rows if row["error"] is None}
    complete = [
        name
        for name in names_of(rows)
        if {_place(row) for row in rows if row["method"] == name and row["error"] is None} == wanted
    ]
    return [row for row in rows if row["method"] in complete]


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of methods in their order."""
    return list(dict.fromkeys(row["method"] for row in rows))


def has_several_steps(rows: Iterable[Row]) -> bool:
    """Return whether every case has more than one step."""
    steps: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        steps.setdefault(row["case"], set()).add(tuple(row["step"]))
    return all(len(of_case) > 1 for of_case in steps.values())


def mean_of_kinds(rows: Iterable[Row], summarise: Callable[[list[Row]], float]) -> float:
    """Return the mean over kinds of the mean over cases of what is computed from the rows of a case.

    >>> rows = [{"kind": k, "case": c, "UE": u} for k, c, u in (("CT", 1, 0.1), ("CT", 2, 0.3), ("MR", 3, 0.6))]
    >>> round(mean_of_kinds(rows, lambda of_case: of_case[0]["UE"]), 3)
    0.4
    """
    cases: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        cases.setdefault(row["kind"], {}).setdefault(row["case"], []).append(row)
    return float(np.mean([np.mean([summarise(of_case) for of_case in kind.values()]) for kind in cases.values()]))


def mean_figure(rows: Iterable[Row], figure: str) -> float:
    """Return the mean of a figure over steps, then cases, then kinds."""
    return mean_of_kinds(rows, lambda of_case: float(np.mean([row[figure] for row in of_case])))


def spread(rows: Iterable[Row], figure: str) -> float:
    """Return the standard deviation of a figure over the steps of a case, as the mean over cases, then kinds."""
    return mean_of_kinds(rows, lambda of_case: float(np.std([row[figure] for row in of_case])))


def loss(rows: Sequence[Row], figure: str, disturbance: str) -> float:
    """Return by how much a figure of a method gets worse under a disturbance; negative where it gets better."""
    clear, disturbed = (
        mean_figure([row for row in rows if row["disturbance"] == name], figure) for name in (None, disturbance)
    )
    return CRITERIA[figure].better * (clear - disturbed)


def best_settings(rows: Sequence[Row]) -> list[str]:
    """Return for each peer the method whose mean achievable Dice is highest."""
    clear = undisturbed(rows)
    result = []
    for peer in dict.fromkeys(row["peer"] for row in clear):
        of_peer = {name: rows_of_method(clear, name) for name in names_of(row for row in clear if row["peer"] == peer)}
        result.append(max(of_peer, key=lambda name: mean_figure(of_peer[name], RANKING[0])))
    return result


def undisturbed(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without noise and blur."""
    return [row for row in rows if row["disturbance"] is None]


def rows_of_method(rows: Iterable[Row], name: str) -> list[Row]:
    """Return the rows of one method."""
    return [row for row in rows if row["method"] == name]


def count_wins(rows: Sequence[Row], own: str) -> dict[str, tuple[int, int]]:
    """Return for each ranking figure in how many cases, at all steps, a method leads all settings of all peers.

    Returns
    -------
    dict
        For each figure the cases in which it leads, and all cases; empty without peers.
    """
    places: dict[Any, list[Row]] = {}
    for row in undisturbed(rows):
        places.setdefault(_place(row), []).append(row)
    result: dict[str, tuple[int, int]] = {}
    for figure in RANKING:
        sign, wins, total = CRITERIA[figure].better, 0, 0
        for members in places.values():
            ours = [sign * row[figure] for row in members if row["method"] == own]
            others = [sign * row[figure] for row in members if not row["is_own"]]
            if ours and others:
                wins, total = wins + (ours[0] > max(others)), total + 1
        if total:
            result[figure] = wins, total
    return result


def tabulate_means(rows: Sequence[Row], group: str, left_out: Sequence[str] = ()) -> SummaryTable:
    """Return the table of the means of all figures, with the best setting of each peer in bold."""
    clear, best = undisturbed(rows), best_settings(rows)
    lines = []
    for name in names_of(clear):
        of_method = rows_of_method(clear, name)
        figures = [f"{mean_figure(of_method, figure):.{c.digits}f}" for figure, c in CRITERIA.items()]
        lines.append([f"**{name}**" if name in best else name, *figures])
    notes = [_describe_wins(rows, row) for row in dict.fromkeys(r["method"] for r in clear if r["is_own"])]
    if left_out:
        notes.append(f"Not in this table, as figures of some cases are missing: {', '.join(left_out)}.")
    kinds, cases = (len({row[key] for row in clear}) for key in ("kind", "case"))
    title = f"Means over {_count(kinds, 'kind')} of volumes, {_count(cases, 'case')} {group}"
    return SummaryTable(title, ["", *(c.heading for c in CRITERIA.values())], lines, " ".join(filter(None, notes)))


def _describe_wins(rows: Sequence[Row], own: str) -> str:
    wins = count_wins(rows, own)
    if not wins:
        return ""
    counts = [f"{CRITERIA[figure].heading} {won} of {total}" for figure, (won, total) in wins.items()]
    return f"{own} leads the best setting of all peers, chosen anew each time, in: {', '.join(counts)}."


def tabulate_kinds(rows: Sequence[Row], group: str) -> SummaryTable:
    """Return the table of the ranking figures of each kind, for the setting of each peer that is best for the kind."""
    clear = undisturbed(rows)
    peers = list(dict.fromkeys(row["peer"] for row in clear))
    columns = {}
    for kind in dict.fromkeys(row["kind"] for row in clear):
        of_kind = [row for row in clear if row["kind"] == kind]
        columns[kind] = [_summarise_kind(rows_of_method(of_kind, name)) for name in best_settings(of_kind)]
    headings = " / ".join(CRITERIA[figure].heading for figure in RANKING)
    lines = [list(line) for line in zip(peers, *columns.values(), strict=True)]
    return SummaryTable(f"{headings} of each kind {group}", ["", *columns], lines)


def _summarise_kind(rows: Sequence[Row]) -> str:
    """Return the ranking figures of a method, with its setting."""
    figures, setting = " / ".join(f"{mean_figure(rows, figure):.3f}" for figure in RANKING), rows[0]["setting"]
    return f"{figures} ({setting})" if setting else figures


def tabulate_robustness(rows: Sequence[Row], group: str) -> SummaryTable:
    """Return the table of losses under noise and blur, and of the spread over steps, for the best settings."""
    disturbances = list(dict.fromkeys(row["disturbance"] for row in rows if row["disturbance"]))
    is_spread = has_several_steps(rows)
    lines = []
    for name in best_settings(rows):
        of_method = rows_of_method(rows, name)
        cells = [[f"{loss(of_method, figure, d):.3f}" for figure in ROBUSTNESS] for d in disturbances]
        if is_spread:
            cells.append([f"{spread(undisturbed(of_method), figure):.3f}" for figure in ROBUSTNESS])
        lines.append([name, *(" / ".join(pair) for pair in cells)])
    headings = " / ".join(CRITERIA[figure].heading for figure in ROBUSTNESS)
    columns = [*(f"lost to {d}" for d in disturbances), *(["spread over steps"] if is_spread else [])]
    return SummaryTable(f"Robustness and stability {group}: {headings}", ["", *columns], lines)


def _place(row: Row) -> tuple[Any, ...]:
    return row["case"], tuple(row["step"]), row["disturbance"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"
