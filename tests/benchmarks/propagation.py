"""Seconds of a random walk on supervoxels: ``python tests/benchmarks/propagation.py [--nodes 1e6] [--classes 3]``.

The supervoxels are a lattice whose cells touch 14 others each, as in a foam. Noisy organs lie in nearly uniform air.
200 cells are annotated, and then one more, the first that is suggested.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from dseeds.core.process import peak_memory
from dseeds.measure.propagation import RandomWalker
from dseeds.measure.region_graph import AdjacencyGraph

# From a cell to those of its neighbours that have higher labels.
OFFSETS = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
ORGANS, ANNOTATED = 60, 200


def lattice(side: int, classes: int) -> tuple[AdjacencyGraph, dict[int, int]]:
    """Return the graph of a cube of cells, and the classes of some of them."""
    rng = np.random.default_rng(0)
    places = np.arange(side**3).reshape((side,) * 3)
    pairs = []
    for offset in OFFSETS:
        low = places[tuple(slice(side - step) for step in offset)]
        high = places[tuple(slice(step, None) for step in offset)]
        pairs.append(np.stack([low.ravel(), high.ravel()], axis=1))
    pairs = np.concatenate(pairs)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    z, y, x = (np.arange(side).reshape(shape) for shape in ((-1, 1, 1), (-1, 1), (-1,)))
    mean, organs = np.full((side,) * 3, 3.0), np.ones((side,) * 3, int)
    for organ in range(ORGANS):
        (a, b, c), radius = rng.uniform(0.25, 0.75, 3) * side, rng.uniform(0.03, 0.15) * side
        inside = (z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < radius**2
        mean[inside], organs[inside] = rng.uniform(12, 60), organ % (classes - 1) + 2
    mean += rng.normal(0, 1, mean.shape) * np.where(organs > 1, 0.6, 0.2)
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(organs == name), ANNOTATED // classes) for name in range(1, classes + 1)]
    )
    area = {"area": rng.uniform(0.2, 2, len(pairs))}
    graph = AdjacencyGraph(np.arange(1, side**3 + 1), pairs, {"intensity_mean": mean.ravel()}, area)
    return graph, dict(zip((chosen + 1).tolist(), organs.ravel()[chosen].tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=float, default=1e6)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    # The kernels compile.
    small, few = lattice(8, 2)
    RandomWalker(small).propagate(few).suggest()
    graph, classes = lattice(round(arguments.nodes ** (1 / 3)), arguments.classes)
    clocks, figures = (
        [(time.perf_counter(), time.process_time())],
        {"nodes": len(graph.labels), "edges": len(graph.pairs)},
    )

    def note(name: str) -> None:
        clocks.append((time.perf_counter(), time.process_time()))
        figures[name], figures[f"{name}, CPU"] = (new - old for new, old in zip(clocks[-1], clocks[-2], strict=True))

    walker = RandomWalker(graph, threads=arguments.threads)
    note("preparation")
    result = walker.propagate(classes)
    note("first answer")
    (label, *_) = result.suggest(10).tolist()
    note("suggestions")
    walker.propagate({**classes, label: 2})
    note("added annotation")
    figures["peak MiB"] = round(peak_memory() / 2**20)
    for name, figure in figures.items():
        print(f"{name:<24}{figure:>12.1f}" if isinstance(figure, float) else f"{name:<24}{figure:>12}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
