"""Seconds and memory of merging supervoxels: ``python tests/benchmarks/agglomeration.py [--edges 1e6,1e7]``.

The supervoxels are a lattice whose cells touch 14 others each, as in a foam. Most are nearly uniform air, so that one
segment of air comes to touch tens of thousands of others; noisy organs lie in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dseeds.core.process import peak_memory
from dseeds.measure.agglomeration import EPSILON, agglomerate

BINS, VOXELS = 64, 1000
# From a cell to those of its neighbours that have higher labels.
OFFSETS = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
ORGANS = 60


def write_features(folder: Path, edges: int) -> None:
    """Write the tables of a lattice with about ``edges`` edges, one plane per part."""
    side = round((edges / len(OFFSETS)) ** (1 / 3)) + 1
    rng = np.random.default_rng(0)
    centres, radii = rng.uniform(0.25, 0.75, (ORGANS, 3)) * side, rng.uniform(0.03, 0.15, ORGANS) * side
    brightness = rng.uniform(12, 60, ORGANS)
    for name in ("table.parquet", "edges.parquet"):
        (folder / name).mkdir(parents=True)
    plane = np.stack(np.meshgrid([0], np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 3)
    for z in range(side):
        cells = plane + np.array([z, 0, 0])
        mean, spread = np.full(len(cells), 3.0), np.full(len(cells), 1.0)
        for centre, radius, bright in zip(centres, radii, brightness, strict=True):
            inside = ((cells - centre) ** 2).sum(1) < radius**2
            mean[inside], spread[inside] = bright, 3.0
        # Noise of single voxels spreads the histograms, noise of whole supervoxels shifts them.
        mean += rng.normal(0, 0.2 * spread)
        share = np.exp(-0.5 * ((np.arange(BINS) - mean[:, None]) / spread[:, None]) ** 2)
        counts = rng.poisson(VOXELS * share / share.sum(1, keepdims=True))
        labels = cells @ [side * side, side, 1] + 1
        histograms = pa.FixedSizeListArray.from_arrays(counts.reshape(-1), BINS)
        table = pa.table({"label": labels, "num_pixels": counts.sum(1), "histogram": histograms})
        neighbours = cells[:, None] + OFFSETS
        is_inside = (neighbours < side).all(-1)
        contacts = pa.table(
            {
                "source": np.repeat(labels, is_inside.sum(1)),
                "target": neighbours[is_inside] @ [side * side, side, 1] + 1,
            }
        )
        pq.write_table(table, folder / "table.parquet" / f"part-{z:05}.parquet")
        pq.write_table(contacts, folder / "edges.parquet" / f"part-{z:05}.parquet")


def measure(folder: Path, epsilon: float) -> dict[str, Any]:
    """Merge the supervoxels of a folder; return seconds and bytes."""
    with tempfile.TemporaryDirectory() as small:
        write_features(Path(small, "features"), 1000)
        # Compile the kernels.
        agglomerate(Path(small, "features"), epsilon=epsilon)
    before = peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    tree = agglomerate(folder, epsilon=epsilon)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    edges = sum(pq.read_metadata(path).num_rows for path in (folder / "edges.parquet").iterdir())
    return {
        "nodes": len(tree.labels),
        "edges": edges,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_memory(),
        "peak_bytes_before": before,
        "segments_at_a_quarter": int(tree.cut(threshold=0.25).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", default="1e6,1e7", help="numbers of edges, separated by commas")
    parser.add_argument("--epsilon", type=float, default=EPSILON)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--folder", type=Path, help="measure only this folder of features, in this process")
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.folder, arguments.epsilon)))
        return
    figures = []
    print(f"{'nodes':>10}{'edges':>12}{'seconds':>10}{'CPU':>10}{'peak MiB':>10}")
    for edges in map(float, arguments.edges.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "features")
            write_features(folder, int(edges))
            # In a process of its own, because its peak memory includes everything before.
            command = [sys.executable, __file__, "--folder", str(folder), "--epsilon", str(arguments.epsilon)]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
        row = json.loads(done.stdout)
        figures.append(row)
        cost = f"{row['seconds']:>10.1f}{row['cpu_seconds']:>10.1f}{row['peak_bytes'] / 2**20:>10.0f}"
        print(f"{row['nodes']:>10}{row['edges']:>12}{cost}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
