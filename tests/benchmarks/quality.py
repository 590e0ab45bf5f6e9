"""Quality at equal counts on the real volumes: ``python tests/benchmarks/quality.py [--json FILE]``.

Every method gets the same volume, cropped to whole cells, the same window and the same number of supervoxels to make;
the last column is how many it made.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from cases import DATA, Case, cases, methods

from dseeds import evaluate

FIGURES = {
    "aDice": "achievable_dice",
    "ASA": "achievable_segmentation_accuracy",
    "UE": "undersegmentation_error",
    "recall": "boundary_recall",
    "EV": "explained_variation",
    "compact": "compactness",
    "pieces": "components_per_label",
    "count": "supervoxels",
}
# The figures that rank methods, and whether more is better.
DECIDE = {"aDice": 1, "UE": -1, "EV": 1}

Row = dict[str, Any]


def measure(case: Case, labels: np.ndarray) -> Row:
    image = np.clip(case.image, *case.windows[0])
    found = evaluate(labels, case.truth, image=image)
    return {short: found.get(figure) for short, figure in FIGURES.items()}


def line(case: str, step: str, method: str, figures: list[Any]) -> str:
    words = ("-" if f is None else f"{f:.3f}" if isinstance(f, float) else str(f) for f in figures)
    return f"{case:<18}{step:>8}  {method:<20}" + "".join(f"{word:>9}" for word in words)


def means(rows: list[Row]) -> list[Row]:
    """Return the mean of every figure of a method over the cases that have it."""
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        figures = {f: [row[f] for row in own if row[f] is not None] for f in FIGURES}
        found.append({"method": name, **{f: float(np.mean(v)) if v else None for f, v in figures.items()}})
        found[-1]["count"] = round(found[-1]["count"])
    return found


def ahead(rows: list[Row], peers: set[str]) -> dict[str, list[bool]]:
    """Return for each case and figure whether dseeds is ahead of the best setting of the peers."""
    found: dict[str, list[bool]] = {figure: [] for figure in DECIDE}
    for _, group in groupby(rows, lambda row: (row["case"], row["step"])):
        ours, *others = group
        for figure, sign in DECIDE.items():
            if ours[figure] is not None:
                best = max(sign * row[figure] for row in others if row["peer"] in peers)
                found[figure].append(sign * ours[figure] > best)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the real volumes are not at {DATA}; set DSEEDS_DATA to their folder.")
    rows: list[Row] = []
    compared = methods()
    heading = line("case", "step", "method", list(FIGURES))
    print(heading)
    for case in cases(arguments.only):
        step = "x".join(map(str, case.step))
        for method in compared:
            figures = measure(case, method.cut(case))
            rows.append({"case": case.name, "step": step, "peer": method.peer, "method": method.name, **figures})
            print(line(case.name, step, method.name, list(figures.values())), flush=True)
    print("\n" + heading)
    for mean in means(rows):
        print(line("mean", "", mean.pop("method"), list(mean.values())))
    print()
    peers = {method.peer: {method.peer} for method in compared[1:]}
    for peer, same in (peers | {"all peers": set(peers)} if peers else {}).items():
        wins = ahead(rows, same)
        each = ", ".join(f"{figure} {sum(won)} of {len(won)}" for figure, won in wins.items() if won)
        print(f"dseeds is ahead of the best setting of {peer} in {each}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
