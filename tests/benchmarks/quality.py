"""Quality at equal counts on the real volumes: ``python tests/benchmarks/quality.py [--json FILE]``.

Every method gets the same volume, cropped to whole cells, the same intensity window, and the same requested number of
supervoxels; the last column is the number that it made.
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
# The figures that rank methods: 1 where a larger value is better, else -1.
RANKING = {"aDice": 1, "UE": -1, "EV": 1}

Row = dict[str, Any]


def measure(case: Case, labels: np.ndarray) -> Row:
    image = np.clip(case.image, *case.windows[0])
    figures = evaluate(labels, case.truth, image=image)
    return {heading: figures.get(name) for heading, name in FIGURES.items()}


def line(case: str, step: str, method: str, figures: list[Any]) -> str:
    words = ("-" if f is None else f"{f:.3f}" if isinstance(f, float) else str(f) for f in figures)
    return f"{case:<18}{step:>8}  {method:<20}" + "".join(f"{word:>9}" for word in words)


def means(rows: list[Row]) -> list[Row]:
    """Return each method's mean of every figure, over the cases that have it."""
    result = []
    for method in dict.fromkeys(row["method"] for row in rows):
        method_rows = [row for row in rows if row["method"] == method]
        figures = {f: [row[f] for row in method_rows if row[f] is not None] for f in FIGURES}
        result.append({"method": method, **{f: float(np.mean(v)) if v else None for f, v in figures.items()}})
        result[-1]["count"] = round(result[-1]["count"])
    return result


def ahead(rows: list[Row], peers: set[str]) -> dict[str, list[bool]]:
    """Return by figure, for each case, whether dseeds is ahead of the best setting of the peers."""
    result: dict[str, list[bool]] = {figure: [] for figure in RANKING}
    for _, group in groupby(rows, lambda row: (row["case"], row["step"])):
        ours, *others = group
        for figure, sign in RANKING.items():
            if ours[figure] is not None:
                best = max(sign * row[figure] for row in others if row["peer"] in peers)
                result[figure].append(sign * ours[figure] > best)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--only", default="", help="only cases whose name begins with this")
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
    for name, members in (peers | {"all peers": set(peers)} if peers else {}).items():
        wins = ahead(rows, members)
        counts = ", ".join(f"{figure} {sum(won)} of {len(won)}" for figure, won in wins.items() if won)
        print(f"dseeds is ahead of the best setting of {name} in {counts}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
