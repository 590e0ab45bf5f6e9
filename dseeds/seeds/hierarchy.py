"""Step 7, `levels`: coarser supervoxels as unions of finer ones, from the graph alone.

A supervoxel of twice the step begins as all supervoxels in the same cell of twice the size. Then whole supervoxels move
between these groups, as blocks and voxels do in SEEDS. Every level is nested in the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.seeds.contact_graph import ContactGraph, adjacency_lists
from dseeds.seeds.kernels.hierarchy import climb_groups, group_components
from dseeds.seeds.kernels.min_size import join_nodes

# Each has twice the step of the one before it, so the last has 65,536 times the first step.
MOST_COARSER_LEVELS = 16


@dataclass(frozen=True, eq=False)
class CoarserLevel:
    """A level of the hierarchy.

    `parents`, int64 (n + 1,), are the parents of the supervoxels of the level before, 0 for 0. `graph` is the whole
    graph of the level, with ids 1 to m, and `cells`, int64 (m, 3), the cell (z, y, x) of each of them; cells are twice
    as large as in the level before.
    """

    parents: NDArray[np.int64]
    graph: ContactGraph
    cells: NDArray[np.int64]


def check_levels(levels: Any) -> int:
    """Return a number of coarser levels; raise a ValueError unless it is whole and from 0 to 16."""
    if isinstance(levels, bool) or not isinstance(levels, Integral) or not 0 <= int(levels) <= MOST_COARSER_LEVELS:
        raise ValueError(f"levels must be a whole number from 0 to {MOST_COARSER_LEVELS}, got {levels!r}.")
    return int(levels)


def coarser_level(graph: ContactGraph, cells: NDArray[np.int64], weights: tuple[int, ...] = (1,)) -> CoarserLevel:
    """Return the supervoxels of twice the step, from the whole graph and the cell (z, y, x) of each supervoxel.

    Each is connected through the graph's edges, and their ids follow the order of their cells. Raise a ValueError if
    the graph's ids are not 1 to n.

    >>> from dseeds.seeds.contact_graph import build_contact_graph
    >>> from dseeds.core.geometry import Box
    >>> labels = np.array([[[1, 2, 3, 4]]])
    >>> bins = np.array([[[[10, 30, 30, 30]]]], np.uint8)
    >>> graph = build_contact_graph(labels, Box((0, 0, 0), (1, 1, 4)), bins)
    >>> level = coarser_level(graph, np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]]))
    >>> level.parents[labels], level.cells.tolist()
    (array([[[1, 2, 2, 2]]]), [[0, 0, 0], [0, 0, 1]])
    """
    count = len(cells)
    if not np.array_equal(graph.ids, np.arange(1, count + 1)):
        raise ValueError(f"the graph must have the supervoxels 1 to {count}, one for each cell.")
    pairs, scale = graph.pairs - 1, np.array(weights, np.int64)
    larger, groups = np.unique(cells // 2, axis=0, return_inverse=True)
    groups = groups.reshape(-1).astype(np.int64)
    climb_groups(groups, larger, graph.sizes, graph.sums, scale, adjacency_lists(count, pairs, graph.contacts))
    first = group_components(groups, pairs)
    names, piece = np.unique(first, return_inverse=True)
    ends = _join_fragments(graph.relabelled(piece + 1, piece[pairs] + 1), groups[names], scale)
    _, lowest, member = np.unique(ends[piece], return_index=True, return_inverse=True)
    home = groups[names[ends[piece[lowest]]]]
    order = np.lexsort((lowest, home))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(1, len(order) + 1)
    parents = np.append(0, numbers[member])
    return CoarserLevel(parents, graph.relabelled(parents[graph.ids], parents[graph.pairs]), larger[home[order]])


def _join_fragments(pieces: ContactGraph, groups: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join all pieces of a group except the largest to their most similar neighbours; return the piece of each."""
    order = np.lexsort((-pieces.sizes, groups))
    largest = order[np.unique(groups[order], return_index=True)[1]]
    limits = np.full(len(groups), pieces.sizes.sum() + 1)
    limits[largest] = 0
    lists = adjacency_lists(len(groups), pieces.pairs - 1, pieces.contacts)
    return join_nodes(limits, pieces.sizes, pieces.sums, weights, lists)
