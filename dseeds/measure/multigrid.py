"""Linear equations of a graph's Laplacian, solved by conjugate gradients with an aggregation-based multigrid.

Levels are made by pairing nodes twice along strong edges, and visited in K-cycles: Y. Notay, "An aggregation-based
algebraic multigrid method", ETNA 37, 2010. The levels depend on the graph alone. Which nodes are held changes only
numbers in them, so that another choice of these costs a pass through the edges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dseeds.measure.kernels import multigrid as kernel

Floats = NDArray[np.float64]

# A graph of at most this many nodes is solved directly.
COARSEST = 200
# A K-cycle goes on with a second step where the first left more than this share of the residual.
ENOUGH = 0.25
MOST_STEPS = 500
NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class GraphLevel:
    """A graph and its nodes' groups, which are the nodes of the next level; the coarsest has none.

    `entries` are the next level's entry of each entry; see `dseeds.measure.kernels.multigrid` for the others.
    """

    begins: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    groups: NDArray[np.int32]
    entries: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class MatrixLevel:
    """The matrix of a level, and the factor of the coarsest one."""

    graph: GraphLevel
    weights: Floats
    diagonal: Floats
    factor: NDArray[np.float64] | None

    def residual(self, x: Floats, b: Floats) -> Floats:
        """Return b - A x."""
        result = np.empty_like(b)
        kernel.subtract_product(self.graph.begins, self.graph.neighbours, self.weights, self.diagonal, x, b, result)
        return result

    def smooth(self, b: Floats, x: Floats, *, forward: bool) -> None:
        """Improve x by one step of Gauss-Seidel."""
        kernel.smooth(self.graph.begins, self.graph.neighbours, self.weights, self.diagonal, b, x, forward)


def build_levels(begins: NDArray[np.int64], neighbours: NDArray[np.int32], weights: Floats) -> list[GraphLevel]:
    """Return the levels of a graph, the finest first."""
    levels = [GraphLevel(begins, neighbours, NOTHING, NOTHING)]
    while len(begins) - 1 > COARSEST and len(neighbours):
        groups, count = _group_nodes(begins, neighbours, weights)
        coarse_begins, coarse_neighbours, entries = kernel.coarsen_rows(begins, neighbours, groups, count)
        levels[-1] = replace(levels[-1], groups=groups, entries=entries)
        weights = add_by_group(entries, weights, len(coarse_neighbours))
        begins, neighbours = coarse_begins, coarse_neighbours
        levels.append(GraphLevel(begins, neighbours, NOTHING, NOTHING))
    return levels


def _group_nodes(
    begins: NDArray[np.int64], neighbours: NDArray[np.int32], weights: Floats
) -> tuple[NDArray[np.int32], int]:
    """Return the group of each node, two pairs that are strongly connected, and the number of groups."""
    pairs, count = kernel.pair_nodes(begins, neighbours, weights, np.zeros(len(begins) - 1))
    paired_begins, paired_neighbours, entries = kernel.coarsen_rows(begins, neighbours, pairs, count)
    masses = add_by_group(pairs, kernel.sum_weights(begins, weights, np.zeros(len(begins) - 1)), count)
    paired = add_by_group(entries, weights, len(paired_neighbours))
    pairs_of_pairs, count = kernel.pair_nodes(paired_begins, paired_neighbours, paired, masses)
    return pairs_of_pairs[pairs], count


def add_by_group(groups: NDArray[np.int32], values: Floats, count: int) -> Floats:
    """Return the sums of values by group; those of group -1 belong to none."""
    totals = np.empty(count)
    kernel.add_to_groups(groups, values, totals)
    return totals


class LaplacianSolver:
    """The equations A x = b of a graph's Laplacian, in which held nodes are 0.

    Every connected component must have a held node, or be held as a whole.
    """

    def __init__(self, levels: list[GraphLevel], weights: Floats, held: NDArray[np.bool_]) -> None:
        finest, self.held = levels[0], held
        weights, outflow = kernel.hold_nodes(finest.begins, finest.neighbours, weights, held)
        self._levels: list[MatrixLevel] = []
        for level, coarser in zip(levels, [*levels[1:], None], strict=True):
            diagonal, factor = kernel.sum_weights(level.begins, weights, outflow), None
            if coarser is None and len(level.neighbours):
                factor = kernel.factorise(level.begins, level.neighbours, weights, diagonal)
            self._levels.append(MatrixLevel(level, weights, diagonal, factor))
            if coarser is not None:
                weights = add_by_group(level.entries, weights, len(coarser.neighbours))
                outflow = add_by_group(level.groups, outflow, len(coarser.begins) - 1)

    def solve(self, x: Floats, b: Floats, tolerance: float) -> tuple[Floats, int]:
        """Return the solution from a first guess, and the number of steps.

        Flexible conjugate gradients go on until a multigrid cycle would change no value by more than the tolerance.
        """
        finest = self._levels[0]
        x, residual, steps = x.copy(), finest.residual(x, b), 0
        direction, image, scale = np.zeros_like(b), np.zeros_like(b), 1.0
        while True:
            change = self._cycle(0, residual)
            if np.abs(change).max(initial=0) <= tolerance or steps == MOST_STEPS:
                if steps == MOST_STEPS:
                    raise RuntimeError(f"the equations were not solved in {steps} steps: choose a smaller beta.")
                return x + change, steps
            change -= kernel.dot(change, image) / scale * direction
            direction, image = change, -finest.residual(change, np.zeros_like(b))
            scale = kernel.dot(direction, image)
            step = kernel.dot(direction, residual) / scale
            x += step * direction
            residual -= step * image
            steps += 1

    def _cycle(self, number: int, b: Floats) -> Floats:
        """Return an approximate solution of the equations of a level."""
        level = self._levels[number]
        if level.factor is not None:
            return kernel.solve_factorised(level.factor, b)
        x = np.zeros_like(b)
        level.smooth(b, x, forward=True)
        if number + 1 < len(self._levels):
            coarse = add_by_group(level.graph.groups, level.residual(x, b), len(self._levels[number + 1].diagonal))
            kernel.prolong(level.graph.groups, self._correct(number + 1, coarse), level.diagonal, x)
            level.smooth(b, x, forward=False)
        return x

    def _correct(self, number: int, b: Floats) -> Floats:
        """Return an approximate solution of a coarser level's equations, by up to two steps of conjugate gradients."""
        level, first = self._levels[number], self._cycle(number, b)
        if number + 1 == len(self._levels):
            return first
        image = -level.residual(first, np.zeros_like(b))
        scale = kernel.dot(first, image)
        if scale <= 0:
            return first
        share = kernel.dot(first, b) / scale
        rest = b - share * image
        if kernel.dot(rest, rest) <= ENOUGH * ENOUGH * kernel.dot(b, b):
            return share * first
        second = self._cycle(number, rest)
        overlap = kernel.dot(second, image)
        own = kernel.dot(second, -level.residual(second, np.zeros_like(b))) - overlap * overlap / scale
        if own <= 0:
            return share * first
        step = kernel.dot(second, rest) / own
        return (share - overlap * step / scale) * first + step * second
