"""Quality at equal counts on the real volumes: ``python tests/benchmarks/quality.py [--json FILE]``.

Every method gets the same volume, cropped to whole cells, the same window and the same number of supervoxels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from cases import DATA, cases, methods

from dseeds import evaluate

FIGURES = {
    "aDice": "achievable_dice",
    "ASA": "achievable_segmentation_accuracy",
    "UE": "undersegmentation_error",
    "recall": "boundary_recall",
    "EV": "explained_variation",
    "compact": "compactness",
    "in pieces": "disconnected",
    "count": "supervoxels",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the real volumes are not at {DATA}; set DSEEDS_DATA.")
    rows = []
    print(f"{'case':<18}{'step':>5}  {'method':<20}" + "".join(f"{name:>10}" for name in FIGURES))
    for case in cases():
        if not case.name.startswith(arguments.only):
            continue
        clipped = np.clip(case.image, *case.window)
        for name, method in methods().items():
            found = evaluate(method(case), case.truth, image=clipped)
            row = {short: found[key] for short, key in FIGURES.items()}
            rows.append({"case": case.name, "step": case.step, "method": name, **row})
            print(
                f"{case.name:<18}{case.step:>5}  {name:<20}"
                + "".join(f"{v:>10.3f}" if isinstance(v, float) else f"{v:>10}" for v in row.values()),
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
